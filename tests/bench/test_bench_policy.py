"""What DiffusionPolicy costs over the bare denoiser. `python -m tests.bench.test_bench_policy` prints the table."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch

from genalign.policy.diffusion import DiffusionPolicy
from tests.bench.bare import PROMPTS, ROWS, STEPS, Bare, made, peak_bytes
from tests.bench.meter import in_turns, metered

SIZES = ((32, 4), (96, 4), (192, 6))  # width and layers


def update(policy: DiffusionPolicy, trajectory: Any, versus: Any = None) -> None:
    for rows, steps in trajectory.units():
        scored = policy.replay(trajectory, rows, steps, versus)
        loss = scored.score.mean() if scored.kl is None else scored.score.mean() + scored.kl.mean()
        loss.backward()


def rollout_and_update(policy: DiffusionPolicy) -> None:
    update(policy, policy.rollout(PROMPTS, policy.settings.batch_size // len(PROMPTS), seed=0))


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


def window(rows: int = 8, steps: int = 10, **size: Any) -> dict[str, DiffusionPolicy]:
    """The policy that learns from every step, and the one that learns from two of them."""
    return {
        "all steps": made(1.0, rows=rows, steps=steps, **size),
        "2 of 10": made(1.0, rows=rows, steps=steps, window=2, **size),
    }


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


def test_a_window_of_two_steps_in_ten_costs_half_of_a_whole_update() -> None:
    """In passes, forward and backward ones counted alike: T + 2 W over T + 2 (T - 1), the last step adding no noise."""
    passes = {}
    for name, policy in window(width=16, layers=1).items():
        trajectory = policy.rollout(PROMPTS, 2, seed=0)
        with metered(policy) as counted:
            update(policy, trajectory)
        passes[name] = policy.settings.sampler.steps * 8 + counted.forward + counted.b
    assert passes == {"all steps": 8 * (10 + 2 * 9), "2 of 10": 8 * (10 + 2 * 2)}
    assert passes["2 of 10"] <= 0.5 * passes["all steps"]


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
    print(f"CPU seconds of rollout and update, {ROWS} rows of 4x16x16, {STEPS} steps, best of 3")
    print("| denoiser | guidance | policy | bare denoiser | ratio |\n|---|---|---|---|---|")
    for width, layers in SIZES:
        weights = sum(p.numel() for p in made(width=width, layers=layers).denoiser.parameters() if not p.requires_grad)
        for guidance in (1.0, 4.0):
            row = overhead(guidance, repeats=3, width=width, layers=layers)
            cells = f"{row['policy']:.2f} | {row['bare']:.2f} | {row['ratio']:.3f}"
            print(f"| {weights / 1e6:.1f} M weights | {guidance:g} | {cells} |", flush=True)
    policies = window(width=96)
    spent = in_turns(3, **{name: partial(rollout_and_update, policy) for name, policy in policies.items()})
    first, second = (min(spent[name][1:]) for name in policies)
    print(f"steps that are learnt from, 2 of 10 over all: {second / first:.2f} of the CPU seconds")
    for name, spent in excluded(made()).items():
        print(f"{name}: {spent:.3f}")
    alone, beside = reference_memory()
    print(f"peak bytes of an update: {alone:,} alone, {beside:,} beside a reference ({beside / alone:.4f})")


if __name__ == "__main__":
    main()
