"""The report is one page that asks nothing of the outside, shows every number, and survives half a run."""

import base64
import html
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from PIL import Image

from genalign.evaluation.report import Smoothed, log_line, write_report
from genalign.training.metrics import read_rows
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

    VOID = frozenset({"meta", "img", "br"})

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
    assert not re.search(r"url\((?!#)|@import|https?://|xmlns", text)
    identities = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(identities)) == len(identities)  # of all charts together
    for _, attributes in page.tags:
        for value in attributes.values():
            for target in re.findall(r"url\(#([^)]+)\)|^#(chart.+)$", value or ""):
                assert "".join(target) in identities
    words = "".join(page.words)
    assert "<script>alert(1)</script> & co" in words
    for number in ("0.4000", "0.6000", "+0.2000", "+0.1100 to +0.2900", "0.7500"):
        assert number in words
    assert words.index("judge/all_facts") < words.index("hybrid/total")  # the held-out judge leads


def test_the_sentence_stands_before_the_table(run):
    rows = [{"step": 1, "step_time": 200.0, "reward": 0.1}, {"step": 2, "step_time": 160.0, "reward": 0.2}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "eval.json").write_text(json.dumps({**EVAL, "judged": {"by": "follows", "aspects": {}}}))
    text = write_report(run).read_text()
    said = "After 6 minutes the model follows 20 more prompts in 100 (40.0 -> 60.0, interval +11.0 to +29.0)."
    assert f"<p>{html.escape(said)}</p><table>" in text


def test_first_and_last_grid_are_inside(run):
    text = write_report(run).read_text()
    shown = [base64.b64decode(part) for part in re.findall(r"data:image/png;base64,([^\"]+)", text)]
    wanted = [(run / f"samples/step-{step}/grid.png").read_bytes() for step in (0, 10)]  # 10 is later than 9
    assert shown == wanted


def test_sweep_marks_each_moment_at_its_own_best(run):
    text = write_report(run).read_text()
    assert re.search(r"judge/all_facts, before</td><td>0.1000</td><td class=best>0.4000</td>", text)
    assert re.search(r"judge/all_facts, after</td><td class=best>0.6000</td><td>-</td>", text)


def test_the_total_of_a_combination_is_listed_once(run):
    """hybrid and hybrid/total are one number; other/total, of which no aspect is the total, stays."""
    result = json.loads(json.dumps(EVAL))
    result["metrics"]["hybrid"] = result["metrics"]["hybrid/total"]
    result["metrics"]["other"] = {**result["metrics"]["hybrid"], "before": 0.1}
    result["metrics"]["other/total"] = {**result["metrics"]["hybrid"], "before": 0.2}
    for side in ("before", "after"):
        result["sweep"][side]["metrics"]["hybrid"] = result["sweep"][side]["metrics"]["hybrid/total"]
    result["sweep"]["headline"] = "hybrid/total"
    (run / "eval.json").write_text(json.dumps(result))
    cells = re.findall(r"<td>([^<]*)</td>", write_report(run).read_text())
    assert cells.count("hybrid") == 1
    assert cells.count("other") == cells.count("other/total") == 1
    assert not [cell for cell in cells if cell.startswith("hybrid/total")]
    assert "chosen by hybrid.<" in (run / "report.html").read_text()
    assert json.loads((run / "eval.json").read_text()) == result


def test_suites_stand_in_tables_of_their_own(run):
    """Between the run's own evaluation and its training; a folder that holds no evaluation yet is left out."""
    for name, before in (("geneval2", 0.123), ("<b>mine", 0.345)):
        (run / "suites" / name).mkdir(parents=True)
        metrics = {"asked": {"before": before, "after": 0.5, "delta": 0.1, "ci95": [0.0, 0.2], "held_out": True}}
        sweep = {"guidance": [1.0], "headline": "asked"}
        result = {"prompts": 800, "seeds": [7], "metrics": metrics, "sweep": sweep}
        (run / "suites" / name / "eval.json").write_text(json.dumps(result))
    (run / "suites" / "begun").mkdir()
    words = "|".join(Page(write_report(run).read_text()).words)
    mine, geneval = "<b>mine|metric|", "geneval2|metric|before|after|delta|95% interval|asked (held-out)|0.1230|0.5000"
    assert words.index("0.7500") < words.index(mine) < words.index(geneval) < words.index("Training")
    assert "800 prompts, sampling seeds 7." in words
    assert "begun" not in words


