"""The bare denoisers of a pipeline: what they answer, branch by branch, and how the rows of a call are told apart."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from genalign.policy.answer import AnswerForm
from genalign.policy.branching import Place, part, pick, row_axes
from genalign.policy.hooks import attribute
from genalign.types import UsageError

DENOISERS = ("transformer", "unet")  # how components that a pipeline samples with are named
CUT, CUT_HALF = 3e-3, 5e-2  # how far branches that are run one by one may be from those of a batch, relative
Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Denoise = Callable[[tuple[Any, ...], dict[str, Any]], Any]


class Denoisers:
    """The denoisers that a pipeline samples with, as they are without hooks.

    each: by component; more than one where experts share the noise levels. component, main: the main one. active: the
    component that was asked last. calls: network passes so far, one a branch. axes: the axis of the rows in each
    argument of a call; None where branches cannot be cut apart.

    A denoiser called with several branches in one batch (guidance: [unconditional; conditional]) is called once a
    branch instead, in rollouts and in replay alike: then a branch can do without a graph, and the log-ratio is still
    exactly 0.
    """

    def __init__(self, pipeline: Any) -> None:
        self.each: dict[str, nn.Module] = {name: getattr(pipeline, name) for name in denoiser_names(pipeline)}
        self.component, self.main = next(iter(self.each.items()))
        self.active = self.component
        self.calls = 0
        self.axes: dict[Place, int | None] | None = None
        self._pipeline = type(pipeline).__name__
        self._forwards: dict[str, Callable[..., Any]] = {name: module.forward for name, module in self.each.items()}
        self._attention: list[Any] = [
            module for each in self.each.values() for module in each.modules() if hasattr(module, "processor")
        ]
        self._form = AnswerForm(type(self.main).__name__)
        self._proven = False  # whether cut branches were compared with those of a whole batch

    @contextmanager
    def replaced(self, denoise: Denoise | None) -> Iterator[None]:
        """Within the context `denoise`, if there is one, answers for each of them.

        A run that is left early may leave its own kind of attention in them; it goes with the context.
        """

        # Pipelines look for its arguments by name, so the hook keeps the signature.
        def forward_of(name: str) -> Callable[..., Any]:
            @functools.wraps(self._forwards[name])
            def forward(*args: Any, **kwargs: Any) -> Any:
                self.active = name
                return denoise(args, kwargs)  # type: ignore[misc]

            return forward

        with ExitStack() as stack:
            for name, module in self.each.items() if denoise is not None else ():
                stack.enter_context(attribute(module, "forward", forward_of(name)))
            processors = [module.processor for module in self._attention]
            try:
                yield
            finally:
                for module, processor in zip(self._attention, processors, strict=True):
                    module.processor = processor

    def shard(self, shard: Callable[[nn.Module], None]) -> None:
        """Split each in place; its forward is another one afterwards, which gathers what it computes with."""
        for name, module in self.each.items():
            shard(module)
            self._forwards[name] = module.forward

    def learn_axes(self, calls: Sequence[Arguments]) -> None:
        """Find the row axes of their arguments: what doubles from a call of one row to a call of two.

        Raises UsageError where rows are mixed.
        """
        axes, mixed = row_axes(*calls)
        if mixed:
            raise UsageError(
                f"{self._pipeline} reads the input images of a batch as those of one sample; set policy.batch_size to 1"
            )
        self.axes = axes

    def branches(self, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int) -> int:
        """How many branches of `rows` rows a call holds."""
        latent = args[0] if args else next(iter(kwargs.values()))
        return len(latent) // rows

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
        if many > 1 and self.axes is None:
            outs = list(self._form.read(self.count(args, kwargs)).split(rows))
            return [out if graph is None or graph[k] else out.detach() for k, out in enumerate(outs)]
        distinct, axes = sorted(set(twins or range(rows))), self.axes
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
        if self.axes is None:
            return
        try:
            whole = self._form.read(self._forwards[self.active](*args, **kwargs)).double()
        except Exception as error:  # the pipeline's own call, as it is
            if rows == 1:
                raise
            raise UsageError(
                f"{self._pipeline} does not run with {rows} rows under guidance ({error}); set policy.batch_size to 1"
            ) from error
        try:
            outs = []
            for k in range(many):
                own_args, own_kwargs = part((args, kwargs), k, many, rows, self.axes)
                outs.append(self._form.read(self._forwards[self.active](*own_args, **own_kwargs)))
            apart = torch.cat(outs).double()
        except Exception:  # whatever a network runs into that is given half of what it wants
            self.axes = None
            return
        tolerance = CUT_HALF if outs[0].dtype.itemsize < 4 else CUT
        if apart.shape != whole.shape or not bool((apart - whole).norm() <= tolerance * whole.norm()):
            self.axes = None

    def join(self, outs: Sequence[Tensor]) -> Any:
        """Branches as one answer of the kind the pipeline expects."""
        return self._form.write(outs[0] if len(outs) == 1 else torch.cat(list(outs)))

    def blank(self, rows: int) -> Tensor:
        """Zeros in the place of one branch of `rows` rows."""
        return self._form.zeros(rows)

    def blanks(self, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int) -> Any:
        """An answer of zeros; the real one, once, where its form is not known yet."""
        if not self._form.known:
            with torch.no_grad():
                return self.join(self.answer(args, kwargs, rows))
        return self.join([self.blank(rows)] * self.branches(args, kwargs, rows))


def denoiser_names(pipeline: Any) -> list[str]:
    """The components that it samples with, the main one first."""
    present = [
        name
        for name, module in pipeline.components.items()
        if isinstance(module, nn.Module) and name.startswith(DENOISERS)
    ]
    if not present:
        raise UsageError(f"{type(pipeline).__name__} has neither a transformer nor a unet that could be aligned")
    return sorted(present)
