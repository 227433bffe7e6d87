"""Sample sheets: the base beside the tuned policy at the same seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genalign.media import MEDIA, leading
from genalign.types import Policy, Prompt, Weights, sample_seed


def sample_grid(
    policy: Policy,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    path: Path,
    guidance: float | None = None,
    steps: int | None = None,
    tuned: Weights = "policy",
) -> Path:
    """Draw each prompt once a seed with the base and with the tuned weights and write the pairs to `path` (.png).

    Videos give a strip of frames each, sounds a wave and a spectrogram; both also stand beside the picture as files,
    with a .jsonl that lists them. Texts give a .jsonl of rows {prompt, seed, base, tuned} instead of a picture.
    Returns the path written.
    """
    repeated = [prompt for prompt in prompts for _ in seeds]
    drawn = [sample_seed(seed, prompt.uid, 0) for prompt in prompts for seed in seeds]
    pair = []
    for which in ("reference", tuned):
        with policy.weights(which):
            pair.append(policy.generate(repeated, drawn, guidance=guidance, steps=steps))
    path.parent.mkdir(parents=True, exist_ok=True)
    name = leading(pair[0])
    base, after = (media[name] for media in pair)
    asked = [(prompt.text, seed) for prompt, seed in zip(repeated, drawn, strict=True)]
    return MEDIA[name].sheet(list(base.data), list(after.data), asked, path, base.rate)


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """Rows of the .jsonl that a sheet may have: {prompt, seed, base, tuned, medium}.

    base and tuned are texts where `is_file` is False, else the names of files beside `path`.
    """
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return [{"medium": "text", **row, "is_file": "medium" in row} for row in rows]
