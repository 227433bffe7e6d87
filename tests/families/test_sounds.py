"""Pipelines that make sound, some of them from a sound: the same code as for images, diffusers as the oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from peft import PeftModel
from torch import Tensor

from genalign.method import MethodSettings, build_method
from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.schedule import one_step
from genalign.policy.walk import path_of
from genalign.types import Media, Track, UsageError
from tests.helpers.diffusion import log_ratio, moved
from tests.helpers.sound_policies import FORM, HEARD, WAVES, made, prompts, refusal, rolled, settings
from tests.helpers.tiny_sounds import RESOUNDING, SILENT, SOUND_RATE, SOUNDS
from tests.helpers.toy_policy import ToyReward


class Loud(ToyReward):
    """How loud the sound is."""

    needs = frozenset({"audio"})

    def __call__(self, prompts, media, group=None):
        loud = media["audio"].data.square().mean((1, 2))
        return super().__call__(prompts, Media(image=Track(loud.reshape(-1, 1, 1, 1).expand(-1, 3, 1, 1))), group)


@torch.no_grad()
def plainly(pipeline: Any, name: str, seeds: list[int]) -> Tensor:
    """Samples (R,1,N) of the first prompts by diffusers alone."""
    pipeline.set_progress_bar_config(disable=True)
    given: dict[str, Any] = {"audio": WAVES[: len(seeds), 0]} if name in RESOUNDING else {}
    if name == "ace-step":  # one text of lyrics for all it takes of one prompt alone
        given = {"lyrics": [""] * len(seeds)}
    output = pipeline(
        prompt=[prompt.text for prompt in prompts(name)[: len(seeds)]],
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        num_inference_steps=rolled(name)[0].settings.sampler.steps,
        output_type="pt",
        **HEARD[name].call,
        **given,
    )
    return torch.as_tensor(output.audios).clamp(-1, 1)


@pytest.mark.parametrize("name", HEARD)
def test_replay_is_exact_and_sound_has_its_rate(name) -> None:
    of, trajectory = rolled(name)
    assert trajectory.media["audio"].rate == SOUND_RATE
    assert trajectory.media["audio"].data.shape == (4, *FORM.get(name, (1, 160)))
    assert float(trajectory.media["audio"].data.std()) > 0.001
    assert trajectory.logp.shape[1] >= 2
    assert bool((log_ratio(of, trajectory) == 0).all())
    with moved(of):
        assert log_ratio(of, trajectory).abs().max() > 1e-4


@pytest.mark.parametrize("name", HEARD)
def test_an_adapter_draws_the_same_in_plain_diffusers(name, tmp_path) -> None:
    of, _ = rolled(name)
    asked = prompts(name)[:1]
    base = of.generate(asked, [7])["audio"].data
    part = of._stage.denoisers.component
    with moved(of, 0.2):
        of.save_adapter(tmp_path)
        ours = of.generate(asked, [7])["audio"].data
    plain = HEARD[name].build()
    setattr(plain, part, PeftModel.from_pretrained(getattr(plain, part), tmp_path))
    drawn = plainly(plain, name, [7])
    torch.testing.assert_close(ours.flatten(), drawn.flatten(), rtol=0, atol=2e-5)
    assert (ours - base).abs().max() > 1e-4


@pytest.mark.parametrize("name", HEARD)
def test_a_batch_is_what_plain_diffusers_draws(name) -> None:
    """Of AudioLDM 2 a row is not what it is alone: its language model counts the padding to the longest text."""
    of, _ = rolled(name)
    ours = of.generate(prompts(name), [7, 8])["audio"].data
    drawn = plainly(HEARD[name].build(), name, [7, 8])
    torch.testing.assert_close(ours.flatten(), drawn.flatten(), rtol=0, atol=2e-5)
    if name != "audioldm2":
        alone = of.generate(prompts(name)[1:], [8])["audio"].data
        torch.testing.assert_close(ours[1:], alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", HEARD)
def test_a_grpo_step_and_a_flow_dpo_step_move_the_denoiser(name) -> None:
    of = made(name)
    optimizer = torch.optim.SGD(of.parameter_groups(), lr=0.01)
    regression = "flow-dpo" if HEARD[name].flow else "diffusion-dpo"
    for chosen in (MethodSettings(name="grpo", group=2), MethodSettings(name=regression, group=2, draws=2)):
        before = {layer: p.detach().clone() for layer, p in of.named_trainable().items()}
        method = build_method(chosen)
        losses = list(method.losses(of, method.collect(of, prompts(name)[:1], Loud(), 0, 0)))
        sum(loss.total for loss in losses).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert any(not torch.equal(p, before[layer]) for layer, p in of.named_trainable().items())


def test_sound_is_encoded_to_what_the_autoencoder_makes_of_it() -> None:
    for name in ("stable-audio-3", "stable-audio-3-a2a"):
        of, trajectory = rolled(name)
        waves = trajectory.media["audio"].data
        with torch.no_grad():
            expected = of.pipeline.vae.encode(waves).latents
        torch.testing.assert_close(of.encode(trajectory.media), expected, rtol=0, atol=1e-5)
    for name in ("audioldm2", "audioldm"):
        of, trajectory = rolled(name)
        with pytest.raises(UsageError, match="makes sound of spectrograms by a vocoder") as error:
            of.encode(trajectory.media)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", SILENT)
def test_a_pipeline_that_cannot_be_aligned_says_why(name) -> None:
    pipeline, sentence = refusal(name)
    assert f"{pipeline} {SILENT[name][1]}" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("kind", ["EDMDPMSolverMultistepScheduler", "CosineDPMSolverMultistepScheduler"])
def test_levels_of_edm_are_those_of_its_preconditioning(kind) -> None:
    """Stable Audio's schedulers as the oracle: what the network is given, and which x0 its output stands for."""
    if kind.startswith("Cosine"):
        pytest.importorskip("torchsde")
    own = getattr(diffusers, kind)(prediction_type="v_prediction", sigma_data=1.0)
    walked = one_step(own)
    for scheduler in (own, walked):
        scheduler.set_timesteps(6)
    path = path_of(walked)
    x0, eps = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(0)).double()
    for i, sigma in enumerate(own.sigmas[:-1].double()):
        noisy = x0 + sigma * eps
        entered = own.precondition_inputs(noisy, sigma)
        torch.testing.assert_close(entered, path.a[i] * x0 + path.s[i] * eps, rtol=0, atol=1e-6)
        v = path.a[i] * eps - path.s[i] * x0
        torch.testing.assert_close(own.precondition_outputs(noisy, v, sigma), x0, rtol=1e-4, atol=1e-4)
    assert walked.init_noise_sigma == pytest.approx(1.0, abs=1e-3)
    assert float(path.s_next[-1]) == 0.0


