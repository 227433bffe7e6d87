"""A file is replaced as a whole, or what was there stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from genalign.files.atomic import replace_file, replacing


def test_text_and_bytes_replace_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    replace_file(path, b"one")
    replace_file(path, "zw\u00f6lf\n")
    assert path.read_bytes() == b"zw\xc3\xb6lf\n"
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")

    def write() -> None:
        with replacing(path) as draft:
            draft.write_bytes(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_bytes() == b"old"
