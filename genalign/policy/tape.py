"""Running a diffusion pipeline's own __call__ with hooks in the place of its denoiser and its scheduler's step.

Replay *re-enters* the pipeline: its __call__ runs again on the recorded rows, the real denoiser answers at the wanted
steps only, recorded latents come back from scheduler.step, and what reaches scheduler.step is the guided output with
its gradients. So every guidance rule is reproduced by the code that defines it, and none has to be known here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor

from genalign.policy.branching import Place, part, pick, row_axes
from genalign.policy.chunk import Chunk
from genalign.policy.hooks import advance, attribute, lasting_weights, place_of
from genalign.policy.text import TextMemo
from genalign.types import UsageError

Step = Callable[[Tensor, Tensor], Tensor]  # (guided output, x) -> x'
CUT, CUT_HALF = 3e-3, 5e-2  # how far branches that are run one by one may be from those of a batch, relative
Denoise = Callable[[tuple[Any, ...], dict[str, Any]], Any]


class Enough(BaseException):
    """Leaves a pipeline's loop once the last wanted step is known, so that nothing is decoded that nobody needs."""


class Stage:
    """A pipeline, its bare denoiser, and every run of the two. A Pipe owns one; hooks come from whoever runs it.

    A denoiser called with several branches in one batch (guidance: [unconditional; conditional]) is called once a
    branch instead, in rollouts and in replay alike: then a branch can do without a graph, and the log-ratio is still
    exactly 0.
    """

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.component = _denoiser_name(pipeline)
        enter: Callable[..., Any] | None = getattr(type(pipeline).__call__, "__wrapped__", None)
        if enter is None:
            raise UsageError(f"{type(pipeline).__name__}.__call__ hides the function that replay has to re-enter")
        self.denoiser = getattr(pipeline, self.component)
        self.calls = 0
        self.entered = 0  # the first of the scheduler's times that the last run used
        self._enter = enter
        self._text = TextMemo(pipeline)
        self._forward = self.denoiser.forward
        self._attention: list[Any] = [module for module in self.denoiser.modules() if hasattr(module, "processor")]
        self._row_axes: dict[Place, int | None] | None = None  # None: branches cannot be cut apart
        self._wrap: Callable[[Tensor], Any] = lambda out: (out,)
        self._blank: Tensor | None = None  # (1, ...) like one row of a branch
        self._proven = False  # whether cut branches were compared with those of a whole batch

    def run(
        self,
        call: Mapping[str, Any],
        denoise: Denoise | None,
        step: Step | None,
        *hooks: AbstractContextManager[None],
    ) -> Any:
        """pipeline(**call) in the caller's grad mode, with the given hooks; None where one of them had Enough."""
        scheduler = self.pipeline.scheduler
        begun: list[bool] = []

        # Pipelines look for arguments of these two by name, so the hooks keep their signatures.
        @functools.wraps(scheduler.step)
        def scheduler_step(
            model_output: Any, timestep: Any, sample: Any, *_: Any, return_dict: bool = True, **__: Any
        ) -> Any:
            from diffusers.schedulers.scheduling_utils import SchedulerOutput

            if not begun:
                begun.append(True)
                self.entered = place_of(scheduler, timestep)
            moved = step(model_output, sample)  # type: ignore[misc]
            advance(scheduler, timestep)
            # Some pipelines decode the x0 estimate that stands second; where a path ends it is x' itself.
            return SchedulerOutput(prev_sample=moved) if return_dict else (moved, moved)

        @functools.wraps(self._forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return denoise(args, kwargs)  # type: ignore[misc]

        with ExitStack() as stack:
            stack.enter_context(self._text.active())
            if torch.is_grad_enabled():
                for module in self.pipeline.components.values():
                    if isinstance(module, torch.nn.Module) and hasattr(module, "decode"):
                        stack.enter_context(lasting_weights(module))
            if denoise is not None:
                stack.enter_context(attribute(self.denoiser, "forward", forward))
            if step is not None:
                stack.enter_context(attribute(scheduler, "step", scheduler_step))
            for hook in hooks:
                stack.enter_context(hook)
            attention = [(module, module.processor) for module in self._attention]
            try:
                return self._enter(self.pipeline, **call)
            except Enough:
                return None
            finally:  # a run that is left early may leave its own kind of attention in the denoiser
                for module, processor in attention:
                    module.processor = processor

    def learn_batching(self, calls: Sequence[Mapping[str, Any]]) -> None:
        """Find the row axis of the denoiser's arguments: what doubles from a call of one row to a call of two.

        Raises UsageError where rows are mixed.
        """
        seen: list[Any] = []

        def look(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            seen.append((args, kwargs))
            raise Enough

        for call in calls:
            self.run(call, look, None)
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
        """At which of the scheduler's times a call of one row enters, and its x (1,*L) there. Only blanks are run."""
        first: list[Tensor] = []

        def denoise(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return self.join(self.fill(args, kwargs, 1))

        def step(out: Tensor, sample: Tensor) -> Tensor:
            first.append(sample)
            raise Enough

        with torch.no_grad():
            self.run(call, denoise, step)
        return self.entered, first[0]

    def count(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The real denoiser, counted."""
        self.calls += self.branches(args, kwargs, 1)
        return self._forward(*args, **kwargs)

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
            outs = list(self._unwrap(self.count(args, kwargs)).split(rows))
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
                out = self._unwrap(self.count(*own))
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
            whole = self._unwrap(self._forward(*args, **kwargs)).double()
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
                outs.append(self._unwrap(self._forward(*own_args, **own_kwargs)))
            apart = torch.cat(outs).double()
        except Exception:  # whatever a network runs into that is given half of what it wants
            self._row_axes = None
            return
        tolerance = CUT_HALF if outs[0].dtype.itemsize < 4 else CUT
        if apart.shape != whole.shape or not bool((apart - whole).norm() <= tolerance * whole.norm()):
            self._row_axes = None

    def fill(self, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int) -> list[Tensor]:
        """Branches of zeros in the denoiser's place; its real output once, where the form of that is not known yet."""
        if self._blank is None:
            with torch.no_grad():
                return self.answer(args, kwargs, rows)
        return [self.blank(rows)] * self.branches(args, kwargs, rows)

    def join(self, outs: Sequence[Tensor]) -> Any:
        """Branches as one answer of the kind the pipeline expects."""
        return self._wrap(outs[0] if len(outs) == 1 else torch.cat(list(outs)))

    def blank(self, rows: int) -> Tensor:
        assert self._blank is not None
        return self._blank.expand(rows, *self._blank.shape[1:])

    def _unwrap(self, out: Any) -> Tensor:
        value = out if isinstance(out, Tensor) else out[0]
        as_list = isinstance(value, list) and len({row.shape for row in value}) == 1
        tensor: Any = torch.stack(value) if isinstance(value, list) and as_list else value
        if not isinstance(tensor, Tensor):
            raise UsageError(
                f"{type(self.denoiser).__name__} returns a {type(tensor).__name__}, not one tensor a batch"
            )

        def form(x: Tensor) -> Any:
            return list(x) if as_list else x

        if isinstance(out, Tensor):
            self._wrap = form
        elif isinstance(out, dict):
            kind, key = type(out), next(iter(out))
            self._wrap = lambda x: kind(**{key: form(x)})
        else:
            self._wrap = lambda x: (form(x),)
        self._blank = torch.zeros_like(tensor[:1])
        return tensor


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
        self.stage, self.chunk, self.rows, self.wanted, self.answer = stage, chunk, rows, set(wanted), answer
        self.received: dict[int, Tensor] = {}
        self.samples: dict[int, Tensor] = {}
        self._step, self._branch = 0, 0

    def denoise(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        many = self.stage.branches(args, kwargs, self.rows)
        if self._step in self.wanted:
            outs = self.answer(self._step, self._branch, args, kwargs)
        elif self._step in self.chunk.outputs:
            outs = self.chunk.outputs[self._step][self._branch : self._branch + many]
        else:
            outs = [self.stage.blank(self.rows)] * many
        self._branch += many
        return self.stage.join(outs)

    def step(self, out: Tensor, sample: Tensor) -> Tensor:
        if self._step in self.wanted:
            self.received[self._step], self.samples[self._step] = out, sample
            if len(self.received) == len(self.wanted):
                raise Enough
        self._step, self._branch = self._step + 1, 0
        return self.chunk.latents.get(self._step, sample)


def _denoiser_name(pipeline: Any) -> str:
    kind = type(pipeline).__name__
    present = [
        name
        for name, module in pipeline.components.items()
        if module is not None and name.startswith(("transformer", "unet"))
    ]
    found = next((name for name in ("transformer", "unet") if name in present), None)
    if found is None:
        raise UsageError(f"{kind} has neither a transformer nor a unet that could be aligned")
    others = [name for name in present if name != found]
    if others:
        raise UsageError(f"{kind} samples with {found} and {others[0]}, but only one denoiser can be aligned yet")
    return found
