"""Several opinions of one thing: different rewards, or one reward called several times; std is how far they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from genalign.reward.base import digest
from genalign.reward.combine.columns import confidences, totals
from genalign.reward.combine.combination import Summary, choice, number
from genalign.reward.guard import guarded
from genalign.reward.scores import total_confidence
from genalign.reward.wrapper import Wrapper
from genalign.types import Media, Prompt, Reward, Scores, UsageError

Risk = Literal["mean", "min", "uwo", "entropic", "robust"]


class Ensemble(Summary):
    """Rewards of one scale that judge the same thing, read with caution where they differ ("Reward Model Ensembles Help
    Mitigate Overoptimization").

    risk: "mean"; "min", the worst case (WCO); "uwo", mean - penalty var; "entropic", -beta log mean exp(-r / beta)
    (arXiv 2606.09073), which goes from min (beta -> 0) to mean (beta -> inf) and is UWO of penalty 1 / (2 beta) to
    second order; "robust", nominal r* + (1 - nominal) min with r* the most confident member's score, ties averaged
    ("Reward-Robust RLHF in LLMs", in our reading). var is the population variance. `std` holds its root.

    Members that abstain drop out of their row; one that failed masks it. Bring members to one scale first (`Shape`).
    """

    def __init__(
        self,
        parts: Sequence[Reward],
        risk: Risk = "mean",
        *,
        beta: float = 1.0,
        penalty: float = 0.5,
        nominal: float = 0.5,
        name: str = "ensemble",
    ) -> None:
        if not parts:
            raise UsageError(f"reward {name!r} is an ensemble of nothing; give it at least one part")
        super().__init__(list(parts), name)
        self.risk: Risk = choice(name, "risk", risk, Risk)
        self.beta = number(name, "beta", beta, 1e-6)
        self.penalty = number(name, "penalty", penalty, 0.0)
        self.nominal = number(name, "nominal", nominal, 0.0, 1.0)
        strength = {"uwo": self.penalty, "entropic": self.beta, "robust": self.nominal}.get(risk)
        self.settings = (risk, strength)

    def can_score(self, usable: Sequence[bool]) -> bool:
        return any(usable)

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        scores = self._score_parts(prompts, media, group)
        values, valid, failed = totals(scores)
        readable = valid.any(1) & ~failed.any(1)
        # (B,P) a row where all abstain is masked afterwards, but must stay finite: there all members count
        counted = valid | ~valid.any(1, keepdim=True)
        mean, variance = moments(values, counted)
        if self.risk == "mean":
            total = mean
        elif self.risk == "min":
            total = least(values, counted)
        elif self.risk == "uwo":
            total = mean - self.penalty * variance
        elif self.risk == "entropic":
            total = entropic(values, counted, self.beta)
        else:
            confidence = torch.stack([total_confidence(part) for part in scores], 1)
            surest = counted & (confidence == torch.where(counted, confidence, -1.0).amax(1, keepdim=True))
            total = self.nominal * moments(values, surest)[0] + (1 - self.nominal) * least(values, counted)
        std = torch.where(readable, variance.detach(), 0.0).sqrt()
        return self.summarise(scores, total, readable, failed.any(1), std=std)


class Repeat(Wrapper):
    """A stochastic reward (a judge at temperature 1), called several times and averaged (EditScore).

    Its columns are those of the part, each the mean over the passes that are valid, with their population std. The
    part makes its total in each pass, so that a mean of minima stays one. Where no pass is valid the row abstains, or
    failed if any pass did.

    Raises:
        UsageError: times is not a whole number above 0.
    """

    def __init__(self, part: Reward, times: int = 4, name: str = "") -> None:
        if not isinstance(times, int) or times < 1:
            raise UsageError(f"reward {part.name!r} is repeated {times!r} times; it must be a whole number above 0")
        super().__init__(part)
        self.times, self._name = times, name or part.name

    @property
    def name(self) -> str:
        return self._name

    @property
    def aspects(self) -> tuple[str, ...]:
        return tuple(self.name if aspect == self.reward.name else aspect for aspect in self.reward.aspects)

    @property
    def version(self) -> str:
        return digest("repeat", self.name, self.times, self.reward.version)

    def update(self, scores: Scores, step: int) -> None:
        self.reward.update(replace(scores, names=self.reward.aspects), step)

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        passes = [guarded(self.reward, prompts, media, group) for _ in range(self.times)]
        valid = torch.stack([scores.valid for scores in passes])  # (N,B,K)
        values, variance = moments(torch.stack([scores.values for scores in passes]), valid, 0)
        total_valid = torch.stack([scores.total_valid for scores in passes])  # (N,B)
        total, _ = moments(torch.stack([scores.total for scores in passes]), total_valid, 0)
        failed = torch.stack([scores.failed for scores in passes]).any(0) & ~valid.any(0)
        confidence = None
        if any(scores.confidence is not None for scores in passes):
            confidence = moments(torch.stack([confidences(scores) for scores in passes]), valid, 0)[0]
        by_row = zip(*[_errors(scores) for scores in passes], strict=True)
        errors = [next(filter(None, messages), None) for messages in by_row]  # the first of each row
        return replace(
            passes[0],
            names=self.aspects,
            values=values,
            valid=valid.any(0),
            failed=failed,
            total=total,
            total_valid=total_valid.any(0),
            confidence=confidence,
            std=variance.detach().sqrt(),
            info={**passes[0].info, **({"error": errors} if any(errors) else {})},
        )


def _errors(scores: Scores) -> list[str | None]:
    return list(scores.info.get("error", [None] * len(scores.total)))


def moments(values: Tensor, valid: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
    """Mean and population variance over the valid entries along `dim`; 0 where there are none."""
    count = valid.sum(dim, keepdim=True).clamp(min=1)
    mean = torch.where(valid, values, 0.0).sum(dim, keepdim=True) / count
    variance = torch.where(valid, values - mean, 0.0).square().sum(dim, keepdim=True) / count
    return mean.squeeze(dim), variance.squeeze(dim)


def least(values: Tensor, valid: Tensor) -> Tensor:
    """(B,) the least valid entry of each row of (B,P)."""
    return torch.where(valid, values, torch.inf).amin(1)


def entropic(values: Tensor, valid: Tensor, beta: float) -> Tensor:
    """(B,) -beta log mean exp(-r / beta) over the valid entries of each row, of which there is one at least.

    Taken about the mean and in float64, or a large beta would lose the digits in which the entries differ.
    """
    mean, _ = moments(values.double(), valid)
    away = torch.where(valid, -(values.double() - mean[:, None]) / beta, -torch.inf)
    return (mean - beta * (away.logsumexp(1) - valid.sum(1).double().log())).to(values.dtype)
