"""Videos against PyAV's own frames: which are taken at which rate, how they stand, and their sound."""

import base64
import io
import math
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from genalign.media import video
from genalign.media.files import read_media, write_sample
from genalign.media.medium import Budget
from genalign.types import GenalignError, Media, Track, UsageError

SIZE = (32, 48)  # height, width


def levels(count: int) -> list[int]:
    return [16 + 200 * k // max(count - 1, 1) for k in range(count)]


def record(path, stamps, rate=10, codec="libx264", sound=None, size=SIZE) -> None:
    """A gray video whose frames have the given times in units of 1/rate, each brighter than the one before."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = {"libx264": "yuv420p", "libvpx-vp9": "yuv420p", "gif": "rgb8"}[codec]
        voice = None if sound is None else container.add_stream("aac", rate=sound[1], layout="stereo")
        for stamp, level in zip(stamps, levels(len(stamps)), strict=True):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if voice is not None:
            wave = av.AudioFrame.from_ndarray(sound[0].astype(np.float32), format="fltp", layout="stereo")
            wave.sample_rate = sound[1]
            container.mux(voice.encode(wave))
            container.mux(voice.encode())


def shown(frames: torch.Tensor, count: int) -> list[int]:
    """Which of the recorded frames each of `frames` is."""
    known = torch.tensor(levels(count))
    return [int((known - frame.float().mean()).abs().argmin()) for frame in frames]


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "libx264"), ("mov", "libx264"), ("webm", "libvpx-vp9"), ("gif", "gif")]
)
def test_all_frames_at_their_own_rate(tmp_path, suffix: str, codec: str) -> None:
    record(tmp_path / f"x.{suffix}", range(12), codec=codec)
    frames, rate = video.read(tmp_path / f"x.{suffix}")
    assert frames.shape == (12, 3, *SIZE)
    assert rate == pytest.approx(10, rel=0.02)
    with av.open(str(tmp_path / f"x.{suffix}")) as container:
        plain = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert torch.equal(frames, torch.from_numpy(np.stack(plain)).permute(0, 3, 1, 2))


@pytest.mark.parametrize("rate", [24, 30, 25])
@pytest.mark.parametrize("suffix", ["mp4", "webm"])  # webm rounds its stamps to milliseconds
def test_no_frame_is_lost_or_doubled(tmp_path, rate: int, suffix: str) -> None:
    record(tmp_path / f"x.{suffix}", range(40), rate, "libx264" if suffix == "mp4" else "libvpx-vp9")
    assert shown(video.read(tmp_path / f"x.{suffix}")[0], 40) == list(range(40))


@pytest.mark.parametrize(("fps", "numbers"), [(5, [0, 2, 4, 6, 8, 10]), (2, [0, 5, 10]), (100, list(range(12)))])
def test_fewer_a_second_are_the_nearest(tmp_path, fps: int, numbers: list[int]) -> None:
    record(tmp_path / "x.mp4", range(12))
    frames, rate = video.load_video(tmp_path / "x.mp4", fps)
    assert shown(frames, 12) == numbers
    assert rate == min(fps, 10)


def test_long_frames_of_a_variable_rate_repeat(tmp_path) -> None:
    """Stamps 0, 1, 5, 6, 10, 11 tenths of a second: the oracle is the frame nearest to each time, before it if long."""
    stamps = [0, 1, 5, 6, 10, 11]
    record(tmp_path / "x.mp4", stamps)
    frames, rate = video.load_video(tmp_path / "x.mp4", 5)
    assert rate == pytest.approx(5)
    times = np.arange(len(frames)) / rate
    half = 0.05 * 12 / 6  # half of the mean time that a frame is on the screen
    wanted = [max(k for k, stamp in enumerate(stamps) if stamp / 10 <= time + half + 1e-9) for time in times]
    assert shown(frames, 6) == wanted
    assert len(frames) == 6  # 1.2 s


# Unit and quarter turns of a track header's matrix, ISO 14496-12: a, b, u, c, d, v, x, y, w in 16.16 and 2.30.
MATRIX = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


@pytest.mark.parametrize("turned", MATRIX)
def test_a_phone_video_stands_upright(tmp_path, turned: int) -> None:
    """`turned`: degrees clockwise by which a player turns the frames."""
    picture = np.full((*SIZE, 3), 30, np.uint8)
    picture[:16, :24] = 220  # its upper left corner is light
    with av.open(str(tmp_path / "x.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    blob = bytearray((tmp_path / "x.mp4").read_bytes())
    at = blob.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # version and flags, times and id and duration, reserved, layer
    assert blob[at : at + 4] == (1 << 16).to_bytes(4)
    a, b, c, d = MATRIX[turned]
    matrix = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    blob[at : at + 36] = b"".join((value & 0xFFFFFFFF).to_bytes(4) for value in matrix)
    (tmp_path / "x.mp4").write_bytes(blob)
    frames, _ = video.read(tmp_path / "x.mp4")
    upright = torch.from_numpy(np.rot90(picture, -turned // 90).copy()).permute(2, 0, 1) / 255
    assert frames.shape[1:] == upright.shape
    assert (frames[0] / 255 - upright).abs().mean() < 0.03


def test_a_video_with_sound_is_two_tracks(tmp_path) -> None:
    rate = 44100
    times = np.arange(rate) / rate
    wave = np.stack([0.4 * np.sin(2 * math.pi * f * times) for f in (440, 880)])
    record(tmp_path / "x.mp4", range(10), sound=(wave, rate))
    record(tmp_path / "mute.mp4", range(10))
    media = read_media([tmp_path / "x.mp4"])
    assert set(media) == {"video", "audio"}
    assert (media["video"].rate, media["audio"].rate) == (10.0, rate)
    for channel, tone in zip(media["audio"].data[0], (440, 880), strict=True):
        power = np.abs(np.fft.rfft(channel.numpy()[:rate]))
        assert abs(np.argmax(power) * rate / min(rate, channel.shape[-1]) - tone) <= 2
    assert set(read_media([tmp_path / "x.mp4", tmp_path / "mute.mp4"])) == {"video"}


def test_what_is_written_plays_with_its_sound(tmp_path) -> None:
    ramp = torch.linspace(0.1, 0.9, 8)[:, None, None, None].expand(8, 3, 15, 21)  # odd sides
    wave = 0.3 * torch.sin(2 * math.pi * 500 * torch.arange(16000) / 16000)[None]
    media = Media(video=Track(ramp[None].clone(), 8.0), audio=Track(wave[None], 16000.0))
    path = write_sample(media, 0, tmp_path / "new" / "00000")
    assert path.name == "00000.mp4"
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 8
        assert container.streams.audio[0].rate == 16000
    assert frames[0].shape == (16, 22, 3)
    means = np.array([frame.mean() / 255 for frame in frames])
    np.testing.assert_allclose(means, np.linspace(0.1, 0.9, 8), atol=0.02)


def test_values_that_are_not_numbers_are_never_written(tmp_path) -> None:
    media = Media(image=Track(torch.tensor([0.5, math.nan])[:, None, None, None].expand(2, 3, 4, 4)))
    assert write_sample(media, 0, tmp_path / "a").suffix == ".png"
    with pytest.raises(GenalignError, match="sample b holds image values that are not numbers"):
        write_sample(media, 1, tmp_path / "b")
    assert not (tmp_path / "b.png").exists()


def test_bad_files_are_one_sentence(tmp_path) -> None:
    (tmp_path / "x.mp4").write_text("not a video")
    with pytest.raises(UsageError, match=r"x.mp4 cannot be read as a video"):
        video.read(tmp_path / "x.mp4")
    with pytest.raises(UsageError, match="without the frame rate"):
        video.write(torch.zeros(2, 3, 4, 4), None, tmp_path / "y")


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch) -> None:
    (tmp_path / "x.wav").write_bytes(b"")
    (tmp_path / "x.mp4").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UsageError, match=r"pip install 'genalign\[video\]'"):
        video.read(tmp_path / "x.mp4")


def test_symptoms_by_hand() -> None:
    black = torch.zeros(4, 3, 4, 4)
    moving = torch.linspace(0.2, 0.8, 4)[:, None, None, None].expand(4, 3, 4, 4)
    stuck = moving[[0, 0, 0, 3]]
    found = video.symptoms([black, moving, stuck])
    assert found["black"] == pytest.approx(1 / 3)
    assert found["frozen"] == pytest.approx((1 + 0 + 2 / 3) / 3)
    assert found["saturation"] == 0
    assert found["brightness"] == pytest.approx((0 + 0.5 + (3 * 0.2 + 0.8) / 4) / 3)
    assert found["motion"] == pytest.approx((0 + 0.2 + 0.6 / 3) / 3)
    assert found["flicker"] == pytest.approx((0 + 0 + (0 + 0.3) / 2) / 3, abs=1e-6)  # 0.2, 0.2, 0.8: 0.3 off the middle
    assert video.distance(black, black[:2] + 0.5) == pytest.approx(0.5)
    assert video.extent(black, 8.0) == 4.0
    assert video.symptoms([black[:1]])["frozen"] == 0.0  # one frame repeats nothing


def test_a_request_brings_a_list_of_pictures() -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (255, 0, 51)).save(file, format="PNG")
    row = [base64.b64encode(file.getvalue()).decode()] * 3
    frames, rate = video.decode(row, 6.0, Budget(48))
    assert (tuple(frames.shape), rate) == ((3, 3, 4, 4), 6.0)
    assert frames[2].mean((1, 2)).tolist() == pytest.approx([1.0, 0.0, 0.2])
    with pytest.raises(ValueError, match="more pixels or samples"):
        video.decode(row, 6.0, Budget(47))


def test_a_sheet_is_a_strip_of_frames(tmp_path) -> None:
    ramp = torch.linspace(0, 1, 9)[:, None, None, None].expand(9, 3, 200, 100)
    path = video.sheet([ramp], [1 - ramp], [("a dawn", 1)], tmp_path / "grid.png", 8.0)
    pixels = np.asarray(Image.open(path).convert("L")).astype(int)
    row = pixels[16 + 8 + 20]
    for level in (0, 85, 170, 255):  # four of nine frames, evenly spaced: 0, 3, 5 (.375 -> 96, .625 -> 159) and 8
        nearest = {0: 0, 85: 96, 170: 159, 255: 255}[level]
        assert (np.abs(row - nearest) <= 1).sum() >= 2 * 40
    assert (tmp_path / "base-0.mp4").is_file()
    assert (tmp_path / "tuned-0.mp4").is_file()
