"""VRPO on a diffusion language model: its loss by a float64 loop, and its estimate against enumeration."""

from __future__ import annotations

import math

import pytest
import torch

from genalign.method import MethodSettings, build_method
from genalign.reward import reward
from genalign.types import Prompt, sample_seed
from tests.helpers.unmasking_policies import exact_bound, expected_fit, few_words, policy

PROMPTS = [Prompt("star cat", uid=0), Prompt("cat", uid=1)]


@reward
def stars(text):
    return [float(said.split().count("star")) for said in text]


def collected(own, **settings):
    method = build_method(MethodSettings(name="vrpo", **settings))
    return method, method.collect(own, PROMPTS, stars, 0, 0)


def test_the_first_loss_is_log_two_and_has_a_gradient():
    own = policy(few_words(64), max_new_tokens=4)
    method, experience = collected(own, draws=3)
    losses = list(method.losses(own, experience))
    assert sum(float(loss.total.detach()) for loss in losses) == pytest.approx(math.log(2), abs=1e-6)
    sum(loss.total for loss in losses).backward()
    assert any(bool(p.grad.abs().sum() > 0) for p in own.named_trainable().values() if p.grad is not None)


@pytest.mark.parametrize("together", [True, False])
def test_the_loss_is_that_of_a_loop(together):
    own = policy(few_words(64), 0.3, max_new_tokens=4)
    method, experience = collected(own, draws=3, beta=0.7, together=together)
    found = sum(float(loss.total.detach()) for loss in method.losses(own, experience))
    expected = 0.0
    for (won, lost), noise in zip(experience.pairs.tolist(), experience.noise.tolist(), strict=True):
        leads = []
        for draw, at in enumerate(experience.times):
            seeds = [sample_seed(noise, draw, -1)] * 2
            rows = [experience.trajectory.prompts[row] for row in (won, lost)]
            with torch.no_grad():
                fitted = own.fit(rows, experience.clean[[won, lost]], at, seeds, "reference")
            gained = (fitted.score - fitted.versus_score)[:, 0].double()
            leads.append(float(gained[0] - gained[1]))
        means = [sum(leads) / len(leads)] if together else leads
        expected += sum(math.log(1 + math.exp(-0.7 * lead)) for lead in means) / len(means) / len(experience.pairs)
    assert found == pytest.approx(expected, abs=1e-5)


def test_what_stands_in_the_sigmoid_is_without_bias_the_enumerated_difference():
    own = policy(few_words(64), 0.3, max_new_tokens=3)
    clean, prompts = torch.tensor([[4, 5, 1], [5, 1, 1]]), [Prompt("cat")] * 2
    score, other = expected_fit(own, prompts, clean, "reference")
    gained = score - other
    exact = [exact_bound(own, prompts[row], clean[row].tolist()) for row in range(2)]
    with own.weights("reference"):
        base = [exact_bound(own, prompts[row], clean[row].tolist()) for row in range(2)]
    assert float(gained[0] - gained[1]) == pytest.approx((exact[0] - base[0]) - (exact[1] - base[1]), abs=1e-5)
    assert abs(exact[0] - base[0]) > 1e-2
