"""Clips in the form that a model draws: which frames are taken, by hand, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from genalign.media import container
from genalign.media.container import Header, header
from genalign.media.film import write_video
from genalign.media.form import ClipForm
from genalign.types import UsageError


def form(frames: int | None, rate: float) -> ClipForm:
    return ClipForm(frames, rate, "policy.call.num_frames", "policy.frame_rate")


def ramp(count: int) -> torch.Tensor:
    """Gray frames (F,3,16,16), each 10 levels lighter than the one before."""
    return (10 * torch.arange(1, count + 1)).to(torch.uint8)[:, None, None, None].expand(-1, 3, 16, 16)


def numbers(frames: torch.Tensor) -> list[int]:
    return [round(float(frame.float().mean()) / 10) - 1 for frame in frames]


CASES = [
    (8.0, 5, 8.0, [0, 1, 2, 3, 4]),  # its own rate: the first five
    (8.3, 5, 8.0, [0, 1, 2, 3, 4]),  # less than a twentieth off: frame by frame
    (16.0, 5, 8.0, [0, 2, 4, 6, 8]),
    (24.0, 5, 8.0, [0, 3, 6, 9, 12]),
    (12.0, 5, 8.0, [0, 2, 3, 4, 6]),  # 0, 1.5, 3, 4.5 and 6, of which the halves go to the even one
    (8.0, None, 8.0, list(range(20))),
]


@pytest.mark.parametrize(("own", "count", "rate", "taken"), CASES)
def test_frames_at_hand_are_taken_at_the_rate_that_is_drawn(own, count, rate, taken) -> None:
    frames, read = form(count, rate).fit(ramp(20), own, "x")
    assert numbers(frames) == taken
    assert read == (own if abs(own / rate - 1) < 0.05 else rate)


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
@pytest.mark.parametrize(("own", "count", "rate", "taken"), [case for case in CASES if case[0] != 12.0])
def test_so_are_those_of_a_file(tmp_path: Path, suffix: str, own, count, rate, taken) -> None:
    path = write_video(ramp(20), own, tmp_path / f"x.{suffix}")
    frames, read = form(count, rate).load(path, "x")
    assert numbers(frames) == taken
    assert read == pytest.approx(own if abs(own / rate - 1) < 0.05 else rate, rel=1e-3)


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (Header(20, 6.0, 16, 16), "x has 6 frames a second, of which the model draws 8; set policy.frame_rate to 6"),
        (Header(8, 8.0, 16, 16), "x is too short: it gives 8 frames at 8 a second, where the model draws 9; drop it"),
        (Header(16, 16.0, 16, 16), "x is too short: it gives 8 frames at 8 a second, where the model draws 9; drop it"),
        (Header(None, 16.0, 16, 16, 1.0), "it gives 8 frames at 8 a second, where the model draws 9; drop it, or lower "
         "policy.call.num_frames"),
    ],
)  # fmt: skip
def test_what_cannot_be_given_the_form_is_refused_by_its_header(found: Header, sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        form(9, 8.0).check(found, "x")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_what_can_be_given_it_is_not(tmp_path: Path) -> None:
    for found in (Header(9, 8.0, 16, 16), Header(17, 16.0, 16, 16), Header(None, 16.0, 16, 16, 17 / 16)):
        form(9, 8.0).check(found, "x")
    form(9, 8.0).check(Header(None, 8.0, 16, 16, None), "x")  # who does not say how long it is
    path = write_video(ramp(9), 8.0, tmp_path / "x.webm")
    form(9, 8.0).check(header(path), "x")
    with pytest.raises(UsageError, match="it gives 9 frames at 8 a second, where the model draws 10"):
        form(10, 8.0).load(path, "x")
    with pytest.raises(UsageError, match="it gives 9 frames at 8 a second, where the model draws 10"):
        form(10, 8.0).fit(ramp(9), 8.0, "x")


def test_no_more_is_decoded_than_is_drawn(tmp_path: Path, monkeypatch) -> None:
    path, shown = write_video(ramp(20), 8.0, tmp_path / "x.mp4"), []
    real = container._pixels
    monkeypatch.setattr(container, "_pixels", lambda frame: shown.append(frame) or real(frame))
    assert numbers(form(5, 8.0).load(path, "x")[0]) == [0, 1, 2, 3, 4]
    assert len(shown) == 5
