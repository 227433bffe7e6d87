"""Charts hold the points that they were given, where their own axes say."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from genalign.evaluation.charts import SMOOTH_FROM, chart, inline, smoothed, window

SVG = "{http://www.w3.org/2000/svg}"


def group(root, name):
    return next(node for node in root.iter(f"{SVG}g") if node.get("id") == name)


def axis(root, kind: str) -> dict[float, float]:
    """Tick label -> place, of `xtick` or `ytick`."""
    found = {}
    for node in root.iter(f"{SVG}g"):
        if re.fullmatch(rf"{kind}_\d+", node.get("id", "")):
            label = next(node.iter(f"{SVG}text")).text.replace("\N{MINUS SIGN}", "-")
            found[float(label)] = float(next(node.iter(f"{SVG}use")).get("x" if kind == "xtick" else "y"))
    return found


def points(root, name: str) -> list[tuple[str, float, float]]:
    path = next(group(root, name).iter(f"{SVG}path")).get("d")
    return [(pen, float(x), float(y)) for pen, x, y in re.findall(r"([ML]) ([-\d.]+) ([-\d.]+)", path)]


def texts(root) -> list[str]:
    return [node.text for node in root.iter(f"{SVG}text")]


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1237.0])
def test_points_stand_where_the_ticks_say(scale: float) -> None:
    curve = [(0.0, -0.013 * scale), (5.0, 0.021 * scale), (20.0, 0.05 * scale)]
    root = ElementTree.fromstring(chart("reward", {"reward": curve}))
    columns, lines = axis(root, "xtick"), axis(root, "ytick")
    power = [float(text.replace("\N{MINUS SIGN}", "-")) for text in texts(root) if text.startswith("1e")]
    lines = {label * (power or [1.0])[0]: place for label, place in lines.items()}
    assert min(len(columns), len(lines)) >= 3
    for (x, y), (_, left, top) in zip(curve, points(root, "curve-0"), strict=True):
        assert left == pytest.approx(np.polyval(np.polyfit(list(columns), list(columns.values()), 1), x), abs=0.05)
        assert top == pytest.approx(np.polyval(np.polyfit(list(lines), list(lines.values()), 1), y), abs=0.05)


def test_a_line_breaks_at_values_that_are_no_numbers_and_a_lone_point_is_a_dot() -> None:
    curve = [(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.0), (4, math.inf), (5, 1.0), (6, 1.5)]
    root = ElementTree.fromstring(chart("kl", {"kl": curve}))
    assert [pen for pen, *_ in points(root, "curve-0")] in (["M", "L", "M", "M", "L"], ["M", "L", "M", "L"])
    assert len(list(group(root, "curve-0-alone").iter(f"{SVG}use"))) == 1
    assert chart("kl", {"kl": [(0, math.nan)]}) == ""
    assert chart("kl", {}) == ""
    assert chart("kl", {"kl": []}) == ""


def test_the_smoothed_line_lies_over_the_curve_itself() -> None:
    values = np.sin(np.arange(60.0)) + np.arange(60.0)
    root = ElementTree.fromstring(chart("reward", {"reward": list(enumerate(values))}, smooth=True))
    raw, over = (np.array([y for *_, y in points(root, name)]) for name in ("curve-0", "curve-0-smooth"))
    assert len(raw) == len(over) == 60
    drawn = [node.get("id") for node in root.iter(f"{SVG}g")]
    assert drawn.index("curve-0-smooth") > drawn.index("curve-0")
    half = window(60) // 2
    means = [raw[k - half : k + half + 1].mean() for k in range(half, 60 - half)]  # the map is linear
    np.testing.assert_allclose(over[half : 60 - half], means, atol=1e-3)
    short = list(enumerate(values[: SMOOTH_FROM - 1]))
    assert "curve-0-smooth" not in chart("reward", {"reward": short}, smooth=True)


def test_smoothing_by_hand() -> None:
    """window(9) is 5: two on either side, of which those that are numbers count."""
    assert (window(9), window(100), window(1000)) == (5, 11, 101)
    values = np.array([1.0, 2.0, math.nan, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])
    expected = [1.5, 7 / 3, math.nan, 17 / 4, 22 / 4, 6.0, 7.0, 7.5, 8.0]
    np.testing.assert_allclose(smoothed(values), expected)
    assert smoothed(np.array([3.0])).tolist() == [3.0]


def test_the_legend_lies_below_the_curves_and_takes_names_as_they_are() -> None:
    names = ["_hidden", "$x_1^2$ & <b>", "rewards/a very long name of an aspect/mean", *(f"n{k}" for k in range(6))]
    root = ElementTree.fromstring(chart("<all> $y$", {name: [(0, k), (1, k + 1)] for k, name in enumerate(names)}))
    assert "<all> $y$" in texts(root)
    assert [name for name in names if f" {name}" in texts(root) or name in texts(root)] == names
    lowest = max(y for k in range(len(names)) for *_, y in points(root, f"curve-{k}"))
    for node in group(root, "legend_1").iter(f"{SVG}text"):
        place = re.search(r"translate\(([-\d.]+) ([-\d.]+)\)", node.get("transform", "")) or [0, 0, node.get("y")]
        assert float(place[2]) > lowest
    pens = {next(group(root, f"curve-{k}").iter(f"{SVG}path")).get("style") for k in range(len(names))}
    assert len(pens) == len(names)  # no two look the same
    alone = ElementTree.fromstring(chart("one", {"its name": [(0, 1)]}))
    assert not [text for text in texts(alone) if "its name" in text]  # the title says it


@pytest.mark.filterwarnings("error")
def test_names_of_any_script_stand_as_text() -> None:
    names = ["二つの赤い星", "красный", "🐈"]
    root = ElementTree.fromstring(chart("猫", {name: [(0, 0), (1, 1)] for name in names}))
    assert {"猫", *(f" {name}" for name in names)} <= {*texts(root), *(f" {text}" for text in texts(root))}


def test_one_curve_has_one_file_and_charts_of_a_page_share_no_id() -> None:
    drawn = chart("reward", {"reward": [(0, 0.0), (1, 1.0)]})
    assert drawn == chart("reward", {"reward": [(0, 0.0), (1, 1.0)]})
    first, second = (inline(drawn, number) for number in (0, 1))
    ids = [re.findall(r'\bid="([^"]+)"', text) for text in (first, second)]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])
    targets = re.findall(r'(?:url\(|href=")#([^)"]+)', first)
    assert targets
    assert set(targets) <= set(ids[0])
    assert first.startswith("<svg")
    assert not re.search(r"https?:|<\?xml|DOCTYPE|<script", first)
