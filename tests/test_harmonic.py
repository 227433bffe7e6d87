"""The weighted harmonic mean of rewards, in Python and in a reward file."""

from pathlib import Path

import pytest
import torch

from genalign.reward import Harmonic, Runner, Sharpness, build_reward
from genalign.types import UsageError
from tests.toy_rewards import images, prompts, says, texts


def harmonic(*rows, weights=(1.0, 1.0)) -> Harmonic:
    parts = [says(*column, name=f"part{k}", needs=["facts.row"]) for k, column in enumerate(zip(*rows, strict=True))]
    return Harmonic(list(zip(parts, weights, strict=True)))


def scored(reward, count: int):
    return Runner(reward, max_failure=1.0)(prompts(count, row=list(range(count))), texts(*["x"] * count))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_it_is_the_papers_formula_and_lies_below_the_other_means(share: float):
    rows = [(0.9, 0.2), (0.5, 0.5), (0.01, 1.0), (0.7, 0.6)]
    total = scored(harmonic(*rows, weights=(2 * share, 2 * (1 - share))), 4).total
    for value, (a, b) in zip(total.tolist(), rows, strict=True):
        assert value == pytest.approx(1 / (share / a + (1 - share) / b), rel=1e-5)
        assert min(a, b) - 1e-6 <= value <= a**share * b ** (1 - share) + 1e-6 <= share * a + (1 - share) * b + 2e-6


def test_a_part_at_zero_makes_it_zero():
    total = scored(harmonic((0.0, 0.9), (-0.3, 0.9)), 2).total
    assert total.tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_it_counts_where_all_parts_do_and_keeps_their_columns():
    told = scored(harmonic((0.5, 0.5), (None, 0.5), (float("nan"), 0.5)), 3)
    assert told.names == ("harmonic", "part0", "part1")
    assert told.weights.tolist() == [1.0, 0.0, 0.0]
    assert told.total_valid.tolist() == [True, False, False]
    assert told.failed[:, 0].tolist() == [False, False, True]
    assert told.values[:, 2].tolist() == pytest.approx([0.5] * 3)


def test_gradients_pass():
    one = Harmonic([(Sharpness(), 1.0), (Sharpness(half=0.05, name="other"), 3.0)])
    assert one.differentiable
    media = images(2)
    pixels = media["image"].data.requires_grad_()
    (gradient,) = torch.autograd.grad(one(prompts(2), media).total.sum(), pixels)
    assert gradient.abs().max() > 0


def test_the_form_in_a_file_builds_the_same():
    spec = {"harmonic": [{"use": "sharpness", "weight": 0.3}, {"use": "sharpness", "half": 0.1, "name": "soft"}]}
    built = build_reward(spec, Path())
    written = Harmonic([(Sharpness(), 0.3), (Sharpness(half=0.1, name="soft"), 1.0)])
    assert built.version == written.version
    assert built.aspects == ("harmonic", "sharpness", "soft")
    for wrong, message in (({"harmonic": []}, "there must be one"), ({**spec, "missing": "x"}, "no setting 'missing'")):
        with pytest.raises(UsageError, match=message):
            build_reward(wrong, Path())
    with pytest.raises(UsageError, match="weights above 0"):
        build_reward({"harmonic": [{"use": "sharpness", "weight": 0}]}, Path())
