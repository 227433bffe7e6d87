"""Rules about text, against TRL's and against formulas; where there is no text they abstain. Rules about pictures."""

from __future__ import annotations

import itertools
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from genalign.files.shipped import shipped
from genalign.reward import (
    Budget,
    Format,
    Length,
    Product,
    RankAgreement,
    Repetition,
    Sharpness,
    StructuredMatch,
    Sum,
    build_reward,
)
from genalign.types import Media, Prompt, Reward, Scores, Track, UsageError
from tests.helpers.toy_rewards import images, prompts, says, texts, tiny_text_head


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


def test_a_judgement_is_worth_how_it_agrees_with_the_right_order() -> None:
    """Kendall's tau by counting pairs, in a loop; ties halve nothing here, as the numbers differ."""

    def tau(given: list[float], right: list[float]) -> float:
        pairs = list(itertools.combinations(range(len(right)), 2))
        signs = [(given[i] - given[j]) * (right[i] - right[j]) for i, j in pairs]
        return sum(1 if s > 0 else -1 for s in signs) / len(pairs)

    right = [3.0, 1.0, 7.0]
    asked = Prompt("judge", facts={"scores": right})
    rule = RankAgreement()
    for given in itertools.permutations([2.5, 8.0, -1.0]):
        text = f"I saw 3 things <answer>{given[0]}, {given[1]} and then {given[2]}.</answer>"
        assert rule.rate(text, asked) == pytest.approx(tau(list(given), right))
    assert rule.rate("1 2", asked) == -1.0
    assert rule.rate("nothing", asked) == -1.0
    assert rule.rate("5 5 5", asked) == 0.0
    assert rule.rate("1 2", Prompt("judge", facts={"scores": [4, 4]})) is None
    assert rule.rate("2 1", Prompt("judge", facts={"scores": [0.9, 0.1]})) == 1.0
    assert rule.needs == {"text", "facts.scores"}


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


WHITE, BLACK, GRAY, RED = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (0.4, 0.4, 0.4), (1.0, 0.0, 0.0)


def scored(rule: str, *pictures: list[tuple[float, float, float]]) -> list[float]:
    """Each picture is a row of pixels."""
    images = torch.tensor(pictures).transpose(1, 2)[:, :, None]  # (B,3,1,W)
    reward = build_reward(f"picture_rules.py:{rule}", shipped("rewards"))
    return reward([Prompt("-")] * len(images), Media(image=Track(images))).values[:, 0].tolist()


def test_lightness_is_the_darkest_colour():
    assert scored("light", [WHITE] * 2, [BLACK] * 2, [RED] * 2, [WHITE, GRAY]) == pytest.approx([1, 0, 0, 0.7])


def test_colourfulness_is_that_of_the_paper():
    """Red beside gray: red - green is 1 and 0, (red + green) / 2 - blue is 0.5 and 0."""
    spread, size = (0.5**2 + 0.25**2) ** 0.5, (0.5**2 + 0.25**2) ** 0.5
    told = scored("colourful", [GRAY] * 2, [RED] * 2, [RED, GRAY])
    assert told == pytest.approx([0, 0.3 * (1 + 0.25) ** 0.5, spread + 0.3 * size], abs=1e-6)
