"""What models of EmojiWorld draw for held-out prompts, and the share of it that is right."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genalign.files.shipped import shipped
from genalign.lab.judge import Judge
from genalign.lab.verifier import verify_batch
from genalign.lab.world import change_one_fact, place, render, sample_facts
from genalign.types import Media, Prompt, Scores, Track

GUIDANCE = (1.0, 2.0, 3.0, 5.0)


def heldout_prompts(count: int, world: str = "emojiworld") -> list[Prompt]:
    """The first `count` rows of a world's heldout.jsonl."""
    lines = shipped("assets", world, "heldout.jsonl").read_text().splitlines()[:count]
    rows = [json.loads(line) for line in lines]
    return [Prompt(row["prompt"], facts=row["facts"], uid=uid) for uid, row in enumerate(rows)]


def draw(pipeline: Any, prompts: list[Prompt], guidance: float, steps: int, **call: Any) -> Tensor:
    """(B, 3, 64, 64) in [0, 1]: one image a prompt by the plain pipeline, seeds 0, 1, 2, ...; or (B, F, 3, H, W),
    where the pipeline draws clips of the size that `call` names."""
    pipeline.set_progress_bar_config(disable=True)
    parts = []
    for start in range(0, len(prompts), 64):
        texts = [p.text for p in prompts[start : start + 64]]
        seeds = [torch.Generator().manual_seed(start + i) for i in range(len(texts))]
        made = pipeline(
            texts, generator=seeds, guidance_scale=guidance, num_inference_steps=steps, output_type="pt",
            return_dict=False, **{"height": 64, "width": 64, **call},
        )  # fmt: skip
        parts.append(made[0])
    return torch.cat(parts).float().clamp(0, 1)


def kinds_right(pipeline: Any, guidance: float, steps: int, count: int = 512, **call: Any) -> dict[str, float]:
    """Share of held-out prompts drawn right, by the held-out judge: whole, and each kind of fact where it is stated."""
    prompts, judge = heldout_prompts(count), Judge()
    with torch.no_grad():
        images = draw(pipeline, prompts, guidance, steps, max_sequence_length=1, **call)
    return shares_right(judge(prompts, Media(image=Track(images))))


def shares_right(scores: Scores) -> dict[str, float]:
    """Of a judge's verdicts: by aspect the share of right ones, where it is stated."""
    stated = scores.valid.double()
    shares = (scores.values.double() * stated).sum(0) / stated.sum(0).clamp(min=1)
    return dict(zip(scores.names, shares.tolist(), strict=True))


def base_sweep(folder: Path, count: int = 512, steps: int = 10) -> tuple[dict[float, float], float]:
    """Held-out judge's whole-prompt accuracy by guidance scale, and its agreement with the verifier on 500 samples."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    prompts, judge = heldout_prompts(count), Judge()
    sweep, agreement = {}, 0.0
    for guidance in GUIDANCE:
        images = draw(pipeline, prompts, guidance, steps)
        verdict = judge(prompts, Media(image=Track(images))).total.numpy()
        sweep[guidance] = float(verdict.mean())
        if sweep[guidance] == max(sweep.values()):
            rule = verify_batch(images.permute(0, 2, 3, 1).numpy()[:500], [p.facts for p in prompts[:500]])
            agreement = float((rule["all_facts"][0] == verdict[:500]).mean())
    return sweep, agreement


def judge_accuracy(count: int = 1000, seed: int = 30) -> tuple[float, float]:
    """Share of clean held-out scenes judged wholly right, and of captions with one changed fact rejected."""
    rng = np.random.default_rng(seed)
    facts = [sample_facts(rng, "heldout") for _ in range(count)]
    images = torch.from_numpy(np.stack([render(place(f, rng), rng) for f in facts])).permute(0, 3, 1, 2)
    media, judge = Media(image=Track(images)), Judge()
    right = judge([Prompt("", facts=f) for f in facts], media).total.mean()
    wrong = judge([Prompt("", facts=change_one_fact(f, rng)) for f in facts], media).total.mean()
    return float(right), float(1 - wrong)
