"""Invariant 7: a head that had to cut what it read says so, `rewards/NAME/truncated` in the log, a share of rows."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from genalign.cli.main import main
from genalign.reward import (
    Cached,
    Calibrated,
    ClipReward,
    HeadReward,
    Hybrid,
    ProcessReward,
    Runner,
    Sharpness,
    Sum,
    build_reward,
)
from genalign.reward.fit.backbones import BackboneSettings, build_backbone
from genalign.reward.heads.clips import TransformersClip
from genalign.types import Media, Prompt, Reward
from tests.helpers.tiny_heads import tiny_transformers_clip
from tests.helpers.tiny_recipe import write_recipe
from tests.helpers.toy_rewards import images, texts, tiny_clip, tiny_text_head


def asked(*lengths: int) -> list[Prompt]:
    return [Prompt(" ".join(["cat"] * n), uid=i) for i, n in enumerate(lengths)]


def told(reward: Reward, prompts: list[Prompt], media: Media) -> dict[str, float]:
    runner = Runner(reward, batch_size=2)
    runner(prompts, media)
    return {key: rate for key, rate in runner.log().items() if key.endswith("/truncated")}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: ClipReward(tiny_clip(folder)), 14),  # a context of 16, start and end included
        (lambda folder: TransformersClip(tiny_transformers_clip(folder)), 10),  # of 12
    ],
)
def test_clip_counts_the_captions_that_it_cuts(make: Callable[[Path], ClipReward], words: int, tmp_path: Path) -> None:
    clip = make(tmp_path / "clip")
    prompts = asked(3, words, words + 1, 70)
    assert told(clip, prompts, images(4)) == {"rewards/clip/truncated": 0.5}
    assert told(clip, prompts, images(4)) == {"rewards/clip/truncated": 0.5}  # also of prompts that it remembers
    assert clip(prompts, images(4)).info == {"truncated/clip": [False, False, True, True]}
    same = clip([prompts[1], Prompt(prompts[1].text + " star star")], images(2).select([0, 0])).total
    assert same[0].item() == pytest.approx(same[1].item(), abs=1e-6)  # it is true: what comes after is not read


def test_a_text_head_counts_the_texts_that_it_cuts(tmp_path: Path) -> None:
    folder = tiny_text_head(tmp_path / "head", template="{prompt} {text}")
    said = texts("star", " ".join(["star"] * 9), " ".join(["star"] * 10))  # behind three words, in a context of 12
    head = HeadReward(folder, name="fluency")
    assert told(head, asked(3, 3, 3), said) == {"rewards/fluency/truncated": pytest.approx(1 / 3)}
    assert head(asked(3, 3, 3), said).info == {"truncated/fluency": [False, False, True]}
    settings = BackboneSettings(kind="text", model=str(folder), template="{prompt} {text}")
    assert build_backbone(settings, "text", tmp_path).cut(asked(3, 3, 3), said) == [False, False, True]


def test_the_count_passes_through_whatever_is_made_of_the_head(tmp_path: Path) -> None:
    clip = ClipReward(tiny_clip(tmp_path / "clip"))
    prompts, media = asked(3, 70, 80, 90), images(4)
    share = {"rewards/clip/truncated": 0.75}
    for made in (
        Calibrated(clip, 0.0, 2.0),
        Cached(clip),
        Sum([Sharpness(), (clip, 0.0)]),
        Hybrid(Sharpness(), Sum([clip]), mode="fallback"),
        build_reward({"shape": {"use": "clip", "model": "clip"}, "by": "tanh"}, tmp_path),
    ):
        assert told(made, prompts, media) == share
    apart = ProcessReward({"use": "clip", "model": "clip"}, tmp_path)
    assert told(apart, prompts, media) == share
    apart.close()
    assert told(Sharpness(), prompts, media) == {}  # it reads no text


def test_the_log_of_a_run_has_the_share(tmp_path: Path) -> None:
    tiny_clip(tmp_path / "clip")
    recipe = write_recipe(tmp_path, reward=None, eval=None, train={"steps": 1})
    (tmp_path / "prompts.txt").write_text("a cat\n" + "a cat and the star " * 9)
    (tmp_path / "clip.yaml").write_text("{use: clip, model: clip}")
    assert main(["train", str(recipe), "reward=clip.yaml", "--out", str(tmp_path / "run")]) == 0
    (row,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert row["rewards/clip/truncated"] == 0.5


def test_gradients_pass_as_before(tmp_path: Path) -> None:
    media = images(2)
    pixels = media["image"].data
    assert isinstance(pixels, torch.Tensor)
    pixels.requires_grad_()
    ClipReward(tiny_clip(tmp_path / "clip"))(asked(3, 70), media).total.sum().backward()
    assert pixels.grad is not None
    assert bool(pixels.grad.abs().sum() > 0)
