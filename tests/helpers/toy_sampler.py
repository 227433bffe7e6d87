"""A rectified flow of a few numbers, in float64, that is a Policy, Differentiable, ForwardProcess and Retaking.

Every gradient through its sampling can be worked out by an unrolled loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from genalign.types import Guide, Media, Prompt, Scores, Steps, Track, Trajectory, Weights, sample_seed

LATENT = (2, 2, 2)
DIMS = 8


class ToySampler:
    """v = tanh(x W + b(prompt, t) + delta) in T Euler steps from sigma 1 to 0; pixels are sigmoid(x0 D), 3x2x2.

    `delta` is what trains, 0 with adapters off.
    """

    modalities = frozenset({"image"})
    guided = True

    def __init__(self, steps: int = 5, sigmas: Sequence[float] | None = None) -> None:
        draw = torch.Generator().manual_seed(7)

        def fixed(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, dtype=torch.float64)

        self.grid = list(sigmas) if sigmas else [1 - i / steps for i in range(steps + 1)]
        self.mix, self.told, self.pixels = fixed(DIMS, DIMS) / 3, fixed(3, DIMS), fixed(DIMS, 12) / 2
        self.delta = nn.Parameter(torch.zeros(DIMS, dtype=torch.float64))
        self.adapters_on, self.made = True, 0

    def levels(self, steps: int | None) -> list[float]:
        return self.grid if steps is None else [1 - i / steps for i in range(steps + 1)]

    def denoise(self, prompts: Sequence[Prompt], x: Tensor, sigma: float) -> Tensor:
        """The model: (R,*L) -> velocity (R,*L)."""
        self.made += len(prompts)
        features = torch.tensor([[1.0, p.uid % 3, sigma] for p in prompts], dtype=torch.float64)
        delta = self.delta if self.adapters_on else self.delta.detach() * 0
        return torch.tanh(x.flatten(1) @ self.mix + features @ self.told + delta).reshape(x.shape)

    def generate_with_grad(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int] | None = None,
        *,
        noise: Tensor | None = None,
        grad_steps: int | None = None,
        guidance: float | None = None,
        steps: int | None = None,
        guide: Guide | None = None,
        checkpoint: bool = True,
    ) -> Media:
        x = self.initial_noise(prompts, seeds or []) if noise is None else noise.double()
        grid = self.levels(steps)
        for i, (now, then) in enumerate(pairwise(grid)):
            kept = grad_steps is None or i >= len(grid) - 1 - grad_steps
            with nullcontext() if kept else torch.no_grad():

                def ask(x: Tensor, now: float = now) -> Tensor:
                    return self.denoise(prompts, x, now)

                out = recomputed(ask, x, use_reentrant=False) if checkpoint and kept else ask(x)
                if guide is not None:
                    out = guide(i, x, out, x - now * out)
                x = x + (then - now) * out
        return self.decode(x)

    def initial_noise(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Tensor:
        rows = [torch.randn(LATENT, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]
        return torch.stack(rows)

    def decode(self, clean: Tensor) -> Media:
        return Media(image=Track((clean.flatten(1) @ self.pixels).sigmoid().reshape(-1, 3, 2, 2)))

    def retake(self, prompts: Sequence[Prompt], clean: Tensor, seeds: Sequence[int]) -> Media:
        sigma = self.grid[-2]
        x = (1 - sigma) * clean + sigma * self.initial_noise(prompts, seeds)
        return self.decode(x - sigma * self.denoise(prompts, x, sigma))

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], guidance: float | None = None, steps: int | None = None
    ) -> Media:
        return self.generate_with_grad(prompts, seeds, steps=steps, checkpoint=False)

    @torch.no_grad()
    def rollout(self, prompts: Sequence[Prompt], per_prompt: int, seed: int | Sequence[int]) -> Trajectory:
        assert isinstance(seed, int)
        rows = [p for p in prompts for _ in range(per_prompt)]
        seeds = [sample_seed(seed, p.uid, k) for p in prompts for k in range(per_prompt)]
        ends: list[Tensor] = []

        def look(step: int, x: Tensor, out: Tensor, x0: Tensor) -> Tensor:
            ends[:] = [x0]
            return out

        media = self.generate_with_grad(rows, seeds, guide=look, checkpoint=False)
        empty = torch.zeros(len(rows), 0)
        group = torch.tensor([p.uid for p in rows])
        return Trajectory(tuple(rows), media, group, empty, empty.bool(), tuple(seeds), 4, 1, ends[0])

    def clean(self, trajectory: Trajectory) -> Tensor:
        return trajectory.tape

    def encode(self, media: Media) -> Tensor:
        raise NotImplementedError

    def fit(self, *args: Any, **kwargs: Any) -> Steps:
        raise NotImplementedError

    def replay(self, *args: Any, **kwargs: Any) -> Steps:
        raise NotImplementedError

    @contextmanager
    def weights(self, which: Weights) -> Iterator[None]:
        before, self.adapters_on = self.adapters_on, which == "policy"
        try:
            yield
        finally:
            self.adapters_on = before

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.delta]}]

    def named_trainable(self) -> dict[str, nn.Parameter]:
        return {"delta": self.delta}

    def step_ema(self, decay: float) -> None: ...

    def save_adapter(self, folder: Any) -> None: ...

    def load_adapter(self, folder: Any) -> None: ...

    def calls(self) -> int:
        return self.made


class PixelReward:
    """A formula of pixels (R,3,2,2) -> (R,); rows of the uids in `mute` cannot be read. Keeps what it was shown."""

    needs = frozenset({"image"})
    looks_at: Literal["sample", "group", "batch"] = "sample"
    version = "1"

    def __init__(
        self,
        formula: Callable[[Tensor], Tensor],
        differentiable: bool = True,
        mute: Sequence[int] = (),
        name: str = "pixels",
    ) -> None:
        self.formula, self.differentiable, self.mute, self.name = formula, differentiable, set(mute), name
        self.aspects = (name,)
        self.asked = 0
        self.range = [1.0, 0.0]

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        pixels = media["image"].data
        assert isinstance(pixels, Tensor)
        self.asked += len(prompts)
        self.range = [
            min(self.range[0], float(pixels.detach().min())),
            max(self.range[1], float(pixels.detach().max())),
        ]
        total = self.formula(pixels if self.differentiable else pixels.detach())
        valid = torch.tensor([p.uid not in self.mute for p in prompts])
        total = torch.where(valid, total, 0.0)
        return Scores(self.aspects, total[:, None], valid[:, None], ~valid[:, None], total, valid, torch.ones(1))

    def update(self, scores: Scores, step: int) -> None: ...

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


def redness(pixels: Tensor) -> Tensor:
    return pixels[:, 0].mean((1, 2)) - pixels[:, 2].square().mean((1, 2))
