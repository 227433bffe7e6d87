"""Each public form of preferences, hand-checked: who won, by which convention, and what its samples look like."""

import json

import pytest

from genalign.data.comparisons import read_comparisons
from genalign.data.preferences import find_pairs
from genalign.media.video import load_video
from genalign.types import UsageError
from tests.helpers.preference_files import FORMS, LIGHT, films, pictures


def worth(found, number: int) -> float:
    """How light a picture or film is, how long a text."""
    _, media = found.load([number])
    data = media[found.kind].data[0]
    return float(len(data.split())) if isinstance(data, str) else round(float(data.mean()), 1)


@pytest.mark.parametrize("form", FORMS)
def test_the_better_one_is_the_lighter_or_longer(tmp_path, form: str):
    """Invariant 33: three forms rank the best lowest, three mark it 1, one writes a letter, one lists it as chosen."""
    found = read_comparisons(FORMS[form](tmp_path))
    assert found.form == form
    assert found.pairs
    for pair in found.pairs:
        a, b = worth(found, pair.a), worth(found, pair.b)
        if pair.aspect == "overall" and pair.p != 0.5:
            assert (a > b) == (pair.p == 1), pair
    assert found.digest


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("Pick-a-Pic", [(0.9, 0.1, 1.0), (0.1, 0.3, 0.0), (0.6, 0.6, 0.5)]),
        ("HPDv2 train", [(0.1, 0.9, 0.0), (0.6, 0.3, 1.0)]),
        ("HPDv2 test", [(0.6, 0.9, 0.0), (0.6, 0.1, 1.0), (0.9, 0.1, 1.0)]),
        ("ImageRewardDB", [(0.9, 0.1, 1.0), (0.9, 0.3, 1.0), (0.1, 0.3, 0.0), (0.6, 0.3, 0.5)]),
        ("ImageRewardDB by picture", [(0.3, 0.9, 0.0), (0.3, 0.1, 1.0), (0.9, 0.1, 1.0)]),
        ("VL-RewardBench", [(9, 1, 1.0), (3, 6, 0.0)]),
        ("Music Arena", [(0.9, 0.1, 1.0), (0.3, 0.6, 0.5), (0.3, 0.6, 0.0), (0.3, 0.1, 0.5)]),
    ],
)
def test_pairs_by_hand(tmp_path, form: str, expected):
    found = read_comparisons(FORMS[form](tmp_path))
    assert [(worth(found, pair.a), worth(found, pair.b), pair.p) for pair in found.pairs] == expected


def test_videos_have_four_verdicts_a_pair(tmp_path):
    found = read_comparisons(FORMS["VideoGen-RewardBench"](tmp_path))
    told = [(pair.aspect, pair.p) for pair in found.pairs]
    assert told[:4] == [("VQ", 1.0), ("MQ", 1.0), ("TA", 0.5), ("overall", 1.0)]
    assert told[4:] == [("VQ", 0.0), ("MQ", 0.5), ("TA", 0.0), ("overall", 0.0)]
    assert len(found.items) == 4
    prompts, media = found.load([0, 1])
    assert [tuple(film.shape) for film in media["video"].data] == [(12, 3, 32, 32)] * 2  # whole, as they were made
    assert media["video"].rate == 6.0
    assert prompts[0].text == "a ball"


def test_battles_of_sounds_are_pairs_to_train_on(tmp_path):
    """Of six battles two decide; sounds have their rate, and a verdict its user."""
    folder = FORMS["Music Arena"](tmp_path)
    found = read_comparisons(folder)
    assert [pair.user for pair in found.pairs] == ["u0", "u2", "u1", "u3"]
    assert found.undecided == 2
    pairs = find_pairs(folder)
    assert pairs.kind == "audio"
    assert (len(pairs.pairs), pairs.ties) == (2, 4)
    assert [prompt.text for prompt in pairs.prompts()] == ["a song 0", "a song 0"]
    heard = pairs.load([0, 1])["audio"]
    assert heard.rate_of(0) == 8000
    assert [round(float(row.mean()), 1) for row in heard.data] == [0.9, 0.1, 0.6, 0.3]
    battle = folder / "battle_data/02-2025SEP/1.json"
    battle.write_text(battle.read_text().replace('"B"', '"C"'))
    with pytest.raises(UsageError, match=r"1\.json has a preference that is none of A, B, TIE, BOTH_BAD \(C\)"):
        read_comparisons(folder)


