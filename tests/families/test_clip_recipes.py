"""Recipes of models that draw clips, from a folder of weights to the report; their own samples, and given clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from genalign.cli.main import main
from genalign.media.container import load_video
from genalign.media.film import write_video
from genalign.run.build import build
from genalign.run.launch import train_recipe
from genalign.run.recipe import load_recipe
from genalign.training.metrics import read_rows
from genalign.types import UsageError
from tests.helpers.clips import bouncing, gliding
from tests.helpers.tiny_videos import RATE
from tests.helpers.video_policies import BOTH

RULES = """
from genalign.reward import reward

@reward
def loud(audio):
    return audio.square().mean((1, 2))

@reward
def bright(video):
    return video.mean((1, 2, 3, 4))
"""


def write(tmp_path: Path, name: str, prompts: str, **keys: Any) -> Path:
    """A recipe of two steps on a pipeline of the sweep, and all that it names."""
    BOTH[name].build().save_pretrained(tmp_path / "model")
    (tmp_path / "rules.py").write_text(RULES)
    policy = {"model": "model", "batch_size": 2, "lora": {"rank": 2}, "sampler": {"kernel": "flow-sde", "steps": 3}}
    recipe = {
        "policy": {**policy, "call": BOTH[name].call, **keys.pop("policy", {})},
        "data": {"prompts": prompts, "prompts_per_step": 1},
        "train": {"steps": 2, "learning_rate": 1e-3, "sample_every": 2, "checkpoint_every": 2},
        "eval": {"prompts": prompts, "count": 2, "seeds": [0], "guidance": [1.0], "steps": 3},
        **keys,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_video_with_sound_is_trained_by_rewards_of_both(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a b\nc d\n")
    both = {"sum": [{"use": "rules.py:loud"}, {"use": "rules.py:bright"}]}
    path = write(tmp_path, "ltx-2", "prompts.txt", reward=both, method={"name": "flow-grpo", "group": 2})
    run = train_recipe(str(path), out=tmp_path / "run")
    assert run is not None
    rows = read_rows(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert all({"rewards/loud/mean", "rewards/bright/mean"} <= set(row) for row in rows)
    assert json.loads((run / "eval.json").read_text())
    assert (run / "report.html").is_file()
    frames, rate = load_video(run / "samples" / "step-2" / "tuned-0.mp4", None)
    assert (len(frames), rate) == (3, 24.0)
    with pytest.raises(UsageError, match="reward 'sharpness' needs 'image', which the data does not offer"):
        build(load_recipe(str(path), ["reward={use: sharpness}"]))


def test_a_row_may_bring_the_picture_that_its_clip_begins_with(tmp_path: Path) -> None:
    rows = []
    for k, text in enumerate(("a b", "c d")):
        Image.fromarray(np.full((16, 16, 3), 90 * k, dtype=np.uint8)).save(tmp_path / f"{k}.png")
        rows.append(json.dumps({"prompt": text, "image": f"{k}.png"}))
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    method, train = {"name": "nft", "group": 2, "draws": 1}, {"steps": 1, "learning_rate": 1e-3, "ema": 0.9}
    keys = {"policy": {"frame_rate": RATE}, "reward": "rules.py:bright", "method": method, "train": train}
    path = write(tmp_path, "wan-i2v", "rows.jsonl", **keys)
    run = train_recipe(str(path), out=tmp_path / "run")
    assert run is not None
    assert json.loads((run / "eval.json").read_text())  # which draws both prompts in one call


# ---- given clips ----------------------------------------------------------------------------------------------------


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """Clips of two rates, and the pictures that they may begin with."""
    write_video(gliding(9), RATE, tmp_path / "a.mp4")
    write_video(bouncing(8, 17), 2 * RATE, tmp_path / "b.webm")
    write_video(bouncing(4, 9), RATE, tmp_path / "c.mp4")
    for name, grey in (("x", 60), ("y", 180)):
        Image.fromarray(np.full((16, 16, 3), grey, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def rows(path: Path, *values: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path.name


def on_given(room: Path, name: str, prompts: str, method: dict[str, Any], **keys: Any) -> Path:
    policy = {"frame_rate": RATE, "sampler": {"kernel": "ode", "steps": 3}}
    train = {"steps": 4, "learning_rate": 1e-2, "checkpoint_every": 2, "sample_every": 4}
    return write(room, name, prompts, policy=policy, method=method, train=train, eval=None, **keys)


SFT = {"name": "sft", "draws": 2}


def test_fine_tuning_on_own_clips_goes_on_where_it_was_killed(room: Path) -> None:
    """Through the command line: no reward and no rollout, k + k steps are 2k steps, and the clips become likelier."""
    prompts = rows(room / "own.jsonl", {"prompt": "a b", "video": "a.mp4"}, {"prompt": "c d", "video": "b.webm"})
    path = str(on_given(room, "wan", prompts, SFT, data={"prompts": prompts, "prompts_per_step": 2}))
    assert main(["train", path, "--out", str(room / "whole")]) == 0
    assert main(["train", path, "train.steps=2", "--out", str(room / "parts")]) == 0
    assert main(["train", path, "--resume", str(room / "parts")]) == 0
    logs = read_rows(room / "whole" / "metrics.jsonl")
    assert [log["calls"] for log in logs] == [2 * 2] * 4  # samples and draws
    assert all("reward" not in log for log in logs)
    adapters = [(room / run / "adapter" / "adapter_model.safetensors").read_bytes() for run in ("whole", "parts")]
    assert adapters[0] == adapters[1]
    assert (room / "whole" / "samples" / "step-4" / "grid.webp").is_file()
    assert main(["train", path, "--plan"]) == 0


def test_given_clips_are_encoded_as_diffusers_encodes_the_frames_that_are_drawn(room: Path) -> None:
    """The latents that sft fits to: of the first five frames at the model's rate, in its normalisation."""
    prompts = rows(room / "own.jsonl", {"prompt": "a b", "video": "a.mp4"}, {"prompt": "c d", "video": "b.webm"})
    built = build(load_recipe(str(on_given(room, "wan", prompts, SFT))))
    found = built.method.collect(built.policy, list(built.data), None, 0, 0).clean
    vae = BOTH["wan"].build().vae
    for row, (made, step) in enumerate(((gliding(9), 1), (bouncing(8, 17), 2))):
        wanted = F.interpolate(made[: 5 * step : step], (16, 16), mode="bicubic", antialias=True).clamp(0, 1)
        with torch.no_grad():
            latents = vae.encode(2 * wanted.transpose(0, 1)[None] - 1).latent_dist.mode()[0]
        wanted = (latents - vae.config.latents_mean[0]) / vae.config.latents_std[0]
        assert found[row].shape == wanted.shape
        assert (found[row] - wanted).abs().mean() < 0.1 * (wanted - wanted.mean()).abs().mean()  # codecs lose a little


