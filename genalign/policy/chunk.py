"""What a rollout keeps of its micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

FEATURES = 256  # at most, of one latent


@dataclass
class Chunk:
    """What is kept of b rows.

    latents: x before (key i) and after (key i + 1) each recorded step i, (b, *L) in the storage dtype, each held once.
    before: x of those steps at which the pipeline had changed what the step before made (in-painting blends it).
    outputs: the denoiser's branches at each step, (b, ...) each; kept only where guidance remembers earlier steps.
    clean: the last latents (b, *L); None where they were not kept.
    """

    latents: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, list[Tensor]] = field(default_factory=dict)
    clean: Tensor | None = None
    before: dict[int, Tensor] = field(default_factory=dict)

    def state(self, i: int) -> Tensor:
        """x (b, *L) as step i was given it."""
        return self.before.get(i, self.latents[i])

    def select(self, rows: Sequence[int]) -> Chunk:
        if list(rows) == list(range(len(next(iter(self.latents.values()))))):
            return self
        index = list(rows)
        chosen = Chunk({i: x[index] for i, x in self.latents.items()})
        for i, branches in self.outputs.items():
            chosen.outputs[i] = [out[index] for out in branches]
        chosen.clean = None if self.clean is None else self.clean[index]
        chosen.before = {i: x[index] for i, x in self.before.items()}
        return chosen

    @staticmethod
    def cat(parts: Sequence[Chunk]) -> Chunk:
        if len(parts) == 1:
            return parts[0]
        joined = Chunk()
        for i in parts[0].latents:
            joined.latents[i] = torch.cat([part.latents[i] for part in parts])
        for i, branches in parts[0].outputs.items():
            joined.outputs[i] = [torch.cat([part.outputs[i][k] for part in parts]) for k in range(len(branches))]
        clean = [part.clean for part in parts if part.clean is not None]
        joined.clean = torch.cat(clean) if len(clean) == len(parts) else None
        changed = set().union(*(part.before for part in parts))
        for i in changed:
            joined.before[i] = torch.cat([part.state(i) for part in parts])
        return joined


def features(x: Tensor) -> Tensor:
    """What a value head sees of x (R,*L), whatever L is: the means (R,H) of equal runs of it."""
    flat = x.flatten(1).float()
    return F.adaptive_avg_pool1d(flat, min(FEATURES, flat.shape[1]))


def gather(chunks: Sequence[Chunk], rows: Sequence[int], size: int) -> Chunk:
    """The given rows of a rollout whose micro-batches have `size` rows, in the given order."""
    parts: list[tuple[int, list[int]]] = []
    for row in rows:
        if not parts or parts[-1][0] != row // size:
            parts.append((row // size, []))
        parts[-1][1].append(row % size)
    return Chunk.cat([chunks[at].select(local) for at, local in parts])
