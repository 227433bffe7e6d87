"""Fitting given samples: `fit` against diffusers' schedulers and networks, `encode` against autoencoders by hand."""

from __future__ import annotations

import functools
import math
from typing import Any

import diffusers
import pytest
import torch

from genalign.method.preference_losses import dpo_loss
from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.forward import noise_of
from genalign.types import ForwardProcess, Media, Prompt, Track, UsageError
from tests.helpers.diffusion import PROMPTS, log_ratio, moved, policy, settings
from tests.helpers.tiny_pipelines import FAMILIES, stable_diffusion, stable_diffusion_3
from tests.helpers.tiny_videos import CLIPS
from tests.helpers.video_policies import settings as video_settings

AT = 0.3
GRID = 50


@functools.cache
def made(name: str) -> DiffusionPolicy:
    return policy(name, True)


def latents(of: DiffusionPolicy, rows: int = 3) -> torch.Tensor:
    like = of.initial_noise(PROMPTS[:1], [0])
    return torch.randn(rows, *like.shape[1:], generator=torch.Generator().manual_seed(5))


def pictures(rows: int = 2, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.rand(rows, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_velocity_error_is_that_of_the_bare_network() -> None:
    of = made("stable-diffusion-3")
    clean, seeds = latents(of), [4, 4, 9]
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(GRID)
    t = scheduler.timesteps[int(AT * GRID)]
    eps = noise_of(seeds, clean.shape[1:])
    x_t = scheduler.scale_noise(clean, t[None], eps)
    with torch.no_grad():
        words, _, pooled, _ = of.pipeline.encode_prompt(
            *[[p.text for p in PROMPTS]] * 3, do_classifier_free_guidance=False
        )
        out = of.denoiser(x_t, encoder_hidden_states=words, pooled_projections=pooled, timestep=t.expand(3))[0]
    steps = of.fit(PROMPTS, clean, AT, seeds)
    assert steps.score.shape == (3, 1)
    assert steps.count == clean[0].numel()
    assert bool(steps.mask.all())
    assert steps.kl is None
    torch.testing.assert_close(steps.score[:, 0], -(eps - clean - out).square().sum((1, 2, 3)), rtol=1e-5, atol=0)
    sigma = scheduler.sigmas[int(AT * GRID)]
    for error, share in zip((clean - x_t + sigma * out, eps - x_t - (1 - sigma) * out), steps.shares, strict=True):
        torch.testing.assert_close(-share * steps.score[:, 0], error.square().sum((1, 2, 3)), rtol=1e-4, atol=0)


def test_a_flow_whose_first_level_is_nearly_noise_is_fitted_to_noise_alone_and_siblings_are_asked_once() -> None:
    """A flow of DPM-Solver's scheduler begins at a level of 0.99967, its pipeline with noise alone. The bare network
    on the noise is the oracle; at the next level it is x_t with its share of the sample."""
    pipeline = CLIPS["wan"].build()
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler(**flow)
    of = DiffusionPolicy(pipeline, video_settings(pipeline, "wan"))
    asked, seeds = [PROMPTS[0], PROMPTS[0], PROMPTS[1]], [3, 3, 4]
    clean = torch.randn(3, *of.initial_noise(asked[:1], [0]).shape[1:], generator=torch.Generator().manual_seed(5))
    eps = noise_of(seeds, clean.shape[1:])
    grid = diffusers.DPMSolverMultistepScheduler(**flow)
    grid.set_timesteps(GRID)
    tokens = CLIPS["wan"].call["max_sequence_length"]
    words, _ = pipeline.encode_prompt([p.text for p in asked], None, False, max_sequence_length=tokens)
    for at, calls in ((0.0, 2), (1 / GRID, 3)):
        sigma, t = grid.sigmas[int(at * GRID)], grid.timesteps[int(at * GRID)]
        x_t = eps * sigma if at == 0 else (1 - sigma) * clean + sigma * eps
        with torch.no_grad():
            out = of.denoiser(x_t, t.expand(3), encoder_hidden_states=words)[0]
        before = of.calls()
        score = of.fit(asked, clean, at, seeds).score[:, 0].detach()
        assert of.calls() - before == calls
        torch.testing.assert_close(score, -(eps - clean - out).square().flatten(1).sum(1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
def test_variance_preserving_errors_are_those_of_the_bare_network(predicts) -> None:
    pipeline = stable_diffusion()
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type=predicts)
    of = DiffusionPolicy(pipeline, settings("stable-diffusion", True))
    clean, seeds = latents(of), [0, 1, 2]
    scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(GRID)
    t = scheduler.timesteps[int(AT * GRID)]
    eps = noise_of(seeds, clean.shape[1:])
    x_t = scheduler.add_noise(clean, eps, t[None])
    target = {"epsilon": eps, "v_prediction": scheduler.get_velocity(clean, eps, t[None]), "sample": clean}[predicts]
    with torch.no_grad():
        words, _ = pipeline.encode_prompt([p.text for p in PROMPTS], "cpu", 1, False)
        out = of.denoiser(x_t, t, encoder_hidden_states=words)[0]
    steps = of.fit(PROMPTS, clean, AT, seeds)
    score = steps.score[:, 0]
    torch.testing.assert_close(score, -(target - out).square().sum((1, 2, 3)), rtol=1e-4, atol=0)
    scheduler.register_to_config(clip_sample=False)
    x0 = scheduler.step(out, t, x_t).pred_original_sample  # what diffusers makes of the same output
    abar = scheduler.alphas_cumprod[t]
    implied = clean - x0, eps - (x_t - abar.sqrt() * x0) / (1 - abar).sqrt()
    for error, share in zip(implied, steps.shares, strict=True):
        torch.testing.assert_close(-share * score, error.square().sum((1, 2, 3)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_time_falls_as_at_grows_and_every_row_has_the_same(name) -> None:
    of = made(name)
    clean, given = latents(of), []
    real = of._stage.denoisers.answer

    def look(args: Any, kwargs: Any, rows: int, graph: Any = None, twins: Any = None) -> Any:
        given.append((args[0] if args else kwargs["hidden_states"]).clone())
        return real(args, kwargs, rows, graph, twins)

    of._stage.denoisers.answer = look  # type: ignore[method-assign]
    try:
        for at in (0.0, 0.5, 0.99):
            of.fit([PROMPTS[0]] * 3, clean, at, [7, 7, 7])
    finally:
        of._stage.denoisers.answer = real  # type: ignore[method-assign]
    x_t = torch.stack(given[-3:]).double()  # (times, rows, ...)
    eps = noise_of([7], clean.shape[1:]).double()
    shares = []  # x_t = a x0 + s eps, so differences between rows hold a, and what is left s
    for x in x_t:
        x = x.reshape(clean.shape)
        rows = (clean - clean[:1]).double()[1:]
        a = float(((x - x[:1])[1:] * rows).sum() / rows.square().sum())
        rest = x - a * clean.double()
        s = float((rest * eps).sum() / (3 * eps.square().sum()))
        torch.testing.assert_close(x, a * clean.double() + s * eps.expand_as(x), rtol=0, atol=1e-4)
        shares.append((a, s))
    assert [a for a, _ in shares] == sorted(a for a, _ in shares)
    assert [s for _, s in shares] == sorted((s for _, s in shares), reverse=True)
    assert shares[0][1] > 0.99
    assert shares[-1][1] < 0.2
    for a, s in shares:
        assert abs((a + s if FAMILIES[name].flow else math.hypot(a, s)) - 1) < 1e-3


def test_equal_seeds_share_noise_that_sampling_does_not_start_from() -> None:
    noise = noise_of([3, 3, 4], (4, 8, 8))
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], noise[2])
    start = made("stable-diffusion-3").initial_noise(PROMPTS[:1], [3])
    assert float((noise[:1] * start).mean().abs()) < 0.2
    score = made("stable-diffusion-3").fit(
        [PROMPTS[0]] * 3, latents(made("stable-diffusion-3"))[[0, 0, 0]], AT, [3, 3, 4]
    )
    torch.testing.assert_close(score.score[0], score.score[1], rtol=1e-5, atol=0)
    assert abs(float((score.score[0] - score.score[2]).detach())) > 1e-2


@pytest.mark.parametrize("name", FAMILIES)
def test_the_reference_is_the_base_and_preference_losses_start_at_log_2(name) -> None:
    of = made(name)
    assert isinstance(of, ForwardProcess)
    clean = latents(of, 2)
    one = [PROMPTS[1]] * 2
    start = of.fit(one, clean, AT, [1, 1], versus="reference")
    assert torch.equal(start.score, start.versus_score)
    assert bool((start.gap == 0).all())
    assert not start.versus_score.requires_grad
    margin = (start.score - start.versus_score)[:, 0]
    loss = dpo_loss("sigmoid", margin[:1], margin[1:], beta=0.1)
    assert float(loss.detach()) == pytest.approx(math.log(2), abs=1e-7)
    with moved(of):
        later = of.fit(one, clean, AT, [1, 1], versus="reference")
        with of.weights("reference"):
            base = of.fit(one, clean, AT, [1, 1])
        assert torch.equal(later.versus_score, start.score)
        assert torch.equal(base.score, start.score)
        assert bool((later.gap > 0).all())
        assert not torch.equal(later.score, start.score)


def test_gradients_of_score_and_gap_match_finite_differences() -> None:
    of = policy("stable-diffusion-3", True, torch.float64)
    clean = latents(of, 2).double()

    def value() -> torch.Tensor:
        steps = of.fit(PROMPTS[:2], clean, AT, [1, 2], versus="reference")
        assert steps.score.dtype == torch.float64
        assert steps.gap is not None
        return steps.score.sum() + 100 * steps.gap.sum()

    with moved(of, 0.2):
        value().backward()
        p = max(of.named_trainable().values(), key=lambda p: 0 if p.grad is None else float(p.grad.abs().max()))
        assert p.grad is not None
        at = int(p.grad.abs().argmax())
        flat, ends = p.data.view(-1), []
        for sign in (1, -1):
            flat[at] += sign * 1e-4
            ends.append(float(value().detach()))
            flat[at] -= sign * 1e-4
        assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(float(p.grad.flatten()[at]), rel=1e-3)


def test_a_pair_step_lowers_its_loss_and_only_the_adapter_moves() -> None:
    of = policy("stable-diffusion-3", True)
    clean = latents(of, 2)
    frozen = {name: p.clone() for name, p in of.denoiser.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD(of.parameter_groups(), lr=1e-2)
    losses = []
    for _ in range(4):
        steps = of.fit([PROMPTS[0]] * 2, clean, AT, [1, 1], versus="reference")
        assert steps.versus_score is not None
        margin = (steps.score - steps.versus_score)[:, 0]
        loss = dpo_loss("sigmoid", margin[:1], margin[1:], beta=0.1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 1e-3
    assert all(torch.equal(p, frozen[name]) for name, p in of.denoiser.named_parameters() if name in frozen)


def test_half_precision_errors_are_float32() -> None:
    of = policy("stable-diffusion-3", True, torch.bfloat16)
    clean = latents(of, 2)
    steps = of.fit(PROMPTS[:2], clean, AT, [1, 1], versus="reference")
    assert steps.score.dtype == torch.float32
    assert torch.equal(steps.score, steps.versus_score)
    wide = made("stable-diffusion-3").fit(PROMPTS[:2], clean, AT, [1, 1])
    torch.testing.assert_close(steps.score, wide.score, rtol=3e-2, atol=0)


def test_fitting_needs_no_rollout_before_it_and_one_call_a_row() -> None:
    fresh = policy("stable-diffusion-3", True)
    first = fresh.fit(PROMPTS, latents(fresh), AT, [0, 1, 2])
    before = fresh.calls()
    again = fresh.fit(PROMPTS, latents(fresh), AT, [0, 1, 2], versus="reference")
    assert fresh.calls() == before + 2 * 3  # guidance is off, and the blank first step is free
    assert torch.equal(first.score, again.score)
    trajectory = fresh.rollout(PROMPTS, 1, seed=0)
    assert bool((log_ratio(fresh, trajectory) == 0).all())
    assert torch.equal(fresh.fit(PROMPTS, latents(fresh), AT, [0, 1, 2]).score, first.score)


@pytest.mark.parametrize("name", FAMILIES)
def test_encode_is_what_decoding_turns_back(name) -> None:
    """The autoencoder's own mode of the images reaches its decoder again, whatever lies between."""
    of = made(name)
    images = pictures(2, *made(name).generate(PROMPTS[:1], [0])["image"].data.shape[-2:])
    vae, given = of.pipeline.vae, []
    video = name == "qwen-image"
    with torch.no_grad():
        pixels = 2 * images - 1
        found = vae.encode(pixels.unsqueeze(2) if video else pixels)
        mode = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latent
    clean = of.encode(Media(image=Track(images)))
    assert clean.shape == (2, *of.initial_noise(PROMPTS[:1], [0]).shape[1:])
    real = vae.decode

    def decode(z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        given.append(z)
        return real(z, *args, **kwargs)

    vae.decode = decode
    try:
        back = of.decode(clean)["image"].data
    finally:
        del vae.decode
    torch.testing.assert_close(given[0], mode, rtol=0, atol=2e-5)
    with torch.no_grad():
        plain = real(mode, return_dict=False)[0]
    plain = plain[:, :, 0] if video else plain
    torch.testing.assert_close(back, (plain / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-4)
    assert (clean.std(0) > 0).float().mean() > 0.9  # the two pictures differ


def test_encode_by_the_published_formula() -> None:
    images = pictures()
    of = made("stable-diffusion-3")
    with torch.no_grad():
        mode = of.pipeline.vae.encode(2 * images - 1).latent_dist.mode()
    config = of.pipeline.vae.config
    expected = (mode - config.shift_factor) * config.scaling_factor
    torch.testing.assert_close(of.encode(Media(image=Track(images))), expected, rtol=1e-5, atol=1e-5)
    of = made("flux")
    with torch.no_grad():
        mode = of.pipeline.vae.encode(2 * images - 1).latent_dist.mode()
    packed = of.pipeline._pack_latents((mode - config.shift_factor) * config.scaling_factor, 2, 4, 8, 8)
    torch.testing.assert_close(of.encode(Media(image=Track(images))), packed, rtol=1e-5, atol=1e-5)


def test_encode_of_other_sizes_lists_and_a_tiny_autoencoder() -> None:
    pipeline = stable_diffusion_3()
    pipeline.vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=4,
    ).eval()
    pipeline.vae.register_to_config(shift_factor=0.1)
    of = DiffusionPolicy(pipeline, settings())
    small, large = pictures(1)[0], pictures(1, 40, 24)[0]
    both = of.encode(Media(image=Track([small, large])))
    assert both.shape == (2, 4, 8, 8)
    with torch.no_grad():
        expected = pipeline.vae.encode(2 * small[None] - 1).latents - 0.1
    torch.testing.assert_close(both[:1], expected * pipeline.vae.config.scaling_factor, rtol=1e-5, atol=1e-5)
    flat = of.encode(Media(image=Track(torch.full((1, 3, 40, 24), 0.25))))
    torch.testing.assert_close(flat, of.encode(Media(image=Track(torch.full((1, 3, 16, 16), 0.25)))), rtol=0, atol=1e-4)


def test_encode_in_half_precision_is_done_in_float32_and_leaves_the_autoencoder_as_it_was() -> None:
    of = policy("stable-diffusion-3", True, torch.bfloat16)
    vae = of.pipeline.vae
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    encoded = of.encode(Media(image=Track(pictures())))
    assert encoded.dtype == torch.float32
    assert all(tensor.dtype == torch.bfloat16 for tensor in vae.state_dict().values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())
    with torch.no_grad():
        mode = vae.float().encode(2 * pictures() - 1).latent_dist.mode()
    torch.testing.assert_close(encoded, (mode - 0.1) * vae.config.scaling_factor, rtol=1e-4, atol=1e-4)


class Bent(diffusers.StableDiffusion3Pipeline):
    """Decodes something else than its latents moved and scaled."""

    @torch.no_grad()
    def __call__(self, prompt, generator, num_inference_steps, output_type="pt"):
        words, _, pooled, _ = self.encode_prompt(prompt, prompt, prompt, do_classifier_free_guidance=False)
        x = torch.cat([torch.randn(1, 4, 8, 8, generator=g) for g in generator])
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            out = self.transformer(x, words, pooled, t.expand(len(x)), return_dict=False)[0]
            x = self.scheduler.step(out, t, x, return_dict=False)[0]
        decoded = self.vae.decode(self.bend(x), return_dict=False)[0]
        return type("Made", (), {"images": self.image_processor.postprocess(decoded, output_type)})


@pytest.mark.parametrize(
    "bend", [torch.tanh, lambda x: x.cumsum(1), lambda x: x[:, [0, 0, 1, 2]], lambda x: x * x.abs().mean()]
)
def test_decoding_that_cannot_be_turned_around_is_one_sentence(bend) -> None:
    pipeline = Bent(**stable_diffusion_3().components)
    pipeline.bend = bend
    of = DiffusionPolicy(
        pipeline, settings().model_copy(update={"sampler": settings().sampler.model_copy(update={"guidance": None})})
    )
    with pytest.raises(UsageError, match="train it on its own samples") as error:
        of.encode(Media(image=Track(pictures())))
    assert "\n" not in str(error.value)


def test_clean_latents_are_those_the_images_were_decoded_from(tmp_path) -> None:
    of = policy("stable-diffusion-3", True, window=2, window_start=(0, 1))
    trajectory = of.rollout(PROMPTS, 2, seed=0)
    clean = of.clean(trajectory)
    assert clean.shape == (6, 4, 8, 8)
    torch.testing.assert_close(of.decode(clean)["image"].data, trajectory.media["image"].data, rtol=0, atol=1e-6)
    of.save_trajectory(trajectory, tmp_path / "new" / "0.safetensors")
    rows = [5, 0, 2, 3, 1]
    prompts, seeds = [trajectory.prompts[r] for r in rows], [trajectory.seeds[r] for r in rows]
    recalled = of.recall(tmp_path / "new", prompts, seeds)
    assert torch.equal(of.clean(recalled), clean[rows])
    full = policy("stable-diffusion-3", True)
    ended = full.rollout(PROMPTS[:1], 1, seed=0)
    full.save_trajectory(ended, tmp_path / "full" / "0.safetensors")  # its last latents are recorded twice over
    assert torch.equal(full.clean(full.recall(tmp_path / "full", ended.prompts, ended.seeds)), full.clean(ended))
    for chunk in trajectory.tape.chunks:
        chunk.clean = None
    of.save_trajectory(trajectory, tmp_path / "old" / "0.safetensors")
    with pytest.raises(UsageError, match="draw them again"):
        of.clean(of.recall(tmp_path / "old", prompts, seeds))


def test_wrong_fits_are_one_sentence() -> None:
    of = made("stable-diffusion-3")
    clean = latents(of)
    with pytest.raises(UsageError, match=r"shape \(3, 4, 4, 4\), where .* samples \(3, 4, 8, 8\)"):
        of.fit(PROMPTS, clean[..., :4, :4], AT, [0, 1, 2])
    for prompts, seeds, at in ((PROMPTS[:2], [0, 1, 2], AT), (PROMPTS, [0, 1], AT), (PROMPTS, [0, 1, 2], 1.0)):
        with pytest.raises(UsageError, match="give one of each a row"):
            of.fit(prompts, clean, at, seeds)
    with pytest.raises(UsageError, match="only images can be encoded, not text"):
        of.encode(Media(text=Track(["a"])))
    with pytest.raises(UsageError, match="takes no image"):
        of.fit([Prompt("a", media=Media(image=Track(pictures(1))))], clean[:1], AT, [0])