def test_edm_of_other_outputs_or_data_is_refused() -> None:
    for changed in ({"prediction_type": "epsilon"}, {"sigma_data": 0.5}):
        config = {"prediction_type": "v_prediction", "sigma_data": 1.0, **changed}
        pipeline = SOUNDS["stable-audio"].build(scheduler=diffusers.EDMDPMSolverMultistepScheduler(**config))
        with pytest.raises(UsageError, match="has neither betas nor a flow"):
            DiffusionPolicy(pipeline, settings("stable-audio"))


def test_several_waveforms_of_a_prompt_stay_with_it_in_audioldm2() -> None:
    """AudioLDM 2 ranks `num_waveforms_per_prompt` over its whole batch, so that rows change places and vanish."""
    with pytest.raises(UsageError, match="num_waveforms_per_prompt") as error:
        made("audioldm2", call={"num_waveforms_per_prompt": 2}).rollout(prompts("audioldm2"), 1, seed=0)
    assert "\n" not in str(error.value)


def test_loudness_says_nothing_where_a_pipeline_sets_every_peak_to_one_level() -> None:
    """ACE-Step's -1 dB of full scale; its latents are of two sizes, and what is heard is equally loud."""
    of, trajectory = rolled("ace-step")
    peaks = trajectory.media["audio"].data.abs().amax((1, 2))
    torch.testing.assert_close(peaks, torch.full((4,), 10 ** (-1 / 20)), rtol=0, atol=1e-5)
    with torch.no_grad():
        decoded = of.pipeline.vae.decode(of.clean(trajectory).transpose(1, 2)).sample
    assert decoded.abs().amax((1, 2)).std() > 0.005


