"""Exemplars in every form."""

import json
import shutil
from pathlib import Path

import pytest

from genalign.reward.heads.exemplars import read_exemplars
from tests.helpers.feature_sets import exemplar_room


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exemplar_room(tmp_path_factory.mktemp("room"))


def test_exemplars_are_read_in_every_form(room: Path, tmp_path: Path):
    rows = []
    for k in range(3):  # a row names pictures below its list
        shutil.copy(room / "shown" / f"{k:02}.png", tmp_path)
        rows.append({"prompt": f"p{k}", "image": f"{k:02}.png"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    both = read_exemplars(str(tmp_path / "rows.jsonl"))
    assert (len(both.pictures), both.texts) == (3, ("p0", "p1", "p2"))
    assert len(read_exemplars(f"{room / 'made.py'}:shown").pictures) == 8
    assert len(read_exemplars(str(room / "shown")).pictures) == 40
    shutil.copytree(room / "shown", tmp_path / "again")  # the digest is of what they show, wherever they lie
    assert read_exemplars(str(room / "shown")).digest == read_exemplars(str(tmp_path / "again")).digest
    (tmp_path / "again" / "00.png").unlink()
    assert read_exemplars(str(room / "shown")).digest != read_exemplars(str(tmp_path / "again")).digest
