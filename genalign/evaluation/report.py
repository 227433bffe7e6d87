"""What a run tells: one console line a step, and report.html, one file without a single outside request."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genalign.files.atomic import replace_file
from genalign.types import GenalignError

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 460, 220, 58, 34, 26, 12  # of one chart, in px
COLOURS = ("#1f6feb", "#d1570a", "#1a7f37", "#8250df", "#bf3989", "#57606a")
Curve = list[tuple[float, float]]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em; color: #1f2328; }
table { border-collapse: collapse; margin: 1em 0; } th, td { padding: .25em .8em; border-bottom: 1px solid #d1d9e0; }
td:not(:first-child), th:not(:first-child) { text-align: right; font-variant-numeric: tabular-nums; }
tr.held td:first-child { font-weight: 600; } .best { font-weight: 700; } figure { display: inline-block; margin: .5em; }
pre { background: #f6f8fa; padding: 1em; overflow-x: auto; } img { max-width: 100%; } .note { color: #57606a; }
"""


def log_line(step: int, steps: int, log: Mapping[str, float]) -> str:
    """One line a step for the console; keys that a method does not log are left out."""
    shown = (
        ("reward", "reward", "{:.4f}"),
        ("std", "reward_std", "{:.4f}"),
        ("loss", "loss", "{:.4g}"),
        ("kl", "kl", "{:.3g}"),
        ("clip", "clip_ratio/region_mean", "{:.1%}"),
        ("acc", "rewards/accuracies", "{:.1%}"),
        ("s/step", "step_time", "{:.2f}"),
    )
    parts = [f"{name} {form.format(log[key])}" for name, key, form in shown if key in log]
    return "  ".join([f"step {step}/{steps}", *parts])


def write_report(run: Path) -> Path:
    """Write `run`/report.html from metrics.jsonl, eval.json, samples/ and recipe.yaml, whichever of them exist.

    The curve of the training reward stands beside it as reward.svg.

    Raises:
        GenalignError: metrics.jsonl or eval.json is not what a run writes.
    """
    metrics, result = read_metrics(run), read_eval(run)
    recipe = run / "recipe.yaml"
    sections = [
        f"<h1>{html.escape(run.name)}</h1>",
        _table(result)
        if result
        else '<p class="note">No evaluation yet: <code>genalign eval RUN</code> makes one.</p>',
        _sweep(result) if result else "",
        _charts(metrics) if metrics else '<p class="note">No training step was logged.</p>',
        _samples(run),
        f"<h2>Recipe</h2><pre>{html.escape(recipe.read_text(encoding='utf-8'))}</pre>" if recipe.is_file() else "",
    ]
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(run.name)}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(sections)}</body></html>\n"
    )
    path = run / "report.html"
    replace_file(path, page.encode())
    if any("reward" in row for row in metrics):
        curve = chart("reward", {"reward": _curve(metrics, "reward")})
        alone = curve.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)  # a file of its own needs it
        replace_file(run / "reward.svg", alone.encode())
    return path


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Rows of metrics.jsonl; [] where there is none. A last line torn by a kill is left out."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return []
    lines, rows = path.read_text(encoding="utf-8").splitlines(), []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise GenalignError(f"{path}, line {number} is not JSON ({error}); mend or delete that line") from error
    return rows


def read_eval(run: Path) -> dict[str, Any] | None:
    path = run / "eval.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise GenalignError(f"{path} is not JSON ({error}); run `genalign eval` again to rewrite it") from error


def chart(title: str, curves: Mapping[str, Curve]) -> str:
    """An SVG line chart with axes; points that are not finite break the line."""
    points = [point for curve in curves.values() for point in curve if math.isfinite(point[1])]
    if not points:
        return ""
    xs, ys = ticks(*_span([x for x, _ in points])), ticks(*_span([y for _, y in points]))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - LEFT - RIGHT)
        up = (y - ys[0]) / (ys[-1] - ys[0]) * (HEIGHT - TOP - BOTTOM)
        return LEFT + across, HEIGHT - BOTTOM - up

    parts = [f'<text x="{LEFT}" y="16" font-weight="600">{html.escape(title)}</text>']
    for y in ys:
        height = place(xs[0], y)[1]
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}" stroke="#e5e8eb"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in xs:
        left = place(x, ys[0])[0]
        parts.append(f'<text x="{left:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end" fill="#57606a">step</text>')
    for index, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        for piece in _pieces(curve):
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in piece))
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
            if len(piece) == 1:
                x, y = place(*piece[0])
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}"/>')
        if len(curves) > 1:
            height = TOP + 12 + 14 * index
            parts.append(f'<text x="{LEFT + 8}" y="{height}" fill="{colour}">{html.escape(name)}</text>')
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-size="11" font-family="system-ui, sans-serif">{"".join(parts)}</svg>'
    )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers, evenly spaced, that enclose [low, high]: at least two of them, steps of 1, 2 or 5 times 10^n."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, max(last, first + 1) + 1)]


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = 0.5 * (abs(low) or 1.0)
    return (low, high) if high > low else (low - pad, high + pad)


