"""Guidance by two prompts at once: the user's, and the one that was written for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genalign.policy.branching import Place, part
from genalign.policy.denoisers import Arguments, Denoisers
from genalign.policy.pipe import Pipe
from genalign.policy.tape import Enough
from genalign.types import Media, Prompt


@torch.no_grad()
def generate_centred(
    pipe: Pipe,
    original: Sequence[Prompt],
    written: Sequence[Prompt],
    seeds: Sequence[int],
    guidance: float | None,
    steps: int | None,
    share: float,
) -> Media:
    """Images by w1 eps(original) + (1 - w1 - w2) eps(null) + w2 eps(written), w1 + w2 the guidance, w1 its `share`.

    Original-prompt-centred guidance (Parrot, arXiv 2401.05675, eq. 5), for any pipeline: its own guidance is run on the
    written prompts, and a branch conditioned on the prompt answers with the mix of both. Three denoiser calls a step.

    Departs from the paper: the two weights add up to the guidance scale (5 + 5 there, on a model tuned for 5).
    """
    made = []
    for rows in pipe.parts(len(written)):
        first = _first_step(pipe, original[rows], seeds[rows], guidance, steps)
        hook = _Mixed(pipe.stage.denoisers, first, len(written[rows]), share)
        made.append(pipe.draw(pipe.call(written[rows], seeds[rows], guidance, steps), hook, None))
    return Media.cat(made)


def _first_step(
    pipe: Pipe, prompts: Sequence[Prompt], seeds: Sequence[int], guidance: float | None, steps: int | None
) -> list[Arguments]:
    """What the denoiser is given in the first step, one entry a call; nothing is denoised."""
    seen: list[Arguments] = []

    def look(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen.append((args, kwargs))
        return pipe.stage.denoisers.blanks(args, kwargs, len(prompts))

    def leave(out: Tensor, sample: Tensor) -> Tensor:
        raise Enough

    pipe.stage.run(pipe.call(prompts, seeds, guidance, steps), look, leave)
    return seen


class _Mixed:
    """A denoise hook: the places at which the arguments differ from the original prompt's are the conditioning."""

    def __init__(self, denoisers: Denoisers, original: Sequence[Arguments], rows: int, share: float) -> None:
        self.denoisers, self.original, self.rows, self.share = denoisers, original, rows, share
        self._places: list[set[Place]] = []
        self._calls = 0

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        at, mine = self._calls % len(self.original), (args, kwargs)
        self._calls += 1
        if len(self._places) <= at:
            self._places.append(_differing(mine, self.original[at]))
        theirs = _exchanged(mine, self.original[at], self._places[at])
        many = self.denoisers.branches(args, kwargs, self.rows)
        axes = self.denoisers.axes
        if many == 1 or axes is None:
            return self.denoisers.join(self._mix(mine, theirs))
        outs: list[Tensor] = []
        for k in range(many):
            outs += self._mix(part(mine, k, many, self.rows, axes), part(theirs, k, many, self.rows, axes))
        return self.denoisers.join(outs)

    def _mix(self, mine: Arguments, theirs: Arguments) -> list[Tensor]:
        outs = self.denoisers.answer(*mine, self.rows)
        if not _differing(mine, theirs):
            return outs
        others = self.denoisers.answer(*theirs, self.rows)
        return [torch.lerp(out, other, self.share) for out, other in zip(outs, others, strict=True)]


def _differing(a: Any, b: Any, place: Place = ()) -> set[Place]:
    """Where two trees of arguments differ."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return set() if a.shape == b.shape and torch.equal(a, b) else {place}
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return set().union(*(_differing(a[key], b[key], (*place, key)) for key in a))
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)) and len(a) == len(b):
        return set().union(*(_differing(x, y, (*place, j)) for j, (x, y) in enumerate(zip(a, b, strict=True))))
    return set() if not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b else {place}


def _exchanged(a: Any, b: Any, places: set[Place], place: Place = ()) -> Any:
    """`a` with what `b` has at the given places."""
    if place in places:
        return b
    if isinstance(a, dict):
        return {key: _exchanged(item, b.get(key), places, (*place, key)) for key, item in a.items()}
    if isinstance(a, (tuple, list)):
        mixed = [_exchanged(item, b[j], places, (*place, j)) for j, item in enumerate(a)]
        return type(a)(mixed)
    return a
