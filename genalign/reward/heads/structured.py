"""Structured answers (tool calls, layouts, scene graphs) against the right ones: partial credit by counting."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from genalign.files.text import lines_of
from genalign.reward.combine.combination import number
from genalign.reward.heads.rules import TextRule
from genalign.reward.tags import tagged
from genalign.types import Prompt, UsageError

Call = tuple[str, dict[str, Any]]


class StructuredMatch(TextRule):
    """low + (high - low) S / (1 + n + number of right parameters), S in [0, that]: ToolRL (arXiv 2504.13958, eq. 4-9).

    S = overlap of the names + for each of the n right calls, matched to one of its name, the overlap of the parameters'
    names, and 1 for each that has the right value. Overlaps are intersection over union, so that what is too much costs
    as well; the order of calls and parameters does not matter. The best score is for the right calls alone.

    A call is {"name": ..., "parameters" or "arguments": {...}}. The text holds a JSON object, a list of them, or one a
    line; tag: it stands between <tag> and </tag>. A text that cannot be read so gets `low`: it is wrong, and the rule
    has not failed. key: the prompt's fact with the right calls, in the same forms; without it the rule abstains.

    Departs from the paper's code: (1) names are counted as often as they occur. (2) Calls are matched for the best sum,
    not greedily. (3) The format has a rule of its own, `Format`.
    """

    def __init__(
        self, key: str = "calls", *, tag: str | None = None, low: float = -3.0, high: float = 3.0,
        name: str = "structured",
    ) -> None:  # fmt: skip
        super().__init__(name)
        self.key, self.tag, self.needs = key, tag, frozenset({"text", f"facts.{key}"})
        self.low, self.high = number(name, "low", low), number(name, "high", high)
        if self.low >= self.high:
            raise UsageError(f"reward {name!r} has low {low:g}, which does not lie below high {high:g}")
        self.settings = (key, tag, self.low, self.high)

    def rate(self, text: str, prompt: Prompt) -> float | None:
        fact = prompt.facts.get(self.key)
        if fact is None:
            return None
        right, made = read_calls(fact), self._made(text)
        if right is None:
            raise UsageError(f"the fact {self.key!r} of prompt {prompt.text[:40]!r} holds no calls; mend the data")
        best = 1 + len(right) + sum(len(parameters) for _, parameters in right)
        share = 0.0 if made is None else matched(right, made) / best
        return self.low + (self.high - self.low) * share

    def _made(self, text: str) -> list[Call] | None:
        if self.tag is None:
            return read_calls(text)
        found = tagged(text, self.tag)
        return None if found is None else read_calls(found)


def matched(right: list[Call], made: list[Call]) -> float:
    """S of `StructuredMatch`."""
    from scipy.optimize import linear_sum_assignment

    worth = np.zeros((len(right), len(made)))
    for i, wanted in enumerate(right):
        worth[i] = [_credit(wanted, given) if wanted[0] == given[0] else 0.0 for given in made]
    names, others = Counter(name for name, _ in right), Counter(name for name, _ in made)
    return _overlap(names, others) + float(worth[linear_sum_assignment(worth, maximize=True)].sum())


def _credit(right: Call, made: Call) -> float:
    """What a call earns by its parameters, matched to the right one of its name."""
    (_, has), (_, gives) = right, made
    return _overlap(Counter(list(has)), Counter(list(gives))) + sum(k in gives and gives[k] == has[k] for k in has)


def _overlap(one: Counter[str], other: Counter[str]) -> float:
    """Intersection over union, each name counted as often as it occurs; 1 of two empty ones."""
    union = (one | other).total()
    return (one & other).total() / union if union else 1.0


def read_calls(source: Any) -> list[Call] | None:
    """The calls that data, or a text of JSON, holds; None where it is not of that form."""
    entries = source
    if isinstance(source, str):
        try:
            entries = json.loads(source)
        except ValueError:
            try:  # JSON lines
                entries = [json.loads(line.text) for line in lines_of(source)]
            except ValueError:
                return None
    calls = []
    for entry in entries if isinstance(entries, list | tuple) else [entries]:
        has = entry.get("parameters", entry.get("arguments", {})) if isinstance(entry, Mapping) else None
        if not isinstance(has, Mapping) or not isinstance(entry.get("name"), str):
            return None
        calls.append((entry["name"], dict(has)))
    return calls
