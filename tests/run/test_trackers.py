"""What trackers are given: accelerate's own TensorBoard and W&B trackers, with their writers replaced by lists."""

import io
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from accelerate.state import PartialState
from accelerate.tracking import TensorBoardTracker, WandBTracker
from PIL import Image

from genalign.media import audio, text, video
from genalign.run.trackers import log_samples, log_step
from tests.helpers.clips import bouncing, gliding, knocks

DRAWN = [("it moves", 3), ("it turns", 4)]


class Writer:
    def __init__(self) -> None:
        self.images: list[tuple[str, Any, int, str]] = []
        self.moving: list[tuple[Any, int]] = []

    def add_images(self, name: str, pixels: Any, global_step: int, dataformats: str = "NCHW") -> None:
        self.images.append((name, pixels, global_step, dataformats))

    @property
    def file_writer(self) -> Any:
        return SimpleNamespace(add_summary=lambda summary, step: self.moving.append((summary, step)))


class Summary(SimpleNamespace):
    """In the place of TensorBoard's protocol buffer."""

    Image = Value = SimpleNamespace


@pytest.fixture
def trackers(monkeypatch) -> tuple[Any, Writer, list[tuple[dict[str, Any], int]]]:
    """accelerate's trackers without their libraries, what TensorBoard's writer got, and what W&B's run logged."""
    PartialState()
    wandb = ModuleType("wandb")
    for kind in ("Image", "Video", "Audio"):
        setattr(wandb, kind, lambda value, caption=None, kind=kind: (kind, value, caption))
    wandb.Table = lambda columns, data: ("Table", columns, data)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    proto = ModuleType("tensorboard.compat.proto.summary_pb2")
    proto.Summary = Summary  # type: ignore[attr-defined]
    for name in ("tensorboard", "tensorboard.compat", "tensorboard.compat.proto"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, proto.__name__, proto)
    board, bias, logged = object.__new__(TensorBoardTracker), object.__new__(WandBTracker), []
    board.writer = Writer()
    bias.run = SimpleNamespace(log=lambda values, step=None, **kwargs: logged.append((values, step)))
    return SimpleNamespace(trackers=[board, bias]), board.writer, logged


def test_clips_reach_wandb_as_players_and_everybody_as_a_picture(tmp_path, trackers) -> None:
    tracker, writer, logged = trackers
    path = video.sheet([gliding(), bouncing()], [bouncing(), gliding()], DRAWN, tmp_path / "grid.png", 8.0)
    log_samples(tracker, path, 20)
    (name, pixels, step, form) = writer.images[0]
    assert (name, step, form, pixels.dtype) == ("samples", 20, "NHWC", np.uint8)
    assert np.array_equal(pixels[0], np.asarray(Image.open(path).convert("RGB")))
    ((summary, step),) = writer.moving
    (value,) = summary.value
    assert (value.tag, step) == ("samples/moving", 20)
    with (
        Image.open(io.BytesIO(value.image.encoded_image_string)) as moving,
        Image.open(tmp_path / "grid.webp") as sheet,
    ):
        assert (moving.format, moving.n_frames, moving.size) == ("GIF", 9, sheet.size)
        assert (value.image.width, value.image.height) == sheet.size
        for number in range(9):
            moving.seek(number)
            sheet.seek(number)
            apart = np.asarray(moving.convert("RGB")).astype(int) - np.asarray(sheet.convert("RGB"))
            assert np.abs(apart).mean() < 6  # of 256 colours
            assert moving.info["duration"] == pytest.approx(125, abs=10)
    pictures, players = logged
    assert pictures[1] == players[1] == 20
    assert pictures[0]["samples"][0][0] == "Image"
    wanted = {}
    for number, (prompt, _) in enumerate(DRAWN):
        for which in ("base", "tuned"):
            wanted[f"samples/{which}-{number}"] = ("Video", str(tmp_path / f"{which}-{number}.mp4"), prompt)
    assert players[0] == wanted


def test_sounds_and_texts_reach_wandb_in_their_own_form(tmp_path, trackers) -> None:
    tracker, writer, logged = trackers
    wave = knocks([0.1], 0.5)
    log_samples(tracker, audio.sheet([wave], [wave], DRAWN[:1], tmp_path / "grid.png", 8000.0), 1)
    assert logged[-1][0]["samples/tuned-0"] == ("Audio", str(tmp_path / "tuned-0.wav"), "it moves")
    log_samples(tracker, text.sheet(["a"], ["b"], DRAWN[:1], tmp_path / "words.png", None), 2)
    assert logged[-1] == ({"samples": ("Table", ["prompt", "base", "tuned"], [["it moves", "a", "b"]])}, 2)
    assert len(writer.images) == 1  # of the sound
    assert not writer.moving
    log_samples(tracker, None, 3)
    assert len(logged) == 3


def test_numbers_of_a_step_go_without_its_number() -> None:
    got: list[Any] = []
    log_step(SimpleNamespace(log=lambda values, step: got.append((values, step))), {"step": 4.0, "reward": 0.5})
    assert got == [({"reward": 0.5}, 4)]