METHODS = {
    "sft": ("video", SFT),
    "flow-dpo": ("chosen", {"name": "flow-dpo", "draws": 2}),
    "sft of pairs": ("chosen", SFT),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["wan-i2v", "wan-flf2v", "cogvideox-i2v"])
def test_a_model_that_begins_with_a_picture_learns_from_rows_that_bring_one(room: Path, name: str, family: str) -> None:
    """Image to video by data alone: two clips of different pictures in one step, which Wan draws a call each."""
    first = {"image": ["x.png", "y.png"] if family == "wan-flf2v" else "x.png"}
    second = {"image": ["y.png", "x.png"] if family == "wan-flf2v" else "y.png"}
    key, method = METHODS[name]
    others = [{}, {}] if key == "video" else [{"rejected": "c.mp4"}, {"rejected": "a.mp4"}]
    prompts = rows(
        room / "own.jsonl",
        {"prompt": "a b", key: "a.mp4", **first, **others[0]},
        {"prompt": "c d", key: "b.webm", **second, **others[1]},
    )
    data = {"prompts": prompts, "prompts_per_step": 2}
    run = train_recipe(str(on_given(room, family, prompts, method, data=data)), ["train.steps=2"], out=room / "run")
    assert run is not None
    logs = read_rows(run / "metrics.jsonl")
    assert all(np.isfinite(log["loss"]) for log in logs)
    if name == "flow-dpo":
        assert logs[0]["loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert (run / "adapter").is_dir()


def test_rows_of_different_pictures_are_fitted_as_each_alone(room: Path) -> None:
    """Wan's pipeline draws a batch from one picture: the error of a row is that of a call of its own."""
    prompts = rows(
        room / "own.jsonl",
        {"prompt": "a b", "video": "a.mp4", "image": "x.png"},
        {"prompt": "c d", "video": "b.webm", "image": "y.png"},
    )
    built = build(load_recipe(str(on_given(room, "wan-i2v", prompts, SFT))))
    asked = list(built.data)
    clean = built.method.collect(built.policy, asked, None, 0, 0).clean
    together = built.policy.fit(asked, clean, 0.3, [5, 6], versus="reference")
    for row in range(2):
        alone = built.policy.fit(asked[row : row + 1], clean[row : row + 1], 0.3, [5 + row], versus="reference")
        torch.testing.assert_close(together.score[row], alone.score[0], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(together.versus_score[row], alone.versus_score[0], rtol=1e-5, atol=1e-4)
    swapped = built.policy.fit(asked[::-1], clean, 0.3, [5, 6])
    assert (swapped.score - together.score).abs().max() > 1e-3  # the picture is read
