"""Where a diffusion language model writes next: places drawn by confidence, in an order that has a density."""

from __future__ import annotations

import torch
from torch import Tensor

NOWHERE = -1  # the place of a step that a row does not have


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise of uniform numbers."""
    tiny = torch.finfo(uniform.dtype).tiny
    return -(-uniform.clamp(min=tiny).log()).clamp(min=tiny).log()


def drawn_places(weight: Tensor, free: Tensor, count: int) -> Tensor:
    """The `count` free places of greatest weight, in falling order, (R,count); NOWHERE where no more are free.

    weight (R,L): log-confidence, with Gumbel noise added for a draw without replacement: the Gumbel-top-k trick, whose
    order has the density of `log_order` (Kool et al., arXiv 1903.06059, section 3). free (R,L) bool.
    """
    top = weight.masked_fill(~free, -torch.inf).topk(min(count, weight.shape[1]), dim=1)
    places = torch.where(top.values > -torch.inf, top.indices, NOWHERE)
    return torch.nn.functional.pad(places, (0, count - places.shape[1]), value=NOWHERE)


def log_order(weight: Tensor, free: Tensor, places: Tensor) -> Tensor:
    """The log-probability of each of K places, given those before it: Plackett-Luce, (R,K); 0 for NOWHERE.

    With places drawn one after the other, each in proportion to exp(weight) among those that are still free:
    w_place - logsumexp of the free w.

    weight (R,L), free (R,L) bool, places (R,K).
    """
    left, found = free.clone(), []
    for place in places.unbind(1):
        used = place != NOWHERE
        at = place.clamp(min=0)[:, None]
        # A row that draws nothing counts one place as free, as the gradient of an empty sum would not be a number.
        among = left.scatter(1, at, left.gather(1, at) | ~used[:, None])
        total = weight.masked_fill(~among, -torch.inf).logsumexp(1)
        found.append(torch.where(used, weight.gather(1, at)[:, 0] - total, 0.0))
        left = left.scatter(1, at, left.gather(1, at) & ~used[:, None])
    return torch.stack(found, 1)
