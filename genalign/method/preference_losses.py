"""Preference losses, tensors in and tensors out: one loss a pair, (P,), from the scores of winner and loser in nats."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

PreferenceLoss = Literal[
    "sigmoid", "ipo", "hinge", "simpo", "orpo", "robust", "exo", "nca", "bco", "sppo", "apo-zero", "apo-down"
]
AVERAGED = frozenset({"ipo", "simpo", "orpo"})  # whose scores are means over tokens or latent dims, not sums
WITHOUT_REFERENCE = frozenset({"simpo", "orpo"})  # whose scores are the policy's own log-probabilities
WITH_DOUBT = frozenset({"sigmoid", "robust", "exo"})  # that know how probably a label is wrong


def dpo_loss(
    kind: PreferenceLoss,
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    gamma: float = 0.0,
    wrong: Tensor | float = 0.0,
) -> Tensor:
    """z = beta (chosen - rejected), scores being log-ratios policy - reference where nothing else is said.

    wrong: how probably the loser is the better one, in [0, 0.5], a number or one a pair.

    sigmoid: -log s(z) (DPO, arXiv 2305.18290, eq. 7); with `wrong` e, -(1-e) log s(z) - e log s(-z) (cDPO; soft labels,
        as in Direct Nash Optimization, arXiv 2404.03715).
    robust: the same, unbiased where a share e of the labels is flipped (arXiv 2403.00409).
    exo: KL(s(z), s(-z) || 1-e, e) (EXO, arXiv 2402.00856, eq. 16); e > 0.
    hinge: max(0, 1 - z) (SLiC, arXiv 2305.10425).
    ipo: (chosen - rejected - 1/(2 beta))^2 on means (arXiv 2310.12036, eq. 17).
    simpo: -log s(z - gamma) on means of the policy's own log-probabilities (arXiv 2405.14734, eq. 6).
    orpo: -chosen - beta log s(log odds ratio), on the same (arXiv 2403.07691).
    nca, bco, apo-zero, apo-down: winner and loser apart (arXiv 2402.05369; 2404.04656; 2408.06266, eq. 7 and 8).
    sppo: (chosen - 1/(2 beta))^2 + (rejected + 1/(2 beta))^2 (arXiv 2405.00675, eq. 4.7, P = 1).

    Departs from the papers: bco takes 0 for its running mean of rewards.
    """
    z = beta * (chosen - rejected)
    won, lost = beta * chosen, beta * rejected
    if kind == "sigmoid":
        return (1 - wrong) * F.softplus(-z) + wrong * F.softplus(z)
    if kind == "robust":
        return ((1 - wrong) * F.softplus(-z) - wrong * F.softplus(z)) / (1 - 2 * wrong)
    if kind == "exo":
        e = torch.as_tensor(wrong, dtype=z.dtype, device=z.device)
        return torch.sigmoid(z) * (F.logsigmoid(z) - (-e).log1p()) + torch.sigmoid(-z) * (F.logsigmoid(-z) - e.log())
    if kind == "hinge":
        return F.relu(1 - z)
    if kind == "ipo":
        return (chosen - rejected - 1 / (2 * beta)).square()
    if kind == "simpo":
        return F.softplus(gamma - z)
    if kind == "orpo":
        odds = chosen - rejected - (_log_one_less(chosen) - _log_one_less(rejected))
        return -chosen + beta * F.softplus(-odds)
    if kind == "nca":
        return F.softplus(-won) + 0.5 * F.softplus(won) + 0.5 * F.softplus(lost)
    if kind == "bco":
        return F.softplus(-won) + F.softplus(lost)
    if kind == "sppo":
        return (chosen - 0.5 / beta).square() + (rejected + 0.5 / beta).square()
    if kind == "apo-zero":
        return torch.sigmoid(-won) + torch.sigmoid(lost)
    if kind == "apo-down":
        return torch.sigmoid(won) + torch.sigmoid(-z)
    raise ValueError(f"unknown preference loss {kind!r}; one of {', '.join(get_args(PreferenceLoss))}")


def kto_loss(gained: Tensor, shift: Tensor | float, beta: float, desirable: bool) -> Tensor:
    """1 - sigmoid(+-beta (g - z)) of each sample (KTO, arXiv 2402.01306, eq. 8, with both weights 1)."""
    sign = 1.0 if desirable else -1.0
    return 1 - torch.sigmoid(sign * beta * (gained - shift))


def _log_one_less(logp: Tensor) -> Tensor:
    """log(1 - p) of log p < 0, which a mean over tokens is unless all are certain."""
    return torch.log1p(-logp.clamp(max=-1e-6).exp())
