"""A pipeline's scheduler, its own times walked in single steps of the ODE.

Multistep and stochastic samplers have a memory or noise that no transition density describes, and DDIM ends a step
where the next one does not begin unless its times are spaced evenly. Here the scheduler keeps its class, its settings
and its time grid; only its step is exchanged, and every step ends at the next time of the grid.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor

from genalign.policy.hooks import advance, named
from genalign.policy.transition import Path, StepTable, flow_path, preserving_path, step_table
from genalign.types import UsageError

NEAR_ONE = 1e-5  # some flows begin at sigma = 1 - 1e-6, to take a logarithm of 1 - sigma
STEPS = 10  # of a trial grid
SAME = 1e-3  # relative: sigmas of the training noise levels themselves, and not of a curve (Karras) through them


def is_flow(scheduler: Any) -> bool:
    config = scheduler.config
    return (
        type(scheduler).__name__.startswith("FlowMatch")
        or config.get("prediction_type") == "flow_prediction"
        or bool(config.get("use_flow_sigmas"))
    )


def is_edm(scheduler: Any) -> bool:
    """Whether noise levels stand in the scheduler alone, and its preconditioning (EDM, arXiv 2206.00364, table 1) is
    that of v of data of unit size: c_in x = a x0 + s eps, x0_hat = a c_in x - s v with a^2 + s^2 = 1."""
    config = scheduler.config
    v = config.get("prediction_type") == "v_prediction" and config.get("sigma_data") == 1.0
    return v and hasattr(scheduler, "precondition_outputs")


def walk(scheduler: Any) -> Any:
    """A copy of the scheduler that steps through its own times by the ODE, whatever scale its own steps keep x in: here
    x = a x0 + s eps with a^2 + s^2 = 1, or a + s = 1 of a flow."""
    walked = copy.deepcopy(scheduler)
    if isinstance(walked, Walked):  # of a pipeline that was a policy's before
        return walked
    walked.__class__ = _walked_class(type(scheduler))
    walked.clips, walked.scaled = False, False
    if scheduler.config.get("skip_prk_steps") is False:  # PNDM's Runge-Kutta steps, which go back and forth
        walked.register_to_config(skip_prk_steps=True)
    if not is_flow(scheduler):
        probe = copy.deepcopy(scheduler)
        probe.set_timesteps(STEPS)
        # Euler's family keeps x0 + sigma eps, and divides by sqrt(1 + sigma^2) what the model is given.
        walked.scaled = float(probe.scale_model_input(torch.ones(1), probe.timesteps[0])) != 1
        walked.clips = bool(scheduler.config.get("clip_sample")) and _clips(probe)
    return walked


def _clips(probe: Any) -> bool:
    """Whether a scheduler clamps x0_hat: some have the setting and do not read it."""
    wide = torch.full((1, 1, 1, 1), 1e6)
    with torch.random.fork_rng(devices=[]):
        made = probe.step(wide, probe.timesteps[-1], wide)  # (where x0_hat is nearly x, whatever is predicted)
    estimate = getattr(made, "pred_original_sample", None)
    return estimate is None or float(estimate.abs().max()) < 1e5


def path_of(scheduler: Any) -> Path:
    """The path of a one-step scheduler whose set_timesteps was called: each step ends where the next one begins.

    Raises UsageError where its times do not fall.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    if is_flow(scheduler):
        levels = scheduler.sigmas.double().cpu()
        if isinstance(scheduler, Walked):
            levels = torch.where((levels - 1).abs() < NEAR_ONE, 1.0, levels)
        # Some count the signal's share instead of the noise's.
        inverted = scheduler.config.get("invert_sigmas")
        path = flow_path(1 - levels, "reversed_velocity") if inverted else flow_path(levels)
    else:
        config = scheduler.config
        now, last = _signal_levels(scheduler, sigmas)
        clips = getattr(scheduler, "clips", config.get("clip_sample"))
        path = preserving_path(
            now,
            torch.cat([now[1:], last]),
            predicts=config.prediction_type,
            clip=config.clip_sample_range if clips else None,
        )
    if not bool((path.s_next <= path.s).all()):  # (equal where the last time is already that of the end)
        mend = "set those arguments in policy.call by which noise levels fall"
        if not is_flow(scheduler):
            mend = "give the pipeline another scheduler of the same betas, such as DDIM"
        raise UsageError(
            f"{type(scheduler).__name__} takes times that do not fall, which no single steps can walk; {mend}"
        )
    return path


def _signal_levels(scheduler: Any, sigmas: Tensor | None) -> tuple[Tensor, Tensor]:
    """abar at each of the scheduler's times (T,), and after the last one (1,), float64."""
    if sigmas is not None and not hasattr(scheduler, "alphas_cumprod"):
        levels = 1 / (1 + sigmas.double().cpu().square())
        return levels[:-1], levels[-1:]
    times = scheduler.timesteps.double().cpu()
    abar = scheduler.alphas_cumprod.double().cpu()
    table = abar[times.round().long().clamp(0, len(abar) - 1)]
    if sigmas is None:
        final = getattr(scheduler, "final_alpha_cumprod", 1.0)
        return table, torch.as_tensor(final, dtype=torch.float64).cpu().reshape(1)
    own = 1 / (1 + sigmas.double().cpu().square())
    # Where its sigmas are those of whole training times, the table of the betas has them to more digits.
    ratio = (1 / table - 1).sqrt() / (1 / own[:-1] - 1).sqrt()
    whole = torch.equal(times, times.round()) and bool((ratio - 1).abs().max() < SAME)
    return (table if whole else own[:-1]), own[-1:]


