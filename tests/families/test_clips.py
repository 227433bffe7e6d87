"""The sweep over pipelines that make videos, some with sound: the same code as for images, diffusers as the oracle."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel

from genalign.method import MethodSettings, build_method
from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.settings import Lora, PolicySettings, Sampler
from genalign.policy.tracks import media_of_class
from genalign.types import GenalignError, Media, Track, UsageError
from tests.helpers.diffusion import log_ratio, moved
from tests.helpers.tiny_pipelines import EDIT, FAMILIES, MORE, Family, flow
from tests.helpers.tiny_videos import LARGER, LTX_2, RATE, REFUSED_CLIPS
from tests.helpers.toy_policy import ToyReward
from tests.helpers.video_policies import BOTH, made, plainly, prompts, refusal, rolled


class Bright(ToyReward):
    """How bright a corner of the first frame is."""

    needs = frozenset({"video"})

    def __call__(self, prompts, media, group=None):
        return super().__call__(prompts, Media(image=Track(media["video"].data[:, 0, :, :4, :4])), group)


@pytest.mark.parametrize("name", BOTH)
def test_replay_is_exact_and_the_tracks_carry_their_rates(name) -> None:
    of, trajectory = rolled(name)
    rates = {"ltx": 25.0, "ltx-i2v": 25.0, "ltx-2": 24.0, "ltx-2-3": 24.0, "ltx-2-i2v": 24.0}
    assert trajectory.media["video"].rate == rates.get(name, RATE)
    assert trajectory.media["video"].data.shape[:1] + trajectory.media["video"].data.shape[2:3] == (4, 3)
    assert float(trajectory.media["video"].data.std()) > 0.01
    assert trajectory.logp.shape[1] >= 2
    assert bool((log_ratio(of, trajectory) == 0).all())
    with moved(of):
        assert log_ratio(of, trajectory).abs().max() > 1e-4


@pytest.mark.parametrize("name", BOTH)
def test_an_adapter_draws_the_same_in_plain_diffusers(name, tmp_path) -> None:
    of, _ = rolled(name)
    asked = prompts(name)[:1]
    base = of.generate(asked, [7])
    with moved(of, 0.2):
        of.save_adapter(tmp_path)
        ours = of.generate(asked, [7])
    names = list(of._stage.denoisers.each)
    folders = {part: tmp_path if len(names) == 1 else tmp_path / part for part in names}
    plain = [BOTH[name].build()]
    for part, folder in folders.items():
        setattr(plain[0], part, PeftModel.from_pretrained(getattr(plain[0], part), folder))
    if hasattr(plain[0], "save_lora_weights"):
        plain.append(BOTH[name].build())
        for part, folder in folders.items():
            also = {"load_into_transformer_2": True} if part == "transformer_2" else {}
            plain[1].load_lora_weights(folder, **also)
    for pipeline in plain:
        drawn = plainly(pipeline, of, asked[0])
        for medium, track in ours.items():
            torch.testing.assert_close(track.data, drawn[medium].data, rtol=0, atol=2e-5)
            assert (track.data - base[medium].data).abs().max() > 1e-4


@pytest.mark.parametrize("name", BOTH)
def test_a_grpo_step_and_a_flow_dpo_step_move_every_denoiser(name) -> None:
    of = made(name)
    optimizer = torch.optim.SGD(of.parameter_groups(), lr=0.01)
    for settings in (MethodSettings(name="grpo", group=2), MethodSettings(name="flow-dpo", group=2, draws=2)):
        before = {layer: p.detach().clone() for layer, p in of.named_trainable().items()}
        method = build_method(settings)
        losses = list(method.losses(of, method.collect(of, prompts(name)[:1], Bright(), 0, 0)))
        if settings.name == "flow-dpo":
            start = sum(loss.log["loss"][0] for loss in losses) / sum(loss.log["loss"][1] for loss in losses)
            assert math.isfinite(start)
        sum(loss.total for loss in losses).backward()
        optimizer.step()
        optimizer.zero_grad()
        for part in of._stage.denoisers.each if settings.name == "grpo" else ():
            front = "" if len(of._stage.denoisers.each) == 1 else f"{part}."
            own = [layer for layer in before if layer.startswith(front)]
            assert any(not torch.equal(before[layer], of.named_trainable()[layer]) for layer in own), part
        assert any(not torch.equal(p, before[layer]) for layer, p in of.named_trainable().items())


@pytest.mark.parametrize("name", BOTH)
def test_clean_latents_are_decoded_and_encoded_again(name) -> None:
    of, trajectory = rolled(name)
    clean = of.clean(trajectory)[:1]
    if name in ("ltx-i2v", "ltx-2-i2v"):  # its first frame is the picture, and not among the latents
        with pytest.raises(UsageError, match="blends its picture into what it decodes"):
            of.decode(clean)
        with pytest.raises(UsageError, match=r"can be encoded for it"):
            of.encode(trajectory.media)
        return
    decoded = of.decode(clean)
    for medium, track in trajectory.media.items():
        level = 0.5 / 255 if medium == "video" else 0.0
        torch.testing.assert_close(decoded[medium].data, track.data[:1], rtol=0, atol=level + 1e-5)
    if len(of.modalities) > 1:
        with pytest.raises(UsageError, match="makes sound of spectrograms by a vocoder"):
            of.encode(trajectory.media)
        return
    again, given, vae = of.encode(trajectory.media)[:1], [], of.pipeline.vae
    frames = 2 * trajectory.media["video"].data[:1] - 1
    with torch.no_grad():
        framewise = name == "animatediff"
        mode = vae.encode(frames[0] if framewise else frames.transpose(1, 2)).latent_dist.mode()
    real = vae.decode
    vae.decode = lambda z, *args, **kwargs: given.append(z) or real(z, *args, **kwargs)
    try:
        of.decode(again)
    finally:
        del vae.decode
    torch.testing.assert_close(torch.cat(given), mode, rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", ["wan", "wan-2-2", "ltx-2", "mochi", "sana-video"])
def test_a_rollout_without_noise_is_what_generate_draws(name) -> None:
    of = made(name, kernel="ode")
    trajectory = of.rollout(prompts(name)[:1], 1, seed=[7])
    for medium, track in of.generate(prompts(name)[:1], [7]).items():
        level = 0.5 / 255 if medium == "video" else 0.0
        torch.testing.assert_close(trajectory.media[medium].data, track.data, rtol=0, atol=level + 1e-5)


def test_clips_wait_for_their_scores_as_levels_on_the_cpu_and_sound_as_it_is() -> None:
    of, trajectory = rolled("ltx-2")
    video, sound = (trajectory.media[medium].held for medium in ("video", "audio"))
    assert video.dtype == torch.uint8
    assert video.nbytes == 4 * math.prod((3, 3, 32, 32))
    assert sound.dtype == torch.float32
    drawn = made("ltx-2", kernel="ode").rollout(prompts("ltx-2")[:1], 1, seed=[7]).media["video"].held
    exact = of.generate(prompts("ltx-2")[:1], [7])["video"].data
    assert float((drawn / 255 - exact).abs().max()) <= 0.5 / 255 + 1e-5
    parts = list(of.rolling(prompts("ltx-2"), 2, 0))
    assert torch.equal(torch.cat([media["video"].held for _, media, _ in parts[:-1]]), video)


def test_experts_share_the_noise_levels_and_have_an_adapter_each(tmp_path) -> None:
    of, trajectory = rolled("wan-2-2")
    clean = of.clean(trajectory)[:1]
    for at, trained in ((0.0, "transformer."), (0.9, "transformer_2.")):  # at the boundary of 0.875 they take turns
        of.fit(prompts("wan-2-2")[:1], clean, at, [0]).score.sum().backward()
        learnt = {layer for layer, p in of.named_trainable().items() if p.grad is not None and p.grad.any()}
        assert learnt
        assert all(layer.startswith(trained) for layer in learnt)
        for p in of.named_trainable().values():
            p.grad = None
    with moved(of):
        of.save_adapter(tmp_path)
        saved = {layer: p.detach().clone() for layer, p in of.named_trainable().items()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["transformer", "transformer_2"]
    other = made("wan-2-2")
    other.load_adapter(tmp_path)
    assert all(torch.equal(p, saved[layer]) for layer, p in other.named_trainable().items())


def test_a_step_of_video_and_sound_has_a_density_of_each() -> None:
    of, trajectory = rolled("ltx-2")
    tape = trajectory.tape
    assert trajectory.about == ("video", "audio")
    assert trajectory.steps_together == 2
    assert tape.steps == tuple(i for i in tape.table.stochastic for _ in range(2))
    i, chunk = tape.steps[0], tape.chunks[0]
    with torch.no_grad():
        out = of._rollouts._guided(trajectory, [0, 1], chunk, [i])[i]
    x, x_next, mean = chunk.state(i), chunk.latents[i + 1], tape.table.mean(i, chunk.state(i), out)
    tokens = 3 * 16 * 16 * 4  # of the video: frames, height, width and channels, before those of the sound
    assert x.shape[1] > tokens
    for column, part in enumerate((slice(0, tokens), slice(tokens, None))):
        normal = torch.distributions.Normal(mean[:, part].double(), float(tape.table.S[i]))
        z = (x_next[:, part].double() - mean[:, part].double()) / float(tape.table.S[i])
        assert 0.8 < float(z.std()) < 1.2  # noise reached this medium
        total = (normal.log_prob(x_next[:, part].double()) + normal.entropy()).sum(1)
        torch.testing.assert_close(trajectory.logp[:2, column].double(), total, rtol=1e-4, atol=1e-3)
    with torch.no_grad():
        alone = of.replay(trajectory, [0, 1], [1, 2], versus="reference")
    assert torch.equal(alone.score, trajectory.logp[:2, 1:3])
    assert alone.count.tolist() == [x.shape[1] - tokens, tokens]


def test_stored_steps_of_video_and_sound_are_replayed(tmp_path) -> None:
    of, trajectory = rolled("ltx-2")
    of.save_trajectory(trajectory, tmp_path / "0.safetensors")
    recalled = of.recall(tmp_path, list(trajectory.prompts), list(trajectory.seeds))
    assert recalled.about == trajectory.about
    assert recalled.units() == trajectory.units()
    assert bool((log_ratio(of, recalled) == 0).all())


class Loud(ToyReward):
    """How loud the sound is."""

    needs = frozenset({"audio"})

    def __call__(self, prompts, media, group=None):
        loud = media["audio"].data.square().mean((1, 2))
        return super().__call__(prompts, Media(image=Track(loud.reshape(-1, 1, 1, 1).expand(-1, 3, 1, 1))), group)


def scheduled(kernel: str = "flow-sde") -> DiffusionPolicy:
    """One whose sound is stepped by a scheduler of its own, as few times and at other noise levels."""
    call = {**LARGER, "spatio_temporal_guidance_blocks": [1]}
    family = Family("LTX2ConditionPipeline", {**LTX_2, "audio_scheduler": flow(shift=1.0)}, flow=True, call=call)
    sampler = Sampler(steps=4, kernel=kernel)
    lora = Lora(rank=2, alpha=4)
    return DiffusionPolicy(
        family.build(),
        PolicySettings(model="-", call=call, sampler=sampler, lora=lora, batch_size=2),
    )


def test_sound_on_a_schedule_of_its_own_has_the_densities_of_that() -> None:
    of = scheduled()
    trajectory = of.rollout(prompts("ltx-2")[:1], 2, seed=0)
    assert trajectory.about == ("video", "audio")
    assert bool((log_ratio(of, trajectory) == 0).all())
    with moved(of):
        assert log_ratio(of, trajectory).abs().max() > 1e-4
    levels = []
    for scheduler in (of.pipeline.scheduler, of.pipeline.audio_scheduler):
        levels.append(scheduler.sigmas.double())
    assert levels[1].tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert not torch.allclose(levels[0], levels[1], atol=0.01)
    tape, chunk = trajectory.tape, trajectory.tape.chunks[0]
    i = tape.steps[-1]
    assert i > 0  # where both are inside of their schedules
    with torch.no_grad():
        out = of._rollouts._guided(trajectory, [0, 1], chunk, [i])[i].double()
    x, x_next = chunk.state(i).double(), chunk.latents[i + 1].double()
    tokens = 3 * 16 * 16 * 4
    for column, (part, sigma) in enumerate(zip((slice(0, tokens), slice(tokens, None)), levels, strict=True)):
        # Flow-GRPO (arXiv 2505.05470): dx = [v + s^2 / (2 sigma) (x + (1 - sigma) v)] dt + s dw, with
        # s = a sqrt(sigma / (1 - sigma))
        now, then = float(sigma[i]), float(sigma[i + 1])
        noise, dt = 0.7 * math.sqrt(now / (1 - now)), then - now
        v, here = out[:, part], x[:, part]
        mean = here + (v + noise**2 / (2 * now) * (here + (1 - now) * v)) * dt
        normal = torch.distributions.Normal(mean, noise * math.sqrt(-dt))
        total = (normal.log_prob(x_next[:, part]) + normal.entropy()).sum(1)
        torch.testing.assert_close(trajectory.logp[:, column - 2].double(), total, rtol=1e-3, atol=1e-2)


def test_sound_on_a_schedule_of_its_own_is_drawn_as_plain_diffusers_draws_it() -> None:
    of = scheduled("ode")
    ours = of.generate(prompts("ltx-2")[:1], [7])
    drawn = plainly(scheduled().pipeline, of, prompts("ltx-2")[0])
    rolled_out = of.rollout(prompts("ltx-2")[:1], 1, seed=[7]).media
    decoded = of.decode(of.clean(of.rollout(prompts("ltx-2")[:1], 1, seed=[7])))
    for medium, track in ours.items():
        level = 0.5 / 255 if medium == "video" else 0.0
        torch.testing.assert_close(track.data, drawn[medium].data, rtol=0, atol=2e-5)
        torch.testing.assert_close(track.data, rolled_out[medium].data, rtol=0, atol=level + 1e-5)
        torch.testing.assert_close(track.data, decoded[medium].data, rtol=0, atol=1e-5)


def test_what_schedules_of_their_own_do_not_allow_is_one_sentence(tmp_path) -> None:
    of = scheduled()
    trajectory = of.rollout(prompts("ltx-2")[:1], 1, seed=0)
    clean = of.clean(trajectory)
    for work, sentence in (
        (lambda: of.fit(prompts("ltx-2")[:1], clean, 0.5, [0]), "at no one time of the forward process"),
        (lambda: of.retake(prompts("ltx-2")[:1], clean, [0]), "at no one time of the forward process"),
        (lambda: of.save_trajectory(trajectory, tmp_path / "0.safetensors"), "schedules of their own, which are not"),
    ):
        with pytest.raises(GenalignError, match=sentence) as error:
            work()
        assert "\n" not in str(error.value)


def test_sound_on_a_schedule_that_nobody_knows_of_is_refused(monkeypatch) -> None:
    from diffusers.pipelines.ltx2 import pipeline_ltx2

    def other(scheduler):
        copied = copy.deepcopy(scheduler)
        copied.register_to_config(shift_terminal=0.4)
        return copied

    monkeypatch.setattr(pipeline_ltx2, "copy", SimpleNamespace(deepcopy=other))
    with pytest.raises(GenalignError, match="would be trained on another schedule than it samples by"):
        made("ltx-2").rollout(prompts("ltx-2")[:1], 2, seed=0)


@pytest.mark.parametrize("name", ["flow-grpo", "nft", "awm"])
@pytest.mark.parametrize("route", ["modality", "sum"])
def test_a_reward_of_sound_moves_no_layer_that_video_alone_is_drawn_with(name, route) -> None:
    """In the last block sound is read into the video behind everything that the sound is drawn from."""
    of = made("ltx-2")
    trained = of.named_trainable()
    with torch.no_grad():
        for layer, p in trained.items():
            if "lora_B" in layer:
                p.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    of.step_ema(0.0)
    method = build_method(
        MethodSettings(name=name, group=2, route=route, **({} if name == "flow-grpo" else {"draws": 2}))
    )
    for loss in method.losses(of, method.collect(of, prompts("ltx-2")[:1], Loud(), 0, 0)):
        loss.total.backward()
    video = [p for layer, p in trained.items() if "blocks.1.audio_to_video_attn.to_out" in layer]
    sound = [p for layer, p in trained.items() if "blocks.1.video_to_audio_attn.to_out" in layer]
    assert video
    assert sound
    assert all(bool(p.grad.any()) for p in sound)
    assert all(bool(p.grad.any()) is (route == "sum") for p in video)


def test_a_component_that_guides_takes_the_scale_and_gives_it_back() -> None:
    of, _ = rolled("hunyuan-video-1-5")
    asked, steps = prompts("hunyuan-video-1-5")[:1], of.settings.sampler.steps
    drawn = {}
    for scale, branches in ((1.0, 1), (5.0, 2), (2.0, 2)):
        calls = of.calls()
        drawn[scale] = of.generate(asked, [7], guidance=scale)["video"].data
        assert of.calls() - calls == branches * steps
    assert of.pipeline.guider.guidance_scale == 5.0
    assert torch.equal(drawn[5.0], of.generate(asked, [7])["video"].data)
    assert not torch.equal(drawn[2.0], drawn[5.0])


def test_a_batch_of_one_picture_is_not_given_two() -> None:
    of, _ = rolled("wan-i2v")
    one, other = prompts("wan-i2v")
    with pytest.raises(UsageError, match=r"draws a batch from one image; set policy\.batch_size") as error:
        of.rollout([one, other], 1, seed=0)
    assert "\n" not in str(error.value)
    together = of.generate([one, one, one, other, one], [0, 1, 2, 3, 4])["video"].data  # in batches of 2, 1, 1 and 1
    for row, prompt in ((1, one), (3, other), (4, one)):
        torch.testing.assert_close(together[row], of.generate([prompt], [row])["video"].data[0], rtol=0, atol=1e-5)


def test_what_a_class_makes_is_known_before_its_weights() -> None:
    for name, family in BOTH.items():
        assert media_of_class(family.pipeline) == ({"video", "audio"} if name.startswith("ltx-2") else {"video"}), name
    for family in {**FAMILIES, **MORE, **EDIT}.values():
        assert media_of_class(family.pipeline) == {"image"}
    assert media_of_class("StableAudioPipeline") == {"audio"}
    assert media_of_class("NoPipeline") == media_of_class("") == {"image"}


@pytest.mark.parametrize("name", REFUSED_CLIPS)
def test_what_cannot_be_aligned_says_so_in_one_sentence(name) -> None:
    _, sentence = refusal(name)
    assert REFUSED_CLIPS[name][1] in sentence
    assert "\n" not in sentence.strip()
