"""Searching for a better sample at inference, where no weight changes: what all searches share. They draw on one budget
in one currency, so that a table of them is at equal compute."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from genalign.method.common import to_cpu
from genalign.method.settings import MethodSettings
from genalign.types import (
    Differentiable,
    Experience,
    Loss,
    Media,
    Policy,
    Prompt,
    Reward,
    Scores,
    UsageError,
    Weights,
    Writing,
    sample_seed,
)


class InferenceSettings(MethodSettings):
    """What all searches read."""

    group: int = Field(1, ge=1)
    """Candidates of one sample that are drawn side by side, in one batch."""
    budget: float = Field(148.0, ge=1)
    """What one returned sample may cost, in evaluations: one is a plain sampling, decoding and scoring, its network
    passes counted alike, and a backward pass counts two forward ones. 148 is ReNO's 50 iterations."""


@dataclass
class Spent:
    """Network passes so far, in samples: a denoiser call (two a step under guidance), a decoding, a scoring are one."""

    forward: int = 0
    backward: int = 0

    @property
    def units(self) -> int:
        return self.forward + 2 * self.backward


@dataclass(frozen=True)
class Found:
    """What a search returns for R rows.

    media: R rows. total (R,): their scores; readable (R,) bool: False where no candidate could be scored, and the plain
    sample stands. seeds: of the winners, from which plain sampling (or the same search) draws them. spent: for all rows
    together.
    """

    media: Media
    total: Tensor
    readable: Tensor
    seeds: tuple[int, ...]
    spent: Spent


@runtime_checkable
class Searching(Protocol):
    """A method that changes samples, not weights."""

    name: str
    needs: frozenset[str]
    settings: Any

    def find(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        reward: Reward | None,
        guidance: float | None = None,
        steps: int | None = None,
    ) -> Found:
        """The best samples for R prompts within the budget; the first candidate of row r is plain sampling's from
        seeds[r]. Rows are searched together: R * settings.group is one micro-batch."""
        ...


class Inference:
    """What searches share as methods: `find` by their own `_search`, and no experience to train on."""

    name: str

    def find(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        reward: Reward | None,
        guidance: float | None = None,
        steps: int | None = None,
    ) -> Found:
        """See `Searching.find`."""
        state = SearchState(policy, prompts, seeds, reward, guidance, steps, self.name)
        self._search(state)
        return state.found()

    def _search(self, state: SearchState) -> None:
        """Try candidates until the budget is spent; `state` keeps the best of each row."""
        raise NotImplementedError

    def collect(
        self, policy: Policy, prompts: Sequence[Prompt], reward: Reward | None, seed: int, step: int
    ) -> Experience:
        self._refuse()

    def losses(self, policy: Policy, experience: Experience) -> Iterable[Loss]:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UsageError(f"method {self.name} trains nothing; run it by genalign sample RECIPE PROMPT")


