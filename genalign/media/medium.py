"""What every medium can do, so that no other file need ask which one it has before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

Row = Any  # one row of Track.held: (3,H,W), (F,3,H,W), as floats or levels uint8; (C,N); or a str
Sound = tuple[Tensor, float | None]  # a wave (C,N) and its rate
Sounds = tuple[Sequence[Sound], Sequence[Sound]]  # of the base's rows and of the tuned policy's


class Medium(Protocol):
    """One modality of types.Media; the modules image, video, audio and text are each one.

    NOUN: what sentences call one of it. SUFFIXES: of the files that `read` takes, the first of which `write` writes.
    RANGE: the values a row may have, with room for rounding; None for text.
    """

    NOUN: str
    SUFFIXES: tuple[str, ...]
    RANGE: tuple[float, float] | None

    def read(self, path: Path) -> tuple[Row, float | None]:
        """A file as a row, and its rate: frames or samples a second.

        Raises:
            UsageError: it is missing, damaged, or something else.
        """
        ...

    def cell(self, value: Any, root: Path, where: str) -> tuple[Row, float | None]:
        """What a table holds in one cell (a file below `root`, bytes, an object of datasets), as `read` gives it.

        Raises:
            UsageError: it is not of this medium, or not below `root`; the sentence begins with `where` or names the
            file.
        """
        ...

    def write(self, row: Row, rate: float | None, path: Path, sound: Sound | None = None) -> Path:
        """Write one row as a whole or not at all; folders on the way are made. Returns the file, with its suffix.

        sound: a wave (C,N) and its rate that belong to the row, where the file can hold one.
        """
        ...

    def sheet(
        self,
        base: Sequence[Row],
        tuned: Sequence[Row],
        drawn: Sequence[tuple[str, int]],
        path: Path,
        rate: float | None,
        sounds: Sounds | None = None,
    ) -> Path:
        """Base beside tuned for each (prompt, seed) of `drawn`, as one file at `path`, whose suffix it may change.

        sounds: what belongs to the rows of either, where the medium's files can hold it.
        """
        ...

    def symptoms(self, rows: Sequence[Row]) -> dict[str, float]:
        """What hacked or broken samples often show, as means over rows."""
        ...

    def distance(self, first: Row, second: Row) -> float:
        """How unlike two samples of one prompt are: root mean squared, or the share of words not in common."""
        ...

    def extent(self, row: Row, rate: float | None) -> float:
        """How much there is of it: bytes as PNG, frames, seconds, words."""
        ...

    def decode(self, given: Any, rate: float | None, budget: Budget) -> tuple[Row, float | None]:
        """A row as a JSON request carries it: base64 of PNG, a list of such, base64 of FLAC, or a text. `rate`: what
        the request says of its videos, whose pictures do not tell it.

        Raises:
            ValueError, OSError: it is something else, or unpacks to more than the budget.
        """
        ...

    def element(self, folder: Path, shown: str, label: str) -> str:
        """HTML that shows what a sheet's list has: a file of `folder`, which is carried inside, or a text itself."""
        ...


def is_finite(row: Row) -> bool:
    """Whether a row, or a tensor of rows, holds numbers only; a text does.

    By its extremes, which NaN takes over: a twentieth of the time of isfinite.
    """
    if not isinstance(row, Tensor) or not row.numel() or not row.is_floating_point():
        return True
    return all(bool(edge.isfinite()) for edge in torch.aminmax(row.detach()))


@dataclass
class Budget:
    """Pixels and samples that one request may still unpack to, however small its files."""

    left: int

    def take(self, count: int) -> None:
        """Spend before anything is decoded.

        Raises:
            ValueError: not so many are left.
        """
        if count > self.left:
            raise ValueError("the media of a request have more pixels or samples than this server unpacks at once")
        self.left -= count
