"""Curves of a training as SVG, drawn by matplotlib."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

WIDTH, HEIGHT, LEGEND_LINE = 460, 210, 15  # of a chart, and of each line of its legend, in CSS px
COLOURS = ("#1f6feb", "#d1570a", "#1a7f37", "#8250df", "#bf3989", "#57606a")
DASHES = ("-", "--", ":")  # of the first six curves, the next six ...
SMOOTH_FROM = 20  # steps: fewer are drawn as they are
INCH = 96  # CSS px
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "genalign",  # the same curves make the same file
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8c959f",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#e5e8eb",
    "grid.linewidth": 0.6,
    "xtick.color": "#8c959f",
    "ytick.color": "#8c959f",
    "xtick.labelcolor": "#1f2328",
    "ytick.labelcolor": "#1f2328",
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "path.simplify": False,
}
Curve = Sequence[tuple[float, float]]


def chart(title: str, curves: Mapping[str, Curve], smooth: bool = False, along: str = "step") -> str:
    """A line chart over steps, or over what `along` says, as an SVG file; "" where no point is finite.

    Points that are not finite break a line. With `smooth` the mean over the neighbouring steps (see `window`) lies over
    the curve itself, which turns pale. Several curves have a legend below, in the order of their colours.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    if not any(np.isfinite(y) for curve in curves.values() for _, y in curve):
        return ""
    columns = 1 if max(map(len, curves)) > 28 else 2
    lines = -(-len(curves) // columns) if len(curves) > 1 else 0
    size = (WIDTH / INCH, (HEIGHT + lines * LEGEND_LINE) / INCH)
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing"
        )  # the text is drawn by whoever shows it, in their own fonts
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.set_title(title, parse_math=False)
        axes.set_xlabel(along, loc="right", color="#57606a", labelpad=1)
        for number, curve in enumerate(curves.values()):
            _draw(axes, curve, f"curve-{number}", smooth, 0.35 if len(curves) == 1 else 0.18, **_pen(number))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        if lines:
            keys = [Line2D([], [], **_pen(number)) for number in range(len(curves))]
            legend = figure.legend(
                keys, [f" {name}" for name in curves], loc="outside lower left", ncols=columns, frameon=False,
                handlelength=1.2, labelspacing=0.2, borderaxespad=0.2, borderpad=0,
            )  # fmt: skip
            for text in legend.get_texts():
                text.set_parse_math(False)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue().replace("'DejaVu Sans'", "system-ui")


def _pen(number: int) -> dict[str, Any]:
    around, colour = divmod(number, len(COLOURS))
    return {"color": COLOURS[colour], "linestyle": DASHES[around % len(DASHES)]}


def _draw(axes: Any, curve: Curve, name: str, smooth: bool, pale: float, **pen: Any) -> None:
    steps, values = np.array(curve, dtype=float).reshape(-1, 2).T
    finite = np.isfinite(values)
    values = np.where(finite, values, np.nan)
    over = smooth and len(values) >= SMOOTH_FROM
    axes.plot(steps, values, linewidth=0.8 if over else 1.3, alpha=pale if over else 1, gid=name, **pen)
    neighbours = np.pad(finite, 1)
    alone = finite & ~neighbours[:-2] & ~neighbours[2:]  # a line cannot show them
    if alone.any():
        axes.plot(steps[alone], values[alone], ".", color=pen["color"], markersize=3, gid=f"{name}-alone")
    if over:
        axes.plot(steps, smoothed(values), linewidth=1.6, gid=f"{name}-smooth", **pen)


def window(count: int) -> int:
    """How many neighbouring values `smoothed` takes of `count`: a tenth of them, odd, and at least 5."""
    return max(5, count // 10) | 1


def smoothed(values: np.ndarray) -> np.ndarray:
    """(N,) -> (N,): the mean of the finite values around each one, fewer of them at the ends; NaN where it is NaN."""
    finite, width = np.isfinite(values), np.ones(window(len(values)))
    half = len(width) // 2
    sums = np.convolve(np.where(finite, values, 0.0), width)[half : half + len(values)]
    counts = np.convolve(finite.astype(float), width)[half : half + len(values)]
    return np.where(finite, sums / np.maximum(counts, 1), np.nan)


def inline(svg: str, number: int) -> str:
    """An SVG file as an element of an HTML page: without XML's prologue and names of schemas, its ids made unique."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'\bid="', f'id="chart{number}-', svg)
    svg = re.sub(r'href="#', f'href="#chart{number}-', svg)
    return re.sub(r"url\(#", f"url(#chart{number}-", svg).replace("xlink:href", "href").strip()
