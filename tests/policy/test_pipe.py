"""What is left off, cut and kept in precision: diffusers' pipelines, run plainly or in float32, are the oracle."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.settings import Lora, PolicySettings, Sampler
from genalign.types import Prompt, UsageError
from tests.helpers.tiny_pipelines import BETAS, FAMILIES, flux_transformer, latent_consistency, stable_diffusion
from tests.helpers.tiny_sounds import SOUNDS
from tests.helpers.tiny_videos import CLIPS
from tests.helpers.video_policies import settings as video_settings

PROMPTS = [Prompt("a cat", uid=0), Prompt("two red dogs", uid=1)]


def made(pipeline: Any, name: str = "stable-diffusion", rows: int = 4, **sampler: Any) -> DiffusionPolicy:
    family = FAMILIES[name]
    chosen = {"kernel": "flow-sde" if family.flow else "ddim", "steps": 4, "guidance": 3.0, **sampler}
    return DiffusionPolicy(
        pipeline,
        PolicySettings(model="-", lora=Lora(rank=2), sampler=Sampler(**chosen), batch_size=rows, call=family.call),
    )


def checker() -> Any:
    """A safety checker that flags every picture: its thresholds are below any cosine."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPVisionConfig

    small = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=16, patch_size=8
    )
    found = StableDiffusionSafetyChecker(CLIPConfig(vision_config=small.to_dict(), projection_dim=4)).eval()
    found.concept_embeds_weights.data.fill_(-2.0)
    return found


def test_a_safety_checker_blackens_nothing_and_stops_no_gradient() -> None:
    from transformers import CLIPImageProcessor

    extractor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    checked = FAMILIES["stable-diffusion"].build(
        safety_checker=checker, feature_extractor=lambda: extractor, requires_safety_checker=True
    )
    plain = checked("a cat", num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(0))
    assert plain.nsfw_content_detected == [True]  # as it is shipped, this is what comes out
    assert not bool(plain.images.any())
    with pytest.warns(UserWarning, match="without its safety_checker"):
        policy = made(checked)
    wanted = made(stable_diffusion())
    rolled = [each.rollout(PROMPTS, 1, 0).media["image"].data for each in (policy, wanted)]
    assert torch.equal(*rolled)
    assert float(rolled[0].mean()) > 0.1
    drawn = policy.generate_with_grad(PROMPTS, [1, 2])["image"].data
    drawn.sum().backward()
    assert any(bool(p.grad.any()) for p in policy.named_trainable().values() if p.grad is not None)


def test_a_watermark_is_left_off() -> None:
    class Mark:
        def apply_watermark(self, images: Tensor) -> Tensor:
            return torch.zeros_like(images).detach()

    marked = FAMILIES["stable-diffusion-xl"].build()
    marked.watermark = Mark()
    with pytest.warns(UserWarning, match="without its watermark"):
        policy = made(marked, "stable-diffusion-xl")
    wanted = made(FAMILIES["stable-diffusion-xl"].build(), "stable-diffusion-xl")
    assert torch.equal(policy.generate(PROMPTS, [1, 2])["image"].data, wanted.generate(PROMPTS, [1, 2])["image"].data)


def test_a_replaced_step_is_said_and_one_that_is_kept_is_not(recwarn: pytest.WarningsRecorder) -> None:
    made(FAMILIES["stable-diffusion-3"].build(), "stable-diffusion-3")
    even = stable_diffusion()
    even.scheduler = diffusers.DDIMScheduler(**BETAS, timestep_spacing="trailing")
    made(even)
    assert not [w for w in recwarn if "single ODE steps" in str(w.message)]
    with pytest.warns(UserWarning, match="single ODE steps at the times of its PNDMScheduler"):
        made(stable_diffusion())


@pytest.mark.parametrize("ask", ["generate_with_grad", "decode", "retake"])
def test_gradients_pass_an_autoencoder_that_is_cast_back_to_half_precision(ask: str) -> None:
    """SDXL decodes in float32 and casts its autoencoder back before backward; float32 throughout is the oracle."""
    gradients = []
    for dtype in (torch.float16, torch.float32):
        pipeline = FAMILIES["stable-diffusion-xl"].build()
        pipeline.vae.register_to_config(force_upcast=True)
        policy = made(pipeline.to(dtype), "stable-diffusion-xl", guidance=1.0, steps=2)
        clean = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
        if ask == "decode":
            media = policy.decode(clean)
        elif ask == "retake":
            media = policy.retake(PROMPTS, clean.detach(), [1, 2])
        else:
            media = policy.generate_with_grad(PROMPTS, [1, 2])
        media["image"].data.sum().backward()
        own = [p.grad for p in policy.named_trainable().values() if p.grad is not None]
        gradients.append(torch.cat([g.flatten().float() for g in (own or [clean.grad])]))
        assert next(policy.pipeline.vae.parameters()).dtype == dtype
    half, full = gradients
    assert float((half - full).norm() / full.norm()) < 0.1


