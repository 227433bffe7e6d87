"""The order of what a run does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from genalign.reward import Runner
from genalign.run.launch import train_recipe
from genalign.training.checkpoint import load_checkpoint
from tests.helpers.tiny_recipe import write_recipe


def test_a_reward_that_draws_while_it_loads_meets_seeded_generators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of the global generators in a checkpoint follows from the seed, whatever was drawn before the run."""

    def version(self: Any) -> str:
        torch.rand(3)  # as a network does that is made before its weights are read
        return "1"

    monkeypatch.setattr(Runner, "version", property(version))
    recipe = write_recipe(tmp_path, train={"steps": 1, "checkpoint_every": 1, "sample_every": 99}, eval=None)
    states = []
    for name in ("one", "two"):
        torch.rand(len(name) + len(states))
        run = train_recipe(str(recipe), out=tmp_path / name)
        assert run is not None
        states.append(load_checkpoint(run / "checkpoint-1").parts["random"]["0/torch"])
    assert torch.equal(*states)
    torch.manual_seed(0)
    torch.rand(3)
    assert torch.equal(states[0], torch.get_rng_state())
