"""What every combination refuses."""

from __future__ import annotations

from typing import Any

import pytest

from genalign.reward import (
    Cascade,
    Conditioned,
    DynamicWeights,
    Ensemble,
    Gate,
    MarginalGain,
    Min,
    Pareto,
    Repeat,
    Shape,
)
from genalign.types import UsageError
from tests.helpers.toy_rewards import says


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda p: Cascade([]), "cascade of nothing"),
        (lambda p: Gate(p, p, at="high"), "at of reward 'gate' is 'high'"),
        (lambda p: Ensemble([]), "ensemble of nothing"),
        (lambda p: Ensemble([p], "worst"), "no risk 'worst'"),
        (lambda p: Ensemble([p], "entropic", beta=0.0), r"beta of .* must be a number in \[1e-06, inf\]"),
        (lambda p: Repeat(p, 0), "repeated 0 times"),
        (lambda p: Pareto([p]), "at least two parts"),
        (lambda p: MarginalGain([(p, -1.0)]), "weights above 0"),
        (lambda p: Conditioned([]), "no parts to weigh"),
        (lambda p: DynamicWeights([p], "gradients"), "no by 'gradients'; did you mean 'gradient'"),
        (lambda p: DynamicWeights([p], reference=[0, 1]), "1 parts, but its reference 2"),
        (lambda p: Min([p], name="says").aspects, "two columns called 'says'"),
        (lambda p: Shape(says(1.0, name="raw")).aspects, "two columns called 'raw'"),
    ],
)
def test_wrong_settings_are_one_sentence(build: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        build(says(1.0))
    assert "\n" not in str(caught.value)
