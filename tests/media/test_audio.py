"""Sounds against numpy and soundfile: channels, rates, formats, and what is wrong with a broken one."""

import base64
import io
import math
import sys

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from genalign.media import audio
from genalign.media.medium import Budget
from genalign.types import UsageError


def tones(channels: int, rate: int = 16000, seconds: float = 0.25) -> np.ndarray:
    """(N,C): a tone of its own in each channel."""
    times = np.arange(int(rate * seconds)) / rate
    return np.stack([0.4 * np.sin(2 * math.pi * 220 * (k + 1) * times) for k in range(channels)], 1)


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff"])
def test_all_channels_in_their_order(tmp_path, channels: int, suffix: str) -> None:
    wave = tones(channels)
    soundfile.write(tmp_path / f"x.{suffix}", wave, 16000, subtype="PCM_24")
    found, rate = audio.read(tmp_path / f"x.{suffix}")
    assert rate == 16000.0
    np.testing.assert_allclose(found.numpy(), wave.T, atol=2**-23)


@pytest.mark.parametrize(("suffix", "rate"), [("mp3", 44100), ("ogg", 22050)])
def test_lossy_files_keep_the_tone(tmp_path, suffix: str, rate: int) -> None:
    soundfile.write(tmp_path / f"x.{suffix}", tones(1, rate, 1.0), rate)
    found, got = audio.read(tmp_path / f"x.{suffix}")
    assert got == rate
    power = np.abs(np.fft.rfft(found[0].numpy()[:rate]))
    assert abs(np.argmax(power) - 220) <= 1


@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x"])
def test_what_is_written_reads_back_to_24_bits(tmp_path, name: str) -> None:
    wave = torch.from_numpy(tones(2).T).float()
    path = audio.write(wave, 16000.0, tmp_path / "new" / name)
    assert path.name == (name if "." in name else "x.wav")
    data, rate = soundfile.read(path, always_2d=True)
    assert (data.shape, rate) == ((4000, 2), 16000)
    np.testing.assert_allclose(data.T, wave.numpy(), atol=2**-22)
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no draft is left


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("length", [1, 1023, 4097])
def test_files_hold_as_many_samples_as_they_were_given(tmp_path, suffix: str, rate: int, length: int) -> None:
    wave = 0.5 * torch.sin(torch.arange(length) * 0.05).repeat(2, 1)
    path = audio.write(wave, float(rate), tmp_path / f"x.{suffix}")
    info = soundfile.info(path)
    assert (info.frames, info.samplerate, info.channels) == (length, rate, 2)
    found, got = audio.read(path)
    assert (tuple(found.shape), got) == ((2, length), rate)
    assert float((found - wave).abs().max()) < (0.15 if suffix == "ogg" else 2**-22)


def test_too_loud_is_clipped_not_wrapped(tmp_path) -> None:
    path = audio.write(torch.tensor([[1.7, -1.7, 0.0]]), 8000.0, tmp_path / "x.wav")
    assert soundfile.read(path)[0].tolist() == pytest.approx([1.0, -1.0, 0.0], abs=2**-22)


def test_bad_files_are_one_sentence(tmp_path) -> None:
    (tmp_path / "x.wav").write_text("not a sound")
    soundfile.write(tmp_path / "empty.wav", np.zeros((0, 1)), 8000)
    for name, words in (("x.wav", "cannot be read as a sound"), ("none.wav", "none.wav"), ("empty.wav", "no sample")):
        with pytest.raises(UsageError, match=words):
            audio.read(tmp_path / name)
    with pytest.raises(UsageError, match="without the sample rate"):
        audio.write(torch.zeros(1, 4), None, tmp_path / "y.wav")


def test_cells_of_a_table(tmp_path) -> None:
    soundfile.write(tmp_path / "x.wav", tones(1), 16000, subtype="FLOAT")
    blob = (tmp_path / "x.wav").read_bytes()
    for value in ("x.wav", blob, {"bytes": blob, "path": None}, {"array": tones(1)[:, 0], "sampling_rate": 16000}):
        wave, rate = audio.cell(value, tmp_path, "row 1")
        assert rate == 16000.0
        np.testing.assert_allclose(wave.numpy(), tones(1).T, atol=1e-6)
    with pytest.raises(UsageError, match=r"row 1 .*int is not a sound"):
        audio.cell(3, tmp_path, "row 1")


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch) -> None:
    (tmp_path / "x.wav").write_bytes(b"")
    (tmp_path / "x.mp4").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(UsageError, match=r"pip install 'genalign\[audio\]'"):
        audio.read(tmp_path / "x.wav")


def test_symptoms_by_hand() -> None:
    silent, loud = torch.zeros(1, 8), torch.tensor([[1.0, -1.0, 0.5, 0.5, 0, 0, 0, 0]])
    broken = torch.tensor([[math.nan, math.inf, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    found = audio.symptoms([silent, loud, broken])
    assert found["silent"] == pytest.approx(2 / 3)
    assert found["clipped"] == pytest.approx((0 + 2 / 8 + 1 / 8) / 3)  # infinity is beyond full scale
    assert found["not_finite"] == pytest.approx(2 / 8 / 3)
    assert found["loudness"] == pytest.approx(math.sqrt(2.5 / 8) / 3)
    assert audio.distance(silent, loud) == pytest.approx(math.sqrt(2.5 / 8))
    assert audio.distance(silent, loud[:, :4]) == pytest.approx(math.sqrt(2.5 / 4))  # over what both have
    assert audio.extent(torch.zeros(2, 4000), 16000.0) == 0.25


def test_a_request_is_refused_before_it_is_unpacked() -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((1000, 2)), 8000, format="FLAC")
    given = base64.b64encode(file.getvalue()).decode()
    wave, rate = audio.decode(given, None, Budget(2000))
    assert (tuple(wave.shape), rate) == ((2, 1000), 8000.0)
    with pytest.raises(ValueError, match="more pixels or samples"):
        audio.decode(given, None, Budget(1999))


@pytest.mark.parametrize("length", [1, 30, 4000])
def test_a_sheet_shows_both_and_lists_the_files(tmp_path, length: int) -> None:
    base, tuned = [torch.zeros(2, length)] * 2, [torch.rand(2, length)] * 2
    path = audio.sheet(base, tuned, [("a tone", 1), ("another", 2)], tmp_path / "grid.png", 8000.0)
    assert Image.open(path).width > 2 * audio.PICTURE[0]
    rows = path.with_suffix(".jsonl").read_text().splitlines()
    assert len(rows) == 2
    assert soundfile.info(tmp_path / "tuned-1.wav").frames == length
