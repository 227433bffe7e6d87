"""Searches for better samples, several at equal budgets, and the table that compares them with plain sampling."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import torch

from genalign.cli.sample import PLAIN, Sample, Source, check_prompts, listed, opened_source, rows_of
from genalign.evaluation.intervals import compare
from genalign.evaluation.trial import by_prompt
from genalign.method import MethodSettings
from genalign.method.search.base import InferenceSettings, Searching
from genalign.method.search.nrg import Guidance
from genalign.reward import Runner, build_reward, check_needs
from genalign.reward.function import FunctionReward
from genalign.run.build import Built, method_of
from genalign.run.fits import check_fit
from genalign.types import Media, Method, Prompt, Reward, UsageError

log = logging.getLogger(__name__)


def search(
    source: str | Path | Source,
    prompts: str | Path | Iterable[str | Prompt],
    *,
    searches: Sequence[str] = (),
    rewards: Sequence[str] = (),
    budget: float | None = None,
    n: int = 1,
    seed: int = 0,
    guidance: float | None = None,
    steps: int | None = None,
    base: bool = False,
    overrides: Sequence[str] = (),
) -> Search:
    """Search for better samples; iterate over what is returned to draw them, then ask it for its `table()`.

    Args:
        source: see `open_source`; or what it returned, whose model stays loaded between calls.
        prompts: one text, a Path of a prompts file, or texts and Prompts.
        searches: names of methods such as best-of-n, random, reno, fk, vas; none: the recipe's own method.
        rewards: what is searched for, each `NAME` or `NAME=WEIGHT`; none: the recipe's reward.
        budget: what one sample may cost, in plain samplings (None: the first search's own); the same for all.
        n: samples a prompt. seed: of a prompt's first sample; its next one has the next seed.
        guidance, steps, base, overrides: as of `sample`.

    Raises:
        UsageError: at the call, before any weight of a recipe or model loads: nothing to search by or for, a budget
            below 1, a reward that reads what the prompts lack, or one without gradients for a search that needs them.
    """
    given = listed(prompts)
    rows, seeds = rows_of(given, n, seed)
    opened = opened_source(source, overrides)
    methods = searches_of(opened.built, searches, rewards, budget)
    if not methods:
        raise UsageError("there is no search; name one, or take a recipe whose method is a search")
    reward = reward_of(opened.built, rewards, methods, opened.made, given)
    return Search(opened, rows, seeds, methods, reward, guidance, steps, base)


class Search:
    """Iterating draws plain samples first, then those of each search, and yields each `Sample` as its batch is done.

    reward: what is searched for. judge: the recipe's held-out judge, which no search sees, where it can read the
    prompts.
    """

    def __init__(
        self,
        source: Source,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        searches: Sequence[Method],
        reward: Reward,
        guidance: float | None = None,
        steps: int | None = None,
        base: bool = False,
    ) -> None:
        self.source, self.prompts, self.seeds, self.searches = source, prompts, seeds, searches
        self.reward, self.guidance, self.steps, self.base = reward, guidance, steps, base
        self.judge = judge_of(source.built, source.made, prompts, reward)
        self._drawn: dict[str, list[Sample]] = {}

    def __iter__(self) -> Iterator[Sample]:
        self._drawn = {}
        policy = self.source.policy
        check_prompts(policy, self.prompts)
        tuned = self.source.tuned and not self.base
        plain = MethodSettings.model_validate({"name": "best-of-n", "budget": 1.0}).build(Path())
        for method in (plain, *self.searches):
            assert isinstance(method, Searching)
            name = PLAIN if method is plain else method.name
            drawn = self._drawn[name] = []
            size = max(1, self.source.batch // method.settings.group)  # candidates of a batch lie in one micro-batch
            for at in range(0, len(self.prompts), size):
                part, seeds = self.prompts[at : at + size], self.seeds[at : at + size]
                with policy.weights("policy" if tuned else "reference"):
                    found = method.find(policy, part, seeds, self.reward, self.guidance, self.steps)
                for k, prompt in enumerate(part):
                    score = float(found.total[k]) if found.readable[k] else None
                    units = found.spent.units / len(part)
                    drawn.append(Sample(found.media.select([k]), prompt, found.seeds[k], name, score, units))
                yield from drawn[at:]

    def table(self) -> list[dict[str, Any]]:
        """A row for plain sampling and for each search that was drawn.

        {"search", "reward", "gain", "half_width", "evaluations"}, and with a judge "judge", "judge_gain" and
        "judge_half_width". reward, judge: means over the samples that could be scored. gain: over plain sampling, by
        prompt; half_width: of its bootstrap interval of 95% over prompts, None of one prompt. evaluations: what a
        sample cost, in plain samplings. None where nothing could be compared.
        """
        first = self._drawn[PLAIN]
        prompts = len({prompt.uid for prompt in self.prompts})
        totals = {name: _scores(drawn) for name, drawn in self._drawn.items()}
        judged = {} if self.judge is None else {name: _judged(self.judge, drawn) for name, drawn in self._drawn.items()}
        rows = []
        for name, drawn in self._drawn.items():
            mean, gain, half_width = gain_over(totals[PLAIN], totals[name], prompts)
            cost = sum(one.units for one in drawn) / sum(one.units for one in first)
            row = {"search": name, "reward": mean, "gain": gain, "half_width": half_width, "evaluations": cost}
            if judged:
                mean, gain, half_width = gain_over(judged[PLAIN], judged[name], prompts)
                row |= {"judge": mean, "judge_gain": gain, "judge_half_width": half_width}
            rows.append(row)
        return rows


def searches_of(
    built: Built | None, searches: Sequence[str], rewards: Sequence[str], budget: float | None
) -> list[Method]:
    """The searches of these names, or the recipe's own method where it is one; all with the same budget.

    Raises:
        UsageError: a reward or a budget without a search, or a budget below 1.
    """
    own = built.recipe.method if built is not None and isinstance(built.method, Searching) else None
    names = list(searches) or ([own.name] if own is not None else [])
    if not names:
        if rewards or budget is not None:
            raise UsageError("--reward and --budget belong to a search; name one with --search")
        return []
    settings = []
    for name in names:
        theirs = own is not None and name == own.name
        settings.append(own if theirs and own is not None else MethodSettings.model_validate({"name": name}))
    if budget is None:
        budget = getattr(settings[0], "budget", None)
    if budget is not None and budget < 1:
        raise UsageError(f"--budget is {budget:g}; it must be at least 1, which is plain sampling")
    folder = Path() if built is None else built.recipe.folder
    methods = []
    for one in settings:
        if budget is not None and isinstance(one, InferenceSettings):
            one = one.model_copy(update={"budget": budget})
        methods.append(method_of(one, folder))
    return methods


def reward_of(
    built: Built | None,
    rewards: Sequence[str],
    searches: Sequence[Method],
    made: Set[str],
    prompts: Sequence[Prompt],
) -> Reward:
    """The weighted sum of `rewards`, or the recipe's reward; it must suit every search.

    Where all searches are guided by a reward of their own, and the recipe's cannot read the prompts, nothing is scored.

    Raises:
        UsageError: there is none, it reads what the prompts lack, or a search needs gradients that it does not have.
    """
    reward = built.reward if built is not None else None
    if rewards:
        parts = [_part(word) for word in rewards]
        alone = len(parts) == 1 and parts[0]["weight"] == 1.0
        reward = Runner(build_reward(str(parts[0]["use"]) if alone else {"sum": parts}, Path()))
    if reward is None:
        raise UsageError("a search needs to know what is good; name a reward with --reward")
    missing = reward.lacks(_offered(made, prompts))
    if missing and not rewards and all(isinstance(one, Guidance) for one in searches):
        log.warning(
            "reward %s scores none of these prompts, since some lack %s; guidance needs no score",
            reward.name,
            ", ".join(sorted(missing)),
        )
        return Runner(FunctionReward(_unread, name=reward.name))
    check_needs(reward, _offered(made, prompts))
    for one in searches:
        check_fit(one, reward)
    return reward


def _unread(prompt: list[str]) -> list[None]:
    return [None] * len(prompt)


def judge_of(built: Built | None, made: Set[str], prompts: Sequence[Prompt], reward: Reward) -> Reward | None:
    """The recipe's held-out judge, where the prompts have what it reads and it is not what is searched for."""
    judge = built.held_out[0] if built is not None and built.held_out else None
    if judge is None or judge.version == reward.version or judge.lacks(_offered(made, prompts)):
        return None
    return judge


def _offered(made: Set[str], prompts: Sequence[Prompt]) -> set[str]:
    facts = set.intersection(*(set(prompt.facts) for prompt in prompts))
    return {"prompt", *made, *(f"facts.{name}" for name in facts)}


def _part(word: str) -> dict[str, str | float]:
    name, equals, tail = word.rpartition("=")
    try:
        return {"use": name, "weight": float(tail)} if equals else {"use": word, "weight": 1.0}
    except ValueError as error:
        raise UsageError(f"--reward {word}: {tail!r} is not a number; write NAME or NAME=WEIGHT") from error


def _scores(samples: Sequence[Sample]) -> torch.Tensor:
    """(R,) what the samples were searched by, NaN where that abstained."""
    return torch.tensor([torch.nan if one.score is None else one.score for one in samples])


def _judged(judge: Reward, samples: Sequence[Sample]) -> torch.Tensor:
    """(R,) the judge's scores of the samples that were found, NaN where it abstains."""
    with torch.no_grad():
        scores = judge([one.prompt for one in samples], Media.cat([one.media for one in samples]))
    return torch.where(scores.valid[:, 0], scores.values[:, 0].float(), torch.nan)


def gain_over(
    plain: torch.Tensor, found: torch.Tensor, prompts: int
) -> tuple[float | None, float | None, float | None]:
    """The mean of rows (prompts * n,) that can be read, its gain over plain sampling, and half the width of a
    bootstrap's interval of 95% over prompts; None where there is nothing to compare."""
    readable = found[torch.isfinite(found)]
    mean = float(readable.mean()) if len(readable) else None
    if found is plain:
        return mean, None, None
    before, after = (by_prompt(rows.double().view(prompts, -1).numpy()) for rows in (plain, found))
    compared = compare(before, after)
    if compared is None:
        return mean, None, None
    low, high = compared["ci95"]
    return mean, float(compared["delta"]), (high - low) / 2 if prompts > 1 else None


# ---- genalign sample --search ---------------------------------------------------------------------------------------


def print_searches(rows: Sequence[dict[str, Any]], reward: str, samples: int) -> None:
    """Costs are per sample; one evaluation is what plain sampling, decoding and scoring cost."""
    from rich.console import Console
    from rich.table import Table

    table = Table("search", title=f"reward {reward}, mean of the best of {samples} sample{'s' if samples > 1 else ''}")
    columns = ["reward", "gain, 95%", "evaluations", *(["judge", "gain, 95%"] if "judge" in rows[0] else [])]
    for heading in columns:
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [_number(row["reward"]), _gain(row, ""), f"{row['evaluations']:.1f}"]
        if "judge" in row:
            cells += [_number(row["judge"]), _gain(row, "judge_")]
        table.add_row(row["search"], *cells)
    Console().print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _gain(row: dict[str, Any], prefix: str) -> str:
    gain, half_width = row[f"{prefix}gain"], row[f"{prefix}half_width"]
    if gain is None:
        return "" if row["search"] == PLAIN else "-"
    return f"{gain:+.4f}" if half_width is None else f"{gain:+.4f} ±{half_width:.3f}"
