"""Best-of-n and random search, the baselines of every search, which need no gradient; and choices without a reward."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from genalign.method.search.base import Inference, InferenceSettings, SearchState, candidate_seed
from genalign.types import Media, Method, UsageError


class SearchSettings(InferenceSettings):
    """Best-of-n, random search, and the choices that a language model makes by itself: vote and certainty."""

    presets: ClassVar = {
        "best-of-n": {"group": 8},
        "random": {"group": 4, "propose": "nearby"},
        "majority-vote": {"group": 8, "select": "majority"},
        "self-certainty": {"group": 8, "select": "certainty"},
    }

    propose: Literal["fresh", "nearby"] = "fresh"
    """Each candidate's noise: drawn anew (best-of-n), or near the best one so far (random search)."""
    radius: float = Field(0.3, gt=0, lt=1)
    """Nearby: share of new noise, x' = sqrt(1 - radius^2) best + radius z, which stays standard normal."""

    select: Literal["reward", "majority", "certainty"] = "reward"
    """What chooses among candidates: the reward; or, of a language model, the commonest answer (in the last <answer>,
    else the last number, else the whole text), or how sure the model was of its tokens. The reward then only tells how
    good the chosen one is."""

    @model_validator(mode="after")
    def _fresh_for_a_choice(self) -> Self:
        if self.select != "reward" and self.propose == "nearby":
            raise UsageError("method.propose nearby searches by a reward; set method.select=reward")
        return self

    def build(self, folder: Path) -> Method:
        return Search(self)


class Search(Inference):
    """Best-of-n, and random search around the best noise so far (zero-order search, arXiv 2501.09732).

    By themselves: the first of the commonest answers among all (self-consistency, arXiv 2203.11171), or the most
    certain candidate (arXiv 2502.18581, without its Borda count).

    Departs from the paper: a nearby noise keeps the standard normal's norm, x' = sqrt(1 - r^2) best + r z, where the
    paper adds a scaled direction. The best noise so far stays in the race.
    """

    def __init__(self, settings: SearchSettings) -> None:
        self.settings, self.name = settings, settings.name
        self.needs = frozenset({"reward"})

    @torch.no_grad()
    def _search(self, state: SearchState) -> None:
        if self.settings.select != "reward":
            self._choose(state)
            return
        state.plain_samples()
        prompts, seeds = state.prompts, list(state.seeds)  # state.seeds become those of the winners
        nearby = self.settings.propose == "nearby"
        best = state.differentiable.initial_noise(prompts, seeds) if nearby else None  # (R,*L)
        first = 1
        while count := min(self.settings.group, state.left(self.settings.budget)):
            rows = [row for row in range(len(prompts)) for _ in range(count)]
            drawn = [candidate_seed(seeds[r], prompts[r], first + k % count) for k, r in enumerate(rows)]
            if best is None:
                state.draw(rows, drawn)
            else:
                best = self._near(state, best, rows, drawn)
            first += count

    def _near(self, state: SearchState, best: Tensor, rows: list[int], drawn: list[int]) -> Tensor:
        """One round of random search; the best noises after it."""
        share, policy = self.settings.radius, state.differentiable
        fresh = policy.initial_noise([state.prompts[row] for row in rows], drawn)
        tried = (1 - share**2) ** 0.5 * best[rows] + share * fresh
        before = state.best.clone()
        total = state.draw_from(rows, tried)
        best = best.clone()
        for row in range(len(best)):
            own = [k for k, owner in enumerate(rows) if owner == row]
            k = max(own, key=lambda k: float(total[k]))
            if state.best[row] > before[row]:
                best[row] = tried[k]
        return best

    def _choose(self, state: SearchState) -> None:
        """Draw what the budget allows, choose without the reward, and score the chosen."""
        policy, settings = state.writing, self.settings
        state.plain_samples()
        seeds = list(state.seeds)
        found: list[list[tuple[Media, float, int]]] = [[] for _ in seeds]  # candidates, their certainties and seeds
        while count := min(settings.group, state.left(settings.budget - 1)):  # one more evaluation is the choice's own
            first = 1 + len(found[0])
            rows = [row for row in range(len(seeds)) for _ in range(count)]
            drawn = [candidate_seed(seeds[r], state.prompts[r], first + k % count) for k, r in enumerate(rows)]
            with state.paying():
                trajectory = state.policy.rollout([state.prompts[row] for row in rows], 1, drawn)
                certain = [0.0] * len(rows)
                if settings.select == "certainty":
                    certain = policy.certainty(trajectory, range(len(rows))).tolist()
            state.spent.forward += 2 * len(rows)  # as every evaluation is counted, so that budgets compare
            for k, row in enumerate(rows):
                found[row].append((trajectory.media.select([k]), certain[k], drawn[k]))
        for row, candidates in enumerate(found):
            if candidates:
                media, _, seed = self._chosen(candidates)
                state.choose(row, media, seed)

    def _chosen(self, candidates: list[tuple[Media, float, int]]) -> tuple[Media, float, int]:
        if self.settings.select == "certainty":
            return max(candidates, key=lambda one: one[1])
        answers = [answer_of(str(media["text"].row(0))) for media, _, _ in candidates]
        return candidates[answers.index(Counter(answers).most_common(1)[0][0])]


def answer_of(text: str) -> str:
    """What a text answers: its last <answer>, else its last number, else all of it; without case and outer blanks."""
    tagged: list[str] = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    numbers: list[str] = re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", text)
    return " ".join((tagged or numbers or [text])[-1].lower().split())
