"""Rules for answers against written-out tables, IoU counted by pixels, and the best of all matchings."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from genalign.reward import build_reward
from genalign.reward.heads.answers import Answer, Boxes, boxes_of, iou, matched, numbers_of
from genalign.reward.tags import tagged
from genalign.types import Media, Prompt, Scores, Track, UsageError
from tests.helpers.toy_rewards import prompts, texts


def judged(rule: Any, text: str, **facts: Any) -> tuple[float | None, float]:
    scores: Scores = rule([Prompt("q", facts=facts)], Media(text=Track([text])))
    assert scores.confidence is not None
    return (float(scores.total[0]) if scores.total_valid[0] else None), float(scores.confidence[0, 0])


@pytest.mark.parametrize(
    ("right", "answer", "score", "sure"),
    [
        ("three", "three", 1, 1),
        ("three", "3", 1, 1),
        ("three", "There are three roses.", 1, 1),
        ("three", "3.0", 1, 1),
        ("three", "four", 0, 1),
        ("three", "two roses and one cat", 0, 0.5),  # which of the two is the answer?
        ("three", "some", 0, 0.5),
        ("three", "thirteen", 0, 1),
        (3, "3", 1, 1),
        ("1000", "1,000", 1, 1),
        ("-2.5", "-2.5", 1, 1),
        ("0.5", "1/2", 1, 1),
        ("1/2", "0.5", 1, 1),
        ("1/3", r"\frac{1}{3}", 1, 1),
        ("-0.75", "minus 3 / 4", 1, 1),
        ("1/2", "1/3", 0, 1),
        ("0.5", "on 1/2/2026", 0, 0.5),  # a date
        ("0.5", "1/0", 0, 0.5),
        ("2.5", "2 1/2", 0, 0.5),  # or twice a half?
        ("0.5", ".5", 1, 1),
        (1e-05, "0.00001", 1, 1),
        ("0.0015", "1.5e-3", 1, 1),
        ("0.0015", "1.5", 0, 1),
        ("6.6e-34", "6.6 x 10^-34", 1, 1),
        ("6.6e-34", r"6.6 \times 10^{-34}", 1, 1),
        ("6.6e-34", "1.6e-19", 0, 1),  # a small number is not another one
        ("6.6e-34", "0", 0, 1),
        ("0", "1e-9", 0, 1),
        ("1000000", "1000001", 0, 1),
        ("3.141592", "3.141593", 1, 1),  # to a millionth of its size
        ("12", "1,2", 0, 0.5),  # two numbers
        ("red apple", "A red apple.", 1, 1),
        ("red apple", "RED APPLE", 1, 1),
        ("red apple", "apple", 0, 1),
        ("red apple", "a red apple beside a cat", 0, 0.5),
        ("red apple", "tired apple", 0, 1),
        ("left of", "left of", 1, 1),
        ("left of", "right of", 0, 1),
        ("yes", "Yes!", 1, 1),
        ("yes", "no", 0, 1),
        ("two red apples", "two red apples", 1, 1),  # more than a number: as words
        ("two red apples", "two", 0, 1),
        ("5", "negative five", 0, 1),
        ("-5", "minus 5", 1, 1),
        ("-5 degrees", "5 degrees", 0, 1),
        ("-5 degrees", "−5 degrees.", 1, 1),
        ("1.5 million", "15 million", 0, 1),
        ("1,000 cats", "1000 cats", 1, 1),
        ("half past 2:30", "half past 230", 0, 1),
        ("C", "C++", 0, 1),
        ("C#", "C#.", 1, 1),
        ("vitamin A", "vitamin", 0, 1),
        ("vitamin A", "the vitamin A", 1, 1),
        ("A", "A.", 1, 1),
        ("A", "B", 0, 1),
        ("A", "...", 0, 1),
        ("+", "-", 0, 1),
        ("x >= 5", "x>=5", 1, 1),
        ("x >= 5", "x <= 5", 0, 1),
        ("> 5", "< 5", 0, 1),
    ],
)
def test_an_answer_is_right_wrong_or_not_read_with_certainty(
    right: Any, answer: str, score: float, sure: float
) -> None:
    assert judged(Answer(), f"<think>two</think><answer>{answer}</answer>", answer=right) == (score, sure)
    assert judged(Answer(tag=None), answer, answer=right) == (score, sure)


@pytest.mark.parametrize(
    "text", ["three", "<answer>three", "<answer>three</answer><answer>three</answer>", "<answer> </answer>", ""]
)
def test_a_text_without_one_answer_is_wrong(text: str) -> None:
    assert judged(Answer(), text, answer="three") == (0, 1)


def test_a_row_without_a_right_answer_abstains() -> None:
    assert judged(Boxes(), "<answer>x</answer>", boxes=[[0, 0, 1, 1]])[0] == 0
    for rule in (Answer(), Boxes()):
        key = "answer" if isinstance(rule, Answer) else "boxes"
        scores = rule([Prompt("q", facts={key: None})], Media(text=Track(["<answer>1</answer>"])))
        assert not scores.valid.any()
        assert not scores.failed.any()


def test_near_is_lav_cots_count_reward() -> None:
    for p, g in itertools.product(range(5), repeat=2):
        expected = max(0.0, 1 - abs(p - g) / max(g, 1))
        assert judged(Answer(near=True), f"<answer>{p}</answer>", answer=str(g))[0] == pytest.approx(expected)


def test_numbers_and_boxes_are_read_from_text() -> None:
    assert numbers_of("3 cats, 1,000 dogs, -2.5 and 40% or twenty; x2 is none, nor is seventeenth") == [
        3, 1000, -2.5, 40, 20,
    ]  # fmt: skip
    found = boxes_of("[ 6 , 11, 25, 30], (1, 2.5, 3, 4) and [1, 2, 3] or [1, 2, 3, 4, 5]")
    assert found.tolist() == [[6, 11, 25, 30], [1, 2.5, 3, 4]]
    assert tagged("<a>x</a>", "answer") is None
    assert tagged("<answer>\n 4 </answer>", "answer") == "4"


def test_iou_is_what_counting_pixels_gives() -> None:
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, 20, (12, 2, 2)), axis=1)
    boxes = corners.reshape(12, 4).astype(float)  # left, top, right, bottom
    masks = []
    for left, top, right, bottom in boxes.astype(int):
        mask = np.zeros((20, 20), dtype=bool)
        mask[top:bottom, left:right] = True
        masks.append(mask)
    for (i, a), (j, b) in itertools.product(enumerate(masks), enumerate(masks)):
        union = (a | b).sum()
        assert iou(boxes, boxes)[i, j] == pytest.approx((a & b).sum() / union if union else 0.0)


def test_matching_is_the_best_of_all_and_scores_are_vision_r1s() -> None:
    """Every one-to-one assignment is tried; recall counts matches from IoU 0.5 on, precision sums their IoU."""
    rng = np.random.default_rng(1)
    for given_count, right_count in ((1, 3), (3, 3), (4, 2)):
        right = np.stack([np.array([x, y, x + 10, y + 10]) for x, y in rng.integers(0, 30, (right_count, 2))])
        given = right[rng.integers(right_count, size=given_count)] + rng.integers(-3, 4, (given_count, 4))
        table = iou(given.astype(float), right.astype(float))
        small, large = sorted((given_count, right_count))
        best: list[float] = []
        for picked in itertools.permutations(range(large), small):
            pairs = [table[k, p] if given_count == small else table[p, k] for k, p in enumerate(picked)]
            best = max(best, pairs, key=sum) if best else pairs
        counted = [value for value in best if value >= 0.5]
        precision, recall = matched(given.astype(float), right.astype(float), 0.5)
        assert recall == pytest.approx(len(counted) / right_count)
        assert precision == pytest.approx(sum(counted) / given_count)


def test_order_changes_nothing_copies_cost_and_none_is_right_where_there_is_none() -> None:
    facts = {"boxes": [[0, 0, 10, 10], [20, 20, 30, 30]]}
    both = "<answer>[0, 0, 10, 10], [20, 20, 30, 30]</answer>"
    assert judged(Boxes(), both, **facts) == (1, 1)
    assert judged(Boxes(), "<answer>[20, 20, 30, 30], [0, 0, 10, 10]</answer>", **facts) == (1, 1)
    assert judged(Boxes(), "<answer>[0, 0, 10, 10], [0, 0, 10, 10]</answer>", **facts) == (0.5, 1)
    assert judged(Boxes(), "<answer>nowhere</answer>", boxes=[]) == (1, 1)
    assert judged(Boxes(), both, boxes=[]) == (0, 1)
    assert judged(Boxes(), "<answer>nowhere</answer>", **facts) == (0, 1)
    with pytest.raises(UsageError, match="not a list of boxes of 4 numbers"):
        Boxes()([Prompt("where?", facts={"boxes": [1, 2]})], texts("<answer>x</answer>"))


def test_bands_that_tighten_never_raise_a_reward() -> None:
    """rewards/vlm-boxes.yaml: below the band 0, from its end on 1, in between the score itself; and it tightens."""
    from pathlib import Path

    from genalign.files.shipped import shipped

    reward: Any = build_reward("vlm-boxes.yaml", shipped("rewards"))
    parts = dict(zip(("precision", "recall"), reward.parts[:2], strict=True))
    assert Path(shipped("rewards", "vlm_rules.py")).is_file()
    right = [[0, 0, 10, 10]]
    widths = (4, 6, 7, 8, 10)  # of a box of height 10: IoU is a tenth of it
    rows = [f"<answer>[0, 0, {width}, 10]</answer>" for width in widths]
    asked = prompts(len(rows), boxes=[right] * len(rows))
    early = parts["precision"](asked, texts(*rows)).total
    assert early.tolist() == pytest.approx([0, 0.6, 0.7, 1, 1])
    assert parts["recall"](asked, texts(*rows)).total.tolist() == [0, 1, 1, 1, 1]
    for part in parts.values():
        part.update(part(asked, texts(*rows)), 12)
    late = parts["precision"](asked, texts(*rows)).total
    assert late.tolist() == pytest.approx([0, 0, 0, 0.8, 1])
    assert bool((late <= early).all())


def test_right_is_all_or_nothing_by_kind_and_silent_where_nobody_labelled() -> None:
    """rewards/vlm_rules.py, against a table that is written out."""
    from genalign.files.shipped import shipped

    boxes = [[0, 0, 10, 10], [20, 20, 30, 30]]
    table: list[tuple[str, str | None, Any, str, float | None]] = [
        ("count", "two", None, "<think>two roses</think><answer>2</answer>", 1.0),
        ("count", "two", None, "<answer>three</answer>", 0.0),
        ("count", "two", None, "two", 0.0),
        ("side", "left of", None, "<answer>left of</answer>", 1.0),
        ("side", None, None, "<answer>left of</answer>", None),
        ("where", None, boxes, "<answer>[0, 0, 9, 10], [21, 20, 30, 30]</answer>", 1.0),
        ("where", None, boxes, "<answer>[0, 0, 10, 10]</answer>", 0.0),
        ("where", None, boxes, "<answer>[0, 0, 4, 10], [20, 20, 30, 30]</answer>", 0.0),
    ]
    kinds, answers, given, written, wanted = map(list, zip(*table, strict=True))
    asked = prompts(len(table), kind=kinds, answer=answers, boxes=given)
    found = build_reward("vlm_rules.py:right", shipped("rewards"))(asked, texts(*written))
    columns = {name: found.values[:, k].tolist() for k, name in enumerate(found.names)}
    valid = {name: found.valid[:, k].tolist() for k, name in enumerate(found.names)}
    assert valid["right"] == [value is not None for value in wanted]
    assert [columns["right"][k] for k, value in enumerate(wanted) if value is not None] == [
        value for value in wanted if value is not None
    ]
    for kind in ("count", "side", "where", "sum"):
        assert valid[kind] == [own == kind and value is not None for own, value in zip(kinds, wanted, strict=True)]
    assert columns["count"][:3] == [1, 0, 0]
    assert columns["words"] == [len(text.split(" ")) for text in written]
    assert found.total[0] == 1


def test_the_hybrid_takes_the_rule_where_it_is_sure_and_the_model_where_it_is_not() -> None:
    from genalign.reward import Hybrid
    from tests.helpers.toy_rewards import says

    rule, model = Answer(), says(0.8, 0.8, 0.8, 0.8, name="model")
    rows = ["<answer>three</answer>", "<answer>two</answer>", "<answer>some</answer>", "<answer>left of</answer>"]
    asked = prompts(4, answer=["three", "three", "three", None], row=[0, 1, 2, 3])
    scores = Hybrid(rule, model)(asked, texts(*rows))
    assert scores.total.tolist() == pytest.approx([1.0, 0.0, 0.5 * 0.0 + 0.5 * 0.8, 0.8])
    assert torch.equal(scores.total_valid, torch.ones(4, dtype=torch.bool))
