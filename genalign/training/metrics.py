"""metrics.jsonl: one line a step, appended, amended, and cut where a resumed run goes on; and what a step took."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch

from genalign.clock import PARTS, taken
from genalign.files.atomic import replace_file
from genalign.ranks import all_sum, gather
from genalign.types import GenalignError, Policy

METRICS = "metrics.jsonl"


class Clock:
    """The seconds of each part of a step (see genalign.clock), and the policy's forward passes in them."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.seconds, self.calls = policy, dict.fromkeys(PARTS, 0.0), 0
        self.skip()

    def skip(self) -> None:
        """What was done since the last lap is not what a step costs."""
        taken()
        self._before = self.policy.calls()

    def lap(self) -> None:
        for part, seconds in taken().items():
            self.seconds[part] += seconds
        self.calls += self.policy.calls() - self._before
        self._before = self.policy.calls()

    def log(self, samples: int) -> dict[str, float]:
        """Seconds of this rank; samples and passes of all ranks."""
        whole = sum(self.seconds.values())
        everywhere = all_sum(torch.tensor([samples, self.calls], dtype=torch.float64)).tolist()
        return {
            "step_time": whole,
            **{f"time/{part}": seconds for part, seconds in self.seconds.items()},
            "perf/samples_per_s": everywhere[0] / whole,
            "calls": everywhere[1],
        }


def mean_over_ranks(sums: Mapping[str, list[float]]) -> dict[str, float]:
    """Sums and counts of all ranks (a rank without rows has fewer names), as means."""
    line = json.dumps(sums).encode() + b"\n"
    gathered = bytes(gather(torch.frombuffer(bytearray(line), dtype=torch.uint8)).cpu().numpy())
    merged: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for of_rank in map(json.loads, gathered.splitlines()):
        for name, (total, count) in of_rank.items():
            merged[name][0] += total
            merged[name][1] += count
    return {name: total / count for name, (total, count) in merged.items() if count}


def append_metrics(path: Path, log: Mapping[str, float]) -> None:
    """Add a line.

    Raises:
        GenalignError: the file cannot be written.
    """
    try:
        with path.open("a") as file:
            file.write(json.dumps(log) + "\n")
    except OSError as error:
        raise GenalignError(f"cannot write {path}: {error.strerror}; free space or check its permissions") from error


def amend_metrics(path: Path, log: Mapping[str, float]) -> None:
    """Put `log` in the place of the line of its step."""
    lines = []
    for line in path.read_text().splitlines():
        is_its_line = line.endswith("}") and json.loads(line)["step"] == log["step"]
        lines.append(json.dumps(log) if is_its_line else line)
    replace_file(path, "".join(f"{line}\n" for line in lines))


def truncate_metrics(path: Path, step: int) -> None:
    """Drop lines of steps after `step`, and a line torn by a kill, so that a resumed log has each step once."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue
    replace_file(path, "".join(kept), sync=True)


def read_rows(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics file, none where there is no file; a last line torn by a kill is not a row.

    Raises:
        GenalignError: another line is not JSON.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise GenalignError(f"{path}, line {number} is not JSON ({error}); mend or delete that line") from error
    return rows
