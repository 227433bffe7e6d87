"""What eval.json holds, as rows that a console, a page and a card can print."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genalign.types import GenalignError

HEADINGS = ("metric", "before", "after", "delta", "95% interval")
TOTAL = "/total"


@dataclass(frozen=True)
class Row:
    """One metric before and after; low and high bound the 95% interval of delta."""

    name: str
    before: float
    after: float
    delta: float
    low: float
    high: float
    held_out: bool

    @property
    def cells(self) -> tuple[str, ...]:
        """As texts, one for each of HEADINGS."""
        return (
            f"{self.name} (held-out)" if self.held_out else self.name,
            f"{self.before:.4f}",
            f"{self.after:.4f}",
            f"{self.delta:+.4f}",
            f"{self.low:+.4f} to {self.high:+.4f}",
        )


def read_eval(run: Path) -> dict[str, Any] | None:
    """`run`/eval.json; None where there is none.

    Raises:
        GenalignError: it is not JSON.
    """
    path = run / "eval.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise GenalignError(f"{path} is not JSON ({error}); run `genalign eval` again to rewrite it") from error


def rows(result: Mapping[str, Any]) -> list[Row]:
    """The metrics, the held-out ones first, each listed once; see `shown`."""
    found = []
    for name, metric in result["metrics"].items():
        if name in shown(result):
            low, high = metric["ci95"]
            found.append(
                Row(name, metric["before"], metric["after"], metric["delta"], low, high, bool(metric["held_out"]))
            )
    return sorted(found, key=lambda row: not row.held_out)


def shown(result: Mapping[str, Any]) -> list[str]:
    """Names of the metrics to print: all but `NAME/total` where aspect `NAME` is that very number.

    A combination has an aspect of its own name, which is its total, so eval.json holds both.
    """
    metrics = result["metrics"]
    return [
        name
        for name in metrics
        if not (name.endswith(TOTAL) and metrics.get(name.removesuffix(TOTAL)) == metrics[name])
    ]


def headline(result: Mapping[str, Any]) -> str:
    """The metric that chose the best guidance scales, by the name under which it is shown."""
    name = str(result["sweep"]["headline"])
    return name if name in shown(result) or name not in result["metrics"] else name.removesuffix(TOTAL)
