"""`genalign eval-reward` on every public form: the reward that likes what the judges like wins, the opposite loses."""

import json
from pathlib import Path

import numpy as np
import pytest

from genalign.cli.eval_reward import report
from genalign.cli.main import main
from genalign.data.comparisons import read_comparisons
from genalign.reward import build_reward, reward
from tests.helpers.preference_files import FORMS, pictures

RULES = """
from genalign.reward import reward

@reward
def light(image):
    return image.mean((1, 2, 3))

@reward
def long(text):
    return [float(len(t.split())) for t in text]

@reward
def picky(image):
    return [None if x > 0.8 else float(x) for x in image.mean((1, 2, 3))]

@reward
def broken(image):
    raise RuntimeError("no")
"""


@reward
def lightness(image):
    return [float(x.mean()) for x in image]


@reward(aspects=("VQ", "MQ"))
def film(video):
    return {"VQ": [float(x.mean()) for x in video], "MQ": [-float(x.mean()) for x in video]}


@reward
def loud(audio):
    return [float(x.mean()) for x in audio]


@reward
def words(text):
    return [float(len(t.split())) for t in text]


class Opposite:
    """The same reward with its sign turned."""

    def __init__(self, of) -> None:
        self.of, self.name = of, "opposite"

    def __getattr__(self, name: str):
        return getattr(self.of, name)

    def __call__(self, prompts, media, group=None):
        scores = self.of(prompts, media, group)
        from dataclasses import replace

        return replace(scores, values=-scores.values, total=-scores.total)


@reward
def bright(video):
    return [float(x.mean()) for x in video]


def likes(form: str):
    readers = {"VideoGen-RewardBench": film, "VideoFeedback": bright, "VideoDPO": bright, "Music Arena": loud}
    return {**readers, "VL-RewardBench": words, "RewardBench 2": words}.get(form, lightness)


def overall(rows: list[dict]) -> dict:
    return next(row for row in rows if row.get("aspect") == "overall")


@pytest.mark.parametrize("form", [form for form in FORMS if form != "VideoGen-RewardBench"])
def test_agreement_has_the_right_sign_in_every_form(tmp_path, form: str):
    found = read_comparisons(FORMS[form](tmp_path))
    told = report(likes(form), found)
    assert overall(told)["accuracy"] == 1.0
    assert overall(told)["accuracy_with_ties"] >= 0.75
    turned = report(Opposite(likes(form)), found)
    assert overall(turned)["accuracy"] == 0.0
    assert overall(turned)["kendall"] == -overall(told)["kendall"] < 0
    best = {row["best_of"]: row["gold"] for row in told if "best_of" in row}
    worst = {row["best_of"]: row["gold"] for row in turned if "best_of" in row}
    assert best[2] > best[1] > worst[2]
    assert best[1] == pytest.approx(worst[1])


def test_each_verdict_on_a_video_is_held_against_its_own_aspect(tmp_path):
    told = {
        row["aspect"]: row
        for row in report(film, read_comparisons(FORMS["VideoGen-RewardBench"](tmp_path)))
        if "aspect" in row
    }
    assert told["VQ"]["accuracy"] == 1.0
    assert told["MQ"]["accuracy"] == 0.0
    assert (told["TA"]["pairs"], told["TA"]["tied"]) == (2, 1)
    assert told["overall"]["unscored"] == 0


def test_reward_bench_2_has_its_own_scores(tmp_path):
    told = {
        row["subset"]: row
        for row in report(words, read_comparisons(FORMS["RewardBench 2"](tmp_path)))
        if "subset" in row
    }
    assert told["Focus"]["score"] == 1.0
    # right answers of 6 and 9 words, wrong ones of at most 3: both gaps are 3, no more than the range of 3
    assert told["Ties"]["score"] == pytest.approx(0.6 + 0.01 * np.tanh(0))
    assert told["mean"]["score"] == pytest.approx((told["Focus"]["score"] + told["Ties"]["score"]) / 2)


def test_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rules.py").write_text(RULES)
    data = FORMS["HPDv2 test"](tmp_path)
    assert main(["eval-reward", "rules.py:light", "--data", str(data)]) == 0
    shown = capsys.readouterr().out
    assert "accuracy" in shown
    assert "HPDv2 test" in shown
    command = ["eval-reward", "rules.py:light", "--data", str(data), "--against", "rules.py:picky", "--json"]
    assert main(command) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert overall(rows)["accuracy"] == 1.0
    (against,) = (row for row in rows if "against" in row)
    assert against["samples"] == 2  # the third one it abstains from
    assert against["starc"] == pytest.approx(0, abs=1e-6)
    assert main(["eval-reward", "rules.py:long", "--data", str(data)]) == 2
    assert "needs 'text'" in capsys.readouterr().err
    assert main(["eval-reward", "rules.py:light", "--data", "absent.json"]) == 2


def test_what_cannot_be_scored_is_counted_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rules.py").write_text(RULES)
    found = read_comparisons(FORMS["HPDv2 test"](tmp_path))
    row = overall(report(build_reward("rules.py:picky", Path()), found))
    assert (row["pairs"], row["unscored"], row["accuracy"]) == (3, 2, 1.0)
    row = overall(report(build_reward("rules.py:broken", Path()), found))
    assert (row["unscored"], row["accuracy"], row["ece"]) == (3, None, None)


def test_siblings_are_scored_together_whatever_the_batch(tmp_path):
    pictures(tmp_path)
    seen = []

    class Groups(Opposite):
        looks_at = "group"

        def __call__(self, prompts, media, group=None):
            seen.append(group.tolist())
            return self.of(prompts, media, group)

    rows = [
        {"prompt": f"p{k % 3}", "chosen": a, "rejected": b}
        for k, (a, b) in enumerate([("light.png", "dim.png"), ("fair.png", "dark.png")] * 3)
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    report(Groups(lightness), read_comparisons(tmp_path / "pairs.json"), size=1)
    assert sorted(len(group) for group in seen) == [4, 4, 4]
    assert all(len(set(group)) == 1 for group in seen)


def test_a_constant_reward_says_nothing(tmp_path):
    @reward
    def flat(image):
        return [1.0 for _ in image]

    row = overall(report(flat, read_comparisons(FORMS["Pick-a-Pic"](tmp_path))))
    assert row["accuracy"] == 0.0  # its ties count as wrong
    assert row["temperature"] is None
    assert row["length_bias"] is None