def test_an_epsilon_model_of_zero_terminal_snr_is_refused_when_it_is_built() -> None:
    settings = {**BETAS, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    for kind in (diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler):
        with pytest.raises(UsageError, match="begins at a signal of zero"):
            made(FAMILIES["stable-diffusion"].build(scheduler=kind(**settings)))
    for known in ({"prediction_type": "v_prediction"}, {"timestep_spacing": "leading", "prediction_type": "epsilon"}):
        made(FAMILIES["stable-diffusion"].build(scheduler=diffusers.DDIMScheduler(**{**settings, **known})))


def test_attention_that_reads_all_branches_at_once_is_run_on_all_of_them() -> None:
    """Perturbed attention guidance cuts its batch into an unconditional, a conditional and a perturbed third."""
    plain = diffusers.StableDiffusionPAGPipeline(**stable_diffusion().components, pag_applied_layers=["mid"])
    plain.scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False)
    pipeline = diffusers.StableDiffusionPAGPipeline(**stable_diffusion().components, pag_applied_layers=["mid"])
    pipeline.scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False)
    sampler = Sampler(kernel="ode", steps=3, guidance=3.0)
    settings = PolicySettings(model="-", lora=Lora(rank=2), sampler=sampler, call={"pag_scale": 2.0})
    policy = DiffusionPolicy(pipeline, settings)
    rollout = policy.rollout(PROMPTS, 1, [3, 4]).media["image"].data
    plain.set_progress_bar_config(disable=True)
    wanted = plain(
        prompt=[prompt.text for prompt in PROMPTS], generator=[torch.Generator().manual_seed(s) for s in (3, 4)],
        num_inference_steps=3, guidance_scale=3.0, pag_scale=2.0, output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(rollout, wanted, rtol=0, atol=1e-5)
    noisy = DiffusionPolicy(
        diffusers.StableDiffusionPAGPipeline(**stable_diffusion().components, pag_applied_layers=["mid"]),
        settings.model_copy(update={"sampler": Sampler(kernel="ddim", steps=3, guidance=3.0)}),
    )
    trajectory = noisy.rollout(PROMPTS, 2, 0)
    with torch.no_grad():
        assert torch.equal(noisy.replay(trajectory, range(4)).score, trajectory.logp)


def test_a_fit_is_of_the_conditional_branch_whatever_else_the_call_turns_on() -> None:
    """Flux with its distilled scale, asked for classifier-free guidance on top: the score is that without it."""
    scores, calls = [], []
    for more in ({}, {"true_cfg_scale": 4.0, "negative_prompt": "a fog"}):
        family = FAMILIES["flux"]
        assert flux_transformer().config.guidance_embeds
        sampler = Sampler(kernel="flow-sde", steps=4)
        policy = DiffusionPolicy(
            family.build(), PolicySettings(model="-", lora=Lora(rank=2), sampler=sampler, call={**family.call, **more})
        )
        clean = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
        shape = policy.initial_noise(PROMPTS, [0, 1]).shape
        before = policy.calls()
        scores.append(policy.fit(PROMPTS, clean.reshape(shape), 0.5, [1, 2]).score)
        calls.append(policy.calls() - before)
    assert torch.equal(*scores)
    assert calls == [2, 2]  # one branch a row


def test_perturbed_attention_is_off_in_a_fit() -> None:
    scores = []
    perturbed = diffusers.StableDiffusionPAGPipeline, {"pag_scale": 3.0}
    for kind, more in ((diffusers.StableDiffusionPipeline, {}), perturbed):
        settings = PolicySettings(model="-", lora=Lora(rank=2), sampler=Sampler(kernel="ddim", steps=4), call=more)
        policy = DiffusionPolicy(kind(**stable_diffusion().components), settings)
        policy.rollout(PROMPTS, 1, 0)  # whose self-check leaves the pipeline before it has put its attention back
        clean = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        scores.append(policy.fit(PROMPTS, clean, 0.5, [1, 2]).score)
    torch.testing.assert_close(*scores, rtol=1e-5, atol=1e-3)


def test_a_scale_that_is_an_input_of_the_model_stays_in_a_fit() -> None:
    """The embedding of a latent consistency model's scale w is that of w - 1."""
    given: list[Tensor] = []
    sampler = Sampler(kernel="cps", steps=4, guidance=8.0)
    policy = DiffusionPolicy(latent_consistency(), PolicySettings(model="-", lora=Lora(rank=2), sampler=sampler))
    policy.denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs["timestep_cond"]), with_kwargs=True
    )
    policy.fit(PROMPTS, torch.randn(2, 4, 8, 8), 0.5, [1, 2])
    wanted = policy.pipeline.get_guidance_scale_embedding(torch.tensor([7.0]), embedding_dim=16)
    torch.testing.assert_close(given[-1][:1], wanted)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ({"num_inference_steps": 8}, "policy.call cannot set 'num_inference_steps'; set policy.sampler.steps"),
        ({"prompt": "x"}, "prompts are those of data.prompts"),
        ({"output_type": "pil"}, "cannot set 'output_type'"),
        ({"generator": 3}, "seeds are those of the run"),
        ({"num_images_per_prompt": 2}, "set method.group"),
        ({"guidance_scale": 5.0}, "policy.call sets 'guidance_scale', as policy.sampler.guidance does"),
        ({"sigmas": [1.0]}, "takes no argument 'sigmas'|set policy.sampler.sigmas"),
        ({"hight": 8}, "takes no argument 'hight'"),
    ],
)
def test_arguments_that_are_set_elsewhere_are_refused_with_the_key(call: dict[str, Any], sentence: str) -> None:
    settings = PolicySettings(model="-", sampler=Sampler(kernel="ddim", guidance=3.0), call=call)
    with pytest.raises(UsageError, match=sentence):
        DiffusionPolicy(stable_diffusion(), settings)


