"""What a run reached, as one sentence that a person understands, computed from the rows of its evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from genalign.evaluation.intervals import compare
from genalign.evaluation.results import headline
from genalign.types import Prompt

COMMON = 0.1  # share of an aspect's prompts in which a word of the fact must stand to be a kind of its own
NAMED = 2  # words that the sentence names


def by_word(prompts: Sequence[Prompt], aspect: str, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """Word -> `compare` over the prompts in whose fact `aspect` it stands; {} where no prompt has such a fact of words.

    before, after: the aspect's values (N,), NaN for a prompt on which it abstains. A fact holds words where it is a
    text, or a list in which texts stand. Only those count that stand in a tenth of the prompts or more, as a relation
    or a colour does and a name does not.
    """
    counted = np.isfinite(before) & np.isfinite(after)
    places: dict[str, list[int]] = {}
    for at in np.flatnonzero(counted).tolist():
        for word in _words(prompts[at].facts.get(aspect)):
            places.setdefault(word, []).append(at)
    common = {word: rows for word, rows in places.items() if len(rows) >= COMMON * counted.sum()}
    return {word: compare(before[rows], after[rows]) for word, rows in sorted(common.items())}


def _words(fact: Any) -> set[str]:
    if isinstance(fact, str):
        return {fact}
    return {part for part in fact if isinstance(part, str)} if isinstance(fact, list | tuple) else set()


def lead_in(log: Iterable[Mapping[str, float]]) -> str:
    """How a sentence about a run begins, by the rows of its metrics: after how much training."""
    seconds = sum(row.get("step_time", 0.0) for row in log)
    if not seconds:
        return "Now"
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"After {seconds:.0f} seconds"
    return f"After {minutes} minute{'s' if minutes > 1 else ''}"


def sentence(result: Mapping[str, Any], begin: str) -> str:
    """What eval.json says of its headline, the judge's first aspect: by how much it changed, and which kind most.

    A judge of yes and no that reads the prompt says how many prompts in 100 are followed; any other reward has its own
    unit. A difference whose interval holds 0 is called none. Which kind: the aspect of the same reward that changed
    most, if its own interval leaves 0 out on the same side, and the words of its fact that did.
    """
    name = headline(result)
    metric = result["metrics"].get(result["sweep"]["headline"])
    if metric is None:
        return f"{begin} nothing can be said: {name} has no value on any prompt."
    judged = result.get("judged", {"by": "value", "aspects": {}})
    unit = 1.0 if judged["by"] == "value" else 100.0
    low, high = (unit * bound for bound in metric["ci95"])
    before, after, delta = (unit * metric[key] for key in ("before", "after", "delta"))
    form = "{:.4g}" if unit == 1.0 else "{:.1f}"
    between = f"interval {_signed(form, low)} to {_signed(form, high)}"
    moved = f"{form.format(before)} -> {form.format(after)}"
    if low <= 0 <= high:
        of = {"follows": "prompts followed in 100", "passes": f"in 100 pass {name}", "value": name}[judged["by"]]
        return f"{begin} there is no difference that {result['prompts']} prompts could show: {moved} {of}, {between}."
    size = f"{abs(delta):.0f}" if unit > 1 and abs(delta) >= 1 else form.format(abs(delta))
    change = {
        "follows": f"the model follows {size} {'more' if delta > 0 else 'fewer'} prompts in 100",
        "passes": f"{size} {'more' if delta > 0 else 'fewer'} samples in 100 pass {name}",
        "value": f"{name} is {size} {'higher' if delta > 0 else 'lower'}",
    }[judged["by"]]
    return f"{begin} {change} ({moved}, {between}){_most(result, judged['aspects'], delta, unit, form)}."


def _most(result: Mapping[str, Any], aspects: Mapping[str, Any], delta: float, unit: float, form: str) -> str:
    """The aspect that changed most in the direction of `delta`, and its words; "" where none did for sure.

    Answers of yes and no are compared by their differences; values, whose units differ, by differences in half-widths
    of their intervals.
    """
    side = 1 if delta > 0 else -1
    sure: dict[str, float] = {}
    for aspect, part in aspects.items():
        found = result["metrics"].get(part["metric"])
        if found is not None and _is_sure(found, side):
            spread = 1.0 if unit > 1 else (found["ci95"][1] - found["ci95"][0]) / 2
            sure[aspect] = side * found["delta"] / max(spread, 1e-12)
    if not sure:
        return ""
    aspect = max(sure, key=lambda name: sure[name])
    part, what = aspects[aspect], "most" if side > 0 else "lost most"
    change = _signed(form, unit * result["metrics"][part["metric"]]["delta"])
    words = [word for word, found in part["words"].items() if _is_sure(found, side)]
    words.sort(key=lambda word: -side * part["words"][word]["delta"])
    if not words:
        return f": {aspect} {what} ({change})"
    return f": {' and '.join(repr(word) for word in words[:NAMED])} {what} ({aspect} {change})"


def _is_sure(found: Mapping[str, Any], side: int) -> bool:
    """Whether the interval lies on that side of 0."""
    return min(side * bound for bound in found["ci95"]) > 0


def _signed(form: str, value: float) -> str:
    return f"{'+' if value >= 0 else '-'}{form.format(abs(value))}"
