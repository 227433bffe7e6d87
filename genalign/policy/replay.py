"""A recorded micro-batch played again through its pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from genalign.policy.chunk import Chunk
from genalign.policy.tape import Enough, Stage
from genalign.policy.turn import Turn


class Replay:
    """Denoise and step hooks that play a chunk again, with `answer` in the denoiser's place at the wanted steps.

    answer(step, first branch, args, kwargs) -> branches. received: what the scheduler was given at each wanted step,
    and samples: x there.
    """

    def __init__(
        self,
        stage: Stage,
        chunk: Chunk,
        rows: int,
        wanted: Sequence[int],
        answer: Callable[[int, int, tuple[Any, ...], dict[str, Any]], list[Tensor]],
    ) -> None:
        self.denoisers, self.chunk, self.rows = stage.denoisers, chunk, rows
        self.wanted, self.answer = set(wanted), answer
        self.received: dict[int, Tensor] = {}
        self.samples: dict[int, Tensor] = {}
        self._turn = Turn(stage.turn, rows)
        self._step, self._branch = 0, 0

    def denoise(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        many = self.denoisers.branches(args, kwargs, self.rows)
        if self._step in self.wanted:
            outs = self.answer(self._step, self._branch, args, kwargs)
        elif self._step in self.chunk.outputs:
            outs = self.chunk.outputs[self._step][self._branch : self._branch + many]
        else:
            outs = [self.denoisers.blank(self.rows)] * many
        self._branch += many
        return self.denoisers.join(outs)

    def step(self, out: Tensor, sample: Tensor) -> Tensor:
        then = self.chunk.latents.get(self._step + 1)
        moved = sample if then is None else self._turn.share(then, sample)
        whole = self._turn.add(out, sample)
        if whole is None:
            return moved
        if self._step in self.wanted:
            self.received[self._step], self.samples[self._step] = whole
            if len(self.received) == len(self.wanted):
                raise Enough
        self._step, self._branch = self._step + 1, 0
        return moved
