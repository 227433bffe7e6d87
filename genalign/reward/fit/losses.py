"""What a reward is fitted by: losses of preferences, tensors in and tensors out.

Throughout, delta (N,) = r(a) - r(b) is in logits, and p (N,) in [0,1] is the label, the probability that a is better
than b: 1, 0, 1/2 for a tie, or between for a soft label. Every loss is per pair, (N,); train.py takes the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Settling = Literal["flip", "soften", "margin"]


def bradley_terry(delta: Tensor, p: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """-p log s(delta - m) - (1 - p) log s(-delta - m), s the logistic function; the preferred one must lead by m.

    Hard labels: Bradley and Terry (1952). p between: soft labels and label smoothing. m > 0: the margin of Llama 2
    (arXiv 2307.09288, eq. 2), or of an ensemble's strength (Secrets of RLHF II, arXiv 2401.06080).
    """
    return p * F.softplus(margin - delta) + (1 - p) * F.softplus(margin + delta)


def ties(delta: Tensor, p: Tensor, k: float = 5.0) -> Tensor:
    """Bradley-Terry with ties (Rao and Kupper, 1967; VideoReward, arXiv 2501.13918), k > 1.

    P(a) = s(delta - log k), P(b) = s(-delta - log k), P(tie) = (k^2 - 1) P(a) P(b); the three sum to 1. At delta = 0
    a tie has (k - 1) / (k + 1): 2/3 for VideoReward's k = 5, so take k nearer to 1 where ties are rare. A pair counts
    as a tie where p is exactly 1/2.
    """
    lost_a, lost_b = F.softplus(math.log(k) - delta), F.softplus(math.log(k) + delta)
    return torch.where(p == 0.5, lost_a + lost_b - math.log(k * k - 1), p * lost_a + (1 - p) * lost_b)


def tie_probability(delta: Tensor, k: float = 5.0) -> Tensor:
    """(N,) P(tie) of `ties`."""
    return (k * k - 1) * (delta - math.log(k)).sigmoid() * (-delta - math.log(k)).sigmoid()


def expected_win(delta: Tensor, k: float = 5.0) -> Tensor:
    """(N,) P(a) + P(tie) / 2 of `ties`: the label that is to be expected, where a tie is 1/2."""
    return (delta - math.log(k)).sigmoid() + tie_probability(delta, k) / 2


def yes_no(logit: Tensor, p: Tensor) -> Tensor:
    """Cross-entropy of "is the first better than the second?" (RewardDance, arXiv 2509.08826): p(yes) = s(logit).

    With logit = log p_yes - log p_no this is -log(p_yes / (p_yes + p_no)) for p = 1.
    """
    return F.binary_cross_entropy_with_logits(logit, p, reduction="none")


def regression(value: Tensor, rating: Tensor, delta: float | None = None) -> Tensor:
    """(value - rating)^2 / 2, or beyond an error of `delta` Huber's linear continuation of it."""
    if delta is None:
        return (value - rating).square() / 2
    return F.huber_loss(value, rating, reduction="none", delta=delta)


def skew_score(a: Tensor, b: Tensor, scale: Tensor | None = None) -> Tensor:
    """s(a > b) = sum_l scale_l (a_2l b_2l+1 - a_2l+1 b_2l), (N,), of embeddings (N,2m): the general preference model.

    (Zhang et al., arXiv 2410.02197.) Antisymmetric by construction, and able to hold a cycle; scale (N,m) or (m,), 1 if
    absent, weighs the m planes.
    """
    (a0, a1), (b0, b1) = a.unflatten(-1, (-1, 2)).unbind(-1), b.unflatten(-1, (-1, 2)).unbind(-1)
    planes = a0 * b1 - a1 * b0
    return (planes if scale is None else planes * scale).sum(-1)


def centre(a: Tensor, b: Tensor) -> Tensor:
    """(r(a) + r(b))^2: keeps rewards about 0, which Bradley-Terry leaves free (Eisenstein et al., arXiv 2312.09244)."""
    return (a + b).square()


