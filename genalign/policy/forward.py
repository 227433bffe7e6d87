"""The forward process through a pipeline: its own denoiser on x_t = a x0 + s eps, at one time for all rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from genalign.policy.pipe import Pipe
from genalign.policy.record import twins_of
from genalign.policy.spans import Spans, spans_of
from genalign.policy.tape import Enough
from genalign.policy.transition import Path
from genalign.policy.turn import Turn, packed
from genalign.policy.walk import is_flow
from genalign.types import Prompt, Steps, UsageError, Weights, sample_seed

ROUNDED = 0.05  # a pipeline may keep latents in half precision between steps
FINE = 50  # steps of the grid that `at` points into
TRACE = 1e-3  # of the sample at the first level of some flow schedulers, whose samplers begin with noise alone there


def fine_steps(scheduler: Any) -> int:
    # A flow's times are real numbers, in whatever unit its scheduler counts them.
    return FINE if is_flow(scheduler) else min(FINE, int(scheduler.config.get("num_train_timesteps") or FINE))


def noise_of(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """eps (R,*shape) fp32, a row from each seed.

    Not the noise that sampling starts from at these seeds: a sample would be fitted to the very noise it came from.
    """
    generators = [torch.Generator().manual_seed(sample_seed(seed, -1, 0)) for seed in seeds]
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])


def target_of(path: Path, step: int, x0: Tensor, eps: Tensor) -> Tensor:
    """What the model was trained to return for a x0 + s eps at a step of the path."""
    match path.predicts:
        case "velocity":
            return eps - x0
        case "reversed_velocity":
            return x0 - eps
        case "epsilon":
            return eps
        case "v_prediction":
            return float(path.a[step]) * eps - float(path.s[step]) * x0
        case "sample":
            return x0


def shares_of(path: Path, step: int) -> tuple[float, float]:
    """The squared errors of x0_hat and of eps_hat in one of the output: at a given x_t both are linear in it."""
    a, s = float(path.a[step]), float(path.s[step])
    match path.predicts:
        case "velocity" | "reversed_velocity" | "v_prediction":
            return s * s, a * a
        case "epsilon":
            return (s / a) ** 2 if a else math.inf, 1.0
        case "sample":
            return 1.0, (a / s) ** 2 if s else math.inf


def share_of_sample(path: Path, step: int) -> float:
    """a of x_t = a x0 + s eps: 0 of a flow where it is a TRACE, less than half precision keeps."""
    a = float(path.a[step])
    return 0.0 if path.is_flow and a < TRACE else a


class OneTime:
    """Denoise and step hooks that run the denoiser on `clean` (R,*L), noised at one time.

    The time is entered twice: the first step is a blank whose x' is x_t, so that x_t enters where the pipeline has its
    latents, whatever it does to make the first ones. twins: for each row the first one of its prompt and its noise;
    where x_t is noise alone, they are computed once.
    """

    def __init__(self, pipe: Pipe, clean: Tensor, seeds: Sequence[int], at: float, twins: Sequence[int] | None) -> None:
        self.pipe, self.stage, self.clean, self.seeds, self.at, self.twins = pipe, pipe.stage, clean, seeds, at, twins
        self.out: Tensor | None = None  # (R,*L), what the scheduler was given
        self._noised: Tensor | None = None  # x_t (R,*L)
        self.target: Tensor | None = None
        self._where: tuple[Path, int] | None = None
        self._entered = False  # whether x_t was handed to the pipeline, all of it
        self._turn: Turn | None = None

    def run(self, call: Mapping[str, Any]) -> tuple[Tensor, Tensor, tuple[float, float]]:
        """(out, target) in float32 or wider, and the shares."""
        grid = self.pipe.at_one_time(lambda steps: int(self.at * steps), 2, self._seen, call["num_inference_steps"])
        check_one_schedule(self.pipe)
        self.stage.run(call, self._denoise, self._step, grid)
        assert self.out is not None
        assert self.target is not None
        assert self._where is not None
        return self.out.to(self.target.dtype), self.target, shares_of(*self._where)

    def _seen(self, path: Path, step: int) -> None:
        self._where = path, step

    def _denoise(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._entered:
            return self.stage.denoisers.blanks(args, kwargs, len(self.clean))
        assert self._where is not None
        equal = self.twins if share_of_sample(*self._where) == 0 else None
        denoisers = self.stage.denoisers
        return denoisers.join(denoisers.answer(args, kwargs, len(self.clean), twins=equal))

    def _step(self, out: Tensor, sample: Tensor) -> Tensor:
        if self._turn is None:
            self._turn = Turn(self.stage.turn, len(self.clean))
        if self._noised is None:
            check_form(self.pipe, self.clean, sample)
            self._noise(sample)
        assert self._noised is not None
        x_t = self._turn.share(self._noised, sample)
        if self._entered:
            check_kept(self.pipe, x_t, sample)
        whole = self._turn.add(out)
        if whole is not None and self._entered:
            self.out = whole[0]
            raise Enough
        self._entered = self._entered or whole is not None
        return x_t

    def _noise(self, sample: Tensor) -> None:
        assert self._where is not None
        path, step = self._where
        wide = torch.promote_types(sample.dtype, torch.float32)
        x0 = self.clean.to(sample.device, wide)
        eps = path.unit * noise_of(self.seeds, x0.shape[1:]).to(x0)
        self.target = target_of(path, step, x0, eps)
        self._noised = (share_of_sample(path, step) * x0 + float(path.s[step]) * eps).to(sample.dtype)


def check_form(pipe: Pipe, clean: Tensor, sample: Tensor) -> None:
    """Raises UsageError where clean latents (R,*L) are not of the form in which the pipeline samples."""
    drawn = packed([sample], len(clean)) if len(sample) % len(clean) == 0 else sample
    if pipe.stage.turn == 1 and clean.shape != drawn.shape:
        raise UsageError(
            f"clean latents of shape {tuple(clean.shape)}, where {pipe.name} samples {tuple(drawn.shape)}; encode"
            " samples with this policy at the size it draws"
        )


def check_one_schedule(pipe: Pipe) -> None:
    """Raises UsageError where parts of the latents walk schedules of their own, for then they are at several times."""
    if len(set(pipe.stage.steppers)) > 1:
        raise UsageError(
            f"{pipe.name} steps its media by schedules of their own ({', '.join(pipe.stage.steppers)}), so they are"
            " at no one time of the forward process; take a method that replays rollouts (grpo, dpok, d3po ...)"
        )


def check_kept(pipe: Pipe, given: Tensor | None, sample: Tensor) -> None:
    """Raises UsageError where the pipeline changed x between two steps, so that x_t is not what its denoiser saw."""
    assert given is not None
    if sample is not given and not torch.allclose(sample.float(), given.float(), rtol=0, atol=ROUNDED):
        raise UsageError(
            f"{pipe.name} changes latents between its steps, as in-painting does, so it cannot be trained on noised"
            " samples; take a method that replays rollouts (grpo, dpok, d3po ...) or differentiates through sampling"
        )


def fit(
    pipe: Pipe,
    weights: Callable[[Weights], AbstractContextManager[None]],
    prompts: Sequence[Prompt],
    clean: Tensor,
    at: float,
    seeds: Sequence[int],
    versus: Weights | None,
) -> Steps:
    if not len(prompts) == len(clean) == len(seeds) or not prompts or not 0 <= at < 1:
        raise UsageError(
            f"{len(prompts)} prompts, {len(clean)} clean latents and {len(seeds)} seeds at {at}; give one of each a"
            " row, at a time in [0, 1)"
        )

    with pipe.on_kernel():
        parts = pipe.parts_of(prompts) if pipe.draws_from_one_picture(prompts) else [slice(0, len(prompts))]

    def run() -> tuple[Tensor, Tensor, tuple[float, float]]:
        outs, targets = [], []
        with pipe.on_kernel():
            for part in parts:
                call = pipe.unguided(prompts[part], seeds[part], fine_steps(pipe.kernel_scheduler))
                twins = twins_of(prompts[part], seeds[part])
                out, target, shares = OneTime(pipe, clean[part], seeds[part], at, twins).run(call)
                outs.append(out)
                targets.append(target)
        return (outs[0], targets[0], shares) if len(parts) == 1 else (torch.cat(outs), torch.cat(targets), shares)

    other: Tensor | None = None
    if versus is not None:  # first, so that nothing of it is alive beside the graph
        with torch.no_grad(), weights(versus):
            other, _, _ = run()
    out, target, shares = run()
    spans = spans_of(pipe)
    counts = [part[0].numel() for part in spans.split(out)]
    return Steps(
        score=-_squared(spans, target - out),
        count=counts[0] if len(counts) == 1 else torch.tensor(counts, device=out.device),
        mask=torch.ones(len(out), len(counts), dtype=torch.bool),
        versus_score=None if other is None else -_squared(spans, target - other),
        gap=None if other is None else _squared(spans, out - other),
        shares=shares,
    )


def _squared(spans: Spans, error: Tensor) -> Tensor:
    """(R,*L) -> (R,M), summed over the latents of each medium."""
    return torch.stack([part.square().flatten(1).sum(1) for part in spans.split(error)], 1)
