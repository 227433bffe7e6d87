"""How questions are filled in and answers read."""

import math

import pytest
import torch

from genalign.reward.base import ScoringError
from genalign.reward.judge.asking import p_yes
from genalign.reward.judge.reading import read_score, read_scores
from genalign.reward.template import fill


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([("Yes", 0.6), (" yes", 0.1), ("No", 0.2), ("maybe", 0.1)], 0.7 / 0.9),
        ([("▁YES", 0.3), ("Ġno", 0.3), ("yesterday", 0.4)], 0.5),
        ([("yes", 0.01), ("no", 0.03), ("The", 0.9)], 0.25),
        ([("no,", 0.9)], 0.0),
    ],
)
def test_p_yes_sums_over_spellings(tokens: list[tuple[str, float]], expected: float) -> None:
    """Invariant 31."""
    logs = [(token, math.log(p)) for token, p in tokens]
    assert p_yes(logs) == pytest.approx(expected)
    swap = {
        "Yes": "No",
        " yes": " no",
        "No": "Yes",
        "▁YES": "▁NO",
        "Ġno": "Ġyes",
        "yes": "no",
        "no": "yes",
        "no,": "yes,",
    }
    assert p_yes([(swap.get(token, token), logp) for token, logp in logs]) == pytest.approx(1 - expected)


def test_p_yes_of_neither_is_no_answer() -> None:
    """Invariant 31."""
    with pytest.raises(ScoringError, match="neither yes nor no"):
        p_yes([("The", -0.1), ("I", -2.0)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4", 4.0),
        (" 3.5. ", 3.5),
        ("The colours fit.\nScore: 4", 4.0),
        ("Final Score: 4.25", 4.25),
        ("**Score:** 5", 5.0),
        ('{"reason": "2 cats", "score": 3}', 3.0),
        ("Score: 1. On reflection, Score: 2", 2.0),
        ("score = 4/5", 4.0),
        ("Score: 0", None),
        ("Score: 6", None),
        ("Score: -3", None),
        ("Score: 4/10", None),
        ("Score: 1-5", None),
        ("Score: 15", None),
        ("I see 3 cats", None),
        ("", None),
        ("Score:", None),
        ("four", None),
    ],
)
def test_a_score_is_read_whole_or_not_at_all(text: str, expected: float | None) -> None:
    if expected is None:
        with pytest.raises(ScoringError):
            read_score(text, 1, 5)
    else:
        assert read_score(text, 1, 5) == expected


@pytest.mark.parametrize(
    "text",
    [
        '{"scores": {"A": 1}}',
        '{"scores": {"A": 1, "B": 2, "C": 3}}',
        '{"scores": {"A": 1, "B": "2"}}',
        '{"scores": {"A": 1, "B": 9}}',
        '{"scores": {"A": 1, "B": true}}',
        '{"scores": {"A": 1, "B": 2',
        '{"scores": {"A": 1, "B": NaN}}',
        "A: 1, B: 2",
        "",
    ],
)
def test_a_list_is_read_whole_or_not_at_all(text: str) -> None:
    with pytest.raises(ScoringError):
        read_scores(text, ["A", "B"], 1, 5)


def test_a_list_of_scores_is_the_last_of_an_answer() -> None:
    text = 'First {"scores": {"A": 1, "B": 1}}, no: ```json\n{"scores": {"B": 4.5, "A": 2}, "ranking": ["B", "A"]}\n```'
    assert read_scores(text, ["A", "B"], 1, 5) == [2.0, 4.5]


def test_a_template_is_filled_once_and_leaves_other_braces() -> None:
    picture = torch.rand(3, 2, 2)
    made = fill('{sample} {question} {"a": {KEY: 1}} {other}', {"sample": [picture, "x"], "question": "{sample}?"})
    assert made[0] is picture
    assert made[1:] == ('x {sample}? {"a": {KEY: 1}} {other}',)
