"""What a step is given is what the step before made, or is kept; rollouts walk the schedule of plain sampling."""

from __future__ import annotations

import copy
import functools
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from genalign.media.image import to_pil
from genalign.policy.agreement import check_agreement, disagreement
from genalign.policy.branching import part
from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.forward import noise_of
from genalign.policy.settings import Lora, PolicySettings, Sampler
from genalign.types import GenalignError, Media, Prompt, Track, Trajectory, UsageError
from tests.helpers.tiny_pipelines import BETAS, EDIT, FAMILIES, MORE, Family, stable_diffusion
from tests.helpers.unusual_pipelines import BLENDED, LATE, UNUSUAL

EVERY = {
    **FAMILIES,
    **MORE,
    **EDIT,
    **UNUSUAL,
    **{f"late-{name}": family for name, family in LATE.items()},
    **{f"blended-{name}": family for name, family in BLENDED.items()},
}
PICTURES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TEXTS = [Prompt("a cat", uid=0), Prompt("two red dogs", uid=1)]
WITH_PICTURES = [
    Prompt(prompt.text, Media(image=Track(PICTURES[prompt.uid : prompt.uid + 1])), uid=prompt.uid) for prompt in TEXTS
]


def prompts_of(name: str) -> list[Prompt]:
    return WITH_PICTURES if name in EDIT or name.startswith(("late-", "blended-")) else TEXTS


def made(
    family: Family, kernel: str | None = None, guidance: float = 3.0, rows: int = 4, **call: Any
) -> DiffusionPolicy:
    kernel = kernel or ("flow-sde" if family.flow else "ddim")
    sampler = Sampler(kernel=kernel, noise=0.7, steps=5, guidance=guidance)
    chosen = PolicySettings(
        model="-", lora=Lora(rank=2), sampler=sampler, batch_size=rows, call={**family.call, **family.on, **call}
    )
    return DiffusionPolicy(family.build(), chosen)


@functools.cache
def rolled(name: str) -> tuple[DiffusionPolicy, Trajectory]:
    policy = made(EVERY[name], rows=1 if name.startswith("prx") else 4)
    return policy, policy.rollout(prompts_of(name), 2, seed=0)


@pytest.mark.parametrize("name", list(EVERY))
def test_rollouts_walk_generates_schedule_in_every_family(name: str) -> None:
    policy, trajectory = rolled(name)
    assert disagreement(policy._pipe, prompts_of(name)[0], 7)[0] <= 1e-5
    with torch.no_grad():
        score = torch.cat([policy.replay(trajectory, [row]).score for row in range(4)]) if name.startswith("prx") else (
            policy.replay(trajectory, range(4)).score
        )  # fmt: skip
    assert torch.equal(score, trajectory.logp)
    assert trajectory.logp.shape[1] > 0


@pytest.mark.parametrize("name", list(EVERY))
def test_an_ode_rollout_is_what_generate_draws(name: str) -> None:
    policy = made(EVERY[name], "ode", rows=1 if name.startswith("prx") else 4)
    rollout = policy.rollout(prompts_of(name), 1, [3, 4]).media["image"].data
    drawn = policy.generate(prompts_of(name), [3, 4])["image"].data
    torch.testing.assert_close(rollout, drawn, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", list(LATE))
def test_image_to_image_enters_where_diffusers_does_and_draws_what_it_draws(name: str) -> None:
    """strength 0.6 of 5 steps leaves out the two noisiest of the grid, as the documentation of strength has it."""
    family = LATE[name]
    policy = made(family)
    trajectory = policy.rollout(WITH_PICTURES, 1, seed=0)
    assert policy._pipe.entry() == 2
    assert len(trajectory.tape.table) == 3
    plain = family.build()
    if name == "stable-diffusion":  # PNDM, a multistep scheduler: DDIM is its single step on the same betas
        own = {key: plain.scheduler.config[key] for key in (*BETAS, "set_alpha_to_one", "prediction_type")}
        plain.scheduler = diffusers.DDIMScheduler(**own, clip_sample=False)
    plain.set_progress_bar_config(disable=True)
    images = [to_pil(picture) for picture in PICTURES]
    wanted = plain(
        prompt=[prompt.text for prompt in TEXTS], image=images, num_inference_steps=5, guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)], output_type="pt", **family.call,
    ).images  # fmt: skip
    torch.testing.assert_close(policy.generate(WITH_PICTURES, [3, 4])["image"].data, wanted, rtol=0, atol=1e-5)
    graded = policy.generate_with_grad(WITH_PICTURES, [3, 4], grad_steps=2)["image"].data
    assert torch.equal(graded, policy.generate(WITH_PICTURES, [3, 4])["image"].data)


