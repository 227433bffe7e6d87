"""Ranks as processes of their own, which start from one that has imported what they need, once for all tests here."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

from torch.multiprocessing import start_processes

IMPORTED = [
    "genalign.method", "genalign.policy.diffusion", "genalign.reward", "genalign.run.build", "genalign.run.plan",
    "genalign.training.loop", "diffusers.loaders.peft", "diffusers.pipelines.stable_diffusion_3", "peft",
]  # fmt: skip


def run_ranks(work: Callable[..., None], arguments: tuple[Any, ...], ranks: int) -> None:
    """work(rank, *arguments) in each of `ranks` processes; an error of one ends all and is raised here."""
    multiprocessing.set_forkserver_preload(IMPORTED)
    start_processes(work, arguments, ranks, start_method="forkserver")
