"""One key a combinator: what a file builds is what Python builds, and a wrong word is named with the nearest."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from genalign.reward import (
    KRC,
    Budget,
    Cascade,
    Conditioned,
    Constraint,
    DynamicWeights,
    Ensemble,
    Format,
    Gate,
    Geometric,
    Harmonic,
    Hybrid,
    Length,
    MarginalGain,
    Min,
    Pareto,
    Pick,
    Product,
    Repeat,
    Repetition,
    Schedule,
    Shape,
    Sharpness,
    Sum,
    build_reward,
)
from genalign.reward.grammar import FORMS
from genalign.types import Reward, UsageError


def crisp(name: str = "sharpness") -> Sharpness:
    return Sharpness(name=name)


A, B = "{use: sharpness, name: a}", "{use: sharpness, name: b}"
PAIRS: dict[str, tuple[str, Reward]] = {
    "pick": ("{pick: {use: sharpness, name: a}, aspect: a}", Pick(crisp("a"), "a")),
    "gate": (f"{{gate: {{high: {A}, low: {B}, at: 0.3}}, name: g}}", Gate(crisp("a"), crisp("b"), 0.3, "g")),
    "cascade": (
        "{cascade: [{use: sharpness, name: a, at: 0.3}, {use: sharpness, name: b, at: 1}, sharpness]}",
        Cascade([(crisp("a"), 0.3), (crisp("b"), 1), (crisp(), None)]),
    ),
    "product": (f"{{product: {{main: {A}, by: [{B}, sharpness]}}}}", Product(crisp("a"), [crisp("b"), crisp()])),
    "geometric": (
        "{geometric: [{use: sharpness, name: a, weight: 3}, sharpness]}",
        Geometric([(crisp("a"), 3.0), crisp()]),
    ),
    "krc": (f"{{krc: [{A}, {B}]}}", KRC([crisp("a"), crisp("b")])),
    "min": (f"{{min: [{A}, {B}], name: worst}}", Min([crisp("a"), crisp("b")], "worst")),
    "ensemble": (
        f"{{ensemble: [{A}, {B}], risk: entropic, beta: 0.5}}",
        Ensemble([crisp("a"), crisp("b")], "entropic", beta=0.5),
    ),
    "repeat": ("{repeat: sharpness, times: 3}", Repeat(crisp(), 3)),
    "shape": (
        "{shape: sharpness, by: sigmoid, against: references, scale: 0.5}",
        Shape(crisp(), "sigmoid", against="references", scale=0.5),
    ),
    "schedule": (
        "{schedule: sharpness, points: {0: [0.5, 0.75], 1500: [0.75, 0.9]}, of: band, hold: true}",
        Schedule(crisp(), {1500: [0.75, 0.9], 0: [0.5, 0.75]}, "band", hold=True),
    ),
    "constraint": (
        "{constraint: sharpness, at_least: 0.5, rate: 1e-1}",
        Constraint(crisp(), at_least=0.5, rate=0.1),
    ),
    "dynamic": (
        f"{{dynamic: [{A}, {B}], by: gradient, rate: 0.5}}",
        DynamicWeights([crisp("a"), crisp("b")], "gradient", rate=0.5),
    ),
    "pareto": (f"{{pareto: [{A}, {B}], by: rank}}", Pareto([crisp("a"), crisp("b")], "rank")),
    "conditioned": (
        f"{{conditioned: [{A}, {B}], key: wants, unit: false}}",
        Conditioned([crisp("a"), crisp("b")], "wants", unit=False),
    ),
    "marginal": (
        "{marginal: [{use: sharpness, name: a, weight: 2}, sharpness]}",
        MarginalGain([(crisp("a"), 2.0), crisp()]),
    ),
    "length": ("{use: length, lo: 5, hi: 50, cap: 1}", Length(5, 50, cap=1)),
    "budget": ("{use: budget, longest: 512}", Budget(longest=512)),
    "format": ("{use: format, tags: [think, answer]}", Format(tags=["think", "answer"])),
    "repetition": ("{use: repetition, n: 2}", Repetition(2)),
    "nested": (
        f"{{sum: [{{gate: {{high: {{min: [{A}, {B}]}}, low: {{shape: sharpness, by: tanh}}}}, weight: 2}}, "
        f"{{constraint: {{harmonic: [sharpness]}}, equal: 1}}], missing: invalid}}",
        Sum(
            [
                (Gate(Min([crisp("a"), crisp("b")]), Shape(crisp(), "tanh")), 2.0),
                Constraint(Harmonic([crisp()]), equal=1),
            ],
            "invalid",
        ),
    ),
    "hybrid": (
        f"{{hybrid: {{rule: {{repeat: {A}}}, model: {{krc: [{B}]}}, mode: fallback}}}}",
        Hybrid(Repeat(crisp("a")), KRC([crisp("b")]), "fallback"),
    ),
}


@pytest.mark.parametrize("key", PAIRS)
def test_a_file_builds_what_python_builds(key: str) -> None:
    """Invariant 30."""
    text, written = PAIRS[key]
    built = build_reward(yaml.safe_load(text.replace("1e-1", "0.1")), Path())
    assert type(built) is type(written)
    assert built.version == written.version
    assert built.aspects == written.aspects
    assert built.needs == written.needs
    assert built.looks_at == written.looks_at
    assert built.name == written.name


def test_every_key_is_held_against_python_and_no_two_rewards_are_one() -> None:
    assert set(FORMS) <= set(PAIRS)
    versions = [written.version for _, written in PAIRS.values()]
    assert len(set(versions)) == len(versions)


@pytest.mark.parametrize("key", sorted(FORMS))
def test_an_unknown_setting_is_named_with_the_nearest(key: str) -> None:
    spec = yaml.safe_load(PAIRS[key][0].replace("1e-1", "0.1"))
    with pytest.raises(UsageError, match=f"reward '{key}' has no setting 'nam'; did you mean 'name'"):
        build_reward({**spec, "nam": "x"}, Path())


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"gaet": {}}, "did you mean 'gate'"),
        ({"gate": {"high": "sharpness"}}, "'gate' takes a mapping with the keys high and low"),
        ({"gate": {"high": "sharpness", "low": "sharpness", "att": 1}}, "no setting 'att'; did you mean 'at'"),
        ({"gate": {"high": "sharpness", "low": "sharpness", "at": "x"}}, "at of reward 'gate' is 'x'"),
        ({"cascade": [{"use": "sharpness", "at": "x"}]}, "the at of .* must be a number"),
        ({"pick": "sharpness", "aspect": "sharp"}, "has no aspect 'sharp'; did you mean 'sharpness'"),
        ({"cascade": "sharpness"}, "'cascade' takes a list of rewards"),
        ({"min": []}, "weights above 0, and there must be one"),
        ({"min": [{"use": "sharpness", "weight": 2}]}, "'sharpness' has no setting 'weight'"),
        ({"shape": ["sharpness"]}, "a reward is a name or a mapping"),
        ({"shape": "sharpness", "by": "tan"}, "no by 'tan'; did you mean 'tanh'"),
        ({"schedule": "sharpness"}, "settings of reward 'schedule' do not fit it: .*points"),
        ({"schedule": "sharpness", "points": [1, 2]}, "needs points, a mapping"),
        ({"schedule": "sharpness", "points": {"soon": 1}}, "a step of reward 'schedule' is 'soon'"),
        ({"dynamic": ["sharpness"], "reference": "low"}, "reference of reward 'dynamic' is 'low'"),
        ({"conditioned": ["sharpness"], "key": 3, "direction": 1}, "no setting 'direction'"),
        ({"repeat": "sharpness", "times": "often"}, "repeated 'often' times"),
        ({"repeat": "sharpness", "ensemble": ["sharpness"]}, "has repeat and ensemble"),
        ({"use": "format", "tag": ["a"]}, "no setting 'tag'; did you mean 'tags'"),
    ],
)
def test_wrong_words_are_refused_in_one_sentence(spec: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        build_reward(spec, Path())
    assert "\n" not in str(caught.value)
