"""Which elements of a row of latents become which medium, where a pipeline draws several at once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from genalign.policy.pathwise import decode
from genalign.policy.pipe import Pipe
from genalign.policy.tables import Tables
from genalign.policy.transition import StepTable
from genalign.types import Media


class Spans:
    """media: their names, in the order in which the pipeline steps them; () where latents are not taken apart.

    of: for each, its slices of a row of latents (N,). parts: for each, which of the parts of a turn those are.
    """

    def __init__(self, of: Mapping[str, Sequence[slice]], parts: Mapping[str, Sequence[int]] | None = None) -> None:
        self.of = of
        self.media = tuple(of)
        self.parts = dict(parts or {})

    def split(self, x: Tensor) -> list[Tensor]:
        """Latents (R,N) -> those (R,n) of each medium; (R,*L) as it is, where they are not taken apart."""
        return [torch.cat([x[:, span] for span in spans], 1) for spans in self.of.values()] or [x]

    def tables(self, table: StepTable | Tables) -> list[StepTable | Tables]:
        """The table of each medium, or the one of all."""
        return [table.over(numbers) for numbers in self.parts.values()] or [table]


def spans_of(pipe: Pipe) -> Spans:
    """Learnt once for each pipeline, which must have been called."""
    if pipe.spans is None:
        pipe.spans = _learnt(pipe) if len(pipe.tracks.modalities) > 1 else Spans({})
    return pipe.spans


@torch.no_grad()
def _learnt(pipe: Pipe) -> Spans:
    """Noise is decoded, and again with the sign of one part turned: what is then drawn otherwise is that part's medium.
    Where a part becomes several media nothing is taken apart."""
    pipe.entry()  # by which the sizes of the parts are known
    ends = list(itertools.accumulate(pipe.stage.parts, initial=0))
    noise = torch.randn(1, ends[-1], generator=torch.Generator().manual_seed(0))
    drawn = decode(pipe, noise)
    found: dict[str, list[slice]] = {}
    parts: dict[str, list[int]] = {}
    for number, span in enumerate(itertools.starmap(slice, itertools.pairwise(ends))):
        turned = noise.clone()
        turned[:, span] *= -1
        changed = _changed(drawn, decode(pipe, turned))
        if len(changed) != 1:
            return Spans({})
        found.setdefault(changed[0], []).append(span)
        parts.setdefault(changed[0], []).append(number)
    return Spans(found, parts) if len(found) > 1 else Spans({})


def _changed(one: Media, other: Media) -> list[str]:
    """The media of one row each that are not the same."""
    pairs = {name: (track.row(0), other[name].row(0)) for name, track in one.items()}
    return [name for name, (a, b) in pairs.items() if not torch.allclose(a, b, rtol=0, atol=1e-4)]
