"""`genalign sample`: samples written to a folder as files, plain ones, rollouts, or what searches find."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from genalign.cli.sample import PLAIN, Sample, listed, open_source, rows_of, sample
from genalign.cli.search import print_searches, search, searches_of
from genalign.media.files import write_sample, written_for
from genalign.types import UsageError


def sample_files(
    source: str,
    prompts: str | Path,
    out: Path,
    *,
    overrides: Sequence[str] = (),
    n: int = 1,
    seed: int = 0,
    guidance: float | None = None,
    steps: int | None = None,
    base: bool = False,
    rollout: bool = False,
    searches: Sequence[str] = (),
    rewards: Sequence[str] = (),
    budget: float | None = None,
) -> None:
    """Write `out`/00000.png ... and `out`/samples.jsonl, and print how many, and the table of a search.

    A rollout also writes `out`/trajectories/, and in samples.jsonl the digests that labelled pairs carry. A search
    writes its best samples, with their scores; a recipe whose method is a search is one, whatever `searches` names.
    """
    given = listed(prompts)
    rows_of(given, n, seed)  # refuses a wrong n before anything is written
    if steps is not None and steps < 1:
        raise UsageError(f"--steps is {steps}; it must be at least 1")
    if rollout and (guidance is not None or steps is not None):
        raise UsageError("--rollout samples as the recipe says; drop --guidance and --steps, or set them in the recipe")
    opened = open_source(source, overrides)
    _claim(out)
    if found := searches_of(opened.built, searches, rewards, budget):
        if rollout:
            raise UsageError(
                "--rollout draws as training does, and training does not search; drop --search or --rollout"
            )
        run = search(
            opened,
            given,
            searches=searches,
            rewards=rewards,
            budget=budget,
            n=n,
            seed=seed,
            guidance=guidance,
            steps=steps,
            base=base,
        )
        count = _write(run, out, named=len(found) > 1)
        print_searches(run.table(), run.reward.name, len(given) * n)
    else:
        stored = out / "trajectories" if rollout else None
        drawn = sample(opened, given, n=n, seed=seed, guidance=guidance, steps=steps, base=base, trajectories=stored)
        count = _write(drawn, out)
    print(f"{count} samples in {out}")


def _claim(out: Path) -> None:
    """Make the folder and see that it can be written and holds no samples, before weights load."""
    index = out / "samples.jsonl"
    try:
        out.mkdir(parents=True, exist_ok=True)
        with index.open("a"):
            pass
        taken = index.stat().st_size > 0
    except OSError as error:
        raise UsageError(f"cannot write {out} ({error.strerror}); choose another folder with --out") from error
    if taken:
        raise UsageError(f"{out} already holds samples; choose another --out, or remove them first")


def _write(samples: Iterable[Sample], out: Path, named: bool = False) -> int:
    """Write samples and their index as they come; the plain ones that a search is compared with are left out.

    named: files are called after their search.
    """
    counts: dict[str | None, int] = {}
    with (out / "samples.jsonl").open("w") as index:
        for one in samples:
            if one.search == PLAIN:
                continue
            number = counts[one.search] = counts.get(one.search, -1) + 1
            file = write_sample(one.media, 0, out / (f"{one.search}-{number:05d}" if named else f"{number:05d}"))
            row: dict[str, Any] = {"file": file.name, "prompt": one.prompt.text, "facts": dict(one.prompt.facts)}
            row["seed"] = one.seed
            if one.search is not None:
                row |= {"search": one.search, "score": one.score}
            elif (written := written_for(one.media, 0)) is not None:  # by policy.writer
                row["told"] = written
            index.write(json.dumps(row | dict(one.digests)) + "\n")
    return sum(number + 1 for number in counts.values())