def _pieces(curve: Curve) -> list[Curve]:
    pieces: list[Curve] = [[]]
    for point in curve:
        if math.isfinite(point[1]):
            pieces[-1].append(point)
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _charts(rows: Sequence[Mapping[str, float]]) -> str:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    parts = [key for key in keys if key.startswith("rewards/") and key.endswith("/mean")]
    groups: dict[str, list[str]] = {
        "reward": ["reward"],
        "reward_std": ["reward_std"],
        "rewards/<name>/mean": parts,
        "kl": ["kl"],
        "clip_ratio": [key for key in keys if key.startswith("clip_ratio/")],
        "loss": ["loss"],
        "chosen and rejected": [
            key for key in ("rewards/chosen", "rewards/rejected", "rewards/margins") if key in keys
        ],
        "rewards/accuracies": ["rewards/accuracies"],
    }
    groups |= {key: [key] for key in keys if key.startswith("monitor/") and key != "monitor/alarm"}
    drawn = [chart(title, {key: _curve(rows, key) for key in group}) for title, group in groups.items()]
    return f"<h2>Training</h2>{''.join(f'<figure>{svg}</figure>' for svg in drawn if svg)}"


def _curve(rows: Sequence[Mapping[str, float]], key: str) -> Curve:
    return [
        (float(row.get("step", number)), float("nan") if row[key] is None else float(row[key]))
        for number, row in enumerate(rows)
        if key in row
    ]


def _table(result: Mapping[str, Any]) -> str:
    rows = []
    for name, row in sorted(result["metrics"].items(), key=lambda item: not item[1]["held_out"]):
        mark = (' class="held"', " (held-out)") if row["held_out"] else ("", "")
        low, high = row["ci95"]
        rows.append(
            f"<tr{mark[0]}><td>{html.escape(name)}{mark[1]}</td><td>{row['before']:.4f}</td><td>{row['after']:.4f}</td>"
            f"<td>{row['delta']:+.4f}</td><td>{low:+.4f} to {high:+.4f}</td></tr>"
        )
    prompts, seeds = html.escape(str(result["prompts"])), html.escape(", ".join(str(seed) for seed in result["seeds"]))
    return (
        "<h2>Before and after</h2><table><tr><th>metric</th><th>before</th><th>after</th><th>delta</th>"
        f"<th>95% interval</th></tr>{''.join(rows)}</table>"
        f'<p class="note">{prompts} prompts, sampling seeds {seeds}; base and tuned model each at its best '
        "guidance scale; paired bootstrap over prompts; held-out rewards were never optimised.</p>"
    )


def _sweep(result: Mapping[str, Any]) -> str:
    sweep = result["sweep"]
    if len(sweep["guidance"]) < 2:
        return ""
    head = "".join(f"<th>guidance {scale:g}</th>" for scale in sweep["guidance"])
    rows = []
    for name in sweep["before"]["metrics"]:
        for moment in ("before", "after"):
            best = sweep["guidance"].index(sweep[moment]["best"])
            cells = "".join(
                f"<td{' class=best' if i == best else ''}>{'-' if value is None else f'{value:.4f}'}</td>"
                for i, value in enumerate(sweep[moment]["metrics"][name])
            )
            rows.append(f"<tr><td>{html.escape(name)}, {moment}</td>{cells}</tr>")
    note = f'<p class="note">The best scale (bold) is chosen by {html.escape(sweep["headline"])}.</p>'
    return f"<h2>Guidance sweep</h2><table><tr><th>metric</th>{head}</tr>{''.join(rows)}</table>{note}"


def _samples(run: Path) -> str:
    """The first and the last grid; text samples of the last step as a table."""
    grids = sorted(run.glob("samples/step-*/grid.png"), key=_step)
    shown = [grids[i] for i in sorted({0, len(grids) - 1})] if grids else []
    pictures = "".join(
        f'<figure><img alt="base beside tuned" src="data:image/png;base64,{_inline(path)}">'
        f"<figcaption>{html.escape(path.parent.name)}: base beside tuned, same seeds</figcaption></figure>"
        for path in shown
    )
    texts = sorted(run.glob("samples/step-*/grid.jsonl"), key=_step)
    if texts:
        rows = [json.loads(line) for line in texts[-1].read_text(encoding="utf-8").splitlines()]
        cells = "".join(
            f"<tr>{''.join(f'<td>{html.escape(str(row[key]))}</td>' for key in ('prompt', 'base', 'tuned'))}</tr>"
            for row in rows
        )
        pictures += f"<table><tr><th>prompt</th><th>base</th><th>tuned</th></tr>{cells}</table>"
    return f"<h2>Samples</h2>{pictures}" if pictures else ""


def _inline(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _step(path: Path) -> int:
    return int(path.parent.name.removeprefix("step-"))
