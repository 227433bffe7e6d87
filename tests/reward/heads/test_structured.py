"""Calls of tools in a text, counted as ToolRL does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from genalign.reward import (
    StructuredMatch,
    build_reward,
)
from genalign.types import Reward, UsageError
from tests.helpers.toy_rewards import prompts, texts


def told(reward: Reward, *rows: str, **facts: list[Any]) -> list[float]:
    return reward(prompts(len(rows), **facts), texts(*rows)).total.tolist()


A, B = {"name": "find", "parameters": {"place": "Oslo", "days": 2}}, {"name": "sum", "parameters": {"of": [1, 2]}}
BEST = 1 + 2 + 3  # names, two calls, three parameters


@pytest.mark.parametrize(
    ("made", "share"),
    [
        ([A, B], 1.0),
        ([B, A], 1.0),
        ([{**A, "parameters": {"days": 2, "place": "Oslo"}}, B], 1.0),
        ([A], (1 / 2 + 1 + 2) / BEST),
        ([A, B, {"name": "ask", "parameters": {}}], (2 / 3 + 2 + 3) / BEST),
        ([A, B, B], (2 / 3 + 2 + 3) / BEST),
        ([{"name": "find", "parameters": {"place": "Rome", "days": 2}}, B], (1 + 2 + 2) / BEST),
        ([{"name": "find", "parameters": {"place": "Oslo", "when": 2}}, B], (1 + 1 / 3 + 1 + 2) / BEST),
        ([{"name": "seek", "parameters": A["parameters"]}, B], (1 / 3 + 1 + 1) / BEST),
        ([], 0.0),
    ],
)
def test_calls_are_scored_by_toolrls_counts(made: list[Any], share: float) -> None:
    """Counted by hand: names, parameters' names, values; 3 for the right calls alone, -3 for nothing right."""
    right = [[A, B]]
    expected = pytest.approx([-3 + 6 * share], abs=1e-6)
    assert told(StructuredMatch(), json.dumps(made), calls=right) == expected
    assert told(StructuredMatch(), "\n".join(map(json.dumps, made)), calls=right) == expected
    turned = json.dumps([{"name": call["name"], "arguments": call["parameters"]} for call in made])
    tagged = StructuredMatch(tag="call", low=0, high=1)
    assert told(tagged, f"why\n<call>{turned}</call>", calls=[json.dumps([A, B])]) == pytest.approx([share])
    assert told(tagged, turned, calls=right) == [0.0]


def test_calls_of_one_name_are_matched_for_the_best_sum() -> None:
    near, far = ({"name": "find", "parameters": {"place": place, "days": 2}} for place in ("Oslo", "Rome"))
    assert told(StructuredMatch(), json.dumps([far, near]), calls=[[near, far]]) == [3.0]


def test_a_line_separator_in_a_string_ends_no_line_of_json_lines() -> None:
    """U+2028 may stand in a JSON string as it is (RFC 8259, section 7)."""
    other = {"name": "find", "parameters": {"place": "Oslo\u2028Rome", "days": 2}}
    text = "\n".join(json.dumps(call, ensure_ascii=False) for call in (other, B))
    assert "\u2028" in text
    assert told(StructuredMatch(), text, calls=[[other, B]]) == [3.0]


def test_texts_that_hold_no_calls_are_wrong_and_prompts_without_any_are_not_asked() -> None:
    for text in ("no JSON", "[1]", '{"name": 3}', '{"name": "find", "parameters": [1]}', '{"name": "fi', "[[]]"):
        assert told(StructuredMatch(), text, calls=[[A]]) == [-3.0]
    assert told(StructuredMatch(), "[]", calls=[[]]) == [3.0]
    silent = StructuredMatch()(prompts(2, calls=[None, [A]]), texts("[]", "[]"))
    assert silent.valid[:, 0].tolist() == [False, True]
    with pytest.raises(UsageError, match="the fact 'calls' of prompt 'prompt number 0' holds no calls"):
        StructuredMatch()(prompts(1, calls=["none"]), texts("[]"))
    built = build_reward({"use": "structured", "key": "layout", "tag": "t"}, Path())
    assert built.version == StructuredMatch("layout", tag="t").version
    assert built.needs == {"text", "facts.layout"}
