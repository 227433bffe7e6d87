"""Running a diffusion pipeline's own __call__ with hooks in the place of its denoiser and its scheduler's step.

Replay *re-enters* the pipeline: its __call__ runs again on the recorded rows, the real denoiser answers at the wanted
steps only, recorded latents come back from scheduler.step, and what reaches scheduler.step is the guided output with
its gradients. So every guidance rule is reproduced by the code that defines it, and none has to be known here.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from genalign.policy.denoisers import Denoise, Denoisers
from genalign.policy.hooks import advance, attribute, lasting_weights, named, place_of
from genalign.policy.memo import EncoderMemo
from genalign.policy.residence import Residence
from genalign.policy.schedule import MAIN, scheduler_names
from genalign.policy.stored import Stored
from genalign.policy.text import TextMemo
from genalign.types import UsageError

Step = Callable[[Tensor, Tensor], Tensor]  # (guided output, x) -> x'


class Enough(BaseException):
    """Leaves a pipeline's loop once the last wanted step is known, so that nothing is decoded that nobody needs."""


class Stage:
    """A pipeline, its bare denoisers, and every run of them. A Pipe owns one; hooks come from whoever runs it.

    residence: what brings a network to the device when it is asked; None where all of them are there.
    parts: the elements of each part that one turn of the loop moves, in one row, and steppers: the component that steps
    it; known once the pipeline was entered.
    """

    def __init__(self, pipeline: Any, residence: Residence | None = None) -> None:
        self.pipeline, self.residence = pipeline, residence
        self.denoisers = Denoisers(pipeline)
        enter: Callable[..., Any] | None = getattr(type(pipeline).__call__, "__wrapped__", None)
        if enter is None:
            raise UsageError(f"{type(pipeline).__name__}.__call__ hides the function that replay has to re-enter")
        self.parts: tuple[int, ...] = ()
        self.steppers: tuple[str, ...] = (MAIN,)
        self.stepping = MAIN  # the scheduler that stepped last
        self.entered = 0  # the first of the scheduler's times that the last run used
        self._enter = enter
        self._text = TextMemo(pipeline)
        self._encoders = EncoderMemo(pipeline, self.denoisers.each)
        self._computes: tuple[torch.device, torch.device] | None = None  # where the denoiser is, and the pipeline then

    def run(
        self,
        call: Mapping[str, Any],
        denoise: Denoise | None,
        step: Step | None,
        *hooks: AbstractContextManager[None],
    ) -> Any:
        """pipeline(**call) in the caller's grad mode, with the given hooks; None where one of them had Enough.

        An argument `component.attribute` is set on that component for as long as the run lasts.
        """
        schedulers = {name: getattr(self.pipeline, name) for name in scheduler_names(self.pipeline)}
        begun: list[bool] = []

        # Pipelines look for its arguments by name, so the hook keeps the signature. As a method the step belongs to the
        # copies, too, that a pipeline makes of its scheduler.
        def step_of(name: str) -> Callable[..., Any]:
            @functools.wraps(type(schedulers[name]).step)
            def scheduler_step(this: Any, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
                from diffusers.schedulers.scheduling_utils import SchedulerOutput

                self.stepping, given = name, named(type(this).step, args, kwargs)
                if not begun:
                    begun.append(True)
                    self.entered = place_of(this, given["timestep"])
                moved = step(given["model_output"], given["sample"])  # type: ignore[misc]
                advance(this, given["timestep"])
                # Some pipelines decode the x0 estimate that stands second; where a path ends it is x' itself.
                return SchedulerOutput(prev_sample=moved) if return_dict else (moved, moved)

            return scheduler_step

        def asked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self._encoders.closed = True
            return denoise(args, kwargs)  # type: ignore[misc]

        with ExitStack() as stack:
            if hasattr(type(self.pipeline), "_execution_device"):
                stack.enter_context(attribute(type(self.pipeline), "_execution_device", self._device()))
            stack.enter_context(self._text.active())
            stack.enter_context(self._encoders.active())
            for place in [name for name in call if "." in name]:
                component, name = place.split(".")
                stack.enter_context(attribute(getattr(self.pipeline, component), name, call[place]))
            if self.residence is not None:
                stack.enter_context(self.residence.graphs_without_blocks())
            if torch.is_grad_enabled():
                for module in self.pipeline.components.values():
                    if isinstance(module, torch.nn.Module) and hasattr(module, "decode"):
                        stack.enter_context(lasting_weights(module, self.bring))
            stack.enter_context(self.denoisers.replaced(asked if denoise is not None else None))
            if step is not None:
                for name, scheduler in schedulers.items():
                    stack.enter_context(attribute(scheduler, "step", types.MethodType(step_of(name), scheduler)))
            for hook in hooks:
                stack.enter_context(hook)
            try:
                return self._enter(self.pipeline, **{name: value for name, value in call.items() if "." not in name})
            except Enough:
                return None

    def _device(self) -> torch.device:
        """Where the pipeline computes: a property of it that walks all modules of all its components whenever it is
        asked, a few times a run. Here it is asked again where the denoiser has moved."""
        if self.residence is not None:
            return self.residence.device
        at = next(self.denoisers.main.parameters()).device
        if self._computes is None or self._computes[0] != at:
            self._computes = at, self.pipeline._execution_device
        return self._computes[1]

    def store_texts(self, stored: Stored) -> None:
        """Keep embeddings of prompts on the disk."""
        self._text.stored = stored

    def bring(self, network: torch.nn.Module) -> None:
        """See that a network is on the device, where networks wait elsewhere until they are asked."""
        if self.residence is not None:
            self.residence.bring_network(network)

    @contextmanager
    def staying(self, network: torch.nn.Module) -> Iterator[None]:
        """Within the context a network is on the device, and what is asked beside it stays there."""
        if self.residence is None:
            yield
            return
        with self.residence.staying():
            self.residence.bring_network(network)
            yield

    def learn_batching(self, calls: Sequence[Mapping[str, Any]]) -> None:
        """Find the row axis of the denoiser's arguments: what doubles from a call of one row to a call of two. With one
        call alone it is only tried.

        Raises UsageError where rows are mixed.
        """
        seen: list[Any] = []

        def look(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            seen.append((args, kwargs))
            raise Enough

        for call in calls:
            self.run(call, look, None)
        if len(seen) == 2:
            self.denoisers.learn_axes(seen)

    def branches_of(self, call: Mapping[str, Any]) -> int:
        """How many branches a call of one row runs before its first step."""
        many: list[int] = []

        def denoise(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            many.append(self.denoisers.branches(args, kwargs, 1))
            return self.denoisers.blanks(args, kwargs, 1)

        def step(out: Tensor, sample: Tensor) -> Tensor:
            raise Enough

        self.run(call, denoise, step)
        return sum(many)

    def start(self, call: Mapping[str, Any]) -> tuple[int, Tensor]:
        """At which of the scheduler's times a call of one row enters, and its x (1,*L) there, or the first part of it.
        Only blanks are run, to the end of the first turn."""
        first: list[Tensor] = []
        steppers: list[str] = []

        def denoise(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if first:
                raise Enough
            return self.denoisers.blanks(args, kwargs, 1)

        def step(out: Tensor, sample: Tensor) -> Tensor:
            first.append(sample.clone())
            steppers.append(self.stepping)
            return sample

        with torch.no_grad():
            self.run({**call, "output_type": "latent"}, denoise, step)
        self.parts, self.steppers = tuple(x.numel() for x in first), tuple(steppers)
        return self.entered, first[0]

    @property
    def turn(self) -> int:
        """How many parts one turn of the loop moves."""
        return max(1, len(self.parts))
