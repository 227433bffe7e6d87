"""The one-step path that a pipeline's scheduler walks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from genalign.policy.settings import Sampler
from genalign.policy.tape import attribute
from genalign.policy.transition import Path, StepTable, flow_path, kernel_rows, preserving_path
from genalign.types import UsageError, sample_seed


def is_flow(scheduler: Any) -> bool:
    config = scheduler.config
    return (
        type(scheduler).__name__.startswith("FlowMatch")
        or config.get("prediction_type") == "flow_prediction"
        or bool(config.get("use_flow_sigmas"))
    )


def one_step(scheduler: Any) -> Any:
    """The one-step scheduler whose time grid the kernels walk; the scheduler itself where it is one already.

    Multistep and stochastic samplers have a memory or noise that no transition density describes, so they are replaced
    by the Euler step of their flow, or by DDIM on their betas. Raises UsageError where that is not possible.
    """
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    config = dict(scheduler.config)
    if config.get("thresholding") or config.get("invert_sigmas"):
        option = "thresholding" if config.get("thresholding") else "invert_sigmas"
        raise UsageError(f"the pipeline's scheduler sets {option}, which no Gaussian step describes; turn it off")
    if is_flow(scheduler):
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler) and not config.get("stochastic_sampling"):
            return scheduler
        shift = config.get("flow_shift", config.get("shift", 1.0))
        known = {"num_train_timesteps", "use_dynamic_shifting", "base_shift", "max_shift", "shift_terminal"}
        kept = {key: value for key, value in config.items() if key in known and value is not None}
        return FlowMatchEulerDiscreteScheduler(**kept, shift=shift)
    if isinstance(scheduler, DDIMScheduler):
        return scheduler
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        raise UsageError(f"{type(scheduler).__name__} has neither betas nor a flow, so its steps have no known density")
    # DDIM clips x0 by default; a scheduler that has no such setting does not.
    return DDIMScheduler.from_config(scheduler.config, clip_sample=bool(config.get("clip_sample")))


def is_deterministic_one_step(scheduler: Any) -> bool:
    """Whether plain sampling by this scheduler is the ODE taken in single steps."""
    from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

    known = isinstance(scheduler, (DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler))
    return known and not scheduler.config.get("stochastic_sampling")


def check_kernel(scheduler: Any, sampler: Sampler) -> None:
    """Raises UsageError where the sampler does not fit the scheduler's path, before anything runs."""
    if sampler.sigmas is not None and not is_flow(scheduler):
        raise UsageError(
            f"{type(scheduler).__name__} steps through timesteps, not noise levels; leave policy.sampler.sigmas out"
        )
    path = flow_path([0.9, 0.1]) if is_flow(scheduler) else preserving_path([0.1], [0.9])
    kernel_rows(path, sampler.kernel, sampler.noise)


def path_of(scheduler: Any) -> Path:
    """The path of a one-step scheduler whose set_timesteps was called."""
    if is_flow(scheduler):
        return flow_path(scheduler.sigmas.double().cpu())
    config = scheduler.config
    now = scheduler.timesteps.cpu()
    then = now - config.num_train_timesteps // scheduler.num_inference_steps
    abar = scheduler.alphas_cumprod.double().cpu()
    final = torch.as_tensor(scheduler.final_alpha_cumprod, dtype=torch.float64).cpu()
    return preserving_path(
        abar[now],
        torch.where(then >= 0, abar[then.clamp_min(0)], final),
        predicts=config.prediction_type,
        clip=config.clip_sample_range if config.clip_sample else None,
    )


def windowed(table: StepTable, sampler: Sampler, seed: int) -> StepTable:
    """The table with the sampler's window, its start drawn by the rollout's seed."""
    width = sampler.window
    if width is None:
        return table
    noisy = set(table.stochastic)
    fits = [start for start in range(len(table)) if noisy.issuperset(range(start, start + width))]
    starts = fits if sampler.window_start is None else list(range(*sampler.window_start))
    if not starts or not set(starts) <= set(fits):
        raise UsageError(
            f"policy.sampler: a window of {width} from {sampler.window_start or 'any step'} covers a step that adds no"
            f" noise; stochastic steps of {sampler.kernel} are {sorted(noisy)}"
        )
    return table.window(starts[sample_seed(seed, -1, 0) % len(starts)], width)


@contextmanager
def only(scheduler: Any, pick: Callable[[int], int], times: int, seen: Callable[[Path, int], None]) -> Iterator[None]:
    """Within the context the scheduler's time grid is one of its own times, `times` over; `seen` learns which."""
    real = scheduler.set_timesteps

    @functools.wraps(real)
    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        path = path_of(scheduler)
        step = pick(len(path.s))
        seen(path, step)
        scheduler.timesteps = scheduler.timesteps[step].repeat(times)

    with attribute(scheduler, "set_timesteps", set_timesteps):
        yield