@pytest.mark.parametrize("name", [name for name in LATE if name != "flux"])  # (whose grid depends on the size)
def test_image_to_image_is_fitted_at_the_times_of_the_whole_grid(name: str) -> None:
    """The denoiser is given a x0 + s eps of the step that `at` names, at the scheduler's own time there."""
    family = LATE[name]
    policy = made(family)
    clean = policy.clean(policy.rollout(WITH_PICTURES, 1, seed=0))
    times: list[float] = []
    policy.denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: times.append(
            float((kwargs["timestep"] if "timestep" in kwargs else args[1]).max())
        ),
        with_kwargs=True,
    )
    scores = []
    for at in (0.1, 0.5, 0.9):
        scores.append(policy.fit(WITH_PICTURES, clean, at, [1, 2]).score)
        scheduler = family.build().scheduler
        scheduler.set_timesteps(50)
        grid = sorted(set(scheduler.timesteps.tolist()), reverse=True)
        assert times[-1] == pytest.approx(grid[int(at * 50)], rel=1e-3)
    assert all(bool(torch.isfinite(score).all()) for score in scores)


@pytest.mark.parametrize("name", list(BLENDED))
def test_what_a_pipeline_blends_after_a_step_is_kept_beside_it(name: str, tmp_path) -> None:
    """The kept region of every x but the first is the picture noised to that time: far from what the kernel drew."""
    policy, trajectory = rolled(f"blended-{name}")
    chunk = trajectory.tape.chunks[0]
    assert set(chunk.before) == set(trajectory.tape.steps[1:]) | ({trajectory.tape.steps[0]} - {0})
    for i, x in chunk.before.items():
        assert not torch.allclose(x, chunk.latents[i], atol=0.1)
    policy.save_adapter(tmp_path / "adapter")
    with torch.no_grad():
        for parameter in policy.named_trainable().values():
            parameter.add_(0.05)
        moved = policy.replay(trajectory, range(4), versus="reference")
    assert bool((moved.score != trajectory.logp).all())
    assert torch.equal(moved.versus_score, trajectory.logp)
    with torch.no_grad():
        for parameter in policy.named_trainable().values():
            parameter.sub_(0.05)


def test_blended_latents_cannot_be_fitted_or_decoded_and_say_so() -> None:
    policy, trajectory = rolled("blended-stable-diffusion")
    clean = policy.clean(trajectory)
    with pytest.raises(UsageError, match="changes latents between its steps, as in-painting does"):
        policy.fit(WITH_PICTURES, clean[::2], 0.5, [1, 2])
    with pytest.raises(UsageError, match="changes latents between its steps, as in-painting does"):
        policy.retake(WITH_PICTURES, clean[::2], [1, 2])
    with pytest.raises(UsageError, match="blends its picture into what it decodes"):
        policy.decode(clean)


def test_a_rollout_on_another_schedule_is_refused_at_the_first_micro_batch() -> None:
    """As if the snr shift of its betas were lost."""
    policy = made(UNUSUAL["cogview-3-plus"])
    other = policy._pipe.kernel_scheduler
    policy._pipe.kernel_schedulers["scheduler"] = copy.deepcopy(other)
    abar = other.alphas_cumprod
    policy._pipe.kernel_scheduler.alphas_cumprod = 4 * abar / (1 + 3 * abar)
    with pytest.raises(GenalignError, match="another schedule than it samples by"):
        policy.rollout(TEXTS, 1, seed=0)
    check_agreement(rolled("cogview-3-plus")[0]._pipe, TEXTS[0], 0)


def test_cogview_draws_with_its_own_shifted_betas() -> None:
    family = UNUSUAL["cogview-3-plus"]
    plain = family.build()
    plain.set_progress_bar_config(disable=True)
    wanted = plain(
        prompt=[prompt.text for prompt in TEXTS], num_inference_steps=5, guidance_scale=3.0, output_type="pt",
        generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)], **family.call,
    ).images  # fmt: skip
    torch.testing.assert_close(made(family).generate(TEXTS, [3, 4])["image"].data, wanted, rtol=0, atol=1e-5)


def test_pixels_that_a_pipeline_does_not_finish_are_shifted_to_the_unit_range() -> None:
    family = UNUSUAL["prx-pixel"]
    plain = UNUSUAL["prx-pixel"].build()
    plain.set_progress_bar_config(disable=True)
    arguments: dict[str, Any] = {"prompt": "a cat", "num_inference_steps": 5, "guidance_scale": 3.0, **family.call}
    pil = plain(generator=torch.Generator().manual_seed(3), output_type="np", **arguments).images
    drawn = made(family, rows=1).generate(TEXTS[:1], [3])["image"].data
    torch.testing.assert_close(drawn, torch.from_numpy(pil).permute(0, 3, 1, 2), rtol=0, atol=1e-5)


