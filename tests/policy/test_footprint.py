"""Bytes predicted from shapes, against the bytes of live tensors in real updates (tests/bench/live.py is the meter)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from genalign.policy.bases import bases
from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.footprint import Footprint
from genalign.policy.settings import Lora, PolicySettings, Sampler, Vae
from genalign.types import UsageError
from tests.bench.live import live
from tests.helpers.diffusion import PROMPTS
from tests.helpers.tiny_pipelines import FAMILIES, MORE
from tests.helpers.tiny_videos import CLIPS
from tests.helpers.video_policies import RATE

KNOWN = {**FAMILIES, **MORE, **CLIPS}
CHOSEN = [
    *("stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3", "flux", "flux2-klein", "pixart-sigma", "wan"),
    *("qwen-image", "z-image"),
]
NEAR = 0.15
UNPADDED = {"qwen-image": {"max_sequence_length": len(PROMPTS[0].text) + 1}}  # a token a letter, and the end


def settings_of(name: str, **more: Any) -> PolicySettings:
    family = KNOWN[name]
    return PolicySettings(
        model=name,
        call={**family.call, **UNPADDED.get(name, {})},
        lora=Lora(rank=2, alpha=4),
        sampler=Sampler(steps=3, kernel="flow-sde" if family.flow else "cps", guidance=1.0),
        batch_size=3,
        frame_rate=RATE if name == "wan" else None,
        **more,
    )


def saved(name: str, folder: Path) -> Path:
    KNOWN[name].build().save_pretrained(folder)
    return folder


def policy(name: str, **more: Any) -> DiffusionPolicy:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the step that is exchanged
        return DiffusionPolicy(KNOWN[name].build(), settings_of(name, **more))


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("name", CHOSEN)
def test_an_update_takes_what_was_predicted(name: str, again: bool, tmp_path: Path) -> None:
    of = policy(name, gradient_checkpointing=again)
    footprint = Footprint(of.settings, saved(name, tmp_path))
    trajectory = of.rollout(PROMPTS[:1], 3, seed=0)
    rows, steps = trajectory.units()[0]

    def update() -> None:
        of.replay(trajectory, rows, steps).score.mean().backward()
        for parameter in of.named_trainable().values():
            parameter.grad = None

    update()  # the first one makes tables that stay
    predicted = footprint.learning(of.settings)
    assert predicted is not None
    assert abs(predicted / live(update)[0] - 1) < NEAR


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", ["stable-diffusion-3", "stable-diffusion-xl"])
def test_following_a_rewards_gradient_takes_what_was_predicted(name: str, steps: int, tmp_path: Path) -> None:
    """From pixels through the autoencoder and the last steps, whose graphs are all kept."""
    of = policy(name)
    footprint = Footprint(of.settings, saved(name, tmp_path))

    def climb() -> None:
        media = of.generate_with_grad(PROMPTS, [1, 2, 3], grad_steps=steps, checkpoint=False)
        sum(track.data.square().mean() for track in media.values()).backward()
        for parameter in of.named_trainable().values():
            parameter.grad = None

    climb()
    predicted = footprint.climbing(of.settings, 3, steps)
    assert predicted is not None
    assert abs(predicted / live(climb)[0] - 1) < NEAR


@pytest.mark.parametrize("name", CHOSEN)
def test_weights_are_counted_to_the_byte(name: str, tmp_path: Path) -> None:
    of = policy(name)
    footprint = Footprint(of.settings, saved(name, tmp_path))
    assert footprint.trained == sum(p.numel() for p in of.named_trainable().values())
    for component in footprint.parts:
        network: nn.Module = getattr(of.pipeline, component)
        tensors = [p for p in network.parameters() if not p.requires_grad] + list(network.buffers())
        assert footprint.weights(component, of.settings) == sum(x.nbytes for x in tensors)


@pytest.mark.parametrize("name", ["stable-diffusion-3", "flux2-klein", "wan"])
def test_decoding_takes_what_was_predicted(name: str, tmp_path: Path) -> None:
    of = policy(name)
    footprint = Footprint(of.settings, saved(name, tmp_path))
    drawn = footprint.drawn(of.settings)
    frames = [drawn.frames] if name == "wan" else []
    z = torch.randn(drawn.rows, drawn.channels, *frames, drawn.height, drawn.width)

    @torch.no_grad()
    def decode() -> None:
        of.pipeline.vae.decode(z)

    predicted = footprint.decoding(of.settings)
    assert predicted is not None
    assert abs(predicted / live(decode)[0] - 1) < NEAR
    if name == "stable-diffusion-3":
        sliced = footprint.decoding(of.settings.model_copy(update={"vae": Vae(slicing=True)}))
        of.pipeline.vae.enable_slicing()
        assert sliced is not None
        assert abs(sliced / live(decode)[0] - 1) < 0.5  # the rows that are done already are held, too
        assert sliced < predicted / 2


def test_with_blocks_away_the_largest_stays(tmp_path: Path) -> None:
    of = policy("flux")
    footprint = Footprint(of.settings, saved("flux", tmp_path))
    changed = of.settings.model_copy(update={"offload": "blocks", "gradient_checkpointing": True})
    network = KNOWN["flux"].build().transformer
    blocks = [*network.transformer_blocks, *network.single_transformer_blocks]
    sizes = [sum(p.nbytes for p in block.parameters()) for block in blocks]
    whole = sum(p.nbytes for p in network.parameters()) + sum(b.nbytes for b in network.buffers())
    assert footprint.resident("transformer", changed) == whole - sum(sizes) + max(sizes)


def test_published_sizes_are_those_of_the_published_weights() -> None:
    """Numbers of weights as the model cards and the papers state them: 2.5 (2.24 and fixed positions), 2.57, 1.3, 14.3
    billion; of some in whole billions."""
    stated = {
        "stabilityai/stable-diffusion-3.5-medium": ("transformer", 2_243_171_520),
        "stabilityai/stable-diffusion-xl-base-1.0": ("unet", 2_567_463_684),
        "stabilityai/sdxl-turbo": ("unet", 2_567_463_684),
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": ("transformer", 1_418_996_800),
        "Wan-AI/Wan2.2-T2V-A14B-Diffusers": ("transformer", 14_288_491_584),
    }
    rounded = {
        "Tongyi-MAI/Z-Image": ("transformer", 6e9),
        "Qwen/Qwen-Image": ("transformer", 20e9),
        "black-forest-labs/FLUX.2-klein-base-4B": ("transformer", 4e9),
    }
    assert {*stated, *rounded} == set(bases())
    for model, (part, count) in (*stated.items(), *rounded.items()):
        footprint = Footprint(PolicySettings(model=model), model)
        near = 0.005 if model in stated else 0.05
        assert sum(p.numel() for p in footprint.network(part).parameters()) == pytest.approx(count, rel=near)


# Bytes a weight of the published files, of networks that are not in half precision.
WIDE = {
    "stabilityai/stable-diffusion-xl-base-1.0": {"unet", "vae", "text_encoder", "text_encoder_2"},
    "stabilityai/sdxl-turbo": {"unet", "vae", "text_encoder", "text_encoder_2"},
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": {"transformer", "vae", "text_encoder"},
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": {"transformer", "transformer_2", "vae"},
}


@pytest.mark.parametrize("model", list(bases()))
def test_a_download_is_its_weights(model: str) -> None:
    footprint = Footprint(PolicySettings(model=model, dtype="bfloat16"), model)
    size = 0
    for name in footprint.parts:
        size += footprint.weights(name, footprint.settings) * (2 if name in WIDE.get(model, ()) else 1)
    assert size == pytest.approx(bases()[model].download, rel=0.01)


def test_an_unknown_model_that_is_not_here_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match="the sizes of nobody/nothing are not known without its files") as error:
        Footprint(PolicySettings(model="nobody/nothing"), "nobody/nothing")
    assert "\n" not in str(error.value)
