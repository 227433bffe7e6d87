"""The log of metrics: one line a step."""

import json
from pathlib import Path

from genalign.training.metrics import amend_metrics, append_metrics


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_amending_changes_one_line(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 12):
        append_metrics(path, {"step": step, "reward": 0.5})
    amend_metrics(path, {"step": 2, "reward": 0.5, "monitor/x": 1.0})
    assert rows(tmp_path) == [
        {"step": 1, "reward": 0.5},
        {"step": 2, "reward": 0.5, "monitor/x": 1.0},
        {"step": 12, "reward": 0.5},
    ]
