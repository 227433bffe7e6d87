"""The sheet of samples: the base on the left, the tuned model on the right."""

import base64
import json
import re

import numpy as np
import pytest
from PIL import Image

from genalign.evaluation.report import write_report
from genalign.media import video
from genalign.media.container import load_sound
from genalign.media.grid import CELL
from genalign.media.sheet import sample_grid
from tests.helpers.clips import bouncing, gliding, knocks
from tests.helpers.painter import GAIN, PROMPTS, Painter


def test_grid_shows_base_left_and_tuned_right(tmp_path):
    path = sample_grid(Painter(), PROMPTS[:3], [0], tmp_path / "step-0" / "grid.png", guidance=2.0)
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    greys = [round(255 * (GAIN[which][2.0] + 0.005)) for which in ("reference", "policy")]
    for grey in greys:
        assert (np.abs(pixels - grey).max(axis=2) < 2).sum() >= 0.95 * CELL * CELL
    columns = [np.argwhere(np.abs(pixels[40] - grey).max(axis=1) < 2)[0, 0] for grey in greys]
    assert columns[0] < columns[1]


class Broken(Painter):
    """Painter whose tuned weights give NaN for prompts of these uids."""

    broken: tuple[int, ...] = (1,)

    def generate(self, prompts, seeds, guidance=None, steps=None):
        media = super().generate(prompts, seeds, guidance, steps)
        if self.which == "policy":
            for row, prompt in enumerate(prompts):
                if prompt.uid in self.broken:
                    media["image"].data[row, 0, 0, 0] = float("nan")
        return media


def test_pairs_that_are_not_finite_are_left_out_and_never_drawn_as_black(tmp_path, caplog):
    path = sample_grid(Broken(), PROMPTS[:3], [0], tmp_path / "grid.png")
    sound = sample_grid(Painter(), [PROMPTS[0], PROMPTS[2]], [0], tmp_path / "sound.png")
    assert path.read_bytes() == sound.read_bytes()
    assert "1 of 3 pairs of samples hold values that are not numbers" in caplog.text
    assert sample_grid(Broken(), PROMPTS[1:2], [0], tmp_path / "none.png") is None
    assert not (tmp_path / "none.png").exists()


def test_grid_of_a_language_policy_is_a_table(tmp_path):
    path = sample_grid(Painter(modalities=frozenset({"text"})), PROMPTS[:2], [0], tmp_path / "grid.png")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert path.suffix == ".jsonl"
    assert [row["prompt"] for row in rows] == ["prompt 0", "prompt 1"]
    assert all(float(row["tuned"]) > float(row["base"]) for row in rows)


def test_clips_move_in_a_sheet_of_bounded_size(tmp_path, monkeypatch) -> None:
    """The animation has every frame of short clips, plays as long as they do, and halves its frames to fit."""
    base, tuned = [gliding(), bouncing()], [bouncing(), gliding()]
    path = video.sheet(base, tuned, [("it moves", 1), ("it turns", 2)], tmp_path / "grid.png", 8.0)
    with Image.open(path.with_suffix(".webp")) as moving:
        assert moving.n_frames == 9
        lengths, pictures = [], []
        for number in range(9):
            moving.seek(number)
            moving.load()
            lengths.append(moving.info["duration"])
            pictures.append(np.asarray(moving.convert("RGB")).astype(int))
    assert sum(lengths) == pytest.approx(1000 * 9 / 8, abs=9)
    assert len({picture.tobytes() for picture in pictures}) == 9
    whole = path.with_suffix(".webp").stat().st_size
    monkeypatch.setattr(video, "MOVING_BYTES", whole - 1)
    video.sheet(base, tuned, [("it moves", 1), ("it turns", 2)], path, 8.0)
    with Image.open(path.with_suffix(".webp")) as moving:
        assert moving.n_frames == 4
    assert path.with_suffix(".webp").stat().st_size < whole


def test_clips_with_sound_keep_it_in_their_sheet(tmp_path) -> None:
    sounds = [(knocks([moment], 1.125), 8000.0) for moment in (0.25, 0.75)]
    path = video.sheet(
        [gliding()], [bouncing()], [("it moves", 1)], tmp_path / "grid.png", 8.0, (sounds[:1], sounds[1:])
    )
    for which, moment in (("base", 0.25), ("tuned", 0.75)):
        heard, rate = load_sound(path.with_name(f"{which}-0.mp4"))
        assert int((heard[0].abs() > 0.1).float().argmax()) / rate == pytest.approx(moment, abs=0.02)


def test_the_report_shows_the_moving_sheet(tmp_path) -> None:
    folder = tmp_path / "samples" / "step-3"
    folder.mkdir(parents=True)
    video.sheet([gliding()], [bouncing()], [("it moves", 1)], folder / "grid.png", 8.0)
    page = write_report(tmp_path).read_text()
    for kind in ("webp", "png"):  # moving, and as frames from left to right
        (shown,) = re.findall(rf'<img alt="base beside tuned" src="data:image/{kind};base64,([^"]+)">', page)
        assert base64.b64decode(shown) == (folder / f"grid.{kind}").read_bytes()
    played = re.findall(r'<video [^>]*src="data:video/mp4;base64,([^"]+)">', page)
    assert [base64.b64decode(one) for one in played] == [
        (folder / f"{k}-0.mp4").read_bytes() for k in ("base", "tuned")
    ]
    assert not re.search(r"https?://", page)
