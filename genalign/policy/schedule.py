"""Which scheduler the kernels walk, and what of its grid they use."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, get_args

import torch

from genalign.policy.hooks import attribute
from genalign.policy.settings import Sampler
from genalign.policy.tables import Tables
from genalign.policy.transition import Path, Prediction, StepTable, flow_path, kernel_rows, preserving_path
from genalign.policy.walk import STEPS, is_edm, is_flow, path_of, walk
from genalign.types import UsageError, sample_seed

MAIN = "scheduler"
NO_SIGNAL = 1e-6  # abar; some schedulers put 2^-24 in the place of 0
PREDICTIONS = [kind for kind in get_args(Prediction) if "velocity" not in kind]


def scheduler_names(pipeline: Any) -> list[str]:
    """The schedulers that it may step with, the main one first: some step sound by one of its own."""
    others = {name: part for name, part in pipeline.components.items() if name.endswith(f"_{MAIN}")}
    return [MAIN, *(name for name, part in others.items() if part is not None and is_flow(part))]


def one_step(scheduler: Any) -> Any:
    """The one-step scheduler whose time grid the kernels walk; the scheduler itself where it is one already.

    Raises UsageError where the scheduler's steps cannot be given a density.
    """
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    config, name = scheduler.config, type(scheduler).__name__
    if config.get("thresholding"):
        raise UsageError("the pipeline's scheduler sets thresholding, which no Gaussian step describes; turn it off")
    if is_flow(scheduler):
        plain = isinstance(scheduler, FlowMatchEulerDiscreteScheduler) and not config.get("stochastic_sampling")
        return scheduler if plain else walk(scheduler)
    if is_edm(scheduler):
        return walk(scheduler)
    has_betas = "beta_schedule" in config or config.get("trained_betas") is not None
    if not has_betas or not hasattr(scheduler, "alphas_cumprod"):
        raise UsageError(f"{name} has neither betas nor a flow, so its steps have no known density")
    if config.get("prediction_type") not in PREDICTIONS:
        raise UsageError(
            f"{name} predicts {config.get('prediction_type')!r}, from which no x0 is known; the pipeline's scheduler"
            f" must predict one of {', '.join(PREDICTIONS)}"
        )
    if config.prediction_type == "epsilon" and _reaches_noise(scheduler):
        raise UsageError(
            f"{name} begins at a signal of zero (rescale_betas_zero_snr), where epsilon determines no x0;"
            " such models predict v: correct prediction_type, or set rescale_betas_zero_snr to false"
        )
    # DDIM's step goes back by a fixed number of training times: on this grid alone that is always the next time.
    if isinstance(scheduler, DDIMScheduler) and config.timestep_spacing == "leading":
        return scheduler
    return walk(scheduler)


def _reaches_noise(scheduler: Any) -> bool:
    """Whether the first of its times holds no signal at all."""
    probe = copy.deepcopy(scheduler)
    probe.set_timesteps(STEPS)
    return float(scheduler.alphas_cumprod[int(probe.timesteps[0])]) < NO_SIGNAL


def is_deterministic_one_step(scheduler: Any) -> bool:
    """Whether plain sampling by this scheduler is the ODE taken in single steps, each to where the next begins."""
    from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

    if isinstance(scheduler, DDIMScheduler):
        return bool(scheduler.config.timestep_spacing == "leading")
    known = isinstance(scheduler, (EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler))
    return known and not scheduler.config.get("stochastic_sampling")


def replaces_step(scheduler: Any) -> bool:
    """Whether another step is taken in the place of the scheduler's own. DDIM's is kept where it ends right, and
    DPM-Solver's of first order is the ODE's."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    if isinstance(scheduler, DPMSolverMultistepScheduler) and scheduler.config.solver_order == 1:
        return str(scheduler.config.algorithm_type).startswith("sde")
    return not (isinstance(scheduler, DDIMScheduler) and scheduler.config.timestep_spacing != "linspace")


def check_kernel(scheduler: Any, sampler: Sampler) -> None:
    """Raises UsageError where the sampler does not fit the scheduler's path, before anything runs."""
    if sampler.sigmas is not None and not is_flow(scheduler):
        raise UsageError(
            f"{type(scheduler).__name__} steps through timesteps, not noise levels; leave policy.sampler.sigmas out"
        )
    path = flow_path([0.9, 0.1]) if is_flow(scheduler) else preserving_path([0.1], [0.9])
    kernel_rows(path, sampler.kernel, sampler.noise)


def windowed(table: StepTable | Tables, sampler: Sampler, seed: int) -> StepTable | Tables:
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
def all_only(
    schedulers: Mapping[str, Any], pick: Callable[[int], int], times: int, seen: Callable[[Path, int], None]
) -> Iterator[None]:
    """The same time, by its number, of every scheduler of a pipeline; `seen` learns which of the main one."""
    with ExitStack() as stack:
        for name, scheduler in schedulers.items():
            stack.enter_context(only(scheduler, pick, times, seen if name == MAIN else None))
        yield


@contextmanager
def only(
    scheduler: Any, pick: Callable[[int], int], times: int, seen: Callable[[Path, int], None] | None
) -> Iterator[None]:
    """Within the context the scheduler's time grid is one of its own times, `times` over; `seen` learns which. None: of
    a scheduler beside the main one, to which pipelines hand the times of that."""
    real = type(scheduler).set_timesteps

    @functools.wraps(real)
    def set_timesteps(this: Any, *args: Any, **kwargs: Any) -> None:
        real(this, *args, **kwargs)
        path = path_of(this)
        step = pick(len(path.s))
        if seen is None:
            this.set_begin_index(0)
        else:
            seen(path, step)
        this.timesteps = this.timesteps[step].repeat(times)
        sigmas = getattr(this, "sigmas", None)
        if sigmas is not None and len(sigmas) == len(path.s) + 1:  # some pipelines read the noise level of a step
            this.sigmas = torch.cat([sigmas[step].repeat(times), sigmas[step + 1 : step + 2]])

    with attribute(scheduler, "set_timesteps", types.MethodType(set_timesteps, scheduler)):
        yield
