"""How smooth motion is, by the optical flow of torchvision's RAFT (Teed and Deng, arXiv 2003.12039)."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from genalign.media.image import resize
from genalign.reward.base import digest, weights_digest
from genalign.reward.heads.motion import ClipRule
from genalign.reward.heads.weights import find_weights, fit, read_weights, weights_file
from genalign.types import Media, UsageError

FILES = {"small": "raft_small_C_T_V2-01064c6d", "large": "raft_large_C_T_SKHT_V2-ff5fadd5"}
STRIDE, LEAST = 8, 128  # sides are multiples of the one, and the other at least
REST = 0.1  # pixels a frame below which a clip is at rest


class RaftSmoothness(ClipRule):
    """1 - (sum |u' - u|) / (sum |u'| + |u|) over pixels and steps, in [0,1], u a pixel's flow, u' where it then is.

    1 where every pixel moves on as it did; 0 where motion turns back, starts or stops at every step. Pixels that leave
    the picture do not count; clips at rest (a mean below 0.1 pixels a frame) are abstained from.

    weights: the safetensors file, or a folder that holds it under its published name (FILES; torchvision has .pth:
    convert it once). size: which of the two networks. side: pixels of the longer side at which flow is computed.
    """

    least = 3

    def __init__(
        self,
        *,
        weights: str | Path,
        size: Literal["small", "large"] = "large",
        side: int = 256,
        name: str = "raft",
    ) -> None:
        super().__init__(name)
        if size not in FILES:
            raise UsageError(f"reward {name!r} has no size {size!r}; small or large")
        if side < LEAST:
            raise UsageError(f"side of reward {name!r} is {side}; RAFT needs {LEAST} pixels at least")
        self.weights_at, self.size, self.side = find_weights(weights, Path()), size, int(side)
        if Path(self.weights_at).exists():
            weights_file(self.weights_at, f"{FILES[size]}.safetensors")

    @property
    def version(self) -> str:
        return digest("raft", self.name, self.size, self.side, weights_digest(self._net))

    @cached_property
    def _net(self) -> Any:
        from torchvision.models.optical_flow import raft_large, raft_small

        path = weights_file(self.weights_at, f"{FILES[self.size]}.safetensors")
        made = raft_large(weights=None) if self.size == "large" else raft_small(weights=None)
        return fit(made, read_weights(path), path)

    @torch.no_grad()
    def score_of(self, media: Media, row: int) -> float | None:
        track = media["video"]
        count, size = len(track.held[row]), self._size(*track.held[row].shape[-2:])
        before, turned, moved, steps = None, 0.0, 0.0, 0.0
        for number in range(count - 1):
            flow = self.flow(*(resize(track.row(row, [at]).float(), *size) for at in (number, number + 1)))  # (1,2,H,W)
            if before is not None:
                there, inside = followed(flow, before)
                turned += float(((there - before).norm(dim=1) * inside).sum())
                moved += float(((there.norm(dim=1) + before.norm(dim=1)) * inside).sum())
                steps += float(inside.sum())
            before = flow
        return 1 - turned / moved if steps and moved / (2 * steps) > REST else None

    def flow(self, first: Tensor, second: Tensor) -> Tensor:
        """Pixels by which what (B,3,H,W) in [0,1] shows has moved in the second: (B,2,H,W), x then y."""
        net = self._net.to(first.device)
        with torch.autocast(first.device.type, enabled=False):
            return net(2 * first - 1, 2 * second - 1)[-1]

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """The sides at which flow is computed: the longer one `side`, each a multiple of STRIDE, LEAST at least."""
        scale = max(self.side / max(height, width), LEAST / min(height, width))
        return tuple(max(LEAST, round(edge * scale / STRIDE) * STRIDE) for edge in (height, width))  # type: ignore[return-value]


def followed(flow: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    """`flow` (B,2,H,W) read where `along` (B,2,H,W) leads from each pixel, and whether that is inside, (B,H,W)."""
    height, width = flow.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at = torch.stack([x, y]).to(along) + along  # (B,2,H,W)
    limits = at.new_tensor([width - 1, height - 1])[:, None, None]
    inside = ((at >= 0) & (at <= limits)).all(1)
    there = F.grid_sample(flow, (2 * at / limits - 1).movedim(1, -1), align_corners=True, padding_mode="border")
    return there, inside
