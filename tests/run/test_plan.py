"""What `--plan` prints about several ranks, against what two ranks really hold and send."""

from __future__ import annotations

import contextlib
import io
import json
import math
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from genalign import ranks
from genalign.cli.main import main
from genalign.run.build import build
from genalign.run.memory import Memory
from genalign.run.plan import print_plan
from genalign.run.recipe import load_recipe
from genalign.training import sharded
from genalign.training.shares import blocks, share
from tests.helpers.forked import run_ranks
from tests.helpers.tiny_recipe import write_recipe

OVERRIDES = ["train.backend=fsdp2", "data.prompts_per_step=2", "method.group=2", "policy.batch_size=2"]


def _plan(rank: int, port: int, recipe: str, out: Path) -> None:
    """Rank 0 writes what was printed, and what was sent and held by counting."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    built = build(load_recipe(recipe, OVERRIDES), "cpu")
    policy: Any = built.policy
    denoiser, counts = policy.denoiser, Counter[str]()
    predicted = share(denoiser, 2)
    frozen = [p for p in denoiser.parameters() if not p.requires_grad]
    held = sum(math.ceil(p.shape[0] / 2) * p[0].numel() * 4 for p in frozen)
    blocks_first = next(blocks(denoiser))
    blocks_first.register_forward_hook(lambda *_: counts.update(["backward"] * torch.is_grad_enabled() + ["forward"]))
    gather, rollout = sharded._all_gather, policy.rollout

    def counted(output: Any, given: Any, **more: Any) -> Any:
        counts["bytes"] += output.nbytes - given.nbytes
        return gather(output, given, **more)

    def rolled(*args: Any, **more: Any) -> Any:
        """The plan's first rollout is not of its step."""
        drawn = rollout(*args, **more)
        if not counts["warm"]:
            counts.clear()
            counts["warm"] = 1
        return drawn

    sharded._all_gather, policy.rollout = counted, rolled
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        print_plan(built)
    if rank == 0:
        found = {"printed": printed.getvalue(), "held": held, "received": predicted.received, **counts}
        (out / "found.json").write_text(json.dumps(found))
    ranks.leave(0)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"), eval=None)


def test_weights_and_bytes_of_two_ranks_are_those_that_are_there(recipe: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run_ranks(_plan, (port, str(recipe), tmp_path), 2)
    found = json.loads((tmp_path / "found.json").read_text())
    assert f"each rank         holds {found['held'] / 2**20:.3f} of the " in found["printed"]
    assert f"is sent         {found['bytes'] / 2**20:.3f} MiB of weights in the step" in found["printed"]
    passes = found["forward"] + found["backward"]
    assert found["backward"] > 0
    assert found["bytes"] == passes * found["received"]  # as `--card` predicts of each pass
    memory = Memory(load_recipe(str(recipe), OVERRIDES), 2)
    assert memory.shares["unet"].received == found["received"]


def test_a_card_is_answered_for_the_ranks_that_the_launcher_names(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "0")
    words = ["train", str(recipe), "--plan", "--card", "8GB"]
    assert main(words) == 0
    plain = capsys.readouterr().out
    assert "8, and each holds all that is above; an update sums" in plain
    assert "policy.offload=phases" in plain
    assert main([*words, "train.backend=fsdp2"]) == 0
    split = capsys.readouterr().out
    memory = Memory(load_recipe(str(recipe), ["train.backend=fsdp2"]), 8)
    held, whole = memory.shares["unet"].held / 2**20, memory.shares["unet"].whole / 2**20
    assert held < 0.4 * whole
    assert f"a rank holds {held:.3f} of {whole:.3f} MiB" in split
    assert "policy.offload" not in split  # which is refused beside it
    monkeypatch.setenv("RANK", "3")
    assert main(words) == 0
    assert capsys.readouterr().out == ""
