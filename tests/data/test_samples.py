"""Given samples to be learnt from: by rows, folders and preferences; what stays with the prompt; what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genalign.data.prompts import read_prompts
from genalign.media.film import write_video
from genalign.media.form import ClipForm
from genalign.media.image import load_png
from genalign.types import UsageError
from tests.helpers.clips import bouncing, gliding, knocks

TEXTS = ["it glides", "it bounces"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_video(gliding(), 8.0, tmp_path / "a.mp4")
    write_video(bouncing(), 8.0, tmp_path / "b.webm")
    for name, grey in (("first", 40), ("last", 200)):
        Image.fromarray(np.full((16, 16, 3), grey, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def lines(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def check(prompts) -> None:
    """Both clips, and nothing of them with the prompts."""
    assert [prompt.text for prompt in prompts] == TEXTS
    assert prompts.samples.kind == "video"
    for number, made in enumerate((gliding(), bouncing())):
        track = prompts.samples.load([number])["video"]
        assert track.rate == pytest.approx(8.0)
        assert track.held.dtype == torch.uint8
        assert (track.row(0) - made).abs().mean() < 0.05


ROWS = {
    "video": [{"prompt": TEXTS[0], "video": "a.mp4"}, {"prompt": TEXTS[1], "video": "b.webm", "facts": {"x": 1}}],
    "target": [{"prompt": TEXTS[0], "target": "a.mp4"}, {"prompt": TEXTS[1], "target": "b.webm"}],
    "file_name": [{"file_name": "a.mp4", "text": TEXTS[0]}, {"file_name": "b.webm", "caption": TEXTS[1]}],
    "rating": [
        {"prompt": TEXTS[0], "video": "a.mp4", "rating": 3},
        {"prompt": TEXTS[1], "video": "b.webm", "rating": 1},
    ],
    "chosen": [
        {"prompt": TEXTS[0], "chosen": "a.mp4", "rejected": "b.webm"},
        {"prompt": TEXTS[1], "chosen": "b.webm", "rejected": "a.mp4"},
    ],
    "p": [
        {"prompt": TEXTS[0], "a": "a.mp4", "b": "b.webm", "p": 0.9},
        {"prompt": TEXTS[1], "a": "a.mp4", "b": "b.webm", "p": 0.1},
    ],
}


@pytest.mark.parametrize("form", ROWS)
def test_rows_name_them(folder: Path, form: str) -> None:
    prompts = read_prompts(lines(folder / "rows.jsonl", *ROWS[form]), "video", learnt=True)
    check(prompts)
    assert all(prompt.media is None for prompt in prompts)
    assert prompts.place(1) == f"line 2 of {folder / 'rows.jsonl'}"


def test_a_folder_names_them(folder: Path) -> None:
    for name, text in zip("ab", TEXTS, strict=True):
        (folder / f"{name}.txt").write_text(text)
    check(read_prompts(folder, "video", learnt=True))
    for name, text in (("first", "dark"), ("last", "light")):
        (folder / f"{name}.txt").write_text(text)
    prompts = read_prompts(folder, "image", learnt=True)
    assert [prompt.text for prompt in prompts] == ["dark", "light"]
    light = prompts.samples.load([1, 0])["image"]
    assert torch.equal(light.row(0), load_png(folder / "last.png"))
    lines(folder / "metadata.jsonl", *ROWS["file_name"])
    check(read_prompts(folder, "video", learnt=True))


def test_what_a_sample_begins_with_stays_with_its_prompt(folder: Path) -> None:
    write_video(gliding(), 8.0, folder / "c.mp4", (knocks([0.5], 1.125), 8000.0))
    rows = [
        {"prompt": TEXTS[0], "video": "a.mp4", "image": "first.png"},
        {"prompt": TEXTS[1], "video": "b.webm", "image": ["first.png", "last.png"]},
    ]
    prompts = read_prompts(lines(folder / "rows.jsonl", *rows), "video", learnt=True)
    check(prompts)
    assert [len(prompt.media["image"]) for prompt in prompts] == [1, 2]
    rows = [{"prompt": TEXTS[0], "video": "c.mp4", "target": "a.mp4"}, {"prompt": TEXTS[1], "target": "b.webm"}]
    prompts = read_prompts(lines(folder / "rows.jsonl", *rows), "video", learnt=True)
    check(prompts)
    assert set(prompts.rows[0].media) == {"video"}
    rows = [
        {"prompt": text, "chosen": a, "rejected": b, "image": image}
        for text, a, b, image in (
            (TEXTS[0], "a.mp4", "b.webm", "first.png"),
            (TEXTS[1], "b.webm", "a.mp4", ["first.png", "last.png"]),
        )
    ]
    for learnt in (True, False):
        prompts = read_prompts(lines(folder / "rows.jsonl", *rows), "video", learnt=learnt)
        assert [len(prompt.media["image"]) for prompt in prompts] == [1, 2]
        assert torch.equal(prompts.rows[1].media["image"].row(1), load_png(folder / "last.png"))
    assert read_prompts(lines(folder / "rows.jsonl", *rows)).pairs.kind == "video"


def test_a_sound_may_stand_beside_a_clip(folder: Path) -> None:
    from genalign.media.audio import write

    write(knocks([0.25], 1.0), 8000.0, folder / "x.wav")
    path = lines(folder / "rows.jsonl", {"prompt": "a knock", "video": "a.mp4", "audio": "x.wav"})
    (prompt,) = read_prompts(path)
    assert set(prompt.media) == {"video", "audio"}
    assert prompt.media["audio"].rate == 8000.0
    prompts = read_prompts(path, "audio", learnt=True)
    assert prompts.samples.load([0])["audio"].held.shape == (1, 1, 8000)
    lines(path, {"prompt": "a knock", "image": ["first.png", "last.png"], "audio": "x.wav"})
    with pytest.raises(UsageError, match="has several pictures and a clip or a sound; give one of each, or"):
        read_prompts(path)


def test_judged_clips_come_with_their_sound_where_all_have_one(folder: Path) -> None:
    for name, moment in (("c", 0.25), ("d", 0.75)):
        write_video(gliding(), 8.0, folder / f"{name}.mp4", (knocks([moment], 1.125), 8000.0))
    rows = [
        {"prompt": "x", "chosen": "c.mp4", "rejected": "d.mp4"},
        {"prompt": "x", "chosen": "a.mp4", "rejected": "c.mp4"},
    ]
    found = read_prompts(lines(folder / "rows.jsonl", *rows), "video").pairs.found
    heard = found.load([0, 1])[1]["audio"]
    assert [int((wave[0].abs() > 0.1).float().argmax()) / 8000 for wave in heard] == pytest.approx(
        [0.25, 0.75], abs=0.02
    )
    assert set(found.load([0, 2])[1]) == {"video"}


def test_clips_are_loaded_in_the_form_that_is_drawn(folder: Path) -> None:
    from dataclasses import replace

    prompts = read_prompts(lines(folder / "rows.jsonl", *ROWS["chosen"]), "video", learnt=True)
    form = ClipForm(3, 4.0, "policy.call.num_frames", "policy.frame_rate")
    samples, pairs = replace(prompts.samples, form=form), replace(prompts.pairs, form=form)
    samples.check()
    pairs.check()
    for found, made in zip(samples.load([0, 1])["video"], (gliding(), bouncing()), strict=True):
        assert (found - made[[0, 2, 4]]).abs().mean() < 0.05
    assert pairs.load([0])["video"].held.shape == (2, 3, 3, 48, 48)
    long = replace(samples, form=form._replace(frames=6))
    with pytest.raises(UsageError, match=r"a.mp4 \(line 1 of .*rows.jsonl\) is too short: it gives 5 frames at 4 a"):
        long.check()


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (
            [*ROWS["video"], {"prompt": "bare"}],
            "line 3 of .* brings no video to learn from, as other lines do; give it",
        ),
        ([{"prompt": "x", "video": ["a.mp4"]}], "'video' in line 1 of .* is not the name of one file to learn from"),
        ([{"prompt": "x", "target": 3}], "'video' in line 1 of .* is not the name of one file to learn from"),
        ([{"prompt": "x", "video": "a.mp4", "audio": 3}], "'audio' in line 1 of .* is not the name of one file"),
    ],
)
def test_rows_that_name_none_are_refused(folder: Path, rows: list[dict], fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        read_prompts(lines(folder / "rows.jsonl", *rows), "video", learnt=True)


def test_files_that_are_missing_or_damaged_are_refused_before_they_are_read(folder: Path) -> None:
    path = lines(folder / "rows.jsonl", {"prompt": "x", "video": "a.mp4"}, {"prompt": "x", "video": "none.mp4"})
    samples = read_prompts(path, "video", learnt=True).samples
    with pytest.raises(UsageError, match=r"line 2 of .* names the clip 'none.mp4', which is not in"):
        samples.check()
    (folder / "none.mp4").write_bytes((folder / "a.mp4").read_bytes()[:-900])
    with pytest.raises(UsageError, match=r"none.mp4 cannot be read as a video.*cut short"):
        samples.check()
