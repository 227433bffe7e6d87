"""What pipelines return becomes tracks: diffusers' own processors, output classes and pipelines are the oracle."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderOobleck, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.ltx.pipeline_output import LTXPipelineOutput
from diffusers.pipelines.pipeline_utils import AudioPipelineOutput, ImagePipelineOutput
from diffusers.utils import BaseOutput
from diffusers.video_processor import VideoProcessor

from genalign.policy.tracks import Tracks
from genalign.types import Media, Track, UsageError


def pipeline(call: Any, *, components: dict[str, Any] | None = None, **processors: Any) -> Any:
    """Nothing but what Tracks looks at: the components, the processors, and the signature of __call__."""
    kind = type("MadeOfParts", (SimpleNamespace,), {"__call__": call})
    return kind(components=components or {}, **processors)


def plain(self: Any, prompt: Any = None) -> None: ...


def with_rate(self: Any, prompt: Any = None, frame_rate: float = 25.0) -> None: ...


def with_fps(self: Any, prompt: Any = None, fps: int | None = None) -> None: ...


def oobleck() -> AutoencoderOobleck:
    return AutoencoderOobleck(
        encoder_hidden_size=4, decoder_channels=4, decoder_input_channels=4, audio_channels=2, sampling_rate=44100,
        downsampling_ratios=[2], channel_multiples=[1],
    )  # fmt: skip


@pytest.mark.parametrize("field", ["images", "image"])
def test_images_are_what_the_processor_made_whatever_the_field_is_called(field: str) -> None:
    processor = VaeImageProcessor()
    decoded = torch.randn(2, 3, 8, 8)
    made = Tracks(pipeline(plain, image_processor=processor), {})
    kind = type("Output", (BaseOutput,), {"__annotations__": {field: Any}})
    from dataclasses import dataclass

    output = dataclass(kind)(**{field: processor.postprocess(decoded, output_type="pt")})
    assert made.modalities == {"image"}
    assert torch.equal(made(output)["image"].data, (decoded / 2 + 0.5).clamp(0, 1))
    assert made(output)["image"].rate is None


@pytest.mark.parametrize(
    ("call", "fixed", "given", "rate"),
    [
        (with_rate, {}, None, 25.0),
        (with_rate, {"frame_rate": 12}, None, 12.0),
        (with_fps, {"fps": 8}, None, 8.0),
        (plain, {}, 16.0, 16.0),
    ],
)
def test_videos_are_frames_first_in_the_unit_range_with_the_rate_of_the_call(call, fixed, given, rate) -> None:
    processor = VideoProcessor(vae_scale_factor=8)
    decoded = torch.randn(2, 3, 5, 8, 8)  # (B,3,F,H,W) as autoencoders of videos return it
    made = Tracks(pipeline(call, video_processor=processor), fixed, given)
    track = made(LTXPipelineOutput(frames=processor.postprocess_video(decoded, output_type="pt")))["video"]
    assert made.modalities == {"video"}
    assert torch.equal(track.data, (decoded / 2 + 0.5).clamp(0, 1).transpose(1, 2))
    assert track.data.shape == (2, 5, 3, 8, 8)
    assert track.rate == rate


@pytest.mark.parametrize("shape", [(2, 2, 64), (2, 64)])
def test_sound_has_channels_and_the_rate_of_the_last_component_that_makes_it(shape) -> None:
    vocoder = torch.nn.Linear(1, 1)
    vocoder.config = SimpleNamespace(sampling_rate=8000, output_sampling_rate=16000)  # reads one rate, writes another
    waves = 1.5 * torch.randn(shape)
    for components, rate in (({"vae": oobleck()}, 44100.0), ({"vae": oobleck(), "vocoder": vocoder}, 16000.0)):
        made = Tracks(pipeline(plain, components=components), {})
        track = made(AudioPipelineOutput(audios=waves))["audio"]
        assert made.modalities == {"audio"}
        assert track.rate == rate
        assert torch.equal(track.data, waves.clamp(-1, 1).reshape(2, -1, 64))


def test_gradients_flow_through() -> None:
    x = torch.full((1, 3, 2, 2), 0.25, requires_grad=True)
    Tracks(pipeline(plain, image_processor=VaeImageProcessor()), {})(ImagePipelineOutput(images=x))[
        "image"
    ].data.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize(
    ("call", "parts", "given", "sentence"),
    [
        (plain, {}, None, "has no image_processor, so the range of what it makes is not known"),
        (plain, {"video_processor": VideoProcessor()}, None, r"how many frames a second .* set policy\.frame_rate"),
        (with_fps, {"video_processor": VideoProcessor()}, None, r"how many frames a second .* set policy\.call\.fps"),
        (
            with_rate,
            {"video_processor": VideoProcessor()},
            16.0,
            r"set policy\.call\.frame_rate instead",
        ),
        (plain, {"image_processor": VaeImageProcessor()}, 16.0, r"makes no videos; leave policy\.frame_rate out"),
    ],
)
def test_what_range_or_rate_is_not_known_is_one_sentence(call, parts, given, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as error:
        Tracks(pipeline(call, **parts), {}, given)
    assert "\n" not in str(error.value)


def test_a_clip_reaches_the_autoencoder_in_its_range_and_axes() -> None:
    made = Tracks(pipeline(plain, video_processor=VideoProcessor(vae_scale_factor=8)), {}, 16.0)
    clips = torch.rand(2, 5, 3, 16, 16)
    rows = list(made.encodable(Media(video=Track(clips, 16.0))))
    assert torch.equal(made.values(rows, (5, 16, 16), 5), 2 * clips.transpose(1, 2) - 1)
    assert torch.equal(made.values(rows, (5, 16, 16), 4), 2 * clips.flatten(0, 1) - 1)
    with pytest.raises(UsageError, match="a clip of 5 frames, where MadeOfParts draws 4"):
        made.values(rows, (4, 16, 16), 5)
    with pytest.raises(UsageError, match="only videos can be encoded, not image"):
        made.encodable(Media(image=Track(clips[:, 0])))
    sound = Tracks(pipeline(plain, components={"vae": oobleck()}), {})
    waves = torch.rand(1, 2, 6)
    assert torch.equal(sound.values(list(waves), (4,), 3), waves[..., :4])
    assert torch.equal(sound.values(list(waves), (8,), 3)[..., 6:], torch.zeros(1, 2, 2))
    assert torch.equal(sound.encodable(Media(audio=Track(waves, 44100.0))).data, waves)
    with pytest.raises(
        UsageError, match="a sound of 16000 samples a second, where MadeOfParts makes 44100; convert it"
    ):
        sound.encodable(Media(audio=Track(waves, 16000.0)))
    for name, sentence in (
        ("vae", "makes videos and sounds at once, which cannot be encoded"),
        ("vocoder", "makes sound of spectrograms by a vocoder"),
    ):
        both = Tracks(pipeline(plain, components={name: oobleck()}, video_processor=VideoProcessor()), {}, 16.0)
        with pytest.raises(UsageError, match=sentence):
            both.encodable(Media(video=Track(clips, 16.0)))


def test_an_autoencoder_of_images_makes_no_sound_and_an_unknown_field_is_one_sentence() -> None:
    small = {"block_out_channels": (4,), "norm_num_groups": 2}
    denoiser = UNet2DConditionModel(
        **small, layers_per_block=1, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        mid_block_type=None,
    )  # fmt: skip
    parts = {"vae": AutoencoderKL(**small), "unet": denoiser}
    made = Tracks(pipeline(plain, components=parts, image_processor=VaeImageProcessor()), {})
    assert made.modalities == {"image"}
    with pytest.raises(UsageError, match="returns meshes, of which nothing is known as a medium"):
        made({"meshes": torch.zeros(1)})
