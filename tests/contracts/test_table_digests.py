"""The cells of assets/table.json still count as finished: their digests are what they were when they were measured."""

from __future__ import annotations

import json

import pytest

from genalign.cli.table_cells import IMAGE, cells
from genalign.files.shipped import shipped

STORED = {name: cell["digest"] for name, cell in json.loads((shipped("assets") / "table.json").read_text()).items()}
CELLS = {cell.name: cell for cell in cells()}
QUICK = ["image-d3po-seed-0", "image-parrot-seed-0", "image-nrg-seed-0"]  # plain; with a writer; with a fitted reward


def test_every_stored_cell_is_one_and_the_page_names_those_that_are_missing() -> None:
    assert set(STORED) <= set(CELLS)
    missing = [name.removeprefix("image-") for name in CELLS if name not in STORED and CELLS[name].medium == IMAGE]
    page = (shipped("assets").parent / "docs" / "results.md").read_text()
    assert (f"Not measured yet on these models: {', '.join(missing)}." in page) == bool(missing)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sorted(STORED)]
)
def test_a_finished_cell_stays_finished(name: str) -> None:
    assert CELLS[name].digest() == STORED[name]