def test_a_row_brings_its_lyrics() -> None:
    """Against plain diffusers given a list of them; other rows have those of policy.call, or none."""
    of = made("ace-step", call={"lyrics": "la"}, sampler={"guidance": 1.0})
    one, other = prompts("ace-step")
    sung = [replace(one, facts={"lyrics": "oh my"}), other]
    ours = of.generate(sung, [7, 8])["audio"].data
    plain = HEARD["ace-step"].build()
    plain.set_progress_bar_config(disable=True)
    drawn = plain(
        prompt=[prompt.text for prompt in sung],
        lyrics=["oh my", "la"],
        generator=[torch.Generator().manual_seed(seed) for seed in (7, 8)],
        num_inference_steps=4,
        guidance_scale=1.0,
        **HEARD["ace-step"].call,
    ).audios
    torch.testing.assert_close(ours, drawn, rtol=0, atol=2e-5)
    silent = of.generate([one, other], [7, 8])["audio"].data
    assert (silent[0] - ours[0]).abs().max() > 1e-4
    trajectory = of.rollout(sung, 2, seed=0)
    assert bool((log_ratio(of, trajectory) == 0).all())


def test_what_is_drawn_depends_on_the_sound_that_is_brought() -> None:
    of, _ = rolled("stable-audio-3-a2a")
    one, other = prompts("stable-audio-3-a2a")
    drawn = of.clean(of.rollout([one, replace(one, media=other.media)], 1, seed=[7, 7]))
    assert (drawn[0] - drawn[1]).abs().max() > 1e-3


def test_a_sound_at_another_rate_and_of_more_channels_is_read_at_the_pipelines() -> None:
    of, _ = rolled("stable-audio-3-a2a")
    seen, real = [], of.pipeline.vae.encode
    of.pipeline.vae.encode = lambda x: seen.append(x) or real(x)
    try:
        slow = torch.sin(torch.arange(80) / 8000 * 2 * torch.pi * 500).expand(2, -1)  # 500 Hz, two channels at 8 kHz
        prompt = replace(prompts("stable-audio-3-a2a")[0], media=Media(audio=Track(slow[None], 8000.0)))
        of.generate([prompt], [7])
    finally:
        del of.pipeline.vae.encode
    expected = torch.sin(torch.arange(160) / 16000 * 2 * torch.pi * 500)
    assert seen[-1].shape == (1, 1, 160)
    assert float((seen[-1][0, 0] - expected)[20:-20].abs().max()) < 0.02


@pytest.mark.parametrize(
    ("name", "media", "sentence"),
    [
        ("stable-audio-3-a2a", Media(audio=Track(WAVES[0])), "brings a sound without its rate"),
        ("stable-audio-3-a2a", Media(audio=Track(WAVES[0].repeat(2, 1, 1), SOUND_RATE)), "takes one audio and no"),
        ("stable-audio-3", Media(audio=Track(WAVES[0], SOUND_RATE)), "takes no audio"),
        ("stable-audio-3-a2a", None, "or not without a sound beside the text"),
    ],
)
def test_a_sound_that_cannot_be_taken_is_one_sentence(name, media, sentence) -> None:
    of = made(name)
    with pytest.raises(UsageError, match=sentence) as error:
        of.rollout([replace(prompts(name)[0], media=media)], 1, seed=0)
    assert "\n" not in str(error.value)


def test_sounds_of_one_batch_have_one_length() -> None:
    of, _ = rolled("stable-audio-3-a2a")
    short = Media(audio=Track(WAVES[1][..., :80], SOUND_RATE))
    one, other = prompts("stable-audio-3-a2a")
    with pytest.raises(UsageError, match="must have one size, not 1 channels of 160 samples and 1 channels of 80"):
        of.generate([one, replace(other, media=short)], [0, 1])