class Walked:
    """Mixed into the class, `base`, of a copied scheduler. scaled: base keeps x0 + sigma eps. clips: base clamps x0."""

    base: Any
    clips: bool
    scaled: bool
    order = 1  # one call of the model a step

    def scale_model_input(self, sample: Tensor, *_: Any, **__: Any) -> Tensor:
        return sample

    def enter(self) -> None:
        """After base's set_timesteps: one time a step, where base has several calls of the model in a step."""
        own: Any = self
        times, sigmas = own.timesteps, getattr(own, "sigmas", None)
        if sigmas is None:  # (PNDM begins with one time twice)
            first = torch.cat([torch.ones_like(times[:1], dtype=torch.bool), times[1:] != times[:-1]])
            own.timesteps = times[first]
        elif self.base.order > 1:  # (Heun and its kin evaluate the end of each step, or its middle)
            own.timesteps = times[:: self.base.order]
            own.sigmas = torch.cat([sigmas[:: self.base.order][: len(own.timesteps)], sigmas[-1:]])
        own._place, own._table = None, None

    def table(self) -> StepTable:
        own: Any = self
        if own._table is None:
            own._table = step_table(path_of(self), "ode", 0.0)
        return own._table

    def takes_base_step(self, i: int) -> bool:
        """Whether base's own step is the one wanted: DDIM's, where it ends at the next time of the list."""
        from diffusers import DDIMScheduler

        own: Any = self
        if not issubclass(self.base, DDIMScheduler):
            return False
        then = int(own.timesteps[i]) - own.config.num_train_timesteps // own.num_inference_steps
        return then == int(own.timesteps[i + 1]) if i + 1 < len(own.timesteps) else then < 0

    def place(self, timestep: Any) -> int:
        """The number of the step that is taken now. Times may be equal after rounding, so later ones are counted."""
        own: Any = self
        if own._place is None:
            begin = getattr(own, "_begin_index", None)
            matching = (own.timesteps.cpu() == torch.as_tensor(timestep).cpu()).nonzero()
            own._place = int(matching[0]) if begin is None else begin
        else:
            own._place += 1
        return own._place


_CLASSES: dict[Any, type] = {}


def _walked_class(base: Any) -> type:
    if base not in _CLASSES:
        _CLASSES[base] = _make_class(base)
    return _CLASSES[base]


def _make_class(base: Any) -> type:
    # Pipelines look for arguments of these by name, so they keep the signatures of base.
    @functools.wraps(base.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        base.set_timesteps(self, *args, **kwargs)
        self.enter()

    @functools.wraps(base.step)
    def step(self: Any, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        from diffusers.schedulers.scheduling_utils import SchedulerOutput

        given = named(base.step, args, kwargs)
        model_output, timestep, sample = given["model_output"], given["timestep"], given["sample"]
        i = self.place(timestep)
        if self.takes_base_step(i):
            return base.step(self, model_output, timestep, sample, return_dict=return_dict)
        mean = self.table().mean(i, sample, model_output)
        advance(self, timestep)
        moved = mean.to(stored_dtype(self, model_output, sample))
        return SchedulerOutput(prev_sample=moved) if return_dict else (moved, moved)

    members: dict[str, Any] = {"base": base, "set_timesteps": set_timesteps, "step": step}
    if isinstance(getattr(base, "init_noise_sigma", None), property):

        def init_noise_sigma(self: Any) -> Any:
            own = base.init_noise_sigma.fget(self)
            return own / (1 + self.sigmas[0] ** 2) ** 0.5 if self.scaled else own

        members["init_noise_sigma"] = property(init_noise_sigma)
    if hasattr(base, "add_noise"):

        @functools.wraps(base.add_noise)
        def add_noise(self: Any, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
            noised: Tensor = base.add_noise(self, original_samples, noise, timesteps)
            if not self.scaled:
                return noised
            sigma = base.add_noise(self, torch.zeros_like(noise), torch.ones_like(noise), timesteps)
            return noised / (1 + sigma**2).sqrt()

        members["add_noise"] = add_noise
    return type(base.__name__, (Walked, base), members)


_STORED: dict[Any, torch.dtype] = {}


def stored_dtype(scheduler: Any, out: Tensor, sample: Tensor) -> torch.dtype:
    """The dtype of x' where the pipeline samples by itself: some schedulers round it to that of the model's output."""
    base = getattr(scheduler, "base", type(scheduler))
    key = base, out.dtype, sample.dtype
    if out.dtype == sample.dtype:
        return sample.dtype
    if key not in _STORED:
        probe = copy.deepcopy(scheduler)
        blank = torch.zeros(1, 1, 1, 1, device=sample.device)
        with torch.random.fork_rng(devices=[]):
            made = base.step(probe, blank.to(out.dtype), probe.timesteps[0], blank.to(sample.dtype), return_dict=False)
        _STORED[key] = made[0].dtype
    return _STORED[key]
