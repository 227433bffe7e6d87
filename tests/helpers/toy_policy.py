"""A Gaussian random walk that is a Policy and a ForwardProcess: small enough to check a method's numbers by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from genalign.types import Media, Prompt, Scores, Steps, Track, Trajectory, Weights, sample_seed

DIMS = 6


class ToyPolicy:
    """x' = x + drift(prompt) + sigma z, for a few steps; the drift is linear in `delta`, and 0 with adapters off.

    The tape is the latents (B,S+1,D). `token_like` makes one replay yield all steps, as a language model does. Its
    forward process is the straight path with s = 1 - at; the velocity it predicts is x_t / 2 minus the drift.
    """

    modalities = frozenset({"image"})
    guided = True

    def __init__(self, steps: int = 3, rows_together: int = 2, sigma: float = 0.5, token_like: bool = False) -> None:
        self.steps, self.rows_together, self.sigma, self.token_like = steps, rows_together, sigma, token_like
        self.delta = nn.Parameter(torch.zeros(3, DIMS))
        self.average = torch.zeros(3, DIMS)
        self.which: Weights = "policy"
        self.replays: list[tuple[list[int], list[int]]] = []
        self.fits: list[tuple[list[int], float, list[int], list[tuple[float, ...]], Weights | None]] = []

    @property
    def adapters_on(self) -> bool:
        return self.which == "policy"

    def drift(self, prompts: Sequence[Prompt]) -> Tensor:
        features = torch.tensor([[1.0, p.uid % 3, (p.uid * 7 % 5) / 5] for p in prompts])  # (R,3)
        return features @ {"policy": self.delta, "ema": self.average, "reference": 0 * self.average}[self.which]

    def rollout(self, prompts: Sequence[Prompt], per_prompt: int, seed: int | Sequence[int]) -> Trajectory:
        rows = tuple(p for p in prompts for _ in range(per_prompt))
        seeds = (
            tuple(sample_seed(seed, p.uid, k) for p in prompts for k in range(per_prompt))
            if isinstance(seed, int)
            else tuple(seed)
        )
        noise = torch.stack(
            [torch.randn(self.steps + 1, DIMS, generator=torch.Generator().manual_seed(s)) for s in seeds]
        )
        latents = [noise[:, 0]]
        with torch.no_grad():
            for s in range(self.steps):
                latents.append(latents[-1] + self.drift(rows) + self.sigma * noise[:, s + 1])
            tape = torch.stack(latents, 1)  # (B,S+1,D)
            logp = self._score(rows, tape)
        return Trajectory(
            prompts=rows,
            media=Media(image=Track(tape[:, -1].sigmoid().reshape(-1, 3, 1, 2))),
            group=torch.tensor([p.uid for p in rows]),
            logp=logp,
            mask=torch.ones(len(rows), self.steps, dtype=torch.bool),
            seeds=seeds,
            rows_together=self.rows_together,
            steps_together=self.steps if self.token_like else 1,
            tape=tape,
        )

    def _score(self, rows: Sequence[Prompt], tape: Tensor) -> Tensor:
        mean = tape[:, :-1] + self.drift(rows)[:, None]
        return torch.distributions.Normal(mean, self.sigma).log_prob(tape[:, 1:]).sum(-1)  # (R,S)

    def replay(
        self,
        trajectory: Trajectory,
        rows: Sequence[int],
        steps: Sequence[int] | None = None,
        versus: Weights | None = None,
    ) -> Steps:
        rows, steps = list(rows), list(range(self.steps)) if steps is None else list(steps)
        self.replays.append((rows, steps))
        prompts, tape = [trajectory.prompts[r] for r in rows], trajectory.tape[rows]
        score = self._score(prompts, tape)[:, steps]
        mask = trajectory.mask[rows][:, steps]
        if versus is None:
            return Steps(score, DIMS, mask)
        drift = self.drift(prompts)
        with self.weights(versus), torch.no_grad():
            other, other_drift = self._score(prompts, tape)[:, steps], self.drift(prompts)
        kl = ((drift - other_drift).square().sum(-1) / (2 * self.sigma**2))[:, None].expand_as(score)
        return Steps(score, DIMS, mask, versus_score=other, kl=kl)

    def encode(self, media: Media) -> Tensor:
        return torch.stack([image.flatten().logit() for image in media["image"].data])  # type: ignore[union-attr]

    def clean(self, trajectory: Trajectory) -> Tensor:
        return trajectory.tape[:, -1]

    def noised(self, clean: Tensor, at: float, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """x_t and the target, each (R,D)."""
        noise = torch.stack([torch.randn(DIMS, generator=torch.Generator().manual_seed(s)) for s in seeds])
        return at * clean + (1 - at) * noise, noise - clean

    def velocity(self, prompts: Sequence[Prompt], x: Tensor) -> Tensor:
        return x / 2 - self.drift(prompts)

    def fit(
        self,
        prompts: Sequence[Prompt],
        clean: Tensor,
        at: float,
        seeds: Sequence[int],
        versus: Weights | None = None,
    ) -> Steps:
        assert len(prompts) == len(clean) == len(seeds)
        self.fits.append(([p.uid for p in prompts], at, list(seeds), [tuple(row) for row in clean.tolist()], versus))
        x, target = self.noised(clean, at, seeds)
        out = self.velocity(prompts, x)
        score, mask = -(target - out).square().sum(1, keepdim=True), torch.ones(len(x), 1, dtype=torch.bool)
        if versus is None:
            return Steps(score, DIMS, mask)
        with self.weights(versus), torch.no_grad():
            other = self.velocity(prompts, x)
        other_score = -(target - other).square().sum(1, keepdim=True)
        return Steps(score, DIMS, mask, other_score, gap=(out - other).square().sum(1, keepdim=True))

    def generate(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], guidance: float | None = None, steps: int | None = None
    ) -> Media:
        return self.rollout(prompts, 1, seeds).media

    @contextmanager
    def weights(self, which: Weights) -> Iterator[None]:
        before, self.which = self.which, which
        try:
            yield
        finally:
            self.which = before

    def digest(self) -> dict[str, str]:
        return {"model": "toy", "sampler": f"steps {self.steps} sigma {self.sigma}"}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.delta]}]

    def named_trainable(self) -> dict[str, nn.Parameter]:
        return {"delta": self.delta}

    def step_ema(self, decay: float) -> None:
        self.average.lerp_(self.delta.detach(), 1 - decay)

    def save_adapter(self, folder: Any) -> None: ...

    def load_adapter(self, folder: Any) -> None: ...

    def calls(self) -> int:
        return len(self.replays) + len(self.fits)


class ToyReward:
    """How bright the image is; `dark` uids are given one constant, `broken` ones a failure."""

    name = "bright"
    needs = frozenset({"image"})
    aspects = ("bright",)
    looks_at: Literal["sample", "group", "batch"] = "sample"
    differentiable = False
    version = "1"
    aspect_needs: tuple[frozenset[str], ...] = ()

    def __init__(self, dark: Sequence[int] = (), broken: Sequence[int] = ()) -> None:
        self.dark, self.broken = set(dark), set(broken)

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        value = media["image"].data.flatten(1).mean(1)  # type: ignore[union-attr]
        value = torch.where(torch.tensor([p.uid in self.dark for p in prompts]), 0.1, value)
        failed = torch.tensor([p.uid in self.broken for p in prompts])
        return make_scores(torch.where(failed, 0.0, value)[:, None], failed=failed[:, None])

    def update(self, scores: Scores, step: int) -> None: ...

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


def make_scores(
    values: Tensor, valid: Tensor | None = None, failed: Tensor | None = None, weights: Sequence[float] | None = None
) -> Scores:
    """Scores whose total is the weighted sum of the valid aspects, unreadable where one failed or none is valid."""
    values = values.float()
    failed = torch.zeros_like(values, dtype=torch.bool) if failed is None else failed
    valid = ~failed if valid is None else valid & ~failed
    weight = torch.ones(values.shape[1]) if weights is None else torch.tensor(weights)
    return Scores(
        names=tuple("abcdef"[: values.shape[1]]),
        values=torch.where(valid, values, 0.0),
        valid=valid,
        failed=failed,
        total=(torch.where(valid, values, 0.0) * weight).sum(1),
        total_valid=valid.any(1) & ~failed.any(1),
        weights=weight,
    )
