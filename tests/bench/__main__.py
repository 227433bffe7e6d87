"""`python -m tests.bench [NAME ...]`: what things cost over what they must, printed and written to docs/benchmarks.md.

Without names all tables are made anew, which takes an hour or two of one core; with names, those sections alone.
"""

from __future__ import annotations

import contextlib
import io
import platform
import sys
from importlib import import_module
from itertools import groupby
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
SECTIONS = {  # name -> heading, and the bench
    "overhead": ("Overhead over the bare denoiser", "test_bench_policy"),
    "methods": ("What every method asks for, against its floor", "test_bench_methods"),
    "levers": ("Memory, lever by lever", "test_bench_levers"),
    "frames": ("Memory, by frames", "test_bench_memory"),
    "growth": ("Growth with steps, group, resolution and rewards", "test_bench_growth"),
    "rewards": ("Scoring beside sampling, and a step ahead", "test_bench_reward"),
    "algebra": ("Rewards made of rewards", "test_bench_algebra"),
    "sets": ("Credit of a set", "test_bench_frechet"),
    "reno": ("Searching for noise", "test_bench_reno"),
    "ranks": ("Several ranks", "test_bench_ranks"),
    "trl": ("Beside TRL", "test_bench_language"),
}


def measured(name: str) -> str:
    """What a bench prints, and where; it is shown as it comes, too."""
    bench, seen = import_module(f"tests.bench.{SECTIONS[name][1]}"), io.StringIO()

    class Both(io.TextIOBase):
        def write(self, text: str) -> int:
            sys.__stdout__.write(text)  # type: ignore[union-attr]
            sys.__stdout__.flush()  # type: ignore[union-attr]
            return seen.write(text)

    with contextlib.redirect_stdout(Both()):
        bench.main()
    where = f"torch {torch.__version__.partition('+')[0]}, {platform.machine()}, one thread"
    return f"`python -m tests.bench.{SECTIONS[name][1]}`, on {where}.\n\n{as_markdown(seen.getvalue())}"


def as_markdown(printed: str) -> str:
    """Tables as they are; runs of other lines as blocks."""
    out = []
    for table, lines in groupby(printed.splitlines(), key=lambda line: line.startswith("|")):
        text = "\n".join(lines).strip("\n")
        if text:
            out.append(text if table else f"```text\n{text}\n```")
    return "\n\n".join(out)


def put(page: str, name: str, text: str) -> str:
    """The page with this text between the section's marks."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{PAGE.name} has no marks {begin} and {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def main(names: list[str]) -> None:
    for name in names or SECTIONS:
        if name not in SECTIONS:
            raise SystemExit(f"there is no bench {name!r}; take some of {', '.join(SECTIONS)}")
        print(f"\n{SECTIONS[name][0]}\n")
        PAGE.write_text(put(PAGE.read_text(), name, measured(name)))


if __name__ == "__main__":
    main(sys.argv[1:])
