"""What a run shows: one console line a step, and report.html, one file without a single outside request."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any

from genalign.evaluation.charts import SMOOTH_FROM, chart, inline, window
from genalign.evaluation.results import HEADINGS, headline, read_eval, rows, shown
from genalign.evaluation.summary import lead_in, sentence
from genalign.files.atomic import replace_file
from genalign.files.untrusted import neighbour
from genalign.media import MEDIA, image
from genalign.media.sheet import read_pairs
from genalign.training.metrics import METRICS, read_rows

PLAYED = 24 << 20  # bytes of sounds and videos that a report carries
CHARTS = {  # title: the log keys that are its curves; a group in brackets is what the legend shows of them
    "reward": "reward",
    "reward_std": "reward_std",
    "rewards/<name>/mean": "rewards/(.+)/mean",
    "kl": "kl",
    "clip_ratio": "clip_ratio/(.+)",
    "loss": "loss",
    "chosen and rejected": "rewards/(chosen|rejected|margins)",
    "rewards/accuracies": "rewards/accuracies",
}

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em; color: #1f2328; }
table { border-collapse: collapse; margin: 1em 0; } th, td { padding: .25em .8em; border-bottom: 1px solid #d1d9e0; }
td:not(:first-child), th:not(:first-child) { text-align: right; font-variant-numeric: tabular-nums; }
tr.held td:first-child { font-weight: 600; } .best { font-weight: 700; }
figure { display: inline-block; margin: .5em; vertical-align: top; }
pre { background: #f6f8fa; padding: 1em; overflow-x: auto; } img, svg, video { max-width: 100%; }
.note { color: #57606a; }
figcaption { color: #57606a; } table.samples td { text-align: left; vertical-align: top; overflow-wrap: anywhere; }
audio, table.samples video { width: 16em; }
"""


def log_line(step: int, steps: int, log: Mapping[str, float], held_out: Sequence[str] = ()) -> str:
    """One line a step for the console; keys that a method does not log are left out.

    held_out: rewards that a monitor follows, shown where the step had a look at them.
    """
    shown = (
        ("smoothed reward", "smoothed", "{:.4f}"),
        ("reward", "reward", "{:.4f}"),
        ("std", "reward_std", "{:.4f}"),
        ("loss", "loss", "{:.4g}"),
        ("kl", "kl", "{:.3g}"),
        ("clip", "clip_ratio/region_mean", "{:.1%}"),
        ("acc", "rewards/accuracies", "{:.1%}"),
        ("s/step", "step_time", "{:.2f}"),
    )
    parts = [f"{name} {form.format(log[key])}" for name, key, form in shown if key in log]
    parts += [f"held-out {name} {log[f'monitor/{name}']:.4f}" for name in held_out if f"monitor/{name}" in log]
    return "  ".join([f"step {step}/{steps}", *parts])


class Smoothed:
    """What the console shows of the rewards of steps whose prompts differ: their average, the last steps counting most.

    Weights fall by `DECAY` a step back and sum to 1 from the first step on (Adam's bias correction, arXiv 1412.6980,
    section 3). NaN is left out.
    """

    DECAY = 0.9

    def __init__(self, rewards: Iterable[float] = ()) -> None:
        self._sum = self._weight = 0.0
        for reward in rewards:
            self.add(reward)

    def add(self, reward: float) -> float:
        """The average after one more step; NaN as long as no step had a reward."""
        if not isnan(reward):
            self._sum = self.DECAY * self._sum + reward
            self._weight = self.DECAY * self._weight + 1
        return self._sum / self._weight if self._weight else nan

    def shown(self, log: Mapping[str, float]) -> dict[str, float]:
        """A step's log with the average in the place of its reward."""
        rest = {name: value for name, value in log.items() if name != "reward"}
        return {**rest, "smoothed": self.add(log["reward"])} if "reward" in log else rest


