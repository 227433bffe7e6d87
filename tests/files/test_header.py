"""A safetensors file with many texts has the same bytes each time, and reads as before."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from genalign.files.header import sort_header


def test_equal_texts_are_equal_bytes_and_all_else_stays(tmp_path: Path) -> None:
    """Of texts that JSON escapes, too; of 20 orders at least one is not the sorted one."""
    texts = {name: f'{name} "\\ \n\t\u0001 é 中 \U0001f600 /' for name in ("format", "b", "a", "ü", "z")}
    tensors = {"w": torch.arange(6.0).reshape(2, 3), "v": torch.ones(1, dtype=torch.float16)}
    made = set()
    for k in range(20):
        path = tmp_path / f"{k}.safetensors"
        save_file(tensors, path, metadata=texts)
        size = path.stat().st_size
        sort_header(path)
        assert path.stat().st_size == size
        made.add(path.read_bytes())
    assert len(made) == 1
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == texts
    assert {name: tensor.tolist() for name, tensor in load_file(path).items()} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }
