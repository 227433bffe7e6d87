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

from genalign.policy.answer import AnswerForm
from genalign.policy.branching import Place, part, pick, row_axes
from genalign.policy.hooks import advance, attribute, lasting_weights, named, place_of
from genalign.policy.memo import EncoderMemo
from genalign.policy.residence import Residence
from genalign.policy.schedule import MAIN, scheduler_names
from genalign.policy.stored import Stored
from genalign.policy.text import TextMemo
from genalign.types import UsageError

Step = Callable[[Tensor, Tensor], Tensor]  # (guided output, x) -> x'
DENOISERS = ("transformer", "unet")  # how components that a pipeline samples with are named
CUT, CUT_HALF = 3e-3, 5e-2  # how far branches that are run one by one may be from those of a batch, relative
Denoise = Callable[[tuple[Any, ...], dict[str, Any]], Any]


class Enough(BaseException):
    """Leaves a pipeline's loop once the last wanted step is known, so that nothing is decoded that nobody needs."""


class Stage:
    """A pipeline, its bare denoisers, and every run of them. A Pipe owns one; hooks come from whoever runs it.

    denoisers: by component; more than one where experts share the noise levels. component, denoiser: the main one.
    residence: what brings a network to the device when it is asked; None where all of them are there.
    parts: the elements of each part that one turn of the loop moves, in one row, and steppers: the component that steps
    it; known once the pipeline was entered.

    A denoiser called with several branches in one batch (guidance: [unconditional; conditional]) is called once a
    branch instead, in rollouts and in replay alike: then a branch can do without a graph, and the log-ratio is still
    exactly 0.
    """

    def __init__(self, pipeline: Any, residence: Residence | None = None) -> None:
        self.pipeline, self.residence = pipeline, residence
        self.denoisers = {name: getattr(pipeline, name) for name in denoiser_names(pipeline)}
        self.component = next(iter(self.denoisers))
        enter: Callable[..., Any] | None = getattr(type(pipeline).__call__, "__wrapped__", None)
        if enter is None:
            raise UsageError(f"{type(pipeline).__name__}.__call__ hides the function that replay has to re-enter")
        self.denoiser = self.denoisers[self.component]
        self.calls = 0
        self.active = self.component  # the denoiser that was asked last
        self.parts: tuple[int, ...] = ()
        self.steppers: tuple[str, ...] = (MAIN,)
        self.stepping = MAIN  # the scheduler that stepped last
        self.entered = 0  # the first of the scheduler's times that the last run used
        self._enter = enter
        self._text = TextMemo(pipeline)
        self._encoders = EncoderMemo(pipeline, self.denoisers)
        self._forwards = {name: module.forward for name, module in self.denoisers.items()}
        self._attention: list[Any] = [
            module for each in self.denoisers.values() for module in each.modules() if hasattr(module, "processor")
        ]
        self._row_axes: dict[Place, int | None] | None = None  # None: branches cannot be cut apart
        self._form = AnswerForm(type(self.denoiser).__name__)
        self._computes: tuple[torch.device, torch.device] | None = None  # where the denoiser is, and the pipeline then
        self._proven = False  # whether cut branches were compared with those of a whole batch

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

        # Pipelines look for arguments of these two by name, so the hooks keep their signatures. As a method the step
        # belongs to the copies, too, that a pipeline makes of its scheduler.
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

        def forward_of(name: str) -> Callable[..., Any]:
            @functools.wraps(self._forwards[name])
            def forward(*args: Any, **kwargs: Any) -> Any:
                self.active, self._encoders.closed = name, True
                return denoise(args, kwargs)  # type: ignore[misc]

            return forward

        with ExitStack() as stack:
            if hasattr(type(self.pipeline), "_execution_device"):
                stack.enter_context(attribute(type(self.pipeline), "_execution_device", self._device()))
            stack.enter_context(self._text.active())
            stack.enter_context(self._encoders.active())
            for place in [name for name in call if "." in name]:
                component, name = place.split(".")
                stack.enter_context(attribute(getattr(self.pipeline, component), name, call[place]))
            if torch.is_grad_enabled():
                for module in self.pipeline.components.values():
                    if isinstance(module, torch.nn.Module) and hasattr(module, "decode"):
                        stack.enter_context(lasting_weights(module, self.bring))
            if denoise is not None:
                for name, module in self.denoisers.items():
                    stack.enter_context(attribute(module, "forward", forward_of(name)))
            if step is not None:
                for name, scheduler in schedulers.items():
                    stack.enter_context(attribute(scheduler, "step", types.MethodType(step_of(name), scheduler)))
            for hook in hooks:
                stack.enter_context(hook)
            attention = [(module, module.processor) for module in self._attention]
            try:
                return self._enter(self.pipeline, **{name: value for name, value in call.items() if "." not in name})
            except Enough:
                return None
            finally:  # a run that is left early may leave its own kind of attention in the denoiser
                for module, processor in attention:
                    module.processor = processor

    def shard(self, shard: Callable[[torch.nn.Module], None]) -> None:
        """Split each denoiser in place; its forward is another one afterwards, which gathers what it computes with."""
        for name, module in self.denoisers.items():
            shard(module)
            self._forwards[name] = module.forward

    def _device(self) -> torch.device:
        """Where the pipeline computes: a property of it that walks all modules of all its components whenever it is
        asked, a few times a run. Here it is asked again where the denoiser has moved."""
        if self.residence is not None:
            return self.residence.device
        at = next(self.denoiser.parameters()).device
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
        if len(seen) < 2:
            return
        axes, mixed = row_axes(*seen)
        if mixed:
            raise UsageError(
                f"{type(self.pipeline).__name__} reads the input images of a batch as those of one sample; set"
                " policy.batch_size to 1"
            )
        self._row_axes = axes

    def branches(self, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int) -> int:
        """How many branches of `rows` rows a denoiser call holds."""
        latent = args[0] if args else next(iter(kwargs.values()))
        return len(latent) // rows

    def branches_of(self, call: Mapping[str, Any]) -> int:
        """How many branches a call of one row runs before its first step."""
        many: list[int] = []

        def denoise(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            many.append(self.branches(args, kwargs, 1))
            return self.join(self.fill(args, kwargs, 1))

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
            return self.join(self.fill(args, kwargs, 1))

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

    def count(self, args: tuple[Any, ...], kwargs: dict[str, Any], name: str | None = None) -> Any:
        """The real denoiser of that name, or else the one that was asked last, counted."""
        self.calls += self.branches(args, kwargs, 1)
        return self._forwards[name or self.active](*args, **kwargs)

    def answer(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        rows: int,
        graph: Sequence[bool] | None = None,
        twins: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """The real denoiser, branch by branch: (rows, ...) each.

        graph: which branches keep their graph (None: all). twins: where some rows are equal, row r is computed as row
        twins[r], and each such row once (None: no two are).
        """
        many = self.branches(args, kwargs, rows)
        if many > 1 and not self._proven:
            self._prove(args, kwargs, rows, many)
        if many > 1 and self._row_axes is None:
            outs = list(self._form.read(self.count(args, kwargs)).split(rows))
            return [out if graph is None or graph[k] else out.detach() for k, out in enumerate(outs)]
        distinct, axes = sorted(set(twins or range(rows))), self._row_axes
        back = None  # where each row's output stands among those of the distinct rows
        if twins is not None and axes is not None and len(distinct) < rows:
            back = torch.tensor([distinct.index(twin) for twin in twins])
        outs = []
        # One call a branch: a branch without a graph then holds no activations, and its kernels see the same batch in
        # rollout and in replay, so that they round alike.
        for k in range(many):
            own: tuple[Any, Any] = (args, kwargs)
            if many > 1:
                own = part(own, k, many, rows, axes or {})
            if back is not None:
                own = pick(own, distinct, rows, axes or {})
            with torch.set_grad_enabled(torch.is_grad_enabled() and (graph is None or graph[k])):
                out = self._form.read(self.count(*own))
                outs.append(out if back is None else out[back.to(out.device)])
        return outs

    @torch.no_grad()
    def _prove(self, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int, many: int) -> None:
        """Once: branches are run one by one only where that is what they are together. Attention that reads several
        branches at a time (perturbed attention guidance) is not."""
        self._proven = True
        if self._row_axes is None:
            return
        try:
            whole = self._form.read(self._forwards[self.active](*args, **kwargs)).double()
        except Exception as error:  # the pipeline's own call, as it is
            if rows == 1:
                raise
            raise UsageError(
                f"{type(self.pipeline).__name__} does not run with {rows} rows under guidance ({error}); set"
                " policy.batch_size to 1"
            ) from error
        try:
            outs = []
            for k in range(many):
                own_args, own_kwargs = part((args, kwargs), k, many, rows, self._row_axes)
                outs.append(self._form.read(self._forwards[self.active](*own_args, **own_kwargs)))
            apart = torch.cat(outs).double()
        except Exception:  # whatever a network runs into that is given half of what it wants
            self._row_axes = None
            return
        tolerance = CUT_HALF if outs[0].dtype.itemsize < 4 else CUT
        if apart.shape != whole.shape or not bool((apart - whole).norm() <= tolerance * whole.norm()):
            self._row_axes = None

    def fill(self, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int) -> list[Tensor]:
        """Branches of zeros in the denoiser's place; its real output once, where the form of that is not known yet."""
        if not self._form.known:
            with torch.no_grad():
                return self.answer(args, kwargs, rows)
        return [self.blank(rows)] * self.branches(args, kwargs, rows)

    def join(self, outs: Sequence[Tensor]) -> Any:
        """Branches as one answer of the kind the pipeline expects."""
        return self._form.write(outs[0] if len(outs) == 1 else torch.cat(list(outs)))

    def blank(self, rows: int) -> Tensor:
        """Zeros in the place of one branch of `rows` rows."""
        return self._form.zeros(rows)


def denoiser_names(pipeline: Any) -> list[str]:
    """The components that it samples with, the main one first."""
    present = [
        name
        for name, module in pipeline.components.items()
        if isinstance(module, torch.nn.Module) and name.startswith(DENOISERS)
    ]
    if not present:
        raise UsageError(f"{type(pipeline).__name__} has neither a transformer nor a unet that could be aligned")
    return sorted(present)
