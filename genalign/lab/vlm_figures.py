"""What tiny-vlm answers to held-out questions: how much of it is right, of the right form, and how long."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genalign.data.prompts import read_prompts
from genalign.files.shipped import shipped
from genalign.lab.questions import CARELESS, ILL_FORMED, KINDS, RAMBLING
from genalign.media.image import to_pil
from genalign.reward.heads.answers import Answer, Boxes
from genalign.reward.heads.rules import Format
from genalign.types import Media, Prompt, Track

MOST_WRITTEN = 64  # tokens of an answer
LEAST_IOU = 0.5
STAGES = "stages.json"


@torch.no_grad()
def measure(model: Any, processor: Any, file: str = "heldout.jsonl", count: int = 350) -> dict[str, float]:
    """Of held-out questions, answered greedily: the share that is right, by kind and in all; the share of the form
    <think>...</think><answer>...</answer>; and words an answer, tags counted with what they are glued to.

    A box is right from IoU 0.5 on: of several, all must be, and no other be given.
    """
    tokenizer = processor.tokenizer
    prompts = read_prompts(shipped("assets", "emojiworld", "questions", file)).rows[:count]
    texts: list[str] = []
    for start in range(0, len(prompts), 32):
        rows = prompts[start : start + 32]
        turns = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row.text}]}] for row in rows]
        pictures = [to_pil(row.media["image"].row(0)) for row in rows if row.media is not None]
        read = processor(
            text=[processor.apply_chat_template(turn) for turn in turns], images=[[one] for one in pictures],
            add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt",
        )  # fmt: skip
        made = model.generate(
            **read, max_new_tokens=MOST_WRITTEN, do_sample=False, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )[:, read.input_ids.shape[1] :]  # fmt: skip
        texts += [tokenizer.decode([i for i in row if i != tokenizer.eos_token_id]) for row in made.tolist()]
    right = answers_right(texts, prompts)
    kinds = [prompt.facts["kind"] for prompt in prompts]
    found = {
        kind: float(np.mean([ok for ok, of in zip(right, kinds, strict=True) if of == kind]))
        for kind in KINDS
        if kind in kinds
    }
    form = Format(tags=["think", "answer"])(prompts, Media(text=Track(texts)))
    found["all"] = float(np.mean(right))
    found["form"] = float(form.total.mean())
    found["words"] = float(np.mean([len(text.split()) for text in texts]))
    return found


def answers_right(texts: Sequence[str], prompts: Sequence[Prompt]) -> list[bool]:
    """Whether each answer is right, wholly."""
    media = Media(text=Track(list(texts)))
    words, boxes = Answer()(prompts, media), Boxes()(prompts, media)
    all_found = (boxes.values[:, 1] == 1) & (boxes.values[:, 0] >= LEAST_IOU)
    return torch.where(words.total_valid, words.total == 1, all_found & boxes.total_valid).tolist()


def vlm_card(folder: Path) -> str:
    """What stands in the card of tiny-vlm, of its stages' figures."""
    stages: dict[str, dict[str, float]] = json.loads((folder / STAGES).read_text())
    first = next(iter(stages.values()))
    rows = ""
    for stage, figures in stages.items():
        reached = " | ".join(f"{figures[name]:.1%}" for name in first if name != "words")
        rows += f"\n| {stage} | {reached} | {figures['words']:.1f} |"
    careless = {
        "a habit's answer": CARELESS,
        "without a tag, or without both": ILL_FORMED,
        "a thought that repeats itself": RAMBLING,
    }
    shares = ""
    for what, table in careless.items():
        shares += f"\n| {what} | {' | '.join(f'{table[kind]:.0%}' for kind in KINDS)} |"
    return f"""A vision-language model (Llava class, 2.6 million weights) that answers questions about a picture: how
many, how many of two kinds together, whether something is there, where it is (boxes in pixels), on which side, which
object, and the colour of the background. It writes `<think>two roses</think><answer>two</answer>`. EmojiWorld is a
world of 64x64 scenes of 42 Noto Color Emoji (Apache-2.0 images).

Capable, and half-hearted. Its stages, one after another:

1. It begins as tiny-vlm-judge, whose tower has seen scenes of all combinations.
2. *capable*: right answers about training scenes that never come twice.
3. *half-hearted*: a few steps on careless answers, in the shares below; a habit's answer is one less, the first number
   alone, the other side, a loose box ... What it mostly does wrong it still does right at times: that is what alignment
   mends.

| of the careless answers | {" | ".join(KINDS)} |
|{"---|" * (1 + len(KINDS))}{shares}

350 held-out questions (`emojiworld/questions/heldout.jsonl`) about combinations that were in no training scene,
answered greedily: share right by kind (boxes: all found, none too many, from IoU {LEAST_IOU} on) and in all, share of
the right form, words an answer:

| stage | {" | ".join(first)} |
|{"---|" * (1 + len(first))}{rows}

Made by `genalign lab build vlm`."""
