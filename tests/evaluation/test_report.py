"""The report is one page that asks nothing of the outside, shows every number, and survives half a run."""

import base64
import itertools
import json
import math
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from genalign.evaluation.report import chart, log_line, read_metrics, ticks, write_report
from genalign.types import GenalignError

EVAL = {
    "prompts": 12,
    "seeds": [0, 1],
    "metrics": {
        "hybrid/total": {"before": 0.5, "after": 0.75, "delta": 0.25, "ci95": [0.2, 0.3], "held_out": False},
        "judge/all_facts": {"before": 0.4, "after": 0.6, "delta": 0.2, "ci95": [0.11, 0.29], "held_out": True},
    },
    "sweep": {
        "guidance": [1.0, 3.0],
        "steps": 10,
        "headline": "judge/all_facts",
        "weights": "policy",
        "before": {"best": 3.0, "metrics": {"hybrid/total": [0.3, 0.5], "judge/all_facts": [0.1, 0.4]}, "failed": {}},
        "after": {"best": 1.0, "metrics": {"hybrid/total": [0.75, 0.7], "judge/all_facts": [0.6, None]}, "failed": {}},
    },
}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags close in order."""

    VOID = frozenset({"meta", "img", "line", "circle", "polyline"})

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.words = [], [], []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "image-d3po-20260101-000000"
    for step, colour in ((0, "red"), (10, "green"), (9, "blue")):
        (folder / f"samples/step-{step}").mkdir(parents=True)
        Image.new("RGB", (4, 4), colour).save(folder / f"samples/step-{step}/grid.png")
    rows = [
        {"step": i, "reward": 0.1 * i, "kl": 0.01, "rewards/<b>/mean": 1.0, "clip_ratio/region_mean": 0.2}
        for i in range(4)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "eval.json").write_text(json.dumps(EVAL))
    (folder / "recipe.yaml").write_text("policy:\n  model: <script>alert(1)</script> & co\n")
    return folder


def test_page_is_whole_self_contained_and_escaped(run):
    text = write_report(run).read_text()
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "href", "srcset", "data"):
            assert attributes.get(name, "data:").startswith(("data:", "#"))
    assert not re.search(r"url\(|@import|https?://", text)
    words = "".join(page.words)
    assert "<script>alert(1)</script> & co" in words
    for number in ("0.4000", "0.6000", "+0.2000", "+0.1100 to +0.2900", "0.7500"):
        assert number in words
    assert words.index("judge/all_facts") < words.index("hybrid/total")  # the held-out judge leads


def test_first_and_last_grid_are_inside(run):
    text = write_report(run).read_text()
    shown = [base64.b64decode(part) for part in re.findall(r"data:image/png;base64,([^\"]+)", text)]
    wanted = [(run / f"samples/step-{step}/grid.png").read_bytes() for step in (0, 10)]  # 10 is later than 9
    assert shown == wanted


def test_sweep_marks_each_moment_at_its_own_best(run):
    text = write_report(run).read_text()
    assert re.search(r"judge/all_facts, before</td><td>0.1000</td><td class=best>0.4000</td>", text)
    assert re.search(r"judge/all_facts, after</td><td class=best>0.6000</td><td>-</td>", text)


def test_half_a_run_has_a_report(tmp_path):
    page = Page(write_report(tmp_path).read_text())
    assert "No evaluation yet" in "".join(page.words)
    assert not [tag for tag, _ in page.tags if tag == "svg"]


def test_torn_last_line_is_left_out_but_a_broken_middle_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "reward": 1.0}\n{"step": 1, "rew')
    assert read_metrics(tmp_path) == [{"step": 0, "reward": 1.0}]
    path.write_text('{"step": 0\n{"step": 1, "reward": 1.0}\n')
    with pytest.raises(GenalignError, match="line 1"):
        read_metrics(tmp_path)


def test_chart_places_points_on_its_own_axes():
    """Oracle: the tick labels and their pixel positions define the map that every point must obey."""
    curve = [(0.0, -0.013), (5.0, 0.021), (20.0, 0.05)]
    svg = chart("reward", {"reward": curve})
    rows = {float(v): float(y) - 4 for y, v in re.findall(r'y="([\d.]+)" text-anchor="end">([-\d.e]+)<', svg)}
    columns = {float(v): float(x) for x, v in re.findall(r'x="([\d.]+)" y="\d+" text-anchor="middle">([-\d.e]+)<', svg)}
    points = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]+)"', svg)[1].split()]

    def on(axis, value):
        (low, at_low), (high, at_high) = min(axis.items()), max(axis.items())
        return at_low + (value - low) / (high - low) * (at_high - at_low)

    for (x, y), (left, top) in zip(curve, points, strict=True):
        assert left == pytest.approx(on(columns, x), abs=0.11)
        assert top == pytest.approx(on(rows, y), abs=0.11)


def test_chart_breaks_at_values_that_are_no_numbers():
    svg = chart("kl", {"kl": [(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.0), (4, 1.5)]})
    assert svg.count("<polyline") == 2
    assert chart("kl", {"kl": [(0, math.nan)]}) == ""


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-0.3, 0.2), (1e-7, 3e-7), (0, 3e-15), (0, 1237), (5.0, 5.0001), (-1, -0.5)]
)
def test_ticks_are_round_and_enclose(low, high):
    marks = ticks(low, high)
    steps = {round((b - a) / (marks[1] - marks[0]), 6) for a, b in itertools.pairwise(marks)}
    mantissa = float(f"{marks[1] - marks[0]:e}".split("e")[0])
    assert marks[0] <= low + 1e-9 * (high - low)
    assert marks[-1] >= high - 1e-9 * (high - low)
    assert 2 <= len(marks) <= 8
    assert steps == {1.0}
    assert round(mantissa, 4) in (1.0, 2.0, 5.0, 10.0)


def test_log_line_tells_what_there_is():
    line = log_line(
        3, 40, {"reward": 0.51234, "reward_std": 0.1, "kl": 0.0123, "clip_ratio/region_mean": 0.25, "step_time": 1.5}
    )
    assert line == "step 3/40  reward 0.5123  std 0.1000  kl 0.0123  clip 25.0%  s/step 1.50"
    assert log_line(1, 2, {"loss": 0.693147}) == "step 1/2  loss 0.6931"
