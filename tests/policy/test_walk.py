"""Every step ends where the next begins on the scheduler's own grid: diffusers' schedulers are the oracle."""

from __future__ import annotations

import itertools
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.forward import target_of
from genalign.policy.schedule import one_step
from genalign.policy.settings import Lora, PolicySettings, Sampler
from genalign.policy.transition import step_table
from genalign.policy.walk import Walked, path_of, stored_dtype
from genalign.types import Prompt, UsageError
from tests.helpers.tiny_pipelines import FAMILIES, latent_consistency, stable_diffusion

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
PROMPTS = [Prompt("a cat", uid=0), Prompt("two red dogs", uid=1)]


def abar(times: Any) -> Tensor:
    """The cumulative product of 1 - beta of a scaled linear schedule, written out."""
    steps = torch.arange(1000, dtype=torch.float64) / 999
    betas = (BETAS["beta_start"] ** 0.5 + steps * (BETAS["beta_end"] ** 0.5 - BETAS["beta_start"] ** 0.5)) ** 2
    return (1 - betas).cumprod(0)[torch.as_tensor(times)]


# What each scheduler's documentation calls its spacing, of 4 steps: the times, and abar after the last one.
GRIDS = [
    ("DDIMScheduler", {"timestep_spacing": "linspace"}, [999, 666, 333, 0], 1.0),
    ("DDIMScheduler", {"timestep_spacing": "trailing"}, [999, 749, 499, 249], 1.0),
    ("DDIMScheduler", {"timestep_spacing": "leading", "steps_offset": 1}, [751, 501, 251, 1], 1.0),
    ("DDIMScheduler", {"set_alpha_to_one": False, "steps_offset": 1}, [751, 501, 251, 1], 0.99915),
    ("EulerDiscreteScheduler", {}, [999, 666, 333, 0], 1.0),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}, [751, 501, 251, 1], 1.0),
    ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, [999, 749, 499, 249], 1.0),
    ("LMSDiscreteScheduler", {}, [999, 666, 333, 0], 1.0),
    ("HeunDiscreteScheduler", {}, [999, 666, 333, 0], 1.0),
    ("KDPM2DiscreteScheduler", {}, [999, 666, 333, 0], 1.0),
    ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}, [751, 501, 251, 1], 0.99915),
    ("PNDMScheduler", {"steps_offset": 1}, [751, 501, 251, 1], 0.99915),
    ("DDPMScheduler", {"timestep_spacing": "trailing"}, [999, 749, 499, 249], 1.0),
    ("DPMSolverMultistepScheduler", {}, [999, 749, 500, 250], 1.0),
    ("DPMSolverSinglestepScheduler", {}, [999, 749, 500, 250], 1.0),
    ("UniPCMultistepScheduler", {}, [999, 749, 500, 250], 1.0),
    ("DEISMultistepScheduler", {}, [999, 749, 500, 250], 0.99915),
    ("LCMScheduler", {}, [999, 759, 499, 259], 1.0),
    ("TCDScheduler", {}, [999, 759, 499, 259], 1.0),
]


@pytest.mark.parametrize(("name", "settings", "times", "last"), GRIDS)
def test_the_path_is_the_schedulers_own_grid(name: str, settings: Any, times: list[int], last: float) -> None:
    scheduler = one_step(getattr(diffusers, name)(**BETAS, **settings))
    scheduler.set_timesteps(4)
    path = path_of(scheduler)
    assert scheduler.timesteps.tolist() == times
    torch.testing.assert_close(path.a**2, abar(times), rtol=1e-5, atol=0)
    assert torch.equal(path.a[1:], path.a_next[:-1])
    assert torch.equal(path.s[1:], path.s_next[:-1])
    assert float(path.a_next[-1] ** 2) == pytest.approx(last, abs=1e-6)


