"""Files scored by a reward: `score` for a program, `print_scores` is `genalign score`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from genalign.data.prompts import read_prompts
from genalign.media import leading
from genalign.media.container import has_sound
from genalign.media.files import beside, read_media
from genalign.reward import Runner, build_reward, check_needs
from genalign.reward.base import CUT
from genalign.reward.scores import all_abstained, cat_scores
from genalign.types import MODALITIES, Media, Prompt, Reward, Scores, UsageError

BESIDE = ("file", "reward", "failed", "error", "truncated", "abstained")  # keys of a row that are not scores


def score(
    reward: str | Mapping[str, Any] | Reward,
    media: Media | Sequence[str | Path],
    prompts: str | Path | Sequence[str | Prompt] = (),
) -> list[dict[str, Any]]:
    """Score media with a reward, all of them in one call; a failure is a row that says why, not an error.

    Args:
        reward: a reward, or what `build_reward` takes: a reward file, `file.py:function`, a shipped name, a mapping.
        media: files, all of one medium; or Media of B rows, images (B,3,H,W) in [0,1].
        prompts: one text for all, one each (texts or Prompts), or the Path of a prompts file; none, where the reward
            reads none.

    Returns a row for each: {"file": str | None, "reward": its name, aspect: float | None ..., "total": float | None,
    "failed": aspects that went wrong, "error": why | None, "truncated": heads that saw only the beginning of a text,
    "abstained": why there is no total | None}. A score is None where the reward abstained or failed.

    Raises:
        UsageError: no such reward or file, media of several kinds, another number of prompts, or what the reward
            reads is not there.
    """
    files = [] if isinstance(media, Media) else [Path(file) for file in media]
    given = media if isinstance(media, Media) else read_media(files)
    per_row = _prompts_of(prompts, given.rows)
    built = build_reward(reward, Path()) if isinstance(reward, str | Mapping) else reward
    runner = Runner(built, max_failure=1.0)
    offered = {*given}
    if per_row is not None:
        facts = set.intersection(*(set(prompt.facts) for prompt in per_row))
        offered |= {"prompt", *(f"facts.{name}" for name in facts)}
    asked = per_row or [Prompt("")] * given.rows
    lacking = beside(leading(given)) & runner.needs - set(given)
    mute = [row for row, file in enumerate(files) if not has_sound(file)] if lacking else []
    check_needs(runner, offered | lacking if mute else offered)
    scores = _heard_apart(runner, asked, given, files, mute) if mute else _scored(runner, asked, given)
    rows = []
    for k in range(given.rows):
        row = {"file": str(files[k]) if files else None, "reward": built.name, **_row(scores, k)}
        rows.append({**row, "abstained": "it has no sound" if k in mute and row["total"] is None else None})
    return rows


@torch.no_grad()
def _scored(runner: Runner, prompts: Sequence[Prompt], media: Media) -> Scores:
    lacks = runner.lacks({*media, *runner.needs - set(MODALITIES)})
    return all_abstained(runner, len(prompts)) if lacks else runner(prompts, media, None)


def _heard_apart(
    runner: Runner, prompts: Sequence[Prompt], media: Media, files: Sequence[Path], mute: Sequence[int]
) -> Scores:
    """Scores of videos of which those in `mute` have no sound: a reward that reads it abstains from these alone."""
    parts, order = [_scored(runner, [prompts[row] for row in mute], media.select(mute))], list(mute)
    heard = [row for row in range(len(files)) if row not in set(mute)]
    if heard:
        parts.append(_scored(runner, [prompts[row] for row in heard], read_media([files[row] for row in heard])))
        order += heard
    return cat_scores(parts).select([order.index(row) for row in range(len(order))])


def _row(scores: Scores, k: int) -> dict[str, Any]:
    values = [*scores.values[k].tolist(), scores.total[k].item()]
    valid = [*scores.valid[k].tolist(), bool(scores.total_valid[k])]
    row: dict[str, Any] = {}
    for name, value, ok in zip([*scores.names, "total"], values, valid, strict=True):
        row[name] = value if ok else None
    row["failed"] = [name for name, wrong in zip(scores.names, scores.failed[k].tolist(), strict=True) if wrong]
    errors = scores.info.get("error")
    row["error"] = None if errors is None else errors[k]
    row["truncated"] = [key.removeprefix(CUT) for key, cut in scores.info.items() if key.startswith(CUT) and cut[k]]
    return row


def _prompts_of(prompts: str | Path | Sequence[str | Prompt], rows: int) -> list[Prompt] | None:
    """A prompt for each row; None where there are none."""
    if isinstance(prompts, Path):
        given: list[Prompt] = list(read_prompts(prompts))
    else:
        texts = [prompts] if isinstance(prompts, str) else prompts
        given = [Prompt(one, uid=uid) if isinstance(one, str) else one for uid, one in enumerate(texts)]
    if not given:
        return None
    if len(given) == 1:
        given = given * rows
    if len(given) != rows:
        raise UsageError(f"there are {len(given)} prompts for {rows} media files; give one for all, or one each")
    return given


# ---- genalign score -------------------------------------------------------------------------------------------------


def print_scores(rows: Sequence[dict[str, Any]], as_json: bool = False) -> int:
    """Print rows of `score` as a table, or one JSON object a line; 1 where not one of them has a total, else 0.

    Under the table stands why rows have no score, and where a text was cut.
    """
    if as_json:
        print("\n".join(json.dumps(row) for row in rows))
    else:
        _print_table(rows)
    return int(all(row["total"] is None for row in rows))


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    columns = [name for name in rows[0] if name not in BESIDE]
    table = Table("file", *columns)
    for row in rows:
        cells = []
        for name in columns:
            value = row[name]
            cells.append("failed" if name in row["failed"] else "-" if value is None else f"{value:.4f}")
        table.add_row(escape(str(row["file"])), *cells)
    console = Console()
    console.print(table)
    for row in rows:
        if row["error"]:
            print(f"{row['file']}: {', '.join(row['failed']) or row['reward']} failed: {row['error']}")
        elif row["total"] is None:
            print(f"{row['file']}: {row['reward']} abstained; {row['abstained'] or 'no total can be read'}")
        for head in row["truncated"]:
            print(f"{row['file']}: {head} read only the beginning of its text, which is longer than its model takes")
