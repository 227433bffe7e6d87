"""Deterministic sampling through a pipeline's own __call__, with gradients: hooks that change no value."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from genalign.policy.denoisers import Denoise
from genalign.policy.hooks import attribute, named
from genalign.policy.inputs import other_input
from genalign.policy.memo import tensors
from genalign.policy.pipe import Pipe
from genalign.policy.tape import Enough, Stage
from genalign.policy.transition import StepTable, step_table
from genalign.policy.turn import Turn, packed
from genalign.policy.walk import path_of
from genalign.types import Guide, Media, Prompt, UsageError


class GradHooks:
    """Denoise and step hooks of one sampling run, of which the last `grad_steps` steps keep a graph (None: all)."""

    def __init__(self, pipe: Pipe, grad_steps: int | None, guide: Guide | None, recompute: bool) -> None:
        self.pipe, self.stage = pipe, pipe.stage
        self.grad_steps, self.guide, self.recompute = grad_steps, guide, recompute
        self._step, self._entry = 0, 0
        self._table: StepTable | None = None
        self._parts = 0

    def run(self, call: Mapping[str, Any], steps: int | None, noise: Tensor | None) -> Media:
        """What the pipeline makes; noise (B,*L) is what it starts from, None: what it draws."""
        self._entry = self.pipe.entry(steps)
        start = nullcontext() if noise is None else started_from(self.pipe, noise)
        around = [self._around_step(getattr(self.pipe.pipeline, name)) for name in self.pipe.kernel_schedulers]
        return self.pipe.draw(call, self._denoise, None, *around, start)

    def _without_graph(self) -> bool:
        if self.grad_steps is None:
            return False
        return self._step < len(self.stage.pipeline.scheduler.timesteps) - self._entry - self.grad_steps

    def _denoise(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # By name: it may be asked again in the backward pass, when another one was the last.
        ask = functools.partial(self.stage.denoisers.count, args, kwargs, self.stage.denoisers.active)
        if self._without_graph():
            with torch.no_grad():
                return ask()
        return checkpoint(ask, use_reentrant=False, preserve_rng_state=False) if self.recompute else ask()

    @contextmanager
    def _around_step(self, scheduler: Any) -> Iterator[None]:
        real = type(scheduler).step
        if self.guide is not None and self.stage.turn > 1:
            raise UsageError(f"{self.pipe.name} moves several media at once, which no guide can read yet")

        @functools.wraps(real)
        def step(this: Any, *args: Any, **kwargs: Any) -> Any:
            given = named(real, args, kwargs)
            with torch.no_grad() if self._without_graph() else nullcontext():
                if torch.is_grad_enabled() and given["sample"]._is_view():  # into which a pipeline may write x'
                    given["sample"] = given["sample"].clone()
                if self.guide is not None:
                    given["model_output"] = self._guided(this, given["sample"], given["model_output"])
                moved = real(this, **given)
            self._parts += 1
            self._step = self._parts // self.stage.turn
            return moved

        with attribute(scheduler, "step", types.MethodType(step, scheduler)):
            yield

    def _guided(self, scheduler: Any, sample: Tensor, out: Tensor) -> Tensor:
        assert self.guide is not None
        if self._table is None:
            self._table = step_table(self.pipe.placed(path_of(scheduler), self._entry), "ode", 0.0)
        x0, _ = self._table.endpoints(self._step, sample, out)
        return self.guide(self._step, sample, out, x0).to(out.dtype)


@contextmanager
def started_from(pipe: Pipe, noise: Tensor) -> Iterator[None]:
    """Within the context the pipeline's first latents are this noise (B,*L), a leaf of the graph if it requires grad.

    Raises UsageError where the pipeline makes its first latents in another way.
    """
    pipeline, name = pipe.pipeline, pipe.name
    real: Callable[..., Any] | None = getattr(pipeline, "prepare_latents", None)
    if real is None:
        raise UsageError(f"{name} does not say where it makes its first latents, so it cannot start from given noise")

    @functools.wraps(real)
    def prepare_latents(*args: Any, **kwargs: Any) -> Any:
        made = real(*args, **kwargs)
        first = made[0] if isinstance(made, tuple) else made
        if first.shape != noise.shape:
            raise UsageError(f"noise of shape {tuple(noise.shape)}, where {name} starts from {tuple(first.shape)}")
        mine = noise.to(first) * (pipe.unit * getattr(pipeline.scheduler, "init_noise_sigma", 1.0))
        return (mine, *made[1:]) if isinstance(made, tuple) else mine

    with attribute(pipeline, "prepare_latents", prepare_latents):
        yield


def generate_with_grad(
    pipe: Pipe,
    prompts: Sequence[Prompt],
    seeds: Sequence[int] | None,
    noise: Tensor | None,
    guidance: float | None,
    steps: int | None,
    hooks: GradHooks,
) -> Media:
    starts = noise if seeds is None else seeds
    if (seeds is None) == (noise is None) or starts is None or len(prompts) != len(starts) or not prompts:
        raise UsageError("sampling with gradients starts from one seed a prompt, or else from one noise a prompt")
    # A guide reads x0_hat, so the latents must be on a path that is known.
    with torch.enable_grad(), pipe.on_kernel() if hooks.guide is not None else nullcontext():
        call = pipe.call(prompts, seeds or [0] * len(prompts), guidance, steps)
        return hooks.run(call, steps, noise)


@torch.no_grad()
def initial_noise(pipe: Pipe, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Tensor:
    """(B,*L) in float32 or wider."""
    seen: list[Tensor] = []

    def step(out: Tensor, sample: Tensor) -> Tensor:
        wide = sample.to(torch.promote_types(sample.dtype, torch.float32))
        seen.append(wide / (pipe.unit * getattr(pipe.kernel_scheduler, "init_noise_sigma", 1.0)))
        raise Enough

    with pipe.on_kernel():  # which starts from unit variance, as a pipeline's own scheduler may not
        for part in pipe.parts(len(prompts)):
            call = pipe.call(prompts[part], seeds[part])
            pipe.entry()
            rows = len(prompts[part])
            pipe.stage.run(call, _blanks(pipe.stage, rows), step)
            if pipe.stage.turn > 1 or len(seen[-1]) != rows:
                raise UsageError(f"{pipe.name} steps its first latents in parts, so it cannot start from given noise")
    return torch.cat(seen)


def decode(pipe: Pipe, clean: Tensor) -> Media:
    parts = [clean[part] for part in pipe.parts(len(clean))]
    with torch.enable_grad():
        made = []
        for z in parts:
            with pipe.tracks.watched():
                made.append(pipe.tracks(decoded(pipe, len(z), lambda x, z=z: z.to(x))))  # type: ignore[misc]
        return Media.cat(made)


@torch.no_grad()
def shows_its_input(pipe: Pipe, prompt: Prompt, clean: Tensor | None) -> bool:
    """Whether what latents (R,*L) are decoded to depends on the prompt's picture too, as where that is the first frame
    and not among the latents."""
    if prompt.media is None or clean is None:
        return False
    like, drawn = pipe.like, []
    for brought in (prompt, other_input(prompt)):
        pipe.like = brought
        drawn.append(list(tensors([track.data for track in decode(pipe, clean[:1]).values()])))
    pipe.like = like
    return any(not torch.equal(a, b) for a, b in zip(*drawn, strict=True))


def decoded(pipe: Pipe, rows: int, last: Callable[[Tensor], Tensor], *hooks: AbstractContextManager[None]) -> Any:
    """The output of the pipeline's own decoding of last(x), which takes the place of x (R,*L) that it would decode."""
    with pipe.on_kernel():
        call = pipe.call([pipe.like] * rows, range(rows))
        grid = pipe.at_one_time(lambda steps: steps - 1, 1, lambda path, step: None)
        turn = Turn(pipe.stage.turn, rows)
        held: list[Tensor] = []

        def step(out: Tensor, sample: Tensor) -> Tensor:
            if not held:
                held.append(last(packed([sample], rows)))
            moved = turn.share(held[0], sample)
            turn.add(sample)
            return moved

        return pipe.stage.run(call, _blanks(pipe.stage, rows), step, grid, *hooks)


def _blanks(stage: Stage, rows: int) -> Denoise:
    return lambda args, kwargs: stage.denoisers.blanks(args, kwargs, rows)
