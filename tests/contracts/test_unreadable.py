"""A row that is empty or holds no numbers fails alone, with its reason, in every head; odd but sound rows count."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genalign.reward import ClipReward, FunctionReward, Runner, SetReward, Sharpness, Similarity, build_reward
from genalign.reward.fit.backbones import BackboneSettings, build_backbone
from genalign.reward.fit.fitted import FittedReward, save_fitted
from genalign.reward.fit.train import Fit, build_head
from genalign.reward.heads.aesthetic import FILE as AESTHETIC_FILE
from genalign.reward.heads.aesthetic import Mlp
from genalign.reward.heads.audio import AudioboxHeads
from genalign.reward.heads.blip import FILE as BLIP_FILE
from genalign.types import Media, Track
from tests.helpers.pictures import as_tensor, photographs
from tests.helpers.tiny_heads import (
    AUDIOBOX,
    BLIP_TEXT,
    BLIP_VISION,
    WAVLM,
    blip_state,
    randomise,
    save_state,
    tiny_clap,
    tiny_transformers_clip,
    word_tokenizer,
    write_json,
)
from tests.helpers.toy_rewards import prompts, tiny_clip


def clip(folder: Path) -> Any:
    return ClipReward(tiny_clip(folder / "open"))


def clipscore(folder: Path) -> Any:
    return build_reward({"use": "clipscore", "model": str(tiny_transformers_clip(folder / "clip"))}, Path())


def pickscore(folder: Path) -> Any:
    at = str(tiny_transformers_clip(folder / "clip"))
    return build_reward({"use": "pickscore", "model": at, "processor": at}, Path())


def calibrated(folder: Path) -> Any:
    at = str(tiny_transformers_clip(folder / "clip"))
    return build_reward({"use": "clipscore", "model": at, "calibrate": {"mean": 10.0, "std": 2.0}}, Path())


def aesthetic(folder: Path) -> Any:
    save_state(randomise(Mlp(12)).state_dict(), folder / AESTHETIC_FILE)
    at = str(tiny_transformers_clip(folder / "clip"))
    return build_reward({"use": "aesthetic", "model": at, "weights": str(folder)}, Path())


def imagereward(folder: Path) -> Any:
    save_state(blip_state(BLIP_VISION, BLIP_TEXT), folder / BLIP_FILE)
    word_tokenizer().save_pretrained(folder / "words")
    where = {"model": str(folder), "tokenizer": str(folder / "words")}
    return build_reward({"use": "imagereward", **where, "vision": BLIP_VISION, "text": BLIP_TEXT}, Path())


def sharpness(folder: Path) -> Any:
    return Sharpness()


def similarity(folder: Path) -> Any:
    from genalign.media.image import save_png

    save_png(as_tensor(photographs(1, 32, 32))[0], folder / "shown" / "a.png")
    return Similarity(tiny_clip(folder / "open"), str(folder / "shown"))


def fitted(folder: Path) -> Any:
    settings = BackboneSettings(kind="clip", model=str(tiny_clip(folder / "open")))
    width = (
        build_backbone(settings, "image", folder)
        .features(prompts(1), Media(image=Track(torch.rand(1, 3, 32, 32))))
        .shape[1]
    )
    fit = Fit.model_validate({"head": {"kind": "linear"}, "loss": {"name": "bradley-terry"}})
    save_fitted(folder / "fit", randomise(build_head(fit, width, 0)), fit, settings, "image", width, [])
    return FittedReward(folder / "fit")


def function(folder: Path) -> Any:
    def brightness(image: list[Tensor]) -> list[float]:
        return [float(one.mean()) for one in image]

    return FunctionReward(brightness)


def clap(folder: Path) -> Any:
    return build_reward({"use": "clap", "model": str(tiny_clap(folder / "clap"))}, Path())


def audiobox(folder: Path) -> Any:
    write_json(AUDIOBOX, folder / "config.json")
    save_state({}, folder / "model.safetensors")
    reward = build_reward({"use": "audiobox", "model": str(folder), "encoder": WAVLM}, Path())
    net = randomise(AudioboxHeads(AUDIOBOX, WAVLM)).requires_grad_(False)
    reward.__dict__["_loaded"] = net
    return reward


IMAGES = [clip, clipscore, pickscore, calibrated, aesthetic, imagereward, sharpness, similarity, fitted, function]
SOUNDS = [clap, audiobox]


def wave(seconds: float, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(0.1 * rng.standard_normal((1, round(8000 * seconds)))).float()


@pytest.mark.parametrize("bad", ["nan", "inf", "empty"])
@pytest.mark.parametrize("make", [*IMAGES, *SOUNDS], ids=lambda make: make.__name__)
def test_a_row_that_cannot_be_read_fails_alone(tmp_path: Path, make: Callable[[Path], Any], bad: str) -> None:
    reward = make(tmp_path)
    if make in SOUNDS:
        name, rate, rows = "audio", 8000.0, [wave(1.0, seed) for seed in range(3)]
    else:
        name, rate, rows = "image", None, list(as_tensor(photographs(3, 40, 48)))
    clean = Runner(reward)(prompts(3), Media(**{name: Track(torch.stack(rows), rate)}))
    spoilt = rows[1].clone()
    spoilt[0, ..., 3] = {"nan": math.nan, "inf": math.inf, "empty": 0.0}[bad]
    spoilt = spoilt[..., :0] if bad == "empty" else spoilt
    given = [rows[0].requires_grad_(), spoilt.requires_grad_(), rows[2].requires_grad_()]
    media = Media(**{name: Track(given, rate)})
    for of in [Runner(reward, max_failure=0.9), *([] if make is function else [reward])]:
        scores = of(prompts(3), media)
        assert scores.failed.any(1).tolist() == [False, True, False]
        assert scores.total_valid.tolist() == [True, False, True]
        assert torch.allclose(scores.values[[0, 2]], clean.values[[0, 2]], atol=1e-5)
        reason = "is empty" if bad == "empty" else "not numbers"
        assert [error is not None and reason in error for error in scores.info["error"]] == [False, True, False]
        if reward.differentiable:
            gradients = torch.autograd.grad(scores.total.sum(), given, allow_unused=True)
            assert all(of_row is not None and bool(of_row.isfinite().all()) for of_row in gradients[::2])
            assert gradients[1] is None or not gradients[1].any()  # of a NaN it would be NaN
    nothing = reward(prompts(1), Media(**{name: Track([spoilt], rate)}))
    assert nothing.failed.all()


def test_a_comparison_with_what_cannot_be_read_has_no_number(tmp_path: Path) -> None:
    reward = fitted(tmp_path)
    a, b = list(as_tensor(photographs(3, 40, 40))), list(as_tensor(photographs(3, 40, 48)))
    clean = reward.compare(prompts(3), Media(image=Track(a)), Media(image=Track(b)))
    a[0], b[2] = torch.full((3, 40, 40), math.nan), torch.empty(3, 0, 40)
    lead = reward.compare(prompts(3), Media(image=Track(a)), Media(image=Track(b)))
    assert lead.isnan().tolist() == [True, False, True]
    assert lead[1] == pytest.approx(clean[1].item(), abs=1e-6)


@pytest.mark.parametrize("make", IMAGES, ids=lambda make: make.__name__)
def test_one_colour_and_one_pixel_are_pictures(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    rows = [torch.zeros(3, 40, 40), torch.full((3, 1, 1), 0.5), torch.rand(3, 2, 30)]
    scores = Runner(make(tmp_path), max_failure=0.9)(prompts(3), Media(image=Track(rows)))
    wanted = [True, make is not sharpness, make is not sharpness]  # an edge needs three pixels
    assert scores.total_valid.tolist() == wanted
    assert bool(scores.values.isfinite().all())


@pytest.mark.parametrize("make", SOUNDS, ids=lambda make: make.__name__)
def test_silence_and_one_sample_are_sounds(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    rows = [torch.zeros(1, 4000), wave(1 / 8000, 0), wave(0.3, 1)]
    reward = make(tmp_path)
    scores = Runner(reward)(prompts(3), Media(audio=Track(rows, rate=8000)))
    assert scores.total_valid.all()
    same = [prompts(3)[2]] * 2
    mixed = reward(same, Media(audio=Track.of([rows[2], rows[2]], [8000.0, 16000.0])))
    assert torch.allclose(mixed.values[0], scores.values[2], atol=1e-5)
    alone = reward(same[:1], Media(audio=Track([rows[2]], rate=16000)))
    assert torch.allclose(mixed.values[1], alone.values[0], atol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, None])
def test_a_set_leaves_out_what_it_cannot_read(tmp_path: Path, bad: float | None) -> None:
    reward = SetReward(tiny_clip(tmp_path / "open"), "vendi")
    rows = list(as_tensor(photographs(4, 32, 32)))
    clean = reward(prompts(3), Media(image=Track(rows[:3])))
    rows[3] = torch.empty(3, 0, 0) if bad is None else torch.full((3, 32, 32), bad)
    for of in (reward, Runner(reward, max_failure=0.9)):
        scores = of(prompts(4), Media(image=Track(rows)))
        assert torch.allclose(scores.values[:3], clean.values, atol=1e-6)
        assert scores.failed[:, 0].tolist() == [False, False, False, True]
        assert of(prompts(1), Media(image=Track(rows[3:]))).failed.all()  # the other ranks are not kept waiting


def test_a_sound_that_is_not_read_fails_nobody() -> None:
    pixels = torch.rand(2, 3, 8, 8)
    both = Media(image=Track(pixels), audio=Track(torch.full((2, 1, 50), math.nan), rate=8000))
    assert Runner(Sharpness())(prompts(2), both).total_valid.all()