def test_noise_of_another_size_is_measured_and_used() -> None:
    policy, trajectory = rolled("prx-pixel")
    assert trajectory.tape.table.path.unit == 2.0
    drawn = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(policy.initial_noise(TEXTS[:1], [5]), drawn, rtol=0, atol=1e-6)
    chunk, table = trajectory.tape.chunks[0], trajectory.tape.table
    i = table.stochastic[-1]
    given: list[Tensor] = []
    policy.denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs["hidden_states"]), with_kwargs=True
    )
    clean, at = policy.clean(trajectory)[:1], 0.5
    policy.fit(TEXTS[:1], clean, at, [1])
    scheduler = UNUSUAL["prx-pixel"].build().scheduler
    scheduler.set_timesteps(50)
    sigma = float(scheduler.sigmas[25])
    wanted = (1 - sigma) * clean + sigma * 2.0 * noise_of([1], clean.shape[1:])
    torch.testing.assert_close(given[-1][:1], wanted, rtol=0, atol=1e-5)
    assert set(chunk.latents) >= {i, i + 1}


@pytest.mark.parametrize("name", ["prx", "prx-pixel"])
def test_guidance_1_where_a_pipeline_refuses_scales_below_1(name: str) -> None:
    policy = made(UNUSUAL[name], guidance=1.0)
    trajectory = policy.rollout(TEXTS, 1, seed=0)
    before = policy.calls()
    policy.fit(TEXTS, policy.clean(trajectory), 0.5, [1, 2])
    assert policy.calls() - before == 2  # one branch a row


def test_fused_projections_are_adapted() -> None:
    names = ("prx", "flux2-klein")
    adapted = {name: set(rolled(name)[0].named_trainable()) for name in names}
    assert {
        f"blocks.{k}.attention.{leaf}.lora_A.weight" for k in (0, 1) for leaf in ("img_qkv_proj", "txt_kv_proj")
    } <= (adapted["prx"])
    assert "single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_A.weight" in adapted["flux2-klein"]
    assert "single_transformer_blocks.0.attn.to_out.lora_A.weight" in adapted["flux2-klein"]


def test_lists_of_one_tensor_a_layer_and_one_time_a_branch_are_cut() -> None:
    layers = [torch.arange(4.0)[:, None] + 10 * k for k in range(3)]  # two branches of two rows
    tree = ((), {"text": layers, "times": torch.tensor([7.0, 8.0]), "same": torch.ones(5)})
    axes = {(1, "text"): None, **{(1, "text", k): 0 for k in range(3)}, (1, "times"): None, (1, "same"): None}
    (_, cut) = part(tree, 1, 2, 2, axes)
    assert [layer.flatten().tolist() for layer in cut["text"]] == [[2, 3], [12, 13], [22, 23]]
    assert cut["times"].tolist() == [8.0]
    assert torch.equal(cut["same"], torch.ones(5))


def test_a_grid_of_a_flow_is_fine_in_whatever_unit_it_counts_times() -> None:
    from genalign.policy.forward import fine_steps

    assert fine_steps(diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1)) == 50
    assert fine_steps(stable_diffusion().scheduler) == 50


def test_latents_are_rounded_in_half_precision_as_plain_sampling_rounds_them() -> None:
    """A pipeline that begins in float32 with a bfloat16 model, as HunyuanVideo's does: x' comes back in bfloat16."""

    class Wide(diffusers.StableDiffusion3Pipeline):
        def prepare_latents(self, *args: Any, **kwargs: Any) -> Tensor:
            return super().prepare_latents(*args, **kwargs).float()

    class Cast(diffusers.SD3Transformer2DModel):
        def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return super().forward(hidden_states.to(torch.bfloat16), *args, **kwargs)

    family = FAMILIES["stable-diffusion-3"]
    pipeline = Wide(**family.build().components)
    pipeline.transformer.__class__ = Cast
    sampler = Sampler(kernel="flow-sde", steps=5, guidance=3.0)
    policy = DiffusionPolicy(pipeline.to(torch.bfloat16), PolicySettings(model="-", sampler=sampler, call=family.call))
    trajectory = policy.rollout(TEXTS, 1, seed=0)
    chunk = trajectory.tape.chunks[0]
    kept = {i: x.dtype for i, x in chunk.latents.items()}
    assert kept.pop(0, torch.float32) == torch.float32
    assert set(kept.values()) == {torch.bfloat16}
    with torch.no_grad():
        assert torch.equal(policy.replay(trajectory, range(2)).score, trajectory.logp)
