"""Surrogates of the policy gradient, tensors in and tensors out, which differ far from the old policy.

logp, old_logp (R,S): log-densities in nats, summed over latent dims; advantage broadcasts against them. All losses are
to be minimised, one an element.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Surrogate = Literal["clip", "cispo", "sapo"]

MAX_LOG_RATIO = 20.0  # nats; summed over latents a stale log-ratio can be hundreds, and exp(89) is inf in fp32


def ppo_clip(
    logp: Tensor, old_logp: Tensor, advantage: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """PPO's pessimistic surrogate (arXiv 1707.06347, eq. 7), and where the clip acts.

    The ratio is held inside [exp(-clip_low), exp(clip_high)]; outside, the gradient is 0 where moving further would
    look like a gain.

    Departs from the paper: (1) the range is given in nats of the summed log-ratio, so that it means the same at every
    resolution; 1 +- eps is clip_low=-log(1-eps), clip_high=log(1+eps). (2) The log-ratio saturates at 20 nats.
    """
    log_ratio = logp - old_logp
    bounded = log_ratio.clamp(-clip_low, clip_high)
    surrogate = log_ratio.clamp(max=MAX_LOG_RATIO).exp() * advantage
    acts = ((log_ratio > clip_high) & (advantage > 0)) | ((log_ratio < -clip_low) & (advantage < 0))
    return -torch.minimum(surrogate, bounded.exp() * advantage), acts


def cispo(logp: Tensor, old_logp: Tensor, advantage: Tensor, clip_high: float) -> tuple[Tensor, Tensor]:
    """REINFORCE weighted by a ratio that is bounded and has no gradient (CISPO, arXiv 2506.13585), and where it
    is: no step stops learning, as a clipped one does."""
    log_ratio = (logp - old_logp).detach()
    return -log_ratio.clamp(max=clip_high).exp() * advantage * logp, log_ratio > clip_high


def sapo(logp: Tensor, old_logp: Tensor, advantage: Tensor, temperatures: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """A gate that closes smoothly on both sides of ratio 1 in place of a clip (SAPO, arXiv 2511.20347).

    temperatures: how steeply, for advantages above 0 and for the others. The second value is where the gate lets less
    than half of the gradient through.
    """
    tau = torch.where(advantage > 0, temperatures[0], temperatures[1])
    ratio = (logp - old_logp).clamp(max=MAX_LOG_RATIO).exp()
    gate = torch.sigmoid(tau * (ratio - 1))
    return -gate * 4 / tau * advantage, (4 * gate * (1 - gate)).detach() < 0.5


def over_steps(x: Tensor, mask: Tensor, mean: bool) -> Tensor:
    """Each row's sum over the steps in mask (R,S), or mean, at every step: the log of the ratio of whole rows, or of
    GSPO's (arXiv 2507.18071)."""
    kept = torch.where(mask, x, 0.0).sum(1, keepdim=True)
    return (kept / mask.sum(1, keepdim=True).clamp(min=1) if mean else kept).expand_as(x)


def k3(logp: Tensor, reference_logp: Tensor) -> Tensor:
    """Schulman's unbiased, non-negative estimate of KL(policy || reference) from samples of the policy, in nats."""
    difference = reference_logp - logp
    return torch.expm1(difference) - difference
