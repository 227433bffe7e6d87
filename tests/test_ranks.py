"""Two processes against one: collectives, and the parameters after three steps of each method."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from genalign import ranks
from genalign.method import MethodSettings, build_method
from genalign.types import GenalignError, Prompt
from tests.helpers.forked import run_ranks
from tests.helpers.toy_policy import ToyPolicy, ToyReward

PROMPTS = [Prompt(f"scene {i}", uid=i) for i in range(6)]
START = 0.05


def test_without_a_process_group_nothing_happens():
    tensor = torch.arange(3)
    assert (ranks.rank(), ranks.world()) == (0, 1)
    assert ranks.gather(tensor) is tensor
    assert ranks.all_sum(tensor) is tensor


def _worker(rank: int, port: int, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        _collectives()
        for name, (settings, shares, reward) in CASES.items():
            delta = train(settings, shares[rank], reward, rows_together=2)
            save_file({"delta": delta}, out / f"{name}-{rank}.safetensors")
    finally:
        dist.destroy_process_group()
    ranks.leave(0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> Path:
    """Runs all cases in one pair of processes: starting them is what takes time."""
    out = tmp_path_factory.mktemp("ranks")
    run_ranks(_worker, (free_port(), out), 2)
    return out


def _collectives() -> None:
    mine = ranks.rank()
    assert ranks.world() == 2
    rows = torch.arange(3 - 2 * mine, dtype=torch.float64)[:, None] + 10 * mine  # 3 rows, then 1
    assert ranks.gather(rows).tolist() == [[0.0], [1.0], [2.0], [10.0]]
    assert ranks.gather(torch.ones(2 * mine, 2)).shape == (2, 2)  # none, then 2
    flags = ranks.gather(torch.tensor([mine == 0]))
    assert flags.dtype == torch.bool
    assert flags.tolist() == [True, False]
    summand = torch.tensor([1.0 + mine])
    assert ranks.all_sum(summand).tolist() == [3.0]
    assert summand.tolist() == [1.0 + mine]
    assert not ranks.gather(torch.ones(1, requires_grad=True)).requires_grad


def train(settings: dict[str, Any], share: list[int], reward: ToyReward, rows_together: int) -> Tensor:
    """Three steps on this rank's share of the prompts, with gradients summed over ranks as the training loop does."""
    learner, policy = build_method(MethodSettings(**settings)), ToyPolicy(rows_together=rows_together)
    with torch.no_grad():
        policy.delta += START  # so that the reference is somewhere else
    optimizer = torch.optim.Adam(policy.parameter_groups(), lr=0.05)
    for step in range(3):
        experience = learner.collect(policy, [PROMPTS[i] for i in share], reward, 5, step)
        for loss in learner.losses(policy, experience):
            loss.total.backward()
            if loss.step:
                policy.delta.grad = ranks.all_sum(policy.delta.grad)
                optimizer.step()
                optimizer.zero_grad()
    return policy.delta.detach()


def _dies(rank: int, port: int, out: Path) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    ranks.gather(torch.ones(1))
    if rank == 1:
        os._exit(0)
    try:
        for _ in range(3):  # of which the first may still have been answered
            ranks.all_sum(torch.ones(1))
    except GenalignError as error:
        (out / "said").write_text(str(error))
    os._exit(0)


def test_where_a_rank_has_died_the_others_end_with_a_sentence(tmp_path):
    run_ranks(_dies, (free_port(), tmp_path), 2)
    assert (tmp_path / "said").read_text().startswith("another rank has ended, so this one cannot go on")


SHARES = {
    "even": ([[0, 1, 2], [3, 4, 5]], ToyReward()),
    "uneven": ([[0, 1, 2, 3], [4, 5]], ToyReward(broken=[2])),
    "idle": ([[0, 1, 2], [3, 4, 5]], ToyReward(dark=[3, 4, 5])),  # no row of rank 1 counts
}
METHODS: dict[str, dict[str, Any]] = {
    "grpo": {"kl_beta": 0.1},
    "flow-grpo": {"kl_beta": 0.1, "advantage": "normalise_then_sum"},
    "d3po": {},
    "flow-dpo": {},
    "flow-rwr": {},
    "nft": {},
    "awm": {"kl_beta": 0.1},
    "dpok": {"kl_beta": 0.1},
}
CASES = {
    f"{name}-{split}": ({"name": name, "group": 4, **keys}, *SHARES[split])
    for name, keys in METHODS.items()
    for split in SHARES
}
CASES["grpo-updates"] = ({"name": "grpo", "group": 4, "updates_per_rollout": 2}, *SHARES["even"])


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one_rank_is_accumulation(case, two_ranks):
    """Invariant 13."""
    settings, shares, reward = CASES[case]
    two = [load_file(two_ranks / f"{case}-{rank}.safetensors")["delta"] for rank in (0, 1)]
    assert torch.equal(*two)
    assert (two[0] - START).abs().max() > 0.01
    everyone = [i for share in shares for i in share]
    for rows_together in (2,) if "updates" in case else (24, 4):  # which samples an update sees hangs on micro-batches
        one = train(settings, everyone, reward, rows_together)
        torch.testing.assert_close(two[0], one, atol=1e-6, rtol=0)
