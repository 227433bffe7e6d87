"""Rules about text, against TRL's and against formulas; where there is no text they abstain."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from genalign.reward import (
    Budget,
    Format,
    Length,
    Product,
    Repetition,
    Sharpness,
    StructuredMatch,
    Sum,
    build_reward,
)
from genalign.types import Reward, Scores, UsageError
from tests.toy_rewards import images, prompts, says, texts, tiny_text_head


def told(reward: Reward, *rows: str, **facts: list[Any]) -> list[float]:
    return reward(prompts(len(rows), **facts), texts(*rows)).total.tolist()


def words(count: int) -> str:
    return " ".join(["w"] * count)


def test_length_costs_nothing_inside_and_rises_on_both_sides() -> None:
    reward = Length(10, 20)
    lengths = [0, 5, 9, 10, 15, 20, 25, 60]
    expected = [-1, -0.5, -0.1, 0, 0, 0, -0.25, -2]
    assert told(reward, *map(words, lengths)) == pytest.approx(expected)
    assert told(Length(10, 20, cap=0.3), *map(words, lengths)) == pytest.approx([max(e, -0.3) for e in expected])
    assert told(Length(hi=2, unit="characters"), "abc") == [-0.5]
    assert told(Length(lo=4), "a b") == [-0.5]


def test_length_counts_a_models_tokens(tmp_path: Path) -> None:
    folder = tiny_text_head(tmp_path / "head")
    assert told(Length(hi=2, unit="tokens", model=folder), "a cat and the star", "a zebra") == [-1.5, 0.0]
    built = build_reward({"use": "length", "hi": 2, "unit": "tokens", "model": "head"}, tmp_path)
    assert built.version == Length(hi=2, unit="tokens", model=folder.resolve()).version
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert built.version == Length(hi=2, unit="tokens", model=tmp_path / "elsewhere").version


def test_a_penalty_among_right_answers_alone_spares_the_others() -> None:
    correct = says(1.0, 0.0, 1.0, None, name="correct")
    reward = Sum([correct, Product(Length(hi=10), says(1.0, 0.0, 1.0, None, name="again"))], missing="renormalise")
    scores = reward(prompts(4, row=[0, 1, 2, 3]), texts(words(20), words(90), words(5), words(90)))
    assert scores.total[:3].tolist() == [0.0, 0.0, 1.0]
    assert scores.total_valid.tolist() == [True, True, True, False]


def test_budget_is_hbpos_formula_flat_below_its_budget_and_falling_past_it() -> None:
    def expected(n: int, b: float) -> float:
        return min(4 * math.cos(math.pi * n / 8192) - abs(b - n) / 4096, 4 * math.cos(math.pi * b / 8192))

    lengths = list(range(0, 4097, 256))
    for b in (1024, 2048):
        found = told(Budget(b), *map(words, lengths))
        assert found == pytest.approx([expected(n, b) for n in lengths], rel=1e-5, abs=1e-6)
        assert max(found) == pytest.approx(4 * math.cos(math.pi * b / 8192))
        past = [value for n, value in zip(lengths, found, strict=True) if n >= b]
        assert past == sorted(past, reverse=True)
        assert past[0] - past[-1] > 1
    free = told(Budget(), *map(words, lengths), budget=[None] * len(lengths))
    assert free == pytest.approx([4 * math.cos(math.pi * n / 8192) for n in lengths], abs=1e-6)
    by_prompt = told(Budget(longest=100), words(30), words(30), budget=[20, 60])
    assert by_prompt[0] == pytest.approx(4 * math.cos(math.pi * 30 / 200) - 0.1)
    assert by_prompt[1] == pytest.approx(4 * math.cos(math.pi * 60 / 200))


def test_format_by_tags_agrees_with_trls_think_format() -> None:
    rewards = pytest.importorskip("trl.rewards")
    answers = ["<think>a\nb</think>\nout", "a</think>out", "<think>a</think><think>b</think>x", "<think>a", "plain", ""]
    chats = [[{"content": answer}] for answer in answers]
    theirs = rewards.think_format_reward(chats)
    ours = told(Format(r"<think>(?!.*<think>)(.*?)</think>.*"), *answers)
    assert ours == theirs
    tagged = Format(tags=["think", "answer"])
    good = "  <think>why\n\nso</think>\n<answer>4</answer>\n"
    bad = [
        good + "more",
        good + good,
        "<answer>4</answer><think>w</think>",
        "<think>a<think>b</think></think><answer>4</answer>",
        "<think>a</think><answer>4",
        "<think>a <answer>b</answer></think><answer>c</answer>",
    ]
    assert told(tagged, good, *bad) == [1.0, *[0.0] * len(bad)]
    assert told(Format(tags=["a.b"]), "<a.b>x</a.b>", "<aXb>x</aXb>") == [1.0, 0.0]


def test_repetition_agrees_with_trls_on_words() -> None:
    rewards = pytest.importorskip("trl.rewards")
    if not hasattr(rewards, "get_repetition_penalty_reward"):
        pytest.skip("this TRL has no repetition penalty")
    lines = ["a b c d e", "a b a b a b a b", "to be to Be to be", "a", "", "x x x x x"]
    for n in (1, 2, 3):
        ids = [[hash(word) for word in line.lower().split()] for line in lines]
        theirs = rewards.get_repetition_penalty_reward(ngram_size=n, max_penalty=-1.0)(ids)
        assert told(Repetition(n), *lines) == pytest.approx(theirs)


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


@pytest.mark.parametrize("reward", [Length(hi=3), Budget(3), Format("x"), Repetition()])
def test_where_there_is_no_text_they_abstain(reward: Reward) -> None:
    scores: Scores = reward(prompts(2), images(2))
    assert not scores.valid.any()
    assert not scores.failed.any()
    both = Sum([Sharpness(), (reward, 0.5)])  # one object for pictures and for texts
    assert both(prompts(2), images(2)).total_valid.all()
    assert reward.needs == {"text"}
    assert isinstance(reward, Reward)


def test_versions_tell_settings_apart() -> None:
    rules: list[Any] = [Length(hi=3), Length(hi=4), Length(hi=3, cap=1), Length(hi=3, name="n")]
    rules += [Length(hi=3, unit="characters"), Budget(3), Budget(), Repetition(2)]
    rules += [Format("x"), Format("y"), Format(tags=["x"])]
    assert len({rule.version for rule in rules}) == len(rules)
    assert re.fullmatch(r"[0-9a-f]{16}", rules[0].version)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Length(), "needs lo or hi"),
        (lambda: Length(5, 2), "lo 5 above hi 2"),
        (lambda: Length(hi="long"), "hi of reward 'length' is 'long'"),
        (lambda: Length(hi=3, unit="word"), "no unit 'word'; did you mean 'words'"),
        (lambda: Length(hi=3, unit="tokens"), "go together"),
        (lambda: Format(), "a pattern or tags"),
        (lambda: Format("("), "not a regular expression"),
        (lambda: Repetition(0), r"must be a number in \[1, inf\]"),
        (lambda: StructuredMatch(low=1, high=1), "does not lie below high"),
    ],
)
def test_wrong_settings_are_one_sentence(build: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)
