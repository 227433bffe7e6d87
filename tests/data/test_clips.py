"""Clips of prompts and of preferences: folders, columns, and when they are decoded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from genalign.data import clips
from genalign.data.comparisons import read_comparisons
from genalign.data.preferences import find_pairs
from genalign.data.prompts import read_prompts
from genalign.media.film import write_video
from genalign.types import UsageError
from tests.helpers.clips import bouncing, gliding
from tests.helpers.preference_files import video_dpo, video_feedback


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_video(gliding(), 8.0, tmp_path / "a.mp4")
    write_video(bouncing(), 12.0, tmp_path / "b.webm")
    return tmp_path


def lines(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def check(prompts, folder: Path) -> None:
    """Both clips with all their frames at their rates, whoever names them."""
    assert [prompt.text for prompt in prompts] == ["it glides", "it bounces"]
    assert [prompt.uid for prompt in prompts] == [0, 1]
    for prompt, made, rate in zip(prompts, (gliding(), bouncing()), (8.0, 12.0), strict=True):
        assert prompt.media is not None
        track = prompt.media["video"]
        assert (len(track), prompt.media.rows) == (1, 1)
        assert track.rate == pytest.approx(rate)
        assert track.held[0].dtype == torch.uint8
        assert track.row(0).shape == made.shape
        assert (track.row(0) - made).abs().mean() < 0.05
        assert torch.equal(track.row(0, [1, 4]), track.row(0)[[1, 4]])


def test_a_column_names_clips(folder: Path) -> None:
    rows = ({"prompt": "it glides", "video": "a.mp4", "facts": {"x": 1}}, {"prompt": "it bounces", "video": "b.webm"})
    prompts = read_prompts(lines(folder / "p.jsonl", *rows))
    check(prompts, folder)
    assert dict(prompts.rows[0].facts) == {"x": 1}


def test_a_folder_names_clips_by_their_texts_or_by_one_list(folder: Path) -> None:
    (folder / "a.txt").write_text("it glides\n")
    (folder / "b.txt").write_text("it\nbounces")
    prompts = read_prompts(folder)
    check(prompts, folder)
    (folder / "b.txt").write_text("it jumps")
    assert read_prompts(folder).digest != prompts.digest
    (folder / "a.txt").unlink()
    with pytest.raises(UsageError, match=r"a.mp4 has no a.txt with its prompt beside it"):
        read_prompts(folder)
    (folder / "a.txt").write_text(" ")
    with pytest.raises(UsageError, match=r"a.txt is empty; write the prompt of a.mp4 into it"):
        read_prompts(folder)
    rows = ({"file_name": "a.mp4", "text": "it glides"}, {"file_name": "b.webm", "caption": "it bounces"})
    lines(folder / "metadata.jsonl", *rows)
    check(read_prompts(folder), folder)


def test_clips_are_decoded_when_they_are_read_and_checked_before(folder: Path, monkeypatch) -> None:
    path = lines(folder / "p.jsonl", {"prompt": "it glides", "video": "a.mp4"})
    seen = []
    monkeypatch.setattr(clips, "load_video", lambda *given: seen.append(given))
    read_prompts(path)
    assert seen == []
    (folder / "a.mp4").write_bytes((folder / "a.mp4").read_bytes()[:300])
    with pytest.raises(UsageError, match=r"a.mp4 cannot be read as a video.*may be cut short"):
        read_prompts(path)
    for name, fault in (("c.mp4", "c.mp4 cannot be read as a video"), ("../x.mp4", "is not a file below"), (3, "name")):
        with pytest.raises(UsageError, match=fault):
            read_prompts(lines(path, {"prompt": "it glides", "video": name}))


def test_pairs_of_clips_by_their_own_columns(folder: Path) -> None:
    path = lines(folder / "pairs.jsonl", {"prompt": "it moves", "chosen": "b.webm", "rejected": "a.mp4"})
    pairs = find_pairs(path, "video")
    assert pairs is not None
    assert pairs.kind == "video"
    track = pairs.load([0])["video"]
    assert [track.rate_of(row) for row in (0, 1)] == pytest.approx([12.0, 8.0])
    assert (track.row(0) - bouncing()).abs().mean() < 0.05
    lines(path, {"prompt": "it moves", "chosen": "a.mp4", "rejected": "c.mp4"})
    with pytest.raises(UsageError, match=r"names the clip 'c.mp4', which is not in"):
        find_pairs(path, "video")
    lines(path, {"prompt": "it moves", "chosen": "a.mp4", "rejected": "d.mp4"})
    (folder / "d.mp4").write_bytes((folder / "a.mp4").read_bytes())
    with pytest.raises(UsageError, match="prefers a clip to an equal one"):
        find_pairs(path, "video")


def test_video_feedback_by_hand(tmp_path: Path) -> None:
    """Means 3.2, 1.6, 2.2 of one prompt and 3 of another: three pairs, and each mark of its own."""
    found = read_comparisons(video_feedback(tmp_path))
    assert found.kind == "video"
    assert list(found.ratings.values()) == pytest.approx([3.2, 1.6, 2.2, 3.0])
    assert [(pair.a, pair.b, pair.p) for pair in found.pairs if pair.aspect == "overall"] == [
        (0, 1, 1.0),
        (0, 2, 1.0),
        (1, 2, 0.0),
    ]
    dynamic = [(pair.a, pair.b, pair.p) for pair in found.pairs if pair.aspect == "DD"]
    assert dynamic == [(0, 1, 0.0), (0, 2, 0.0), (1, 2, 0.5)]
    assert {pair.aspect for pair in found.pairs} == {"overall", "VQ", "TC", "DD", "TA", "FC"}
    _, media = found.load([0, 1])
    assert media["video"].held.shape == (2, 3, 3, 8, 8)
    assert media["video"].rate == 8.0


def test_video_dpo_by_hand(tmp_path: Path) -> None:
    pairs = find_pairs(video_dpo(tmp_path))
    assert pairs is not None
    assert [prompt.text for prompt in pairs.prompts()] == ["a ball", "a car"]
    track = pairs.load([0, 1])["video"]
    assert [round(float(row.mean()), 1) for row in track] == [0.9, 0.1, 0.6, 0.1]
    path = tmp_path / "pair.json"
    path.write_text(json.dumps([{"frame_caption": "a ball", "video1": "x", "video2": 3}]))
    with pytest.raises(UsageError, match="has no number of a clip under 'video1'"):
        find_pairs(path)
