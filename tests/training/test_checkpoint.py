"""Checkpoints: what is written comes back bit for bit, and what is torn is never picked up."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from genalign.training.checkpoint import (
    load_checkpoint,
    newest_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from genalign.types import GenalignError

PARTS = {"adapter": {"w": torch.arange(6.0).reshape(2, 3)}, "reward": {}}


def test_parts_and_state_come_back_equal(tmp_path: Path) -> None:
    halves = {"w": torch.randn(3, 4).to(torch.bfloat16).T, "n": torch.tensor(7)}  # not contiguous; no axis
    folder = save_checkpoint(tmp_path, 12, {"adapter": halves, "reward": {}}, {"digests": {"reward": "a"}}, keep=2)
    saved = load_checkpoint(folder)
    assert folder.name == "checkpoint-12"
    assert saved.step == 12
    assert saved.state["digests"] == {"reward": "a"}
    assert saved.parts["reward"] == {}
    for name, tensor in halves.items():
        assert saved.parts["adapter"][name].dtype == tensor.dtype
        assert torch.equal(saved.parts["adapter"][name], tensor)


def test_only_the_newest_are_kept_by_number(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        save_checkpoint(tmp_path, step, PARTS, {}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-11"]


def _cut(folder: Path) -> None:
    file = folder / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-3])


def _flip(folder: Path) -> None:
    file = folder / "adapter.safetensors"
    blob = bytearray(file.read_bytes())
    blob[-1] ^= 1
    file.write_bytes(bytes(blob))


def _swap(folder: Path) -> None:
    save_file({"w": torch.zeros(2, 3)}, folder / "adapter.safetensors")


TEARS = {
    "cut": _cut,
    "bit": _flip,
    "other weights": _swap,
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "half a manifest": lambda folder: (folder / "manifest.json").write_text('{"step": 2, "sha'),
    "manifest of nothing": lambda folder: (folder / "manifest.json").write_text("[]"),
    "missing part": lambda folder: (folder / "adapter.safetensors").unlink(),
    "another step": lambda folder: folder.rename(folder.with_name("checkpoint-3")),
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_checkpoint_is_never_picked_up(tmp_path: Path, tear: str) -> None:
    older = save_checkpoint(tmp_path, 1, PARTS, {}, keep=5)
    newer = save_checkpoint(tmp_path, 2, PARTS, {}, keep=5)
    assert newest_checkpoint(tmp_path) == (newer, [])
    TEARS[tear](newer)
    found, passed_over = newest_checkpoint(tmp_path)
    assert found == older
    assert len(passed_over) == 1
    torn = next(path for path in tmp_path.iterdir() if path != older)
    with pytest.raises(GenalignError, match="cannot be resumed from"):
        load_checkpoint(torn)


def test_a_draft_left_by_a_kill_is_ignored_and_replaced(tmp_path: Path) -> None:
    draft = tmp_path / ".checkpoint-3.tmp"
    draft.mkdir()
    (draft / "adapter.safetensors").write_bytes(b"half")
    assert newest_checkpoint(tmp_path) == (None, [])
    folder = save_checkpoint(tmp_path, 3, PARTS, {}, keep=1)
    assert newest_checkpoint(tmp_path)[0] == folder
    assert not draft.exists()


def test_a_torn_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    _cut(save_checkpoint(tmp_path, 3, PARTS, {}, keep=1))
    folder = save_checkpoint(tmp_path, 3, PARTS, {}, keep=1)
    assert newest_checkpoint(tmp_path) == (folder, [])


def test_random_states_come_back() -> None:
    random.gauss(0, 1)  # leaves a spare number behind, which is part of the state
    np.random.normal()
    state = random_state()
    first = [random.random(), random.gauss(0, 1), np.random.normal(), np.random.randint(10**6), torch.rand(3).tolist()]
    set_random_state({name: tensor.clone() for name, tensor in state.items()})
    again = [random.random(), random.gauss(0, 1), np.random.normal(), np.random.randint(10**6), torch.rand(3).tolist()]
    assert first == again