class SearchState:
    """Draws, decodes and scores candidates of R rows, keeps the best one of each, and counts what that costs."""

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        reward: Reward | None,
        guidance: float | None,
        steps: int | None,
        method: str,
    ) -> None:
        if reward is None:
            raise UsageError(f"{method} needs a reward; give it with --reward, or by the key 'reward' of the recipe")
        if len(prompts) != len(seeds) or not prompts:
            raise UsageError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one seed a prompt, at least one")
        self.policy, self.prompts, self.reward = policy, list(prompts), reward
        self.guidance, self.steps, self.method = guidance, steps, method
        self.spent = Spent()
        self.best = torch.full((len(prompts),), float("-inf"))
        self.media: list[Media | None] = [None] * len(prompts)
        self.seeds = list(seeds)
        self.scored: Scores | None = None  # of the last candidates, without grad
        self.plain = 0.0  # units of one plain evaluation of one row, known after the first

    @property
    def differentiable(self) -> Differentiable:
        """The policy as one whose noise can be given.

        Raises:
            UsageError: it is not such a policy.
        """
        if not isinstance(self.policy, Differentiable):
            raise UsageError(
                f"{self.method} starts sampling from noise of its own, which {type(self.policy).__name__} cannot; "
                f"take --search best-of-n"
            )
        return self.policy

    @property
    def writing(self) -> Writing:
        """The policy as one that writes tokens.

        Raises:
            UsageError: it draws something else.
        """
        if not isinstance(self.policy, Writing):
            raise UsageError(f"{self.method} is of language models; take --search best-of-n for other media")
        return self.policy

    @contextmanager
    def paying(self) -> Iterator[None]:
        """Count the denoiser calls made inside."""
        calls = self.policy.calls()
        yield
        self.spent.forward += self.policy.calls() - calls

    def plain_samples(self) -> None:
        """Plain sampling from the rows' seeds: the first candidate of every search."""
        self.draw(range(len(self.prompts)), self.seeds, plain=True)
        self.plain = self.spent.units / len(self.prompts)

    def draw(self, rows: Sequence[int], seeds: Sequence[int], plain: bool = False) -> None:
        """One candidate of each row named in `rows` from its seed, by plain sampling; a language model, whose plain
        samples are all alike, draws its tokens unless they are to be `plain`."""
        with self.paying():
            prompts = [self.prompts[row] for row in rows]
            if isinstance(self.policy, Writing) and not plain:
                media = self.policy.rollout(prompts, 1, seeds).media
            else:
                media = self.policy.generate(prompts, seeds, guidance=self.guidance, steps=self.steps)
        self.score(media, rows, seeds)

    def draw_from(self, rows: Sequence[int], noise: Tensor) -> Tensor:
        """The same from given noise (R,*L), without grad; their totals (R,)."""
        with self.paying():
            prompts = [self.prompts[row] for row in rows]
            media = self.differentiable.generate_with_grad(
                prompts, noise=noise, grad_steps=0, guidance=self.guidance, steps=self.steps
            )
        return self.score(media, rows)

    def score(self, media: Media, rows: Sequence[int], seeds: Sequence[int] | None = None) -> Tensor:
        """Score decoded candidates and keep those that beat the best: totals (R,) with the reward's grad.

        -inf where a total cannot be read. seeds: what the candidates can be drawn from again.
        """
        scores = self.reward([self.prompts[row] for row in rows], media, None)
        self.spent.forward += 2 * len(rows)  # decoded and scored
        self.scored = to_cpu(scores)
        total = torch.where(scores.total_valid, scores.total, float("-inf"))
        for k, row in enumerate(rows):
            value = float(total[k].detach())
            if self.media[row] is None or value > self.best[row]:
                self.best[row], self.media[row] = value, _detached(media.select([k]))
                self.seeds[row] = self.seeds[row] if seeds is None else seeds[k]
        return total

    def choose(self, row: int, media: Media, seed: int) -> None:
        """Take this one candidate (one row of media) for a row, whatever its score."""
        self.media[row], self.best[row] = None, float("-inf")
        self.score(media, [row], [seed])

    def left(self, budget: float, cost: float | None = None) -> int:
        """How many more evaluations, or things of another `cost` in units, each row can afford."""
        each = budget * self.plain - self.spent.units / len(self.prompts)
        return max(0, math.floor(each / (cost or self.plain) + 1e-6))

    def found(self) -> Found:
        kept = [media for media in self.media if media is not None]
        return Found(Media.cat(kept), self.best, torch.isfinite(self.best), tuple(self.seeds), self.spent)


class Searched:
    """A policy whose tuned weights mean "with the search" and whose reference is plain sampling, to be evaluated."""

    def __init__(self, policy: Policy, method: Searching, reward: Reward | None, batch: int) -> None:
        self.policy, self.method, self.reward, self.batch = policy, method, reward, batch
        self.modalities, self.guided = policy.modalities, policy.guided
        self._searches = True

    @contextmanager
    def weights(self, which: Weights) -> Iterator[None]:
        before, self._searches = self._searches, which != "reference"
        try:
            yield
        finally:
            self._searches = before

    def generate(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], guidance: float | None = None, steps: int | None = None
    ) -> Media:
        if not self._searches:
            return self.policy.generate(prompts, seeds, guidance=guidance, steps=steps)
        found = find_in_batches(self.method, self.policy, prompts, seeds, self.reward, self.batch, guidance, steps)
        return found.media


def find_in_batches(
    method: Searching,
    policy: Policy,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    reward: Reward | None,
    batch: int,
    guidance: float | None = None,
    steps: int | None = None,
) -> Found:
    """`find` for any number of rows, at most `batch` candidates in a micro-batch."""
    size = max(1, batch // method.settings.group)
    parts = [
        method.find(policy, prompts[at : at + size], seeds[at : at + size], reward, guidance, steps)
        for at in range(0, len(prompts), size)
    ]
    return Found(
        Media.cat([part.media for part in parts]),
        torch.cat([part.total for part in parts]),
        torch.cat([part.readable for part in parts]),
        tuple(seed for part in parts for seed in part.seeds),
        Spent(sum(part.spent.forward for part in parts), sum(part.spent.backward for part in parts)),
    )


def candidate_seed(seed: int, prompt: Prompt, k: int) -> int:
    """Seed of the k-th candidate of a sample; the 0th is the sample's own."""
    return seed if k == 0 else sample_seed(seed, prompt.uid, k)


def _detached(media: Media) -> Media:
    tracks = {}
    for name, track in media.items():
        held = track.held.detach() if isinstance(track.held, Tensor) else track.held
        tracks[name] = replace(track, held=held)
    return Media(**tracks)
