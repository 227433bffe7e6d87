"""The last step of sampling taken again from other noise (what DRaFT-LV averages over)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genalign.policy.forward import check_form, check_kept, check_one_schedule, noise_of
from genalign.policy.pipe import Pipe
from genalign.policy.transition import Path, step_table
from genalign.policy.turn import Turn
from genalign.types import Media, Prompt


class LastStep:
    """Denoise and step hooks: `clean` (R,*L) is noised to where the last step starts, and that step taken with a graph.

    As in `forward.OneTime` the time is entered twice, and the first step is a blank whose x' is x_t.
    """

    def __init__(self, pipe: Pipe, clean: Tensor, seeds: Sequence[int]) -> None:
        self.pipe, self.clean, self.seeds = pipe, clean, seeds
        self._path: tuple[Path, int] | None = None
        self._entered = False
        self._noised: Tensor | None = None
        self._turn: Turn | None = None

    def seen(self, path: Path, step: int) -> None:
        self._path = path, step

    def denoise(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._entered:
            return self.pipe.stage.denoisers.blanks(args, kwargs, len(self.clean))
        return self.pipe.stage.denoisers.count(args, kwargs)

    def step(self, out: Tensor, sample: Tensor) -> Tensor:
        assert self._path is not None
        path, at = self._path
        if self._turn is None:
            self._turn = Turn(self.pipe.stage.turn, len(self.clean))
        if self._noised is None:
            check_form(self.pipe, self.clean, sample)
            self._noised = self._noise(path, at, sample)
        moved = x_t = self._turn.share(self._noised, sample)
        if self._entered:
            check_kept(self.pipe, x_t, sample)
            moved = step_table(path, "ode", 0.0).mean(at, sample, out).to(sample.dtype)
        self._entered = self._turn.add(out) is not None or self._entered
        return moved

    def _noise(self, path: Path, at: int, sample: Tensor) -> Tensor:
        x0 = self.clean.to(sample.device, torch.promote_types(sample.dtype, torch.float32))
        eps = path.unit * noise_of(self.seeds, x0.shape[1:]).to(x0)
        return (float(path.a[at]) * x0 + float(path.s[at]) * eps).to(sample.dtype)


def retake(pipe: Pipe, prompts: Sequence[Prompt], clean: Tensor, seeds: Sequence[int]) -> Media:
    """Media with grad, at the sampler's own guidance and steps."""
    last = LastStep(pipe, clean, seeds)
    with torch.enable_grad(), pipe.on_kernel():
        call = pipe.call(prompts, seeds)
        grid = pipe.at_one_time(lambda steps: steps - 1, 2, last.seen)
        check_one_schedule(pipe)
        return pipe.draw(call, last.denoise, last.step, grid)
