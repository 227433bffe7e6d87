"""What an iteration of ReNO costs over one bare forward and backward pass of generator and rewards.

`python -m tests.bench.test_bench_reno` prints the ratio.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from genalign.files.shipped import shipped
from genalign.method import MethodSettings, build_method
from genalign.policy.diffusion import DiffusionPolicy
from genalign.reward import ClipReward, Runner, Sharpness, Sum
from genalign.types import Media, Reward, Track
from tests.bench.bare import PROMPTS, Bare, made
from tests.bench.meter import in_turns, metered
from tests.helpers.toy_rewards import tiny_clip

ROWS, MORE = len(PROMPTS), 4  # candidates side by side; iterations that are timed beyond the first evaluation


def generator(**size: int) -> DiffusionPolicy:
    return made(1.0, rows=ROWS, steps=1, window=None, kernel="ode", **size)


def rewards(clip: Path | str) -> Sum:
    return Sum([(ClipReward(clip), 1.0), (Sharpness(), 0.1)])


def searched(policy: DiffusionPolicy, reward: Reward, iterations: int) -> Any:
    method: Any = build_method(MethodSettings(name="reno", budget=1.0 + 3 * (iterations - 1)))
    with policy.weights("reference"):
        return method.find(policy, PROMPTS, range(ROWS), Runner(reward))


class BareIteration:
    """The same networks on tensors of the same shapes: noise to picture to scores, and back to the noise."""

    def __init__(self, policy: DiffusionPolicy, reward: Reward) -> None:
        self.policy, self.reward, self.vae = policy, reward, policy.pipeline.vae
        self.kwargs = dict(Bare(policy).kwargs)
        self.noise = policy.initial_noise(PROMPTS, range(ROWS))

    def total(self, noise: Tensor) -> Tensor:
        out = self.policy.denoiser(**{**self.kwargs, "hidden_states": noise})[0]
        latents = (noise - out) / self.vae.config.scaling_factor + self.vae.config.shift_factor
        pixels = (self.vae.decode(latents)[0] / 2 + 0.5).clamp(0, 1)
        return self.reward(PROMPTS, Media(image=Track(pixels))).total.sum()

    def run(self, iterations: int) -> None:
        with self.policy.weights("reference"):
            for _ in range(iterations):
                leaf = self.noise.clone().requires_grad_()
                torch.autograd.grad(self.total(leaf), leaf)


def ratios(policy: DiffusionPolicy, reward: Reward, rounds: int) -> list[float]:
    """Of each round: CPU seconds of an iteration of ReNO in those of the bare one; what both pay once is taken off."""
    bare = BareIteration(policy, reward)
    searched(policy, reward, 2)
    bare.run(1)
    spent = in_turns(
        rounds,
        whole=lambda: searched(policy, reward, 1 + MORE),
        bare=lambda: bare.run(MORE),
        once=lambda: searched(policy, reward, 1),
    )
    return [(w - o) / b for w, b, o in zip(spent["whole"], spent["bare"], spent["once"], strict=True)]


def test_an_iteration_is_one_forward_and_one_backward_pass_of_everything(tmp_path: Path) -> None:
    """n iterations: n of the denoiser, decoder and each reward forward, n - 1 back; each text is read once."""
    policy, reward = generator(width=16, layers=1), rewards(tiny_clip(tmp_path / "clip"))
    clip = reward.parts[0]._loaded[0]  # type: ignore[attr-defined]
    asked: dict[str, list[int]] = {"scored": [], "read": [], "back": [], "decoded back": []}

    def note(name: str) -> Any:
        return lambda module, given, out: asked[name].append(len(given[0]))

    clip.visual.register_forward_hook(note("scored"))
    clip.token_embedding.register_forward_hook(note("read"))
    clip.visual.register_full_backward_hook(lambda module, into, out: asked["back"].append(len(out[0])))
    policy.pipeline.vae.decoder.register_full_backward_hook(
        lambda module, into, out: asked["decoded back"].append(len(out[0]))
    )
    policy.generate(PROMPTS[:1], [0])  # its first question shows a policy how to ask
    with metered(policy) as rows:
        found = searched(policy, reward, 6)
    assert (rows.plain, rows.graph, rows.b) == (ROWS, 5 * ROWS, 5 * ROWS)
    assert rows.decoded == 6 * ROWS
    assert rows.read == ROWS - 1
    assert asked == {"scored": [ROWS] * 6, "read": [ROWS], "back": [ROWS] * 5, "decoded back": [ROWS] * 5}
    assert (found.spent.forward, found.spent.backward) == (6 * 3 * ROWS, 5 * 3 * ROWS)


def test_the_bare_iteration_computes_the_same_scores(tmp_path: Path) -> None:
    """So both sides of the ratio are the same work."""
    policy, reward = generator(width=16, layers=1), rewards(tiny_clip(tmp_path / "clip"))
    found = searched(policy, reward, 1)
    bare = BareIteration(policy, reward)
    with torch.no_grad(), policy.weights("reference"):
        torch.testing.assert_close(bare.total(bare.noise), found.total.sum(), rtol=1e-4, atol=1e-5)
    assert all(ratio > 0 for ratio in ratios(policy, reward, 1))


def main() -> None:
    torch.set_num_threads(1)
    policy, reward = generator(width=192, layers=6), rewards(shipped("assets") / "tiny-clip")
    told = ratios(policy, reward, rounds=7)
    print(
        f"ReNO, {ROWS} noises of a one-step generator (width 192, 6 layers), tiny-clip and sharpness: an iteration in"
    )
    print(
        f"CPU seconds of one bare forward and backward pass: {median(told):.3f}  ({min(told):.3f} .. {max(told):.3f})"
    )


if __name__ == "__main__":
    main()
