"""A reward, bent: another unit, bounds, a slope that flattens; about a number, what is usual, or references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genalign.reward.combine.columns import failed_rows
from genalign.reward.combine.combination import Summary, choice, number
from genalign.reward.guard import guarded
from genalign.types import Media, Prompt, Reward, Scores, Track, UsageError

By = Literal["affine", "clip", "tanh", "sigmoid", "log_sigmoid"]
Against = Literal["given", "running", "range", "percentile", "references"]


class Shape(Summary):
    """f((r - centre) / scale). First column: the shaped score; then `raw`, the part's own.

    by: which f. "affine" is z itself; "clip" holds z in [low, high], one of which may be left out (with high alone: a
    ceiling); "tanh"; "sigmoid"; "log_sigmoid". against: where centre and scale come from. "given": the two settings.
    "running": mean and std of the last `window` scores. "range": their least score and their range. "percentile": that
    percentile of them, and the scale that is set. These learn in `update`; before the first the settings hold.
    "references": the scores of other answers to the same prompt, and the scale that is set; f is averaged over them.

    PAR, preference as reward ("Reward Shaping to Mitigate Reward Hacking in RLHF"), is sigmoid against references: in
    (0,1), 1/2 at parity, the slope 1 / scale steepest there. Its rivals in the authors' code are the other
    combinations: running mean and std (affine, running), +-1 std (clip -1..1, running), min-max (affine, range),
    centred (affine, references), LSC (log_sigmoid, percentile 85), a ceiling, tanh and sigmoid.

    references: which key of a prompt's facts lists them, as numbers (scores of the same part, made beforehand) or as
    texts, which the part scores. Without any the row abstains.

    A division by the std of the group undoes a bound: it stretches the flat end back. Take it with std "none".

    Departs from the paper's code: clip gives z, not r; running statistics are of a window, not of all time.
    """

    own = ("raw",)

    def __init__(
        self,
        part: Reward,
        by: By = "affine",
        *,
        against: Against = "given",
        centre: float = 0.0,
        scale: float = 1.0,
        low: float | None = None,
        high: float | None = None,
        percentile: float = 85.0,
        window: int = 1000,
        references: str = "references",
        name: str = "shape",
    ) -> None:
        super().__init__([part], name)
        self.by, self.against = choice(name, "by", by, By), choice(name, "against", against, Against)
        self.centre, self.scale = number(name, "centre", centre), number(name, "scale", scale, 1e-12)
        self.low = None if low is None else number(name, "low", low)
        self.high = None if high is None else number(name, "high", high)
        if (by == "clip") != (low is not None or high is not None):
            raise UsageError(f"reward {name!r}: low and high belong to 'by: clip', which needs at least one of them")
        if low is not None and high is not None and low >= high:
            raise UsageError(f"reward {name!r} clips to [{low:g}, {high:g}]; low must lie below high")
        self.percentile = number(name, "percentile", percentile, 0.0, 100.0)
        self.window = int(number(name, "window", window, 2.0))
        self.references = references
        if against in ("running", "range", "percentile"):
            self.state = {"recent": torch.zeros(0)}
        learnt = (self.window, self.percentile if against == "percentile" else None) if self.state else None
        named = references if against == "references" else None
        self.settings = (by, against, self.centre, self.scale, self.low, self.high, learnt, named)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | ({f"facts.{self.references}"} if self.against == "references" else set())

    def update(self, scores: Scores, step: int) -> None:
        if self.state:
            k = scores.names.index("raw")
            fresh = scores.values[scores.valid[:, k], k].detach().cpu().sort().values  # in whatever order they came
            self.state = {"recent": torch.cat([self.state["recent"], fresh])[-self.window :]}
        super().update(scores, step)

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        (scores,) = self._score_parts(prompts, media, group)
        raw, readable, failed = scores.total, scores.total_valid, failed_rows(scores)
        if self.against == "references":
            others, known, broken = self._references(prompts)
            shaped = self._bend((raw[:, None] - others) / self.scale)  # (B,M)
            total = torch.where(known, shaped, 0.0).sum(1) / known.sum(1).clamp(min=1)
            # Some references are enough; without any, the row abstains, or failed if it was scoring them that failed.
            readable, failed = readable & known.any(1), failed | (scores.total_valid & broken & ~known.any(1))
        else:
            centre, scale = self.origin()
            total = self._bend((raw - centre) / scale)
        table = self.summarise([scores], total, readable, failed, own=[raw])
        valid, values = table.valid.clone(), table.values.clone()
        valid[:, 1], values[:, 1] = scores.total_valid, raw  # the raw score stands without its references, too
        return replace(table, valid=valid, values=values)

    def origin(self) -> tuple[float, float]:
        """Centre and scale as they are now."""
        recent = self.state.get("recent", torch.zeros(0)).double()
        if len(recent) < 2:
            return self.centre, self.scale
        if self.against == "percentile":
            return float(recent.quantile(self.percentile / 100)), self.scale
        # Scores that hardly differ have no scale of their own: the one that is set stands.
        centre, scale = (recent.mean(), recent.std()) if self.against == "running" else _range(recent)
        return float(centre), float(scale) if scale > 1e-4 * recent.abs().max() else self.scale

    def _bend(self, z: Tensor) -> Tensor:
        if self.by == "clip":
            return z.clamp(self.low, self.high)
        if self.by == "affine":
            return z
        return {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "log_sigmoid": F.logsigmoid}[self.by](z)

    def _references(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (B,M) of each prompt's references, where there are any (B,M), and where scoring one failed (B,)."""
        given = [_listed(prompt.facts.get(self.references)) for prompt in prompts]
        values = torch.zeros(len(prompts), max([1, *map(len, given)]))
        valid, broken = torch.zeros_like(values, dtype=torch.bool), torch.zeros(len(prompts), dtype=torch.bool)
        texts: list[str] = []  # those that are still to be scored, with the cell of each
        cells: list[tuple[int, int]] = []
        for i, row in enumerate(given):
            for m, entry in enumerate(row):
                if isinstance(entry, int | float):
                    values[i, m], valid[i, m] = float(entry), True
                elif isinstance(entry, str):
                    texts.append(entry)
                    cells.append((i, m))
        if cells:
            with torch.no_grad():
                scores = guarded(self.parts[0], [prompts[i] for i, _ in cells], Media(text=Track(texts)), None)
            rows, columns = torch.tensor(cells).unbind(1)
            values[rows, columns], valid[rows, columns] = scores.total, scores.total_valid
            broken[rows[failed_rows(scores)]] = True
        return values, valid, broken


def _range(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.min(), values.max() - values.min()


def _listed(entry: Any) -> list[Any]:
    if entry is None:
        return []
    return list(entry) if isinstance(entry, list | tuple) else [entry]
