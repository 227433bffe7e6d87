"""The sheet of samples: the base on the left, the tuned model on the right."""

import json

import numpy as np
from PIL import Image

from genalign.media.grid import CELL
from genalign.media.sheet import sample_grid
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