def gradient_penalty(
    score: Callable[[Tensor], Tensor], rows: Tensor, limit: float = 1.0, one_sided: bool = True
) -> Tensor:
    """(N,) (|grad score(row)| - limit)^2 at rows (N,H); one-sided: only where the slope exceeds the limit.

    Keeps a reward locally Lipschitz (Gulrajani et al., arXiv 1704.00028; Blonde et al., arXiv 2006.16785), so that what
    climbs it finds no cliffs. Rows between the two samples of a pair are where it matters: see `between`.
    """
    with torch.enable_grad():
        rows = rows.detach().requires_grad_()
        (slope,) = torch.autograd.grad(score(rows).sum(), rows, create_graph=True)
    excess = slope.norm(dim=1) - limit
    return (excess.clamp(min=0) if one_sided else excess).square()


def between(a: Tensor, b: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """(N,H): a point of each segment from a to b, uniform."""
    share = torch.rand(len(a), 1, generator=generator, dtype=a.dtype)
    return share * a + (1 - share) * b


# ---- how strong is a preference? ------------------------------------------------------------------------------------


def settle(p: Tensor, votes: Tensor, how: Settling, share: float = 0.1) -> tuple[Tensor, Tensor]:
    """Labels and margins (N,), (N,) after a vote (Secrets of RLHF II, arXiv 2401.06080, section 2).

    p: labels. votes (M,N): the leads, in logits, that M rewards see which did not learn from the pair. Its strength is
    the mean vote for the preferred one; share: how many of the labels are thought to be wrong. "flip": of the pairs
    with a negative strength, at most a `share` of all, the most negative ones turn round. "soften": the posterior of
    the label, s(strength + log((1 - share) / share)), votes and label being two witnesses; ties stay ties. "margin":
    the strength is the margin, where it is positive; contradicted pairs have none.

    Departs from the paper, which cuts the data into groups of like strength and treats each by hand.
    """
    lead = torch.where(p >= 0.5, 1.0, -1.0).to(votes)
    strength = lead * votes.mean(0)
    none = torch.zeros_like(strength)
    if how == "margin":
        return p, torch.where(p == 0.5, none, strength.clamp(min=0))
    if how == "soften":
        right = (strength + math.log((1 - share) / share)).sigmoid()  # the posterior that the label is right
        return torch.where(p == 0.5, p, torch.where(lead > 0, right, 1 - right)), none
    lowest = strength.argsort()[: round(share * len(p))]
    turned = torch.zeros_like(p, dtype=torch.bool).index_fill(0, lowest, True) & (strength < 0)
    return torch.where(turned, 1 - p, p), none


# ---- many tastes ----------------------------------------------------------------------------------------------------


def mixture(deltas: Tensor, router: Tensor, p: Tensor, entropy: float = 0.5) -> Tensor:
    """-log sum_k f_k P_k + entropy sum_k f_k log f_k, with P_k = s(delta_k), for p = 0 s(-delta_k): MiCRo.

    (Shen et al., arXiv 2505.24846.) deltas (N,K): the leads that K rewards see; router (N,K): log f, log-probabilities
    over them. The second term keeps the router from choosing too early. Soft p weighs the two outcomes.
    """
    won = torch.logsumexp(router + F.logsigmoid(deltas), 1)
    lost = torch.logsumexp(router + F.logsigmoid(-deltas), 1)
    return -p * won - (1 - p) * lost + entropy * (router.exp() * router).sum(1)


def hedge(losses: Tensor, rate: float = 1.0) -> Tensor:
    """(K,) log-weights of K experts after losses (N,K): w_k <- w_k exp(-rate loss_k) / Z over the N (Hedge, 1997)."""
    return torch.log_softmax(-rate * losses.sum(0), 0)


def normal_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """(N,) KL from N(mean, e^logvar) to N(0, 1), summed over (N,d)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1)
