"""Preference losses: formulas in float64, TRL's DPO, CPO and ORPO trainers on the same numbers, and limits."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from genalign.method.preference_losses import AVERAGED, WITHOUT_REFERENCE, PreferenceLoss, dpo_loss
from tests.helpers import trl_trainers

KINDS = get_args(PreferenceLoss)
THEIRS = {"nca": "nca_pair", "bco": "bco_pair", "sppo": "sppo_hard", "exo": "exo_pair"}
DOUBT = {"sigmoid": 0.0, "robust": 0.1, "exo": 0.05}


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "hinge", "simpo"])
def test_the_loss_is_the_formula(kind: PreferenceLoss) -> None:
    torch.manual_seed(7)
    chosen, rejected = torch.randn(9) * 4, torch.randn(9) * 4
    loss = dpo_loss(kind, chosen, rejected, beta=0.3, gamma=0.4)
    for win, lose, value in zip(chosen.tolist(), rejected.tolist(), loss.tolist(), strict=True):
        expected = {
            "sigmoid": -log_sigmoid(0.3 * (win - lose)),
            "hinge": max(0.0, 1 - 0.3 * (win - lose)),
            "ipo": (win - lose - 1 / 0.6) ** 2,
            "simpo": -log_sigmoid(0.3 * (win - lose) - 0.4),
        }[kind]
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in WITHOUT_REFERENCE])
def test_the_loss_is_trls(kind: PreferenceLoss) -> None:
    torch.manual_seed(8)
    mask = torch.arange(5) < torch.tensor([[5], [2], [4], [3], [5], [1]])
    given = torch.randn(2, 6, 5, dtype=torch.float64)
    policy, reference = (given[0] - 2) * mask, (given[1] - 2) * mask  # 3 winners, then 3 losers
    doubt = DOUBT.get(kind, 0.0)
    name = THEIRS.get(kind, kind.replace("-", "_"))
    theirs = trl_trainers.dpo_loss(policy, reference, mask, {name: 1.0}, 0.2, doubt)
    score = (policy - reference).sum(1)
    if kind in AVERAGED:
        score = score / mask.sum(1)
    ours = dpo_loss(kind, score[:3], score[3:], 0.2, wrong=doubt).mean()
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6, abs=1e-9)


def test_simpo_and_smoothed_labels_are_trls_cpo() -> None:
    cpo = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
    chosen, rejected = torch.randn(5), torch.randn(5)
    common = {"accelerator": SimpleNamespace(device="cpu"), "beta": 2.0, "alpha": 0.0, "simpo_gamma": 0.5}
    simpo = SimpleNamespace(loss_type="simpo", label_smoothing=0.0, **common)
    torch.testing.assert_close(
        dpo_loss("simpo", chosen, rejected, 2.0, 0.5), cpo.CPOTrainer.cpo_loss(simpo, chosen, rejected)[0]
    )
    doubting = SimpleNamespace(loss_type="sigmoid", label_smoothing=0.2, **common)
    torch.testing.assert_close(
        dpo_loss("sigmoid", chosen, rejected, 2.0, wrong=0.2), cpo.CPOTrainer.cpo_loss(doubting, chosen, rejected)[0]
    )


def test_orpo_is_trls() -> None:
    orpo = pytest.importorskip("trl.experimental.orpo.orpo_trainer")
    chosen, rejected = -torch.rand(6) - 0.1, -torch.rand(6) * 2 - 0.1
    trainer = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    odds = orpo.ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)[0]
    torch.testing.assert_close(dpo_loss("orpo", chosen, rejected, 0.3), -chosen - odds)


def test_a_label_of_a_coin_teaches_nothing_and_a_sure_one_is_dpo() -> None:
    chosen = torch.zeros(4, requires_grad=True)
    rejected = torch.zeros(4)
    (gradient,) = torch.autograd.grad(dpo_loss("sigmoid", chosen, rejected, 0.5, wrong=0.5).sum(), chosen)
    assert not gradient.any()
    a, b = torch.randn(4), torch.randn(4)
    torch.testing.assert_close(dpo_loss("robust", a, b, 0.5), dpo_loss("sigmoid", a, b, 0.5))


def test_the_robust_loss_is_unbiased_under_flipped_labels() -> None:
    """A share e of the pairs is swapped: the mean over both is the loss of the true labels."""
    a, b, e = torch.randn(7, dtype=torch.float64), torch.randn(7, dtype=torch.float64), 0.2
    seen = (1 - e) * dpo_loss("robust", a, b, 0.5, wrong=e) + e * dpo_loss("robust", b, a, 0.5, wrong=e)
    torch.testing.assert_close(seen, dpo_loss("sigmoid", a, b, 0.5))


@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_prefers_the_winner(kind: PreferenceLoss) -> None:
    """apo-down lowers both, the loser more."""
    start = -torch.ones(1) if kind in WITHOUT_REFERENCE else torch.zeros(1)
    chosen, rejected = start.clone().requires_grad_(), start.clone().requires_grad_()
    loss = dpo_loss(kind, chosen, rejected, 0.1, wrong=DOUBT.get(kind, 0.0)).sum()
    won, lost = torch.autograd.grad(loss, (chosen, rejected))
    assert float(won) < float(lost)
    assert float(lost) > 0
    assert (float(won) < 0) == (kind != "apo-down")