def test_the_reward_curve_is_a_file_of_its_own(run):
    write_report(run)
    root = ElementTree.parse(run / "reward.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "reward" in [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]


def test_sounds_and_videos_are_played_inside_up_to_a_size(run, monkeypatch):
    folder = run / "samples/step-10"
    sounds = {which: which.encode() * 40 for which in ("base-0.wav", "tuned-0.mp4", "base-1.wav", "tuned-1.mp4")}
    for name, blob in sounds.items():
        (folder / name).write_bytes(blob)
    rows = [
        {"prompt": f"a <{k}> tone", "seed": k, "base": f"base-{k}.wav", "tuned": f"tuned-{k}.mp4", "medium": medium}
        for k, medium in enumerate(("audio", "video"))
    ]
    (folder / "grid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = write_report(run).read_text()
    page = Page(text)
    assert "a <0> tone" in "".join(page.words)
    played = [attributes["src"] for tag, attributes in page.tags if tag in ("audio", "video")]
    carried = [base64.b64decode(source.partition("base64,")[2]) for source in played]
    assert carried == list(sounds.values())
    monkeypatch.setattr("genalign.evaluation.report.PLAYED", len(sounds["base-0.wav"]) + 1)
    page = Page(write_report(run).read_text())
    assert [tag for tag, _ in page.tags if tag in ("audio", "video")] == ["audio"]
    assert "tuned-0.mp4 (0.0 MiB), too large" in "".join(page.words)
    (folder / "base-1.wav").unlink()
    assert "base-1.wav is missing" in write_report(run).read_text()
    rows[0]["base"] = "../../recipe.yaml"  # a list in somebody else's run folder carries no other file into the page
    (folder / "grid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(GenalignError, match=r"recipe\.yaml' is not a file below"):
        write_report(run)
    (folder / "grid.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(GenalignError, match=r"grid\.jsonl is not a list of samples"):
        write_report(run)


def test_texts_of_the_last_step_are_a_table(run):
    row = {"prompt": "a & b", "seed": 1, "base": "<i>x</i>", "tuned": "line\u2028two"}  # as old runs have it
    (run / "samples/step-10/grid.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    words = Page(write_report(run).read_text()).words
    for value in ("a & b", "<i>x</i>", "line\u2028two"):
        assert value in words


def test_half_a_run_has_a_report(tmp_path):
    page = Page(write_report(tmp_path).read_text())
    assert "No evaluation yet" in "".join(page.words)
    assert not [tag for tag, _ in page.tags if tag == "svg"]


def test_torn_last_line_is_left_out_but_a_broken_middle_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "reward": 1.0}\n{"step": 1, "rew')
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 0, "reward": 1.0}]
    path.write_text('{"step": 0\n{"step": 1, "reward": 1.0}\n')
    with pytest.raises(GenalignError, match="line 1"):
        read_rows(tmp_path / "metrics.jsonl")


def test_log_line_tells_what_there_is():
    line = log_line(
        3, 40, {"reward": 0.51234, "reward_std": 0.1, "kl": 0.0123, "clip_ratio/region_mean": 0.25, "step_time": 1.5}
    )
    assert line == "step 3/40  reward 0.5123  std 0.1000  kl 0.0123  clip 25.0%  s/step 1.50"
    assert log_line(1, 2, {"loss": 0.693147}) == "step 1/2  loss 0.6931"
    look = {"monitor/judge": 0.59375, "monitor/judge/count": 0.5, "monitor/clip": 0.3}
    assert log_line(8, 9, look, ["judge", "other"]) == "step 8/9  held-out judge 0.5938"


def test_the_reward_on_the_console_is_an_average_that_a_resumed_run_takes_up():
    """The weights written out: 0.9 for each step back, divided by their sum."""
    rewards = [0.2, float("nan"), 0.8, 0.5]
    smoothed = Smoothed()
    shown = [smoothed.shown({"step": k, "reward": reward}) for k, reward in enumerate(rewards)]
    assert shown[0] == {"step": 0, "smoothed": pytest.approx(0.2)}
    assert shown[1]["smoothed"] == pytest.approx(0.2)
    assert shown[3]["smoothed"] == pytest.approx((0.81 * 0.2 + 0.9 * 0.8 + 0.5) / (0.81 + 0.9 + 1))
    assert Smoothed(rewards[:3]).shown({"reward": 0.5}) == {"smoothed": shown[3]["smoothed"]}
    assert smoothed.shown({"loss": 1.0}) == {"loss": 1.0}
    assert log_line(3, 4, shown[0]) == "step 3/4  smoothed reward 0.2000"


def test_a_watched_reward_and_its_aspects_share_a_chart(run):
    rows = [{"step": k, "monitor/judge": 0.1 * k, "monitor/judge/count": 0.2 * k, "monitor/clip": 1.0} for k in (2, 4)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    charts = re.findall(r"<figure><svg.*?</svg>", write_report(run).read_text(), re.DOTALL)
    assert len(charts) == 2
    assert [chart.count("-alone") + len(set(re.findall(r"curve-\d+", chart))) for chart in charts] == [2, 1]