@pytest.mark.parametrize("steps", [4, 7, 30])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, settings) for name, settings, *_ in GRIDS if name not in ("LCMScheduler", "TCDScheduler")),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        ("UniPCMultistepScheduler", FLOW),
        ("DPMSolverMultistepScheduler", FLOW),
        ("CogVideoXDDIMScheduler", {"snr_shift_scale": 4.0}),
    ],
)
def test_a_model_that_knows_x0_is_led_to_it_whatever_the_steps(name: str, settings: Any, steps: int) -> None:
    """With eps_hat = eps at every step x stays a x0 + s eps, so it is on the path wherever it is asked."""
    clips = {"clip_sample": False} if name in ("DDIMScheduler", "DDPMScheduler") else {}
    scheduler = one_step(getattr(diffusers, name)(**BETAS, **clips, **settings))
    x0, eps = torch.randn(2, 1, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(steps)
    path = path_of(scheduler)
    x = float(path.a[0]) * x0 + float(path.s[0]) * eps
    for i, t in enumerate(scheduler.timesteps):
        torch.testing.assert_close(x, float(path.a[i]) * x0 + float(path.s[i]) * eps, rtol=0, atol=1e-5)
        x = scheduler.step(eps - x0 if path.is_flow else eps, t, x, return_dict=False)[0]
    torch.testing.assert_close(x, float(path.a_next[-1]) * x0 + float(path.s_next[-1]) * eps, rtol=0, atol=1e-5)
    assert len(scheduler.timesteps) == steps


@pytest.mark.parametrize(
    ("name", "settings", "first_order"),
    [
        ("EulerDiscreteScheduler", {}, {}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, {}),
        ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}, {}),
        ("DPMSolverMultistepScheduler", {}, {"solver_order": 1}),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, {"solver_order": 1}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, None),
        ("EulerAncestralDiscreteScheduler", {}, None),
        ("DDIMScheduler", {"timestep_spacing": "leading", "steps_offset": 1, "clip_sample": False}, {}),
    ],
)
@pytest.mark.parametrize("steps", [3, 7])
def test_ode_rollouts_and_generate_are_diffusers_first_order_sampling(name, settings, first_order, steps) -> None:
    """By diffusers alone, with the scheduler's own first order, or where it has none by Euler on the same grid."""
    kind = getattr(diffusers, name)
    pipeline, plain = stable_diffusion(), stable_diffusion()
    pipeline.scheduler = kind(**BETAS, **settings)
    if first_order is None:  # a stochastic scheduler: its grid is that of a deterministic one
        other = diffusers.EulerDiscreteScheduler if "Euler" in name else kind
        plain.scheduler = other(**BETAS) if "Euler" in name else kind(**BETAS, solver_order=1)
    else:
        plain.scheduler = kind(**BETAS, **{**settings, **first_order})
    sampler = Sampler(kernel="ode", steps=steps, guidance=3.0)
    made = DiffusionPolicy(pipeline, PolicySettings(model="-", lora=Lora(rank=2), sampler=sampler))
    rollout = made.rollout(PROMPTS, 1, [5, 6]).media["image"].data
    plain.set_progress_bar_config(disable=True)
    wanted = plain(
        prompt=[prompt.text for prompt in PROMPTS], generator=[torch.Generator().manual_seed(s) for s in (5, 6)],
        num_inference_steps=steps, guidance_scale=3.0, output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(made.generate(PROMPTS, [5, 6])["image"].data, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(rollout, wanted, rtol=0, atol=1e-5)


def test_where_ddims_own_step_ends_at_the_next_time_it_is_taken_bit_for_bit() -> None:
    plain = diffusers.DDIMScheduler(**BETAS, timestep_spacing="trailing", prediction_type="v_prediction")
    walked = one_step(plain)
    x, out = torch.randn(2, 1, 4, 4, 4)
    for scheduler in (plain, walked):
        scheduler.set_timesteps(10)
    ends = [[scheduler.step(out, t, x).prev_sample for t in scheduler.timesteps] for scheduler in (plain, walked)]
    assert all(itertools.starmap(torch.equal, zip(*ends, strict=True)))


def test_few_step_models_begin_at_pure_noise_and_end_at_their_estimate_of_x0() -> None:
    """A latent consistency model begins at t = 999, and decodes the second value that its scheduler returns."""
    asked: list[float] = []
    pipeline = latent_consistency()
    sampler = Sampler(kernel="cps", noise=0.8, steps=4, guidance=8.0)
    made = DiffusionPolicy(pipeline, PolicySettings(model="-", lora=Lora(rank=2), sampler=sampler))
    made.denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: asked.append(float(args[1] if len(args) > 1 else kwargs["timestep"])),
        with_kwargs=True,
    )
    trajectory = made.rollout(PROMPTS, 2, 0)
    made.generate(PROMPTS, [0, 1])
    assert set(asked) == {999.0, 759.0, 499.0, 259.0}
    assert torch.equal(made.replay(trajectory, range(4)).score, trajectory.logp)
    decoded = made.decode(made.clean(trajectory))["image"].data
    torch.testing.assert_close(decoded, trajectory.media["image"].data, rtol=0, atol=1e-5)


def test_a_scheduler_that_walks_upwards_or_predicts_something_else_is_one_sentence() -> None:
    scheduler = one_step(diffusers.DDIMInverseScheduler(**BETAS))
    scheduler.set_timesteps(4)
    with pytest.raises(UsageError, match="times that do not fall"):
        path_of(scheduler)
    for kind, sentence in (
        (diffusers.EDMEulerScheduler(), "neither betas nor a flow"),
        (diffusers.LCMScheduler(**BETAS, prediction_type="trigflow"), "predicts 'trigflow'"),
    ):
        with pytest.raises(UsageError, match=sentence):
            one_step(kind)


@pytest.mark.parametrize(
    ("kind", "rounds"),
    [(diffusers.FlowMatchEulerDiscreteScheduler, True), (diffusers.UniPCMultistepScheduler, False),
     (diffusers.DPMSolverMultistepScheduler, False), (diffusers.DDIMScheduler, False)],
)  # fmt: skip
def test_latents_are_rounded_where_plain_sampling_rounds_them(kind: Any, rounds: bool) -> None:
    scheduler = kind()
    scheduler.set_timesteps(4)
    out, x = torch.zeros(1, 4, 8, 8, dtype=torch.bfloat16), torch.zeros(1, 4, 8, 8)
    wanted = kind()
    wanted.set_timesteps(4)
    plain = wanted.step(out, wanted.timesteps[0], x, return_dict=False)[0].dtype
    assert stored_dtype(scheduler, out, x) == plain == (torch.bfloat16 if rounds else torch.float32)


def test_image_to_image_noise_is_laid_on_the_path() -> None:
    """Euler adds sigma eps to a picture; on the path of the kernels that is sqrt(abar) x0 + sqrt(1 - abar) eps."""
    scheduler = one_step(diffusers.EulerDiscreteScheduler(**BETAS))
    assert isinstance(scheduler, Walked)
    scheduler.set_timesteps(4)
    x0, eps = torch.randn(2, 1, 4, 4, 4)
    noised = scheduler.add_noise(x0, eps, scheduler.timesteps[1:2])
    level = float(abar(666))
    torch.testing.assert_close(noised, level**0.5 * x0 + (1 - level) ** 0.5 * eps, rtol=1e-4, atol=1e-4)


def test_a_scheduler_in_memory_and_one_from_a_file_sample_alike(tmp_path) -> None:
    """from_config drops the settings that were left at their defaults, unless they were written to a file."""
    pipeline = FAMILIES["stable-diffusion-xl"].build()
    pipeline.scheduler = diffusers.EulerDiscreteScheduler(**BETAS)
    pipeline.save_pretrained(tmp_path)
    other = FAMILIES["stable-diffusion-xl"].build()
    other.scheduler = diffusers.EulerDiscreteScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    made = []
    for each in (pipeline, other):
        policy = DiffusionPolicy(each, PolicySettings(model="-", sampler=Sampler(kernel="ddim", steps=3, noise=1.0)))
        made.append(policy.rollout(PROMPTS, 1, 0).media["image"].data)
    assert torch.equal(*made)


def test_levels_that_count_the_signal_end_where_diffusers_ends() -> None:
    scheduler = one_step(diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True))
    scheduler.set_timesteps(sigmas=[1.0, 0.8, 0.5, 0.1])
    path = path_of(scheduler)
    torch.testing.assert_close(path.s, torch.tensor([1.0, 0.8, 0.5, 0.1], dtype=torch.float64), rtol=0, atol=1e-6)
    assert path.is_flow
    table = step_table(path, "ode", 0.0)
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 1, 4, generator=generator)
    x = eps
    for i, time in enumerate(scheduler.timesteps):
        out = torch.randn(1, 4, generator=generator)
        theirs = scheduler.step(out, time, x, return_dict=False)[0]
        torch.testing.assert_close(table.mean(i, x, out), theirs, rtol=0, atol=1e-5)
        x = theirs
    noised = 0.5 * x0 + 0.5 * eps
    for estimate, truth in zip(table.endpoints(2, noised, target_of(path, 2, x0, eps)), (x0, eps), strict=True):
        torch.testing.assert_close(estimate, truth, rtol=0, atol=1e-6)
