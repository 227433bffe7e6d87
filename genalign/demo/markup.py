"""HTML of the page: text that stays text, samples that are carried inside, bars, curves, and errors as a sentence."""

from __future__ import annotations

import html
import logging
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from genalign.evaluation.charts import chart, inline
from genalign.media import MEDIA, leading
from genalign.media.files import MEDIUM_OF, write_sample
from genalign.types import GenalignError, Media

log = logging.getLogger(__name__)
FOLDERS = re.compile(r"(?<![\w:/])(?:~|/)[^\s'\",;:()<>]*/(?=[^\s/])")  # of a path, all but its last name


def text(value: object) -> str:
    """As text in HTML."""
    return html.escape(str(value))


def sentence(error: Exception) -> str:
    """What the page says of an error: our own sentence, without folders of this machine; of others, that it failed."""
    if isinstance(error, GenalignError):
        return FOLDERS.sub("", " ".join(str(error).split()))
    log.error("the page met %s", type(error).__name__, exc_info=error)
    return "something failed that should not have; the terminal that runs genalign demo shows what"


def note(message: str, kind: str = "note") -> str:
    """A line of prose. kind: note or error."""
    role = ' role="alert"' if kind == "error" else ""
    return f'<p class="{kind}"{role}>{text(message)}</p>'


def refused(error: Exception) -> str:
    return note(sentence(error), "error")


def or_sentence(function: Callable[..., str]) -> Callable[..., str]:
    """The function, whose errors become what it returns."""

    @wraps(function)
    def guarded(*given: Any) -> str:
        try:
            return function(*given)
        except Exception as error:
            return refused(error)

    return guarded


def sample(media: Media, row: int, label: str) -> str:
    """One sample, carried inside the page: no file of this machine has an address."""
    with tempfile.TemporaryDirectory() as folder:
        file = write_sample(media, row, Path(folder) / "sample")
        return element(file, leading(media), label)


def element(file: Path, medium: str, label: str) -> str:
    """A file's sample, carried inside. label: what a screen reader says."""
    if medium == "text":
        return f"<blockquote>{text(file.read_text(encoding='utf-8'))}</blockquote>"
    return MEDIA[medium].element(file.parent, file.name, label)


def medium_of(file: Path) -> str:
    """The medium of a file by its suffix."""
    return MEDIUM_OF[file.suffix.lower()]


def bars(rows: Iterable[tuple[str, float | None, float, float]]) -> str:
    """(name, value, low, high) a line: a bar from low to high and the number; None: it abstains.

    A part of what stands above, NAME/PART, is set in and called PART.
    """
    lines, above = [], ""
    for name, value, low, high in rows:
        inside = bool(above) and name.startswith(f"{above}/")
        above = above if inside else name
        shown, kind = (name.removeprefix(f"{above}/"), "bar part") if inside else (name, "bar")
        share = (value - low) / (high - low) if value is not None and high > low else 0.0
        number = '<b title="abstains">–</b>' if value is None else f"<b>{value:.2f}</b>"
        lines.append(
            f'<div class="{kind}"><span title="{text(name)}">{text(shown)}</span>'
            f'<i style="--share:{min(max(share, 0), 1):.3f}"></i>{number}</div>'
        )
    return "".join(lines)


def curve(title: str, curves: Mapping[str, Sequence[tuple[float, float]]], along: str) -> str:
    """A chart as SVG; "" where there is nothing to draw."""
    drawn = chart(title, curves, along=along)
    return f'<figure class="chart">{inline(drawn, 0)}</figure>' if drawn else ""


def progress(done: float, said: str) -> str:
    """done: in [0,1]."""
    share = f"{min(max(done, 0), 1):.3f}"
    return (
        f'<div class="progress" role="progressbar" aria-label="progress" aria-valuenow="{round(done * 100)}" '
        f'aria-valuemin="0" aria-valuemax="100"><i style="--share:{share}"></i></div>{note(said)}'
    )


def seconds_left(done: float, spent: float) -> str:
    """How long a work of which the share `done` took `spent` seconds goes on."""
    if not 0 < done < 1:
        return ""
    left = round(spent / done * (1 - done))
    return f", {left // 60}:{left % 60:02d} left"


def count(number: int, one: str, many: str = "") -> str:
    """As in "1 vote", "2 votes"."""
    return f"{number} {one if number == 1 else many or one + 's'}"
