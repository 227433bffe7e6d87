"""What passes from hand to hand while training: trajectories, scores, what replay yields, experience, losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from genalign.types.samples import Media, Prompt


@dataclass(frozen=True)
class Trajectory:
    """A rollout: media, and a row of log-probabilities that only its policy can replay.

    prompts: B, one a row (repeated within a group). group: (B,) int64, the prompt's uid; siblings share it and need not
    be adjacent. logp: (B,S) fp32, each a SUM over latent dims, or a token's log-prob, under the policy that sampled.
    mask: (B,S) bool, False where a row has no such step. seeds: (B,) python ints, the sample seeds.
    rows_together: rows of the rollout's own micro-batches (contiguous): replay in these to get the log-ratio exactly 0.
    steps_together: how many columns one replay forward yields: 1 for a denoising step, S for tokens. about: where a
    denoising step has a column for each modality that is drawn, those modalities in order (steps_together of them), so
    that column c is about about[c % len(about)]; () where a column is about all that is drawn.
    tape: opaque; only the policy that wrote it reads it.
    """

    prompts: tuple[Prompt, ...]
    media: Media
    group: Tensor
    logp: Tensor
    mask: Tensor
    seeds: tuple[int, ...]
    rows_together: int
    steps_together: int
    tape: Any = None
    about: tuple[str, ...] = ()

    def units(self, rows: Sequence[int] | None = None) -> list[tuple[list[int], list[int]]]:
        """(rows, steps) blocks that cover the trajectory, each one replay: the rollout's own micro-batches by step."""
        chosen = list(range(len(self.prompts))) if rows is None else list(rows)
        total = self.logp.shape[1]
        return [
            (chosen[i : i + self.rows_together], list(range(s, min(s + self.steps_together, total))))
            for i in range(0, len(chosen), self.rows_together)
            for s in range(0, total, self.steps_together)
        ]


@dataclass(frozen=True)
class Scores:
    """Scores of B samples in K named aspects (reward components); scalarised last, by the advantage rule.

    values (B,K) fp32: 0 and never read where not valid. valid (B,K) bool: False where the aspect abstains or failed.
    failed (B,K) bool: True where scoring went wrong (server down, NaN, wrong shape); a failure is never a number.
    confidence (B,K) in [0,1] or None. std (B,K) or None: the reward's own uncertainty. total (B,) fp32: the scalar the
    reward itself would be read as; total_valid (B,) bool says where it may be read. weights (K,): what each aspect
    contributes to a sum (0 for parts kept only for the log). info: lists of B extras (judge text, parse trace).
    """

    names: tuple[str, ...]
    values: Tensor
    valid: Tensor
    failed: Tensor
    total: Tensor
    total_valid: Tensor
    weights: Tensor
    confidence: Tensor | None = None
    std: Tensor | None = None
    info: Mapping[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows, aspects = self.values.shape
        if aspects != len(self.names):
            raise ValueError(f"{aspects} columns of scores but {len(self.names)} names {self.names}")
        for name, shape in (("valid", (rows, aspects)), ("failed", (rows, aspects)), ("total", (rows,))):
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"Scores.{name} has shape {tuple(getattr(self, name).shape)}, expected {shape}")

    def select(self, rows: Sequence[int]) -> Scores:
        index = torch.as_tensor(list(rows), dtype=torch.long)
        return replace(
            self,
            values=self.values[index],
            valid=self.valid[index],
            failed=self.failed[index],
            total=self.total[index],
            total_valid=self.total_valid[index],
            confidence=None if self.confidence is None else self.confidence[index],
            std=None if self.std is None else self.std[index],
            info={key: [values[i] for i in rows] for key, values in self.info.items()},
        )


@dataclass(frozen=True)
class Steps:
    """What replay yields for R rows and the S steps asked for.

    score (R,S) fp32 with grad: log-density SUMMED over latent dims, or the token's log-prob. count: latent dims of one
    column (1 for a token), so that nats per dim = score / count; (S,) of each, where columns are about several
    modalities (see Trajectory.about). mask (R,S) bool. versus_score (R,S) without grad, and
    kl (R,S) >= 0 with grad in closed form, and gap (R,S) = |out - out_versus|^2 (None for tokens), all only when
    replayed `versus` other weights. features: (R,S,H) for a value head, or None (of tokens: where nothing keeps a
    graph). shares: of a `fit`, the squared errors of x0_hat and of eps_hat in one squared error of the output; None:
    not known. likelihood: of a `fit`, whether the score is a log-likelihood (or a bound of one) in nats, and not minus
    a squared error.
    """

    score: Tensor
    count: int | Tensor
    mask: Tensor
    versus_score: Tensor | None = None
    kl: Tensor | None = None
    gap: Tensor | None = None
    features: Tensor | None = None
    shares: tuple[float, float] | None = None
    likelihood: bool = False

    def together(self) -> Steps:
        """Of a `fit`: one column for all modalities, their squared errors added up."""
        if isinstance(self.count, int):
            return self

        def added(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.sum(1, keepdim=True)

        return replace(
            self,
            score=self.score.sum(1, keepdim=True),
            count=int(self.count.sum()),
            mask=self.mask.all(1, keepdim=True),
            versus_score=added(self.versus_score),
            gap=added(self.gap),
        )


@dataclass(frozen=True)
class Loss:
    """One micro-batch: `total` is a scalar already divided by the GLOBAL row count; backward() it at once.

    log: sums and counts to be averaged over the step, name -> (sum, count). step: True ends an optimizer update. anew:
    True begins the update anew, and what earlier micro-batches of it added is to be forgotten.
    """

    total: Tensor
    log: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    step: bool = False
    anew: bool = False


@dataclass(frozen=True)
class Experience:
    """What collect() hands to losses(): the trajectory, its scores, and what the method derived from them."""

    trajectory: Trajectory
    scores: Scores | None
    advantage: Tensor | None = None  # (B,), or (B,M): one for each of trajectory.about
    counted: Tensor | None = None  # (B,) bool: rows that enter the loss (not masked, and their scores have spread)
    pairs: Tensor | None = None  # (P,2) int64 rows: winner, loser
    log: Mapping[str, float] = field(default_factory=dict)

    def advantage_of(self, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        """The advantages of R rows in S columns, (R,S); (R,1) where all columns of a row share one."""
        assert self.advantage is not None
        if self.advantage.ndim == 1:
            return self.advantage[rows][:, None]
        return self.advantage[rows][:, [column % self.advantage.shape[1] for column in columns]]
