"""Recipes of models that draw clips, from a folder of weights to the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from genalign.media.container import load_video
from genalign.run.build import build
from genalign.run.launch import train_recipe
from genalign.run.recipe import load_recipe
from genalign.training.metrics import read_rows
from genalign.types import UsageError
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
