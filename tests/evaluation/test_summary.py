"""The sentence of an evaluation, from rows made by hand: gain, loss, nothing, kinds, words, and other units."""

import numpy as np
import pytest

from genalign.evaluation.summary import by_word, lead_in, sentence
from genalign.types import Prompt


def metric(before: float, after: float, low: float, high: float) -> dict:
    return {"before": before, "after": after, "delta": after - before, "ci95": [low, high], "held_out": True}


def result(headline: dict, by: str = "follows", aspects: dict | None = None, **metrics: dict) -> dict:
    return {
        "prompts": 512,
        "metrics": {"judge/all": headline, **{f"judge/{name}": found for name, found in metrics.items()}},
        "sweep": {"headline": "judge/all"},
        "judged": {
            "by": by,
            "aspects": {name: {"metric": f"judge/{name}", "words": (aspects or {}).get(name, {})} for name in metrics},
        },
    }


GAIN = metric(0.59, 0.79, 0.14, 0.25)
LOSS = metric(0.79, 0.59, -0.25, -0.14)
NOTHING = metric(0.59, 0.60, -0.02, 0.04)
SURE, UNSURE, LESS = metric(0.7, 0.9, 0.1, 0.3), metric(0.5, 0.8, -0.1, 0.7), metric(0.8, 0.9, 0.05, 0.15)
WORDS = {"above": metric(0.7, 0.85, 0.1, 0.2), "left of": metric(0.7, 0.95, 0.2, 0.3), "under": UNSURE}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (
            result(GAIN),
            "After 10 minutes the model follows 20 more prompts in 100 (59.0 -> 79.0, interval +14.0 to +25.0).",
        ),
        (
            result(LOSS, relation=metric(0.9, 0.7, -0.3, -0.1), count=metric(0.9, 0.8, -0.2, -0.05)),
            "After 10 minutes the model follows 20 fewer prompts in 100 (79.0 -> 59.0, interval -25.0 to -14.0): "
            "relation lost most (-20.0).",
        ),
        (
            result(NOTHING, relation=SURE),
            "After 10 minutes there is no difference that 512 prompts could show: 59.0 -> 60.0 prompts followed in "
            "100, interval -2.0 to +4.0.",
        ),
        (
            result(metric(0.5, 0.5, 0.0, 0.0), by="passes"),
            "After 10 minutes there is no difference that 512 prompts could show: 50.0 -> 50.0 in 100 pass judge/all, "
            "interval +0.0 to +0.0.",
        ),
        (
            result(GAIN, count=LESS, relation=SURE, colour=UNSURE),
            "After 10 minutes the model follows 20 more prompts in 100 (59.0 -> 79.0, interval +14.0 to +25.0): "
            "relation most (+20.0).",
        ),
        (
            result(GAIN, aspects={"relation": WORDS}, count=LESS, relation=SURE),
            "After 10 minutes the model follows 20 more prompts in 100 (59.0 -> 79.0, interval +14.0 to +25.0): "
            "'left of' and 'above' most (relation +20.0).",
        ),
        (
            result(GAIN, colour=UNSURE, count=metric(0.9, 0.8, -0.2, -0.05)),
            "After 10 minutes the model follows 20 more prompts in 100 (59.0 -> 79.0, interval +14.0 to +25.0).",
        ),
        (
            result(metric(0.1, 0.104, 0.001, 0.007), by="passes"),
            "After 10 minutes 0.4 more samples in 100 pass judge/all (10.0 -> 10.4, interval +0.1 to +0.7).",
        ),
        (  # other units: a small change that is sure is more than a large one that is not
            result(metric(0.3123, 0.42, 0.05, 0.16), "value", loud=metric(10, 20, 1, 19), fine=metric(1, 2, 0.9, 1.1)),
            "After 10 minutes judge/all is 0.1077 higher (0.3123 -> 0.42, interval +0.05 to +0.16): fine most (+1).",
        ),
        (result(metric(2.0, 1.5, -0.6, -0.4), by="value"),
         "After 10 minutes judge/all is 0.5 lower (2 -> 1.5, interval -0.6 to -0.4)."),
    ],
)  # fmt: skip
def test_what_is_said(told: dict, expected: str) -> None:
    assert sentence(told, "After 10 minutes") == expected


def test_older_results_and_empty_ones() -> None:
    """eval.json of runs before `judged` was written; and a headline that no prompt could be scored by."""
    told = result(GAIN)
    del told["judged"]
    assert sentence(told, "Now") == "Now judge/all is 0.2 higher (0.59 -> 0.79, interval +0.14 to +0.25)."
    assert sentence({**told, "metrics": {}}, "Now") == "Now nothing can be said: judge/all has no value on any prompt."


def test_how_long_it_took() -> None:
    assert lead_in([{"step_time": 200.0}, {"step_time": 380.0}, {"step": 1}]) == "After 10 minutes"
    assert lead_in([{"step_time": 61.0}]) == "After 1 minute"
    assert lead_in([{"step_time": 12.4}]) == "After 12 seconds"
    assert lead_in([]) == "Now"


def test_words_of_a_fact_are_those_that_come_again() -> None:
    names = [f"thing {i}" for i in range(20)]
    facts = [{"relation": [names[i], "above" if i % 2 else "left of", names[i - 1]]} for i in range(20)]
    facts += [{"relation": None}, {}, {"relation": ["a", "above", "b"]}]
    prompts = [Prompt(f"prompt {i}", facts=fact, uid=i) for i, fact in enumerate(facts)]
    before = np.array([0.0] * 20 + [np.nan, np.nan, np.nan])
    after = np.array([float(i % 2) for i in range(20)] + [np.nan, 1.0, 1.0])
    found = by_word(prompts, "relation", before, after)
    # the last three say nothing before; objects stand in two of twenty prompts each, which is a tenth
    assert found["above"] == {"before": 0.0, "after": 1.0, "delta": 1.0, "ci95": [1.0, 1.0]}
    assert found["left of"]["delta"] == 0.0
    assert "a" not in found
    few = by_word(prompts[:19], "relation", before[:19], np.zeros(19))
    assert set(few) >= {"above", "left of"}
    assert names[19] not in few
    assert by_word(prompts, "objects", before, after) == {}
    colours = [Prompt("x", facts={"colour": "red" if i else "blue"}, uid=i) for i in range(11)]
    assert set(by_word(colours, "colour", np.zeros(11), np.zeros(11))) == {"red"}  # blue: one of eleven
