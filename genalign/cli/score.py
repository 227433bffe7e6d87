"""`genalign score`: score files with a reward."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import torch

from genalign.data.prompts import read_prompts
from genalign.media.files import read_media
from genalign.types import Prompt, UsageError


def score_files(args: Namespace) -> None:
    """Print every aspect and the total of each file."""
    from genalign.reward import Runner, build_reward, check_needs

    prompts = _prompts_of_files(args)
    media = read_media(args.media)
    reward = Runner(build_reward(args.reward, Path()), max_failure=1.0)
    facts = set.intersection(*(set(prompt.facts) for prompt in prompts)) if prompts else set()
    check_needs(reward, {*media, *(["prompt"] if args.prompt or args.prompts else []), *(f"facts.{f}" for f in facts)})
    with torch.no_grad():
        scores = reward(prompts, media, None)
    columns = [*scores.names, "total"]
    rows = []
    for k, file in enumerate(args.media):
        values = [*scores.values[k].tolist(), scores.total[k].item()]
        valid = [*scores.valid[k].tolist(), bool(scores.total_valid[k])]
        named = {name: value if ok else None for name, value, ok in zip(columns, values, valid, strict=True)}
        failed = [name for name, wrong in zip(scores.names, scores.failed[k].tolist(), strict=True) if wrong]
        rows.append({"file": str(file), "reward": reward.name, **named, "failed": failed})
    if args.json:
        print("\n".join(json.dumps(row) for row in rows))
    else:
        _print_scores(rows, columns)


def _print_scores(rows: list[dict[str, object]], columns: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("file", *columns)
    for row in rows:
        failed = row["failed"]
        assert isinstance(failed, list)
        cells = ["failed" if name in failed else "-" if row[name] is None else f"{row[name]:.4f}" for name in columns]
        table.add_row(str(row["file"]), *cells)
    Console().print(table)


def _prompts_of_files(args: Namespace) -> list[Prompt]:
    if args.prompt and args.prompts:
        raise UsageError("give genalign score either --prompt or --prompts FILE")
    given = list(read_prompts(args.prompts)) if args.prompts else [Prompt(t, uid=k) for k, t in enumerate(args.prompt)]
    if len(given) <= 1:
        given = (given or [Prompt("")]) * len(args.media)
    if len(given) != len(args.media):
        raise UsageError(
            f"there are {len(given)} prompts for {len(args.media)} media files; give one for all, or one each"
        )
    return given
