"""The cells of assets/table.json still count as finished: their digests are what they were when they were measured."""

from __future__ import annotations

import json

import pytest

from genalign.cli.table import cells
from genalign.files.shipped import shipped

STORED = {name: cell["digest"] for name, cell in json.loads((shipped("assets") / "table.json").read_text()).items()}
CELLS = {cell.name: cell for cell in cells()}
QUICK = ["image-d3po-seed-0", "image-parrot-seed-0", "image-nrg-seed-0"]  # plain; with a writer; with a fitted reward


def test_every_cell_is_measured() -> None:
    assert set(STORED) == set(CELLS)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sorted(STORED)]
)
def test_a_finished_cell_stays_finished(name: str) -> None:
    assert CELLS[name].digest() == STORED[name]
