"""Is the reward being hacked? Held-out rewards and diversity on a few fixed prompts, followed while a run trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from genalign.media import MEDIA, source
from genalign.ranks import all_sum, rank, world
from genalign.training import checkpoint as ck
from genalign.types import Media, Policy, Prompt, Reward, Scores, Weights, sample_seed

PREFIX = "monitor/"
ALARM = f"{PREFIX}alarm"


class MonitorSettings(BaseModel):
    """How closely a run is watched. Nothing here reaches the arithmetic of a step."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    every: int = Field(default=10, ge=1)
    """Steps between looks; there is one more at the end."""
    prompts: str | None = None
    """File of prompts, relative to the recipe; null: those of eval.prompts that eval.count leaves out of the report,
    all of eval.prompts where it leaves none out, or the training prompts without eval."""
    count: int = Field(default=16, ge=1)
    """How many of them: the first ones."""
    per_prompt: int = Field(default=2, ge=1)
    """Samples of each, at the same seeds in every look; diversity needs two."""
    steps: int | None = Field(default=None, ge=1)
    """Denoising steps; null: those of eval, or of the sampler without eval."""
    guidance: float | None = None
    """Guidance scale; null: the first one of eval, or the sampler's without eval."""
    held_out: list[str | dict[str, Any]] = []
    """Reward specs that are never optimised; empty: eval.held_out. A set measure such as vendi may be one of them."""
    patience: int = Field(default=3, ge=1)
    """Looks in a row with a better training reward and a worse held-out one than at the latter's best: the alarm. With
    `stop: peak` also looks in a row that are no better than the best one."""
    stop: bool | Literal["peak"] = False
    """true: end the run at the alarm, with the newest kept checkpoint that is not past the held-out reward's best.
    peak: end it after `patience` looks that are no better by the first held-out reward; such a run ends, early or at
    its last step, with the checkpoint of its best look."""


@dataclass(frozen=True)
class Monitor:
    """What is watched: the training reward (None: pairs train) and those held out, on fixed prompts and seeds."""

    settings: MonitorSettings
    prompts: Sequence[Prompt]
    proxy: Reward | None
    held_out: Sequence[Reward]
    weights: Weights = "policy"

    @property
    def chosen(self) -> list[Prompt]:
        """The prompts of a look, over all ranks."""
        return list(self.prompts)[: self.settings.count]

    @torch.no_grad()
    def look(self, policy: Policy) -> dict[str, float]:
        """`monitor/NAME` of each reward, `monitor/NAME/ASPECT` of those held out, `monitor/diversity` and symptoms.

        Means over all ranks' samples, each over those on which it is valid.

        The global generators are left as they were, so a run that is watched takes the same steps as one that is not.
        """
        kept = ck.random_state()
        chosen = self.chosen[rank() :: world()]
        rows = [prompt for prompt in chosen for _ in range(self.settings.per_prompt)]
        group = torch.tensor([prompt.uid for prompt in rows])
        with policy.weights(self.weights):
            media = self._draw(policy, chosen, rows)
        measured: dict[str, tuple[float, float]] = {}  # name -> sum over this rank's samples, and how many count
        for reward in [*([self.proxy] if self.proxy is not None else []), *self.held_out]:
            scores = reward(rows, media, group)
            valid = scores.total_valid
            measured[reward.name] = (float(scores.total[valid].sum()), float(valid.sum()))
            if reward is not self.proxy:
                measured |= _aspects(reward, scores)
        measured |= {name: (value * len(rows), float(len(rows))) for name, value in symptoms(media, group).items()}
        ck.set_random_state(kept)
        sums = all_sum(torch.tensor(list(measured.values()), dtype=torch.float64))
        return {f"{PREFIX}{name}": a / n for name, (a, n) in zip(measured, sums.tolist(), strict=True) if n}

    def _draw(self, policy: Policy, chosen: Sequence[Prompt], rows: Sequence[Prompt]) -> Media:
        if not policy.guided:  # a language model: its plain sampling is greedy, so siblings would all be alike
            return policy.rollout(chosen, self.settings.per_prompt, 0).media
        seeds = [sample_seed(0, p.uid, k) for p in chosen for k in range(self.settings.per_prompt)]
        return policy.generate(rows, seeds, self.settings.guidance, self.settings.steps)

    @property
    def headline(self) -> str:
        """The log key of the first held-out reward."""
        return f"{PREFIX}{self.held_out[0].name}"

    def peak(self, looks: Iterable[Mapping[str, float]]) -> tuple[int, int] | None:
        """(step, since): the look with the best headline (the first of equal ones), and how many came after it."""
        seen = [(int(log["step"]), log[self.headline]) for log in looks if self.headline in log]
        if not seen:
            return None
        best = max(range(len(seen)), key=lambda at: seen[at][1])
        return seen[best][0], len(seen) - 1 - best

    def end(self, looks: Sequence[Mapping[str, float]]) -> int | None:
        """The step whose weights the run is to end with, where the looks say that it should end now; else None."""
        if self.settings.stop == "peak":
            found = self.peak(looks)
            return found[0] if found is not None and found[1] >= self.settings.patience else None
        alarm = self.alarm(looks) if self.settings.stop else None
        return None if alarm is None else alarm[0]

    def alarm(self, looks: Iterable[Mapping[str, float]]) -> tuple[int, str] | None:
        """(step, name): the proxy point, where held-out reward `name` was best before it fell; None: no alarm.

        looks: logs, of which those count that hold a look.
        """
        if self.proxy is None:
            return None
        for reward in self.held_out:
            names = f"{PREFIX}{self.proxy.name}", f"{PREFIX}{reward.name}"
            seen = [(int(log["step"]), log[names[0]], log[names[1]]) for log in looks if set(names) <= set(log)]
            point = proxy_point(seen, self.settings.patience)
            if point is not None:
                return point, reward.name
        return None


