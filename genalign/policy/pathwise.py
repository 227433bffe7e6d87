"""Deterministic sampling through a pipeline's own __call__, with gradients: hooks that change no value."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from genalign.policy.hooks import attribute
from genalign.policy.pipe import Pipe
from genalign.policy.tape import Denoise, Enough, Stage
from genalign.policy.transition import StepTable, step_table
from genalign.policy.walk import path_of
from genalign.types import Guide, Media, Prompt, UsageError


class GradHooks:
    """Denoise and step hooks of one sampling run, of which the last `grad_steps` steps keep a graph (None: all)."""

    def __init__(self, pipe: Pipe, grad_steps: int | None, guide: Guide | None, recompute: bool) -> None:
        self.pipe, self.stage = pipe, pipe.stage
        self.grad_steps, self.guide, self.recompute = grad_steps, guide, recompute
        self._step, self._entry = 0, 0
        self._table: StepTable | None = None

    def run(self, call: Mapping[str, Any], steps: int | None, noise: Tensor | None) -> Media:
        """What the pipeline makes; noise (B,*L) is what it starts from, None: what it draws."""
        self._entry = self.pipe.entry(steps)
        start = nullcontext() if noise is None else started_from(self.pipe, noise)
        return self.pipe.draw(call, self._denoise, None, self._around_step(self.pipe.pipeline.scheduler), start)

    def _without_graph(self) -> bool:
        if self.grad_steps is None:
            return False
        return self._step < len(self.stage.pipeline.scheduler.timesteps) - self._entry - self.grad_steps

    def _denoise(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ask = functools.partial(self.stage.count, args, kwargs)
        if self._without_graph():
            with torch.no_grad():
                return ask()
        return checkpoint(ask, use_reentrant=False, preserve_rng_state=False) if self.recompute else ask()

    @contextmanager
    def _around_step(self, scheduler: Any) -> Iterator[None]:
        real = scheduler.step

        @functools.wraps(real)
        def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            with torch.no_grad() if self._without_graph() else nullcontext():
                if self.guide is not None:
                    model_output = self._guided(scheduler, sample, model_output)
                moved = real(model_output, timestep, sample, *args, **kwargs)
            self._step += 1
            return moved

        with attribute(scheduler, "step", step):
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
            pipe.stage.run(call, _blanks(pipe.stage, len(prompts[part])), step)
    return torch.cat(seen)


def decode(pipe: Pipe, clean: Tensor) -> Media:
    parts = [clean[part] for part in pipe.parts(len(clean))]
    with torch.enable_grad():
        made = []
        for z in parts:
            with pipe.tracks.watched():
                made.append(pipe.tracks(decoded(pipe, len(z), lambda x, z=z: z.to(x))))  # type: ignore[misc]
        return Media.cat(made)


def decoded(pipe: Pipe, rows: int, last: Callable[[Tensor], Tensor], *hooks: AbstractContextManager[None]) -> Any:
    """The output of the pipeline's own decoding of last(x), which takes the place of x (R,*L) that it would decode."""
    with pipe.on_kernel():
        call = pipe.call([pipe.like] * rows, range(rows))
        grid = pipe.at_one_time(lambda steps: steps - 1, 1, lambda path, step: None)
        return pipe.stage.run(call, _blanks(pipe.stage, rows), lambda out, sample: last(sample), grid, *hooks)


def _blanks(stage: Stage, rows: int) -> Denoise:
    return lambda args, kwargs: stage.join(stage.fill(args, kwargs, rows))
