"""Searches from the command line: several at equal budgets, their best samples, and one table."""

from __future__ import annotations

import json
import logging
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from genalign.evaluation.evaluate import compare
from genalign.evaluation.trial import by_prompt
from genalign.media.files import write_sample
from genalign.method import MethodSettings
from genalign.method.search.base import Found, InferenceSettings, Searching, find_in_batches
from genalign.method.search.nrg import Guidance
from genalign.reward import Runner, build_reward, check_needs
from genalign.reward.function import FunctionReward
from genalign.run.build import Built, check_fit, method_of
from genalign.types import Method, Policy, Prompt, Reward, UsageError

log = logging.getLogger(__name__)


def searches_of(args: Namespace, built: Built | None) -> list[Method]:
    """The searches that --search names, or the recipe's own method where it is one; all with the same budget."""
    own = built.recipe.method if built is not None and isinstance(built.method, Searching) else None
    names = args.search or ([own.name] if own is not None else [])
    if not names:
        if args.reward or args.budget is not None:
            raise UsageError("--reward and --budget belong to a search; name one with --search")
        return []
    if args.rollout:
        raise UsageError("--rollout draws as training does, and training does not search; drop --search or --rollout")
    settings = [
        own if own is not None and name == own.name else MethodSettings.model_validate({"name": name}) for name in names
    ]
    budget = args.budget if args.budget is not None else getattr(settings[0], "budget", None)
    if budget is not None and budget < 1:
        raise UsageError(f"--budget is {budget:g}; it must be at least 1, which is plain sampling")
    folder = Path() if built is None else built.recipe.folder
    equal = {} if budget is None else {"budget": budget}
    fair = [one.model_copy(update=equal) if isinstance(one, InferenceSettings) else one for one in settings]
    return [method_of(one, folder) for one in fair]


def reward_of(
    args: Namespace, built: Built | None, searches: Sequence[Method], modality: str, prompts: Sequence[Prompt]
) -> Reward:
    """The weighted sum of what --reward names, or the recipe's reward; it must suit every search.

    Where all searches are guided by a reward of their own, and the recipe's cannot read the prompts, nothing is scored.

    Raises:
        UsageError: there is none, it reads what the prompts lack, or a search needs gradients that it does not have.
    """
    reward = built.reward if built is not None else None
    if args.reward:
        parts = [_part(word) for word in args.reward]
        alone = len(parts) == 1 and parts[0]["weight"] == 1.0
        reward = Runner(build_reward(str(parts[0]["use"]) if alone else {"sum": parts}, Path()))
    if reward is None:
        raise UsageError("a search needs to know what is good; name a reward with --reward")
    missing = reward.lacks(_offered(modality, prompts))
    if missing and not args.reward and all(isinstance(search, Guidance) for search in searches):
        told = ", ".join(sorted(missing))
        log.warning(
            "reward %s scores none of these prompts, since some lack %s; guidance needs no score", reward.name, told
        )
        return Runner(FunctionReward(_unread, name=reward.name))
    check_needs(reward, _offered(modality, prompts))
    for search in searches:
        check_fit(search, reward)
    return reward


def _unread(prompt: list[str]) -> list[None]:
    return [None] * len(prompt)


def judge_of(built: Built | None, modality: str, prompts: Sequence[Prompt], reward: Reward) -> Reward | None:
    """The recipe's held-out judge, where the prompts have what it reads and it is not what is searched for."""
    judge = built.held_out if built is not None else None
    if judge is None or judge.version == reward.version or judge.lacks(_offered(modality, prompts)):
        return None
    return judge


def _offered(modality: str, prompts: Sequence[Prompt]) -> set[str]:
    facts = set.intersection(*(set(prompt.facts) for prompt in prompts))
    return {"prompt", modality, *(f"facts.{name}" for name in facts)}


