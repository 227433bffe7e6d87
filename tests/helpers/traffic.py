"""What ranks hand to collectives in a small training, counted; and such trainings on several gloo ranks."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from genalign import ranks
from genalign.method import MethodSettings, build_method
from genalign.policy.diffusion import DiffusionPolicy
from genalign.reward import FunctionReward
from genalign.training import sharded
from genalign.training.loop import train
from genalign.training.progress import start
from genalign.training.settings import TrainSettings
from genalign.types import Prompt
from tests.helpers import diffusion
from tests.helpers.forked import run_ranks
from tests.helpers.tiny_pipelines import FAMILIES

GROUP = 2
Case = tuple[str, str]  # "plain" or "recomputed" (by gradient checkpointing), and train.backend


class Traffic:
    """Bytes handed to collectives, by kind, and the passes of its denoiser, without a graph and with one.

    A collective counts by what this rank hands in: an all-reduce of n bytes, an all-gather of a part of n bytes. small:
    those of messages smaller than a gradient, in bytes, which carry scores, logs and votes.
    """

    def __init__(self, policy: DiffusionPolicy, gradient: int, patch: pytest.MonkeyPatch) -> None:
        self.gradient = gradient
        self.sent: Counter[str] = Counter()
        self.small: Counter[str] = Counter()
        self.passes: Counter[str] = Counter()
        reduce, gather, whole = dist.all_reduce, dist.all_gather, sharded._all_gather
        denoisers = policy._stage.denoisers
        forward = denoisers._forwards[denoisers.component]

        def all_reduce(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self._add("reduce", x)
            return reduce(x, *args, **kwargs)

        def all_gather(parts: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self._add("gather", x)
            return gather(parts, x, *args, **kwargs)

        def gather_weights(out: torch.Tensor, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.sent["weights"] += x.nbytes
            return whole(out, x, *args, **kwargs)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.passes["graph" if torch.is_grad_enabled() else "plain"] += 1
            return forward(*args, **kwargs)

        patch.setattr(dist, "all_reduce", all_reduce)
        patch.setattr(dist, "all_gather", all_gather)
        patch.setattr(sharded, "_all_gather", gather_weights)
        denoisers._forwards[denoisers.component] = counted

    def _add(self, kind: str, x: torch.Tensor) -> None:
        (self.sent if x.nbytes >= self.gradient else self.small)[kind] += x.nbytes


def brightness(image: torch.Tensor) -> torch.Tensor:
    return image.mean((1, 2, 3))


def measure(case: Case, run: Path, prompts: int, steps: int = 2, updates: int = 1) -> dict[str, Any]:
    """A training of Flow-GRPO on a tiny SD3, a micro-batch a prompt: what this rank handed to collectives in its steps,
    the first one's self-checks left out, by how many passes, and the sizes that the formulas of docs/capacity.md read.
    """
    kind, backend = case
    run.mkdir(parents=True, exist_ok=True)
    keys = {"batch_size": GROUP, "gradient_checkpointing": kind == "recomputed"}
    settings = diffusion.settings("stable-diffusion-3").model_copy(update=keys)
    policy = DiffusionPolicy(FAMILIES["stable-diffusion-3"].build(), settings)
    frozen = sum(p.nbytes for p in policy.denoiser.parameters() if not p.requires_grad)
    adapter = sum(p.numel() for p in policy.named_trainable().values())
    asked = [Prompt(f"prompt {chr(97 + k)}", uid=k) for k in range(prompts)]
    with pytest.MonkeyPatch.context() as patch:
        progress = start(policy, FunctionReward(brightness), TrainSettings(steps=steps, backend=backend))
        traffic = Traffic(policy, 4 * adapter, patch)
        method = build_method(MethodSettings(name="flow-grpo", group=GROUP, updates_per_rollout=updates))
        logs = train(progress, method, lambda step: asked, run)
        next(logs)
        for counts in (traffic.sent, traffic.small, traffic.passes):
            counts.clear()
        begun = time.process_time()
        for _ in logs:
            pass
    return {
        "sent": dict(traffic.sent), "small": dict(traffic.small), "passes": dict(traffic.passes), "frozen": frozen,
        "adapter": adapter, "rows": prompts * GROUP, "steps": steps - 1, "updates": updates,
        "seconds": time.process_time() - begun,
    }  # fmt: skip


def _worker(rank: int, world: int, port: int, out: Path, cases: Sequence[Case], keys: dict[str, int]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    for kind, backend in cases:
        found = measure((kind, backend), out / f"{kind}-{backend}", **keys)
        (out / f"{kind}-{backend}-{rank}.json").write_text(json.dumps(found))
    ranks.leave(0)


def on_ranks(world: int, out: Path, cases: Sequence[Case], **keys: int) -> dict[Case, list[dict[str, Any]]]:
    """What each rank measured, case by case."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run_ranks(_worker, (world, port, out, list(cases), keys), world)
    return {
        (kind, backend): [json.loads((out / f"{kind}-{backend}-{rank}.json").read_text()) for rank in range(world)]
        for kind, backend in cases
    }