@pytest.mark.parametrize(
    ("build", "argument"),
    [(CLIPS["wan"].build, "num_videos_per_prompt"), (SOUNDS["audioldm2"].build, "num_waveforms_per_prompt")],
)
def test_siblings_are_not_the_pipelines(build: Callable[[], Any], argument: str) -> None:
    """AudioLDM2 would rank them over the whole batch, and hand one prompt's sound out as another's."""
    rate = 8.0 if "videos" in argument else None
    settings = PolicySettings(model="-", call={argument: 2}, frame_rate=rate)
    with pytest.raises(UsageError, match=f"policy.call cannot set '{argument}'; set method.group"):
        DiffusionPolicy(build(), settings)


def test_lists_become_tuples_where_a_pipeline_wants_them() -> None:
    """SDXL adds its sizes up as tuples; YAML has none."""
    sizes = {"original_size": [32, 48], "crops_coords_top_left": [4, 0], "target_size": [16, 16]}
    plain = FAMILIES["stable-diffusion-xl"].build()
    plain.set_progress_bar_config(disable=True)
    wanted = plain(
        prompt="a cat", generator=torch.Generator().manual_seed(3), num_inference_steps=2, guidance_scale=3.0,
        output_type="pt", **{name: tuple(value) for name, value in sizes.items()},
    ).images  # fmt: skip
    settings = PolicySettings(
        model="-", sampler=Sampler(kernel="ddim", steps=2, guidance=3.0), call=sizes, lora=Lora(rank=2)
    )
    drawn = DiffusionPolicy(FAMILIES["stable-diffusion-xl"].build(), settings).generate(PROMPTS[:1], [3])
    assert torch.equal(drawn["image"].data, wanted)


@pytest.mark.parametrize("draws", ["image", "video"])
def test_an_autoencoder_in_half_precision_takes_its_fast_layout_and_rounds_no_worse(draws: str) -> None:
    """float64 is the oracle; in float32, where samples are plain diffusers' to the bit, nothing moves."""
    build, policy, shape = stable_diffusion, made, (16, 4, 8, 8)
    if draws == "video":
        build, shape = CLIPS["wan"].build, (4, 4, 3, 8, 8)

        def policy(pipeline: Any) -> DiffusionPolicy:
            return DiffusionPolicy(pipeline, video_settings(pipeline, "wan"))

    kept = policy(build()).pipeline.vae
    assert all(parameter.is_contiguous() for parameter in kept.parameters())

    pipeline = build().to(torch.bfloat16)
    plain = copy.deepcopy(pipeline.vae)
    moved = policy(pipeline).pipeline.vae
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = copy.deepcopy(plain).double().decode(latents.bfloat16().double()).sample
        before, after = (vae.decode(latents.bfloat16()).sample.double() for vae in (plain, moved))
    assert not all(parameter.is_contiguous() for parameter in moved.parameters())
    assert (after - exact).norm() < 1.1 * (before - exact).norm()
    assert (after - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
def test_a_solver_whose_step_is_the_odes_own_is_no_other_step(order: int, algorithm: str) -> None:
    """Of first order, and without noise of its own; what it draws is then what a sampler of it draws (test_walk.py)."""
    pipeline = stable_diffusion()
    chosen = {"solver_order": order, "algorithm_type": algorithm}
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, **chosen)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        made(pipeline)
    said = any("is sampled by single ODE steps" in str(warning.message) for warning in seen)
    assert said == (order == 2 or algorithm.startswith("sde"))


def test_a_run_asks_once_where_the_pipeline_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain diffusers walks all modules each time; the class is afterwards as it was, also where a run fails."""
    asked = []
    plain = diffusers.DiffusionPipeline._execution_device

    def counted(self: Any) -> torch.device:
        asked.append(1)
        found: torch.device = plain.__get__(self)
        return found

    monkeypatch.setattr(diffusers.DiffusionPipeline, "_execution_device", property(counted))
    policy = made(stable_diffusion(), guidance=1.0)
    policy.rollout(PROMPTS, 2, 0)
    policy.generate(PROMPTS, [0, 1])
    assert len(asked) == 1
    assert "_execution_device" not in vars(type(policy.pipeline))

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("in the denoiser")

    with pytest.raises(RuntimeError, match="in the denoiser"):
        policy._stage.run(policy._pipe.call(PROMPTS, [0, 1]), fails, None)
    assert policy.pipeline._execution_device == torch.device("cpu")
    assert len(asked) == 2
