"""Sample sheets: the base beside the tuned policy at the same seeds."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genalign.media import MEDIA, leading
from genalign.media.medium import is_finite
from genalign.types import GenalignError, Policy, Prompt, Weights, sample_seed

log = logging.getLogger(__name__)


def sample_grid(
    policy: Policy,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    path: Path,
    guidance: float | None = None,
    steps: int | None = None,
    tuned: Weights = "policy",
) -> Path | None:
    """Draw each prompt once a seed with the base and with the tuned weights and write the pairs to `path` (.png).

    Videos give a strip of frames each, sounds a wave and a spectrogram; both also stand beside the picture as files,
    with a .jsonl that lists them. Texts give a .jsonl of rows {prompt, seed, base, tuned} instead of a picture.
    Pairs of which a sample is not finite are left out, with a warning in the log. Returns the path written, None where
    no pair is left.
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
    # Values that are not numbers would be drawn as black, or written as silence: such pairs are left out.
    rows = [row for row in range(len(drawn)) if is_finite(base.held[row]) and is_finite(after.held[row])]
    if len(rows) < len(drawn):
        what = "%d of %d pairs of samples hold values that are not numbers and are left out of %s; look at the adapter"
        log.warning(what, len(drawn) - len(rows), len(drawn), path)
    if not rows:
        return None
    each = [(repeated[row].text, drawn[row]) for row in rows]
    shown = [[track.held[row] for row in rows] for track in (base, after)]
    sounds = None
    if name == "video" and all("audio" in media for media in pair):
        first, second = ([(media["audio"].row(row), media["audio"].rate_of(row)) for row in rows] for media in pair)
        sounds = first, second
    return MEDIA[name].sheet(shown[0], shown[1], each, path, base.rate, sounds)


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """Rows of the .jsonl that a sheet may have: {prompt, seed, base, tuned, medium}.

    base and tuned are texts where `is_file` is False, else the names of files beside `path`.

    Raises:
        GenalignError: it is not what a sheet writes.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        found = [{"medium": "text", **row, "is_file": "medium" in row} for row in rows]
        if any({"prompt", "base", "tuned"} - set(row) or row["medium"] not in MEDIA for row in found):
            raise ValueError("a row lacks its prompt, base or tuned, or is of no known medium")
    except (ValueError, TypeError) as error:
        raise GenalignError(f"{path} is not a list of samples ({error}); delete it, or its step's folder") from error
    return found