def test_a_question_keeps_its_picture_and_users_are_facts(tmp_path):
    found = read_comparisons(FORMS["VL-RewardBench"](tmp_path))
    (prompt,), _ = found.load([0], ["ann"])
    assert float(prompt.media["image"].data.mean()) == pytest.approx(LIGHT["light"], abs=0.01)
    assert prompt.facts == {"user": "ann"}
    assert {pair.user for pair in read_comparisons(FORMS["Pick-a-Pic"](tmp_path)).pairs} == {"7"}


def test_listings_of_right_and_wrong(tmp_path):
    found = read_comparisons(FORMS["RewardBench 2"](tmp_path))
    assert [(x.name, x.subset, len(x.right), len(x.wrong)) for x in found.listings] == [
        ("12", "Focus", 1, 3),
        ("ref:0", "Ties", 1, 3),
        ("tied:0", "Ties", 2, 3),
    ]
    assert len(found.pairs) == 3 + 3 + 6


def lines(folder, *rows) -> object:
    pictures(folder)
    path = folder / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_plain_rows(tmp_path):
    found = read_comparisons(lines(tmp_path, {"prompt": "x", "chosen": "yes. png", "rejected": "no"}))
    assert (found.kind, found.pairs[0].p) == ("text", 1.0)
    rows = ({"prompt": "x", "a": "dark.png", "b": "dim.png", "p": 0.25, "user": "u", "aspect": "art"},) * 2
    found = read_comparisons(lines(tmp_path, *rows))
    assert (found.kind, len(found.items), found.pairs[1].user, found.pairs[1].aspect) == ("image", 2, "u", "art")
    found = read_comparisons(lines(tmp_path, {"prompt": "x", "image": "dark.png", "rating": 3}))
    assert found.ratings == {0: 3.0}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "x", "picture": "a.png"}], "of no form that genalign knows"),
        (
            [{"prompt": "x", "a": "y.png", "b": "y.png", "p": 1}],
            r"line 1 of .*to an equal one \(y\.png\)",
        ),
        ([{"prompt": "x", "a": "y", "b": "z", "p": 1}, {"prompt": "x", "a": "y", "p": 1}], r"line 2 of .* lacks 'b'"),
        (
            [{"prompt": "x", "image": "y.png", "rating": 1}, {"prompt": "x", "text": "y", "rating": 1}],
            "image and text; ",
        ),
        ([{"prompt": "x", "a": "y", "b": "z", "p": 1.5}], r"line 1 of .* has a p of 1\.5"),
        (
            [{"prompt": "x", "generations": ["a"], "ranking": [1]}],
            "one ranking for each picture of its",
        ),
        ([], "nothing in it"),
    ],
)
def test_bad_files_are_refused_in_a_sentence(tmp_path, rows, said: str):
    with pytest.raises(UsageError, match=said):
        read_comparisons(lines(tmp_path, *rows))


def test_bad_paths_and_media(tmp_path):
    with pytest.raises(UsageError, match="check the path"):
        read_comparisons(tmp_path / "absent.json")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(UsageError, match="must end in"):
        read_comparisons(tmp_path / "x.txt")
    (tmp_path / "x.mp4").write_text("no film")
    with pytest.raises(UsageError, match="cannot be read as a video"):
        load_video(tmp_path / "x.mp4")
    films(tmp_path)
    frames, rate = load_video(tmp_path / "dim.mp4", fps=100)
    assert (len(frames), rate) == (12, 6.0)


@pytest.mark.parametrize("labels", [(-1, 1), (2, -1), (-1, -1)])
def test_labels_below_0_are_not_a_preference(tmp_path, labels: tuple[int, int]):
    row = {"caption": "q", "jpg_0": "a.png", "jpg_1": "b.png", "label_0": labels[0], "label_1": labels[1]}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    with pytest.raises(UsageError, match=rf"^line 1 of .* has the labels {labels[0]} and {labels[1]}, of which none"):
        read_comparisons(tmp_path / "pairs.jsonl")