def write_report(run: Path) -> Path:
    """Write `run`/report.html from metrics.jsonl, eval.json, suites/, samples/ and recipe.yaml, whichever exist.

    The curve of the training reward stands beside it as reward.svg.

    Raises:
        GenalignError: metrics.jsonl or eval.json is not what a run writes.
    """
    recipe = run / "recipe.yaml"
    parts = [f"<h1>{html.escape(run.name)}</h1>", *sections(run)]
    if recipe.is_file():
        parts.append(f"<h2>Recipe</h2><pre>{html.escape(recipe.read_text(encoding='utf-8'))}</pre>")
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(run.name)}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    path = run / "report.html"
    replace_file(path, page.encode())
    curve = chart("reward", {"reward": _curve(read_rows(run / METRICS), "reward")}, smooth=True)
    if curve:
        replace_file(run / "reward.svg", curve.encode())
    return path


def sections(run: Path) -> list[str]:
    """Evaluation, suites, curves and samples of a run as HTML: all text escaped, all media carried inside.

    Raises:
        GenalignError: metrics.jsonl or eval.json is not what a run writes.
    """
    metrics, result = read_rows(run / METRICS), read_eval(run)
    return [
        _table(result, lead_in(metrics))
        if result
        else '<p class="note">No evaluation yet: <code>genalign eval RUN</code> makes one.</p>',
        _sweep(result) if result else "",
        _suites(run),
        training(metrics) if metrics else '<p class="note">No training step was logged.</p>',
        _samples(run),
    ]


def training(metrics: Sequence[Mapping[str, float]]) -> str:
    """The curves of a training as HTML."""
    keys = list(dict.fromkeys(key for row in metrics for key in row))
    drawn = []
    for title, pattern in CHARTS.items():
        curves = {}
        for key in keys:
            match = re.fullmatch(pattern, key)
            if match:
                curves[next(iter(match.groups()), key)] = _curve(metrics, key)
        drawn.append(chart(title, curves, smooth=True))
    drawn += _looks(metrics, [key for key in keys if key.startswith("monitor/") and key != "monitor/alarm"])
    figures = [f"<figure>{inline(svg, number)}</figure>" for number, svg in enumerate(filter(None, drawn))]
    note = ""
    if len(metrics) >= SMOOTH_FROM:
        note = (
            '<p class="note">Pale: each step, whose prompts are new. Dark: the mean of the '
            f"{window(len(metrics))} steps around it.</p>"
        )
    return f"<h2>Training</h2>{note}{''.join(figures)}"


def _looks(metrics: Sequence[Mapping[str, float]], keys: Sequence[str]) -> list[str]:
    """A chart of each thing that a monitor follows; the aspects of a reward stand in the chart of that reward."""
    together: dict[str, list[str]] = {}
    for key in keys:
        whole = next((title for title in together if key.startswith(f"{title}/")), key)
        together.setdefault(whole, []).append(key)
    drawn = []
    for title, curves in together.items():
        named = {key.removeprefix(f"{title}/"): _curve(metrics, key) for key in curves}
        drawn.append(chart(title, named))
    return drawn