def _part(word: str) -> dict[str, str | float]:
    name, equals, tail = word.rpartition("=")
    try:
        return {"use": name, "weight": float(tail)} if equals else {"use": word, "weight": 1.0}
    except ValueError as error:
        raise UsageError(f"--reward {word}: {tail!r} is no number; write NAME or NAME=WEIGHT") from error


def search_files(
    args: Namespace,
    policy: Policy,
    searches: Sequence[Method],
    reward: Reward,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    batch: int,
    judge: Reward | None = None,
) -> int:
    """Write each search's best samples and samples.jsonl, and print the table; the number of samples.

    judge: a reward that no search sees; the table says what it thinks of the samples that were found.
    """
    plain = MethodSettings.model_validate({"name": "best-of-n", "budget": 1.0}).build(Path())
    rows: list[tuple[str, Found]] = []
    with (args.out / "samples.jsonl").open("w") as index:
        for search in (plain, *searches):
            assert isinstance(search, Searching)
            found = find_in_batches(search, policy, prompts, seeds, reward, batch, args.guidance, args.steps)
            name = "plain" if search is plain else search.name
            rows.append((name, found))
            if search is plain:
                continue
            for k, prompt in enumerate(prompts):
                stem = f"{name}-{k:05d}" if len(searches) > 1 else f"{k:05d}"
                file = write_sample(found.media, k, args.out / stem)
                score = float(found.total[k]) if found.readable[k] else None
                row = {"file": file.name, "prompt": prompt.text, "facts": dict(prompt.facts), "seed": found.seeds[k]}
                index.write(json.dumps({**row, "search": name, "score": score}) + "\n")
    judged = [] if judge is None else [_judged(judge, prompts, found) for _, found in rows]
    _print(rows, reward.name, judged, len({prompt.uid for prompt in prompts}))
    return len(prompts) * len(searches)


def _judged(judge: Reward, prompts: Sequence[Prompt], found: Found) -> torch.Tensor:
    """(R,) of the samples that were found, NaN where the judge says nothing."""
    with torch.no_grad():
        scores = judge(prompts, found.media)
    return torch.where(scores.valid[:, 0], scores.values[:, 0].float(), torch.nan)


def _print(rows: Sequence[tuple[str, Found]], reward: str, judged: Sequence[torch.Tensor], prompts: int) -> None:
    """Costs are per sample; one evaluation is what plain sampling, decoding and scoring cost."""
    from rich.console import Console
    from rich.table import Table

    first = rows[0][1]
    count = len(first.total)
    table = Table("search", title=f"reward {reward}, mean of the best of {count} sample{'s' if count > 1 else ''}")
    for heading in ("reward", "gain, 95%", "evaluations", *(("judge", "gain, 95%") if judged else ())):
        table.add_column(heading, justify="right")
    totals = [torch.where(found.readable, found.total, torch.nan) for _, found in rows]
    for k, (name, found) in enumerate(rows):
        told, *more = [_against(column[0], column[k], prompts) for column in (totals, judged) if column]
        table.add_row(name, *told, f"{found.spent.units / first.spent.units:.1f}", *(more[0] if more else ()))
    Console().print(table)


def _against(plain: torch.Tensor, found: torch.Tensor, prompts: int) -> tuple[str, str]:
    """The mean of rows (prompts * n,) that can be read, and its gain over plain sampling, with half the width of a
    bootstrap's interval over prompts."""
    mean = _number(found[torch.isfinite(found)].mean())
    if found is plain:
        return mean, ""
    before, after = (by_prompt(rows.double().view(prompts, -1).numpy()) for rows in (plain, found))
    compared = compare(before, after)
    if compared is None:
        return mean, "-"
    low, high = compared["ci95"]
    spread = f" ±{(high - low) / 2:.3f}" if prompts > 1 else ""
    return mean, f"{compared['delta']:+.4f}{spread}"


def _number(value: torch.Tensor) -> str:
    return "-" if torch.isnan(value) else f"{float(value):.4f}"
