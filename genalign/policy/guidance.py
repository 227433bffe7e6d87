"""What a pipeline's scales of guidance mean: which of them is none, and what else must be off for one branch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property

from genalign.policy.call import Calls
from genalign.policy.tape import Stage
from genalign.types import GenalignError, Prompt, UsageError


class Guidance:
    """Found by asking the pipeline, once each: it is run up to its denoiser, and the branches are counted.

    name: of the pipeline, in errors. steps: of the runs that ask. asks_with: the prompt of such a run.
    """

    def __init__(self, name: str, stage: Stage, calls: Calls, steps: int, asks_with: Callable[[], Prompt]) -> None:
        self.name, self.stage, self.calls, self.steps, self.asks_with = name, stage, calls, steps, asks_with

    def scale(self, scale: float) -> float:
        """The scale to give the pipeline: 1 asks for the conditional branch alone, as 0 does by custom.

        Raises UsageError for one that the pipeline would take for none.
        """
        if scale == 1:
            return self.off
        if scale < self.off and scale != 0:
            raise UsageError(
                f"guidance {scale:g} is below {self.off:g}, where {self.name} samples without guidance; give 1 for "
                f"none, or a larger scale"
            )
        return scale

    @cached_property
    def off(self) -> float:
        """The scale that runs the fewest branches: 1, but 0 where the pipeline adds w (cond - uncond) to cond."""
        branches = {scale: self._branches(scale, {}) for scale in (1.0, 0.0)}
        return min(branches, key=lambda scale: branches[scale])

    @cached_property
    def alone(self) -> dict[str, float]:
        """Further scales that must be off for one branch to be left, such as the classifier-free guidance of a model
        that was distilled from guidance, or perturbed attention.

        Raises UsageError where there are several whatever they are.
        """
        scale = self.off if self.calls.scaled else None
        if self._branches(scale, {}) == 1:
            return {}
        off = self.calls.mixing()
        if self._branches(scale, off) > 1:  # together first, for two of them may turn on one branch
            raise UsageError(
                f"{self.name} runs several branches also without guidance, so its conditional branch cannot be trained"
                " on noised samples; take a method that replays rollouts"
            )
        for name in list(off):
            fewer = {other: value for other, value in off.items() if other != name}
            if self._branches(scale, fewer) == 1:
                off = fewer
        return off

    def _branches(self, scale: float | None, more: Mapping[str, float]) -> float:
        """How many branches the denoiser runs a step; infinitely many where the pipeline refuses these scales."""
        before = self.stage.denoisers.calls
        call = {**self.calls([self.asks_with()], [0], scale, self.steps), **more}
        try:
            return self.stage.branches_of(call)
        except GenalignError:
            raise
        except Exception:  # by whatever error a pipeline refuses a scale below 1
            return math.inf
        finally:
            self.stage.denoisers.calls = before  # a probe is not what anything costs
