"""What four times the frames cost in memory, in bytes of live tensors. `python -m tests.bench.test_bench_memory`.

The short clip has 5 frames of latents, the long one 20. What is held of a rollout between sampling and scoring is in
test_what_is_held_between_sampling_and_scoring, and that replay asks no encoder again in policy/test_memo.py.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from genalign.policy.diffusion import DiffusionPolicy
from genalign.reward.heads.motion import Moving, SmoothMotion, Steady, Synchrony
from genalign.types import Media, Prompt, Track, Trajectory
from tests.bench.live import live
from tests.helpers.tiny_pipelines import Family, part
from tests.helpers.tiny_videos import ANIMATED, CLIP_SIZE, COGVIDEO, WAN, wan_autoencoder, wan_transformer
from tests.helpers.video_policies import RATE, settings

SHORT, LONG = 5, 20  # frames of latents
PROMPT = Prompt("a b")
ROWS = 2
WIDE = 64  # channels of autoencoders, of which published ones have 96 (Wan) or 128; frames have three
SIZES = {"block_out_channels": (WIDE, WIDE), "norm_num_groups": 2}
AUTOENCODERS = {
    "wan": wan_autoencoder(base_dim=WIDE),
    "cogvideox": part(
        "AutoencoderKLCogVideoX", down_block_types=("CogVideoXDownBlock3D",) * 2, latent_channels=4,
        up_block_types=("CogVideoXUpBlock3D",) * 2, layers_per_block=1, temporal_compression_ratio=2, **SIZES,
    ),
    "animatediff": part(
        "AutoencoderKL", latent_channels=4, block_out_channels=(128, 128, 128), norm_num_groups=2, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    ),
}  # fmt: skip
PIPELINES = {"wan": (WAN, "WanPipeline"), "cogvideox": (COGVIDEO, "CogVideoXPipeline")}


def frames_of(name: str, latents: int) -> int:
    """Frames of a clip of so many frames of latents."""
    return latents if name == "animatediff" else 1 + 2 * (latents - 1)


def policy_of(name: str, latents: int, again: bool = False, **parts: Any) -> DiffusionPolicy:
    """again: whether blocks of the denoiser are computed again."""
    own, kind = PIPELINES.get(name, (ANIMATED, "AnimateDiffPipeline"))
    call: dict[str, Any] = {**CLIP_SIZE, "num_frames": frames_of(name, latents)}
    if name == "animatediff":
        del call["max_sequence_length"]
        call["decode_chunk_size"] = 2 * ROWS
    if name == "wan":  # which knows more positions
        parts = {"transformer": wan_transformer(rope_max_seq_len=64), **parts}
    pipeline = Family(kind, {**own, **parts}, flow=name == "wan", call=call).build()
    chosen = settings(pipeline, name).model_copy(update={"call": call, "gradient_checkpointing": again})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the step that is exchanged
        return DiffusionPolicy(pipeline, chosen)


def rolled(of: DiffusionPolicy) -> Trajectory:
    return of.rollout([PROMPT], ROWS, seed=0)


# ---- decoding -------------------------------------------------------------------------------------------------------


def decoding(name: str, latents: int) -> int:
    """Peak bytes of what becomes of the latents of a rollout, until it waits for its scores."""
    of = policy_of(name, latents, vae=AUTOENCODERS[name])
    clean = of.clean(rolled(of))
    return live(lambda: of.decode(clean).compact())[0]


# ---- rewards --------------------------------------------------------------------------------------------------------

REWARDS = {reward.name: reward for reward in (Moving(), Steady(), SmoothMotion(), Synchrony())}


@cache
def clip(frames: int) -> Media:
    """A clip of 480x832 with its sound."""
    small = torch.randint(0, 255, (frames, 3, 30, 52), generator=torch.Generator().manual_seed(0)).float()
    levels = F.interpolate(small, scale_factor=16).to(torch.uint8)[None]
    return Media(video=Track(levels, RATE), audio=Track(torch.zeros(1, 1, round(8000 * frames / RATE)), 8000.0))


def scoring(name: str, frames: int) -> int:
    """Peak bytes of a reward's call on one clip."""
    REWARDS[name]([PROMPT], clip(frames))
    return live(lambda: REWARDS[name]([PROMPT], clip(frames)))[0]


# ---- the denoiser ---------------------------------------------------------------------------------------------------


def learning(latents: int, again: bool) -> int:
    """Peak bytes of one update of a denoiser of six blocks."""
    transformer = wan_transformer(rope_max_seq_len=64, num_layers=6, attention_head_dim=24, ffn_dim=96)
    of = policy_of("wan", latents, again, transformer=transformer)
    trajectory = rolled(of)

    def update() -> None:
        for rows, steps in trajectory.units():
            of.replay(trajectory, rows, steps).score.mean().backward()

    update()
    return live(update)[0]


# ---- the bounds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_four_times_the_frames_are_decoded_in_the_same_memory(name) -> None:
    assert decoding(name, LONG) <= 1.1 * decoding(name, SHORT)


@pytest.mark.parametrize("name", REWARDS)
def test_four_times_the_frames_are_scored_in_the_same_memory(name) -> None:
    assert scoring(name, 64) <= 1.1 * scoring(name, 16)


def test_four_times_the_frames_are_learnt_from_in_four_times_the_memory_or_with_checkpointing_in_half_more() -> None:
    short = learning(SHORT, again=False)
    assert short > 2_000_000
    assert learning(LONG, again=False) <= 4.2 * short
    assert learning(LONG, again=True) <= 1.6 * short


def test_what_is_held_between_sampling_and_scoring() -> None:
    """Of each row its frames in 8 bits, its latents before and after each noisy step, and the last ones."""
    of = policy_of("wan", SHORT)
    trajectory = rolled(of)  # the first one remembers texts and proves that it can be replayed
    found: list[Trajectory] = []
    _, held = live(lambda: found.append(rolled(of)))
    frames, latent = frames_of("wan", SHORT), 4 * SHORT * 8 * 8 * 4
    assert trajectory.tape.table.stochastic == [0, 1, 2]  # of four steps
    media = ROWS * frames * 3 * 16 * 16
    assert found[0].media["video"].held.nbytes == media
    blank = latent  # in the place of a denoiser's answer
    assert 0 <= held - (media + ROWS * 4 * latent + ROWS * latent + blank) < 512  # the table, log-densities, their mask


def main() -> None:
    torch.set_num_threads(1)
    print(f"Peak bytes of live tensors, {LONG // SHORT} times the frames over the short clip\n")
    print("| what | short | long | ratio |\n|---|---|---|---|")

    def row(what: str, short: int, long: int) -> None:
        print(f"| {what} | {short:,} | {long:,} | {long / short:.2f} |", flush=True)

    for name in AUTOENCODERS:
        row(f"decoding, {name}", decoding(name, SHORT), decoding(name, LONG))
    for name in REWARDS:
        row(f"reward `{name}`", scoring(name, 16), scoring(name, 64))
    short = learning(SHORT, again=False)
    row("update of the denoiser", short, learning(LONG, again=False))
    row("the same with gradient checkpointing, over the short clip without", short, learning(LONG, again=True))


if __name__ == "__main__":
    main()