def _curve(metrics: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    return [
        (float(row.get("step", number)), float("nan") if row[key] is None else float(row[key]))
        for number, row in enumerate(metrics)
        if key in row
    ]


def _table(result: Mapping[str, Any], begin: str) -> str:
    swept = len(result["sweep"]["guidance"]) > 1
    return (
        f"<h2>Before and after</h2><p>{html.escape(sentence(result, begin))}</p>{_metrics(result)}"
        f'<p class="note">{_drawn(result)}; '
        f"{'base and tuned model each at its best guidance scale; ' if swept else ''}"
        "paired bootstrap over prompts; held-out rewards were never optimised.</p>"
    )


def _suites(run: Path) -> str:
    """What `genalign eval --suite` measured, each suite by its name."""
    parts = []
    for folder in sorted(path for path in run.glob("suites/*") if path.is_dir()):
        result = read_eval(folder)
        if result is not None:
            note = f'<p class="note">{_drawn(result)}.</p>'
            parts.append(f"<h3>{html.escape(folder.name)}</h3>{_metrics(result)}{note}")
    return f"<h2>Suites</h2>{''.join(parts)}" if parts else ""


def _metrics(result: Mapping[str, Any]) -> str:
    lines = [_row("th", HEADINGS)]
    lines += [_row("td", row.cells, ' class="held"' if row.held_out else "") for row in rows(result)]
    return f"<table>{''.join(lines)}</table>"


def _drawn(result: Mapping[str, Any]) -> str:
    return html.escape(f"{result['prompts']} prompts, sampling seeds {', '.join(map(str, result['seeds']))}")


def _row(tag: str, cells: Iterable[str], marks: str = "") -> str:
    return f"<tr{marks}>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _sweep(result: Mapping[str, Any]) -> str:
    sweep = result["sweep"]
    if len(sweep["guidance"]) < 2:
        return ""
    head = "".join(f"<th>guidance {scale:g}</th>" for scale in sweep["guidance"])
    lines = []
    for name in sweep["before"]["metrics"]:
        if name in result["metrics"] and name not in shown(result):
            continue
        for moment in ("before", "after"):
            best = sweep["guidance"].index(sweep[moment]["best"])
            cells = ""
            for place, value in enumerate(sweep[moment]["metrics"][name]):
                cells += f"<td{' class=best' if place == best else ''}>{'-' if value is None else f'{value:.4f}'}</td>"
            lines.append(f"<tr><td>{html.escape(name)}, {moment}</td>{cells}</tr>")
    note = f'<p class="note">The best scale (bold) is chosen by {html.escape(headline(result))}.</p>'
    return f"<h2>Guidance sweep</h2><table><tr><th>metric</th>{head}</tr>{''.join(lines)}</table>{note}"


def _samples(run: Path) -> str:
    """The first and the last grid, and the samples that are listed beside the last: texts, sounds, videos."""
    grids = sorted(run.glob("samples/step-*/grid.png"), key=_step)
    parts = []
    for path in dict.fromkeys([*grids[:1], *grids[-1:]]):
        caption = f"{html.escape(path.parent.name)}: base beside tuned, same seeds"
        moving = path.with_suffix(".webp")  # of videos, above the same as frames in time from left to right
        files = [file for file in (moving, path) if file.is_file()]
        pictures = "<br>".join(image.element(path.parent, file.name, "base beside tuned") for file in files)
        parts.append(f"<figure>{pictures}<figcaption>{caption}</figcaption></figure>")
    listed = players(run, PLAYED)
    if listed:
        lines = [
            f"<tr><td>{html.escape(prompt)}</td><td>{base}</td><td>{tuned}</td></tr>" for prompt, base, tuned in listed
        ]
        head = _row("th", ("prompt", "base", "tuned"))
        parts.append(f'<table class="samples">{head}{"".join(lines)}</table>')
    return f"<h2>Samples</h2>{''.join(parts)}" if parts else ""


def players(run: Path, limit: int) -> list[tuple[str, str, str]]:
    """(prompt, base, tuned) of the last step's listed samples, the latter two as HTML that shows or plays them.

    Files are carried inside, up to `limit` bytes of them together; what is beyond is named.
    """
    lists = sorted(run.glob("samples/step-*/grid.jsonl"), key=_step)
    found = []
    for row in read_pairs(lists[-1]) if lists else []:
        medium, cells = MEDIA[row["medium"]], []
        for which in ("base", "tuned"):
            file = neighbour(lists[-1].parent, str(row[which]), str(lists[-1])) if row["is_file"] else None
            if file is not None and not file.is_file():
                cells.append(html.escape(f"{row[which]} is missing"))
                continue
            size = 0 if file is None else file.stat().st_size
            if size > limit:
                cells.append(html.escape(f"{row[which]} ({size / 2**20:.1f} MiB), too large to be carried here"))
                continue
            limit -= size
            cells.append(medium.element(lists[-1].parent, str(row[which]), f"{which}: {row['prompt']}"))
        found.append((str(row["prompt"]), cells[0], cells[1]))
    return found


def _step(path: Path) -> int:
    return int(path.parent.name.removeprefix("step-"))