def proxy_point(looks: Sequence[tuple[int, float, float]], patience: int) -> int | None:
    """The step beyond which a proxy is hacked, from (step, proxy, held-out) in their order; None: it is not.

    That of the best held-out value, where each of the last `patience` looks has a worse one and a better proxy. (The
    proxy point of constrained RLHF, arXiv 2310.04373, found as the run goes and not by a search over thresholds.)
    """
    if len(looks) <= patience:
        return None
    step, proxy, held = max(looks, key=lambda look: look[2])  # the first of equal ones
    later = looks[-patience:]
    hacked = all(when > step and p > proxy and h < held for when, p, h in later)
    return step if hacked else None


def warning(proxy: str, held_out: str, step: int, looks: Sequence[Mapping[str, float]]) -> str:
    """One sentence about an alarm."""
    best = next(log for log in looks if int(log["step"]) == step)
    moved = ", ".join(
        f"{name} {best[f'{PREFIX}{name}']:.4f} -> {looks[-1][f'{PREFIX}{name}']:.4f}" for name in (proxy, held_out)
    )
    return (
        f"the reward is being hacked: since step {step} {proxy} rises while the held-out {held_out} falls ({moved}); "
        f"stop there, or raise method.kl_beta where the method has one"
    )


def _aspects(reward: Reward, scores: Scores) -> dict[str, tuple[float, float]]:
    """NAME/ASPECT -> sum over the rows on which it is valid, and their number; none of a reward with one aspect."""
    found: dict[str, tuple[float, float]] = {}
    for k, aspect in enumerate(scores.names):
        if len(scores.names) > 1 and aspect != reward.name:
            valid = scores.valid[:, k]
            found[f"{reward.name}/{aspect}"] = (float(scores.values[valid, k].sum()), float(valid.sum()))
    return found


# ---- diversity and symptoms -----------------------------------------------------------------------------------------


def symptoms(media: Media, group: Tensor) -> dict[str, float]:
    """What hacked samples often show, means over rows: the symptoms of each medium, and `diversity`.

    diversity: mean distance of two siblings, by the measure of the medium in which they begin to differ.
    """
    found: dict[str, float] = {}
    for name, track in media.items():
        found |= MEDIA[name].symptoms(list(track.held))
    first, siblings = source(media), group.tolist()
    rows, distance = media[first].held, MEDIA[first].distance
    pairs = [(i, j) for j in range(len(siblings)) for i in range(j) if siblings[i] == siblings[j]]
    if pairs:
        found["diversity"] = sum(distance(rows[i], rows[j]) for i, j in pairs) / len(pairs)
    return found
