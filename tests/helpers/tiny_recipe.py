"""A whole tiny recipe in a folder: model, prompts, a rule and recipe.yaml, for runs of seconds through the real CLI."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import yaml

from tests.helpers.tiny_pipelines import clip_text, clip_tokenizer, image_autoencoder

RULES = """
from genalign.reward import reward

@reward
def bright(images):
    return [float(image.mean()) for image in images]

@reward
def knows(images, answer):
    return [float(a) for a in answer]

@reward
def nan(images):
    return [float("nan") for _ in images]

@reward
def short(images):
    return [1.0 for _ in images][1:]

@reward
def raises(images):
    raise RuntimeError("the lamp is broken")

@reward
def hangs(images):
    import time
    time.sleep(600)
"""


@cache
def image_model() -> Path:
    """A random UNet pipeline of one narrow block that draws 16x16 pixels, saved once."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    pipeline = StableDiffusionPipeline(
        unet=unet.eval(),
        scheduler=DDIMScheduler(),
        vae=image_autoencoder(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = Path(mkdtemp()) / "tiny-random"
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def write_recipe(folder: Path, **sections: dict[str, Any] | str | None) -> Path:
    """`folder`/recipe.yaml with the files it names; `sections` are merged into (or replace) the tiny ones."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rules.py").write_text(RULES)
    (folder / "prompts.txt").write_text("\n".join(f"prompt {word}" for word in "abcdefgh"))
    (folder / "exam.txt").write_text("\n".join(f"exam {word}" for word in "abc"))
    recipe: dict[str, Any] = {
        "policy": {
            "model": str(image_model()),
            "batch_size": 4,
            "lora": {"rank": 2, "alpha": 4},
            "sampler": {"kernel": "ddim", "noise": 1.0, "steps": 3, "guidance": 1.0},
        },
        "data": {"prompts": "prompts.txt", "prompts_per_step": 2},
        "reward": "rules.py:bright",
        "method": {"name": "flow-grpo", "group": 4, "kl_beta": 0.01},
        "train": {"steps": 3, "learning_rate": 1e-3, "checkpoint_every": 1, "ema": 0.9, "sample_every": 2},
        "eval": {"prompts": "exam.txt", "count": 3, "guidance": [1.0, 2.0], "steps": 2},
    }
    for name, section in sections.items():
        both = isinstance(section, dict) and isinstance(recipe.get(name), dict)
        both = both and "name" not in section  # another method keeps none of this one's keys
        recipe[name] = {**recipe[name], **section} if both else section  # type: ignore[dict-item]
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path
