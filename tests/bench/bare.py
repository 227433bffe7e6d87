"""A policy of a size that benches measure, and the same denoiser bare."""

from __future__ import annotations

from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from genalign.policy.branching import part
from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.settings import PolicySettings, Sampler
from genalign.types import Prompt
from tests.helpers.tiny_pipelines import stable_diffusion_3

ROWS, STEPS = 32, 4
PROMPTS = [Prompt(text, uid=k) for k, text in enumerate("abcd")]


def made(
    guidance: float = 1.0, width: int = 192, layers: int = 6, rows: int = ROWS, size: int = 16, **sampler: Any
) -> DiffusionPolicy:
    pipeline = stable_diffusion_3(width, layers, size=size)
    settings = PolicySettings(
        model="tiny",
        batch_size=rows,
        sampler=Sampler(**{"steps": STEPS, "guidance": guidance, "kernel": "cps", **sampler}),
    )
    return DiffusionPolicy(pipeline, settings)


class Bare:
    """The same denoiser on tensors of the same shapes, and nothing else."""

    def __init__(self, policy: DiffusionPolicy) -> None:
        self.denoiser, self.rows = policy.denoiser, policy.settings.batch_size
        self.steps = policy.settings.sampler.steps
        self.branches = 2 if policy.settings.sampler.guidance != 1 else 1
        self.kwargs: dict[str, Any] = {}
        denoisers = policy._stage.denoisers
        answer = denoisers.answer

        def look(args: Any, kwargs: Any, rows: int, graph: Any = None, twins: Any = None) -> Any:
            many = denoisers.branches(args, kwargs, rows)
            self.kwargs = part((args, kwargs), 0, many, rows, denoisers.axes or {})[1]
            return answer(args, kwargs, rows, graph, twins)

        denoisers.answer = look  # type: ignore[method-assign]
        self.trained = policy.rollout(PROMPTS, self.rows // len(PROMPTS), seed=0).logp.shape[1]
        denoisers.answer = answer  # type: ignore[method-assign]

    def run(self) -> None:
        with torch.no_grad():
            for _ in range(self.steps * self.branches + self.trained * (self.branches - 1)):
                self.denoiser(**self.kwargs)
        for _ in range(self.trained):
            self.denoiser(**self.kwargs)[0].square().mean().backward()


def peak_bytes(work: Any) -> int:
    """Highest sum of live bytes that torch allocated on the CPU during `work`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    live = peak = 0
    for event in sorted(record.profiler.kineto_results.events(), key=lambda e: e.start_ns()):  # type: ignore[union-attr]
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak
