"""Running a diffusion pipeline's own __call__ with its denoiser and its scheduler's step in our hands.

Replay *re-enters* the pipeline: its __call__ runs again on the recorded rows, the real denoiser answers at the wanted
steps only, recorded latents come back from scheduler.step, and what reaches scheduler.step is the guided output with
its gradients. So every guidance rule is reproduced by the code that defines it, and none has to be known here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from genalign.policy.text import TextMemo
from genalign.types import UsageError

Step = Callable[[Tensor, Tensor], Tensor]  # (guided output, x) -> x'
Place = tuple[Any, ...]  # a path in the tree of a denoiser's arguments
Denoise = Callable[[tuple[Any, ...], dict[str, Any]], Any]


class Enough(BaseException):
    """Leaves a pipeline's loop once the last wanted step is known, so that nothing is decoded in vain."""


@dataclass
class Chunk:
    """What is kept of b rows.

    latents: x before (key i) and after (key i + 1) each recorded step i, (b, *L) in the storage dtype, each held once.
    outputs: the denoiser's branches at each step, (b, ...) each; kept only where guidance remembers earlier steps.
    """

    latents: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, list[Tensor]] = field(default_factory=dict)

    def select(self, rows: Sequence[int]) -> Chunk:
        if list(rows) == list(range(next(iter(self.latents.values())).shape[0])):
            return self
        index = list(rows)
        return Chunk(
            {i: x[index] for i, x in self.latents.items()},
            {i: [out[index] for out in outs] for i, outs in self.outputs.items()},
        )

    @staticmethod
    def cat(parts: Sequence[Chunk]) -> Chunk:
        if len(parts) == 1:
            return parts[0]
        return Chunk(
            {i: torch.cat([part.latents[i] for part in parts]) for i in parts[0].latents},
            {
                i: [torch.cat(branches) for branches in zip(*(part.outputs[i] for part in parts), strict=True)]
                for i in parts[0].outputs
            },
        )


def gather(chunks: Sequence[Chunk], rows: Sequence[int], size: int) -> Chunk:
    """The given rows of a rollout whose micro-batches have `size` rows, in the given order."""
    parts: list[tuple[int, list[int]]] = []
    for row in rows:
        if not parts or parts[-1][0] != row // size:
            parts.append((row // size, []))
        parts[-1][1].append(row % size)
    return Chunk.cat([chunks[at].select(local) for at, local in parts])


class Stage:
    """A pipeline, its bare denoiser, and the runs that are taken through them.

    A denoiser called with several branches in one batch (guidance: [unconditional; conditional]) is called once a
    branch instead, in rollouts and in replay alike: then a branch can do without a graph, and the log-ratio is still
    exactly 0.
    """

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.component = next((n for n in ("transformer", "unet") if getattr(pipeline, n, None) is not None), "")
        if not self.component:
            raise UsageError(f"{type(pipeline).__name__} has neither a transformer nor a unet that could be aligned")
        enter: Callable[..., Any] | None = getattr(type(pipeline).__call__, "__wrapped__", None)
        if enter is None:
            raise UsageError(f"{type(pipeline).__name__}.__call__ hides the function that replay has to re-enter")
        self.denoiser = getattr(pipeline, self.component)
        self.calls = 0
        self._enter = enter
        self._text = TextMemo(pipeline)
        self._forward = self.denoiser.forward
        self._batched: set[Place] | None = None
        self._wrap: Callable[[Tensor], Any] = lambda out: (out,)
        self._blank = torch.empty(0)  # (1, ...) like one row of a branch

    def run(self, call: Mapping[str, Any], denoise: Denoise | None, step: Step | None) -> Any:
        """pipeline(**call) in the caller's grad mode, with the given hooks; None where one of them had Enough."""
        scheduler = self.pipeline.scheduler

        # Pipelines look for arguments of these two by name, so the hooks keep their signatures.
        @functools.wraps(scheduler.step)
        def scheduler_step(
            model_output: Any, timestep: Any, sample: Any, *_: Any, return_dict: bool = True, **__: Any
        ) -> Any:
            from diffusers.schedulers.scheduling_utils import SchedulerOutput

            moved = step(model_output, sample)  # type: ignore[misc]
            return SchedulerOutput(prev_sample=moved) if return_dict else (moved,)

        @functools.wraps(self._forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return denoise(args, kwargs)  # type: ignore[misc]

        with ExitStack() as stack:
            stack.enter_context(self._text.active())
            if denoise is not None:
                stack.enter_context(_attribute(self.denoiser, "forward", forward))
            if step is not None:
                stack.enter_context(_attribute(scheduler, "step", scheduler_step))
            try:
                return self._enter(self.pipeline, **call)
            except Enough:
                return None

    def learn_batching(self, calls: Sequence[Mapping[str, Any]]) -> None:
        """Find the denoiser arguments with a row axis: those that double from a call of one row to a call of two."""
        sizes: list[dict[Place, int]] = []

        def look(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            sizes.append(dict(_sizes((args, kwargs))))
            raise Enough

        for call in calls:
            self.run(call, look, None)
        one, two = sizes
        self._batched = {place for place, size in one.items() if size and two.get(place) == 2 * size}

    def branches(self, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int) -> int:
        """How many branches of `rows` rows a denoiser call holds."""
        latent = args[0] if args else next(iter(kwargs.values()))
        return len(latent) // rows

    def count(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The real denoiser, counted."""
        self.calls += self.branches(args, kwargs, 1)
        return self._forward(*args, **kwargs)

    def answer(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int, graph: Sequence[bool] | None = None
    ) -> list[Tensor]:
        """The real denoiser, branch by branch: (rows, ...) each. graph: which branches keep their graph (None: all)."""
        many = self.branches(args, kwargs, rows)
        outs = []
        for k in range(many):
            part_args, part_kwargs = (args, kwargs) if many == 1 else self._part((args, kwargs), k, many, rows)
            with torch.set_grad_enabled(torch.is_grad_enabled() and (graph is None or graph[k])):
                out = self.count(part_args, part_kwargs)
            outs.append(self._unwrap(out))
        return outs

    def join(self, outs: Sequence[Tensor]) -> Any:
        """Branches as one answer of the kind the pipeline expects."""
        return self._wrap(outs[0] if len(outs) == 1 else torch.cat(list(outs)))

    def blank(self, rows: int) -> Tensor:
        return self._blank.expand(rows, *self._blank.shape[1:])

    def _unwrap(self, out: Any) -> Tensor:
        tensor = out if isinstance(out, Tensor) else out[0]
        if not isinstance(tensor, Tensor):
            raise UsageError(
                f"{type(self.denoiser).__name__} returns a {type(tensor).__name__}, not one tensor a batch"
            )
        if isinstance(out, Tensor):
            self._wrap = lambda x: x
        elif isinstance(out, dict):
            kind, key = type(out), next(iter(out))
            self._wrap = lambda x: kind(**{key: x})
        self._blank = torch.zeros_like(tensor[:1])
        return tensor

    def _part(self, tree: Any, k: int, many: int, rows: int, place: Place = ()) -> Any:
        """Branch k of a tree of arguments."""
        whole = many * rows
        if isinstance(tree, (Tensor, list)) and len(_shape(tree)) and _shape(tree)[0] == whole:
            known = self._batched is None or place in self._batched
            return tree[k * rows : (k + 1) * rows] if known else tree
        if isinstance(tree, dict):
            return {key: self._part(item, k, many, rows, (*place, key)) for key, item in tree.items()}
        if isinstance(tree, tuple):
            return tuple(self._part(item, k, many, rows, (*place, j)) for j, item in enumerate(tree))
        return tree


class Replay:
    """Denoise and step hooks that play a chunk again, with `answer` in the denoiser's place at the wanted steps.

    answer(step, first branch, args, kwargs) -> branches. received: what the scheduler was given at each wanted step.
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
            self.received[self._step] = out
            if len(self.received) == len(self.wanted):
                raise Enough
        self._step, self._branch = self._step + 1, 0
        return self.chunk.latents.get(self._step, sample)


def _shape(leaf: Tensor | list[Any]) -> tuple[int, ...]:
    return tuple(leaf.shape) if isinstance(leaf, Tensor) else (len(leaf),)


def _sizes(tree: Any, place: Place = ()) -> Iterator[tuple[Place, int]]:
    if isinstance(tree, (Tensor, list)):
        yield from [(place, shape[0])] if (shape := _shape(tree)) else []
    elif isinstance(tree, dict):
        for key, item in tree.items():
            yield from _sizes(item, (*place, key))
    elif isinstance(tree, tuple):
        for j, item in enumerate(tree):
            yield from _sizes(item, (*place, j))


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = owner.__dict__.get(name)
    object.__setattr__(owner, name, value)
    try:
        yield
    finally:
        if before is None:
            object.__delattr__(owner, name)
        else:
            object.__setattr__(owner, name, before)
