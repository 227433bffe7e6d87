"""What DiffusionPolicy costs over the bare denoiser. `python -m tests.bench.test_bench_policy` prints the table."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from genalign.policy.branching import part
from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.settings import PolicySettings, Sampler
from genalign.types import Prompt
from tests.tiny_pipelines import stable_diffusion_3

ROWS, STEPS = 32, 4
PROMPTS = [Prompt(text, uid=k) for k, text in enumerate("abcd")]


def made(guidance: float = 1.0, width: int = 192, layers: int = 6, rows: int = ROWS, **sampler: Any) -> DiffusionPolicy:
    pipeline = stable_diffusion_3(width, layers, size=16)
    settings = PolicySettings(
        model="tiny",
        batch_size=rows,
        sampler=Sampler(**{"steps": STEPS, "guidance": guidance, "kernel": "cps", **sampler}),
    )
    return DiffusionPolicy(pipeline, settings)


def update(policy: DiffusionPolicy, trajectory: Any, versus: Any = None) -> None:
    for rows, steps in trajectory.units():
        scored = policy.replay(trajectory, rows, steps, versus)
        loss = scored.score.mean() if scored.kl is None else scored.score.mean() + scored.kl.mean()
        loss.backward()


def rollout_and_update(policy: DiffusionPolicy) -> None:
    update(policy, policy.rollout(PROMPTS, policy.settings.batch_size // len(PROMPTS), seed=0))


class Bare:
    """The same denoiser on tensors of the same shapes, and nothing else."""

    def __init__(self, policy: DiffusionPolicy) -> None:
        self.denoiser, self.rows = policy.denoiser, policy.settings.batch_size
        self.steps = policy.settings.sampler.steps
        self.branches = 2 if policy.settings.sampler.guidance != 1 else 1
        self.kwargs: dict[str, Any] = {}
        answer = policy._stage.answer

        def look(args: Any, kwargs: Any, rows: int, graph: Any = None, twins: Any = None) -> Any:
            many = policy._stage.branches(args, kwargs, rows)
            self.kwargs = part((args, kwargs), 0, many, rows, policy._stage._row_axes or {})[1]
            return answer(args, kwargs, rows, graph, twins)

        policy._stage.answer = look  # type: ignore[method-assign]
        self.trained = policy.rollout(PROMPTS, self.rows // len(PROMPTS), seed=0).logp.shape[1]
        policy._stage.answer = answer  # type: ignore[method-assign]

    def run(self) -> None:
        with torch.no_grad():
            for _ in range(self.steps * self.branches + self.trained * (self.branches - 1)):
                self.denoiser(**self.kwargs)
        for _ in range(self.trained):
            self.denoiser(**self.kwargs)[0].square().mean().backward()


def seconds(work: Any, repeats: int) -> float:
    """CPU seconds of one call, the fastest of `repeats`."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def excluded(policy: DiffusionPolicy) -> dict[str, float]:
    """Rows of their own: what every pipeline pays outside the denoiser."""
    latents = torch.zeros(policy.settings.batch_size, 4, 16, 16)
    texts = [prompt.text for prompt in PROMPTS]
    with torch.no_grad():
        return {
            "VAE decode": seconds(lambda: policy.pipeline.vae.decode(latents), 3),
            "text encoding": seconds(lambda: policy.pipeline.encode_prompt(texts, texts, texts), 3),
        }


def overhead(guidance: float, repeats: int = 2, **size: Any) -> dict[str, float]:
    policy = made(guidance, **size)
    bare = Bare(policy)
    policy.pipeline.vae.decode = lambda latents, **_: (latents[:, :3],)  # a row of its own
    rollout_and_update(policy)
    best = {"policy": float("inf"), "bare": float("inf")}
    for _ in range(repeats):  # in turns, so that a busy machine slows both
        best["policy"] = min(best["policy"], seconds(lambda: rollout_and_update(policy), 1))
        best["bare"] = min(best["bare"], seconds(bare.run, 1))
    return {**best, "ratio": best["policy"] / best["bare"]}


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


def reference_memory(rows: int = 8, width: int = 64, layers: int = 4) -> tuple[int, int]:
    policy = made(1.0, width, layers, rows, steps=4)
    trajectory = policy.rollout(PROMPTS, rows // len(PROMPTS), seed=0)
    update(policy, trajectory, "reference")
    return (
        peak_bytes(lambda: update(policy, trajectory)),
        peak_bytes(lambda: update(policy, trajectory, "reference")),
    )


def test_denoiser_calls_equal_the_formula() -> None:
    """T F in a rollout, F + b for each trained step; times two under guidance; + F with a reference."""
    for guidance, branches in ((1.0, 1), (4.0, 2)):
        policy = made(guidance, width=16, layers=1, rows=8, window=2)
        trajectory = policy.rollout(PROMPTS, 2, seed=0)
        assert policy.calls() == 8 * STEPS * branches
        update(policy, trajectory)
        assert policy.calls() == 8 * branches * (STEPS + 2)
        update(policy, trajectory, "reference")
        assert policy.calls() == 8 * branches * (STEPS + 2 + 2 * 2)


def test_a_reference_costs_no_memory() -> None:
    alone, beside = reference_memory()
    assert alone > 1_000_000
    assert beside <= 1.02 * alone


def test_the_table_can_be_measured() -> None:
    row = overhead(1.0, repeats=1, width=16, layers=1, rows=4)
    assert row["policy"] > 0
    assert row["bare"] > 0


def main() -> None:
    torch.set_num_threads(1)
    print(f"CPU seconds, width 192, 6 layers, {ROWS} rows of 4x16x16, {STEPS} steps, best of 2")
    for guidance in (1.0, 4.0):
        row = overhead(guidance)
        print(
            f"guidance {guidance}: policy {row['policy']:.2f}  bare {row['bare']:.2f}  ratio {row['ratio']:.3f}",
            flush=True,
        )
    for name, spent in excluded(made()).items():
        print(f"{name}: {spent:.3f}")
    alone, beside = reference_memory()
    print(f"peak bytes of an update: {alone:,} alone, {beside:,} beside a reference ({beside / alone:.4f})")


if __name__ == "__main__":
    main()
