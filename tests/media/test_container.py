"""Video files against PyAV's own packets, hand-made files, and what a player is told."""

import logging
import math
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import signal
from transformers.video_utils import load_video as load_frames

from genalign.media import video
from genalign.media.container import header, load_sound, load_video
from genalign.media.files import read_media
from genalign.media.film import write_video
from genalign.types import Media, Track, UsageError

TONE = 0.3 * torch.sin(2 * math.pi * 500 * torch.arange(16000) / 16000)[None]


def clip(count: int = 9, height: int = 32, width: int = 48) -> torch.Tensor:
    """Smooth pictures that a lossy codec keeps: a gradient that drifts, another in each colour."""
    x = torch.linspace(0, 3, width).expand(height, width) + torch.linspace(0, 2, height)[:, None]
    shifts = torch.arange(count)[:, None, None, None] / count + torch.arange(3)[:, None, None]
    return 0.5 + 0.3 * torch.sin(x + shifts)


def packets(path) -> tuple[int, Fraction, set[str]]:
    """Packets of video, the stated rate, and the kinds of streams, as the demultiplexer sees them."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        kinds = {one.type for one in container.streams}
        return sum(packet.size > 0 for packet in container.demux(stream)), stream.average_rate, kinds


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
@pytest.mark.parametrize("rate", [8.0, 16.0, 23.976, 24000 / 1001, 30.0])
def test_what_is_written_has_every_frame_at_its_rate(tmp_path, suffix: str, rate: float) -> None:
    path = write_video(clip(), rate, tmp_path / f"x.{suffix}")
    count, stated, kinds = packets(path)
    assert (path.suffix, count, kinds) == (f".{suffix}", 9, {"video"})
    assert float(stated) == pytest.approx(rate, rel=1e-3)
    frames, read = video.read(path)
    assert (frames.dtype, tuple(frames.shape)) == (torch.uint8, (9, 3, 32, 48))
    assert read == pytest.approx(rate, rel=1e-3)
    assert (frames / 255 - clip()).abs().mean() < 0.02
    assert load_sound(path) is None


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_a_file_names_the_matrix_that_its_colours_were_made_by(tmp_path, suffix: str) -> None:
    """Else a browser takes another one for an mp4 of 720 lines. The oracle is BT.601's equation, of limited range."""
    r, g, b = np.array([20, 200, 60]) / 255
    flat = torch.tensor([20, 200, 60], dtype=torch.uint8)[:, None, None].expand(3, 3, 64, 64)
    path = write_video(flat, 8.0, tmp_path / f"x.{suffix}")
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        tags = frame.colorspace, container.streams.video[0].codec_context.color_primaries
        luma, *chroma = (part.mean() for part in np.split(frame.to_ndarray(), [64, 80]))  # (96,64): 64, 16 and 16 rows
    assert tags == (6, 1)
    assert luma == pytest.approx(16 + 65.481 * r + 128.553 * g + 24.966 * b, abs=1.5)
    assert chroma[0] == pytest.approx(128 - 37.797 * r - 74.203 * g + 112.0 * b, abs=1.5)
    assert chroma[1] == pytest.approx(128 + 112.0 * r - 93.786 * g - 18.214 * b, abs=1.5)


@pytest.mark.parametrize(
    ("suffix", "rate", "kept"), [("mp4", 16000, 16000), ("mp4", 11111, 12000), ("webm", 16000, 48000)]
)
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_sound_lies_in_the_same_file(tmp_path, suffix: str, rate: int, kept: int, channels: int) -> None:
    """A tone of 500 Hz that begins after half a second: its pitch, its length and its moment are read back."""
    times = torch.arange(rate) / rate
    wave = (0.3 * torch.sin(2 * math.pi * 500 * times) * (times >= 0.5)).expand(channels, -1)
    path = write_video(clip(), 9.0, tmp_path / f"x.{suffix}", (wave, float(rate)))
    assert packets(path)[::2] == (9, {"video", "audio"})
    media = read_media([path])
    assert media["video"].held.shape == (1, 9, 3, 32, 48)
    track = media["audio"]
    assert track.rate == kept
    assert track.held.shape[1] == (2 if channels == 2 else 1)
    heard = track.held[0].mean(0).numpy()
    assert abs(len(heard) / kept - 1) < 0.1  # codecs fill their last frame
    loud = np.abs(heard) > 0.15
    assert abs(np.argmax(loud) / kept - 0.5) < 0.02
    spectrum = np.abs(np.fft.rfft(heard[:kept]))
    assert abs(np.argmax(spectrum) - 500 * len(heard[:kept]) / kept) < 10


@pytest.mark.parametrize("late", [0.25, -0.25, 0.0])
def test_sound_begins_with_the_first_frame(tmp_path, late: float) -> None:
    """A knock half a second after the picture begins, in sound that begins `late`."""
    rate = 8000
    wave = np.zeros((1, rate), np.float32)
    wave[0, round((0.5 - late) * rate) :][:400] = 0.8
    with av.open(str(tmp_path / "x.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        voice = container.add_stream("pcm_f32le", rate=rate, layout="mono")
        start = 1.0
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 90, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round((start + number / 10) * 10), Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        sound = av.AudioFrame.from_ndarray(wave, format="flt", layout="mono")
        sound.sample_rate, sound.time_base, sound.pts = rate, Fraction(1, rate), round((start + late) * rate)
        container.mux(voice.encode(sound))
        container.mux(voice.encode())
    heard, read = load_sound(tmp_path / "x.mkv")
    assert read == rate
    assert int((heard[0] > 0.5).float().argmax()) == pytest.approx(rate // 2, abs=16)


def test_odd_sides_grow_by_their_own_edge_and_the_log_says_so(tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO)
    frames = clip(4, 15, 21)
    path = write_video(frames, 8.0, tmp_path / "x.mp4")
    assert "x.mp4 is written 16 pixels high and 22 wide, since yuv420p needs even sides" in caplog.text
    read = video.read(path)[0] / 255
    assert read.shape == (4, 3, 16, 22)
    assert (read[..., :15, :21] - frames).abs().mean() < 0.02
    assert (read[..., 15, :21] - frames[..., 14, :]).abs().mean() < 0.03
    caplog.clear()
    write_video(frames[..., :14, :20], 8.0, tmp_path / "y.mp4")
    assert caplog.text == ""


def test_levels_and_floats_are_written_alike(tmp_path) -> None:
    levels = (clip() * 255).round().to(torch.uint8)
    files = [write_video(row, 8.0, tmp_path / f"{k}.mp4") for k, row in enumerate((levels, levels / 255))]
    first, second = (video.read(file)[0].float() for file in files)
    assert (first - second).abs().mean() < 0.5  # of 255; one encoder's two runs have differed in bytes


@pytest.mark.parametrize("share", [0.97, 0.6, 0.3])
@pytest.mark.parametrize("name", ["end.mp4", "front.mp4", "x.webm", "x.mkv"])
def test_a_file_that_is_cut_short_is_never_taken_for_a_short_one(tmp_path, name: str, share: float) -> None:
    """`front`: the index stands before the frames, so that those that are there could be decoded."""
    options = {"movflags": "faststart"} if name == "front.mp4" else {}
    rng = np.random.default_rng(0)
    with av.open(str(tmp_path / name), "w", options=options) as container:
        stream = container.add_stream("libvpx-vp9" if name == "x.webm" else "libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for _ in range(40):
            noise = rng.integers(0, 255, (48, 64, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode())
    assert len(video.read(tmp_path / name)[0]) == 40
    assert header(tmp_path / name).frames in (40, None)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
    for read in (video.read, header):  # also by the header alone, before anything is decoded
        with pytest.raises(UsageError, match=rf"{name} .*cut short.*again, or drop it$"):
            read(tmp_path / name)


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_sound_is_read_where_it_was_to_the_sample(tmp_path, suffix: str, rate: int) -> None:
    """A chirp, whose correlation with itself has one peak: what encoders put before it is not there."""
    times = torch.arange(rate) / rate
    wave = 0.5 * torch.sin(2 * math.pi * (200 * times + 600 * times.square()))[None]
    heard, read = load_sound(write_video(clip(), 9.0, tmp_path / f"x.{suffix}", (wave, float(rate))))
    made = wave[0].numpy() if read == rate else signal.resample_poly(wave[0].numpy(), round(read), rate)
    likeness = signal.correlate(heard[0].numpy(), made)
    assert int(likeness.argmax()) - (len(made) - 1) == 0
    assert 0 <= heard.shape[1] - len(made) <= 1024  # a codec fills its last frame


def test_transformers_reads_the_same_frames(tmp_path) -> None:
    path = write_video(clip(), 8.0, tmp_path / "x.mp4")
    theirs, metadata = load_frames(str(path), backend="pyav")
    assert torch.equal(video.read(path)[0], torch.from_numpy(np.asarray(theirs)).permute(0, 3, 1, 2))
    assert (metadata.fps, metadata.total_num_frames) == (8, 9)


# Display matrices of ISO 14496-12 (a, b, c, d): what the player does to a picture, given as numpy does it.
MATRICES = {
    "mirrored": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda p: p[::-1]),
    "transposed": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
    "turned right": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "transposed over the other corner": ((0, -1, -1, 0), lambda p: np.rot90(p, 2).swapaxes(0, 1)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_frames_are_turned_and_mirrored_as_the_file_says(tmp_path, name: str) -> None:
    (a, b, c, d), apply = MATRICES[name]
    picture = np.full((32, 48, 3), 30, np.uint8)
    picture[:16, :24], picture[:16, 24:] = 220, 120  # no symmetry
    path = write_video(torch.from_numpy(picture).permute(2, 0, 1).expand(3, -1, -1, -1), 10.0, tmp_path / "x.mp4")
    blob = bytearray(path.read_bytes())
    at = blob.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    matrix = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    blob[at : at + 36] = b"".join((value & 0xFFFFFFFF).to_bytes(4) for value in matrix)
    path.write_bytes(blob)
    wanted = torch.from_numpy(apply(picture).copy()).permute(2, 0, 1).float()
    frames, _ = video.read(path)
    assert frames.shape[1:] == wanted.shape
    assert (frames[0].float() - wanted).abs().mean() < 5


def test_a_gif_is_given_with_the_frames_that_its_writer_merged(tmp_path) -> None:
    levels, path = (10, 100, 100, 100, 200, 200, 250), tmp_path / "pause.gif"
    frames = [Image.new("RGB", (16, 16), (level,) * 3) for level in levels]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=120)
    with Image.open(path) as merged:
        assert merged.n_frames == 4
    clip, rate = load_video(path, None)
    assert clip[:, 0, 8, 8].tolist() == list(levels)
    assert rate == pytest.approx(1 / 0.12)
    assert header(path)[:2] == (None, rate)
    frames[0].save(path, save_all=True, append_images=frames[:1] * 8, duration=120)  # one that lasts 1.08 s
    assert len(load_video(path, None)[0]) == 1


def test_a_header_tells_of_the_video_without_a_frame(tmp_path) -> None:
    path = write_video(clip(), 8.0, tmp_path / "x.mp4")
    assert header(path) == (9, 8.0, 32, 48, 1.125)
    (tmp_path / "y.mp4").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"y.mp4 cannot be read as a video"):
        header(tmp_path / "y.mp4")


def test_a_clip_may_be_a_list_of_pictures(tmp_path) -> None:
    from genalign.media.image import save_png

    levels = (clip(3) * 255).round().to(torch.uint8)
    for number, frame in enumerate(levels):
        save_png(frame, tmp_path / f"f-{number}.png")
    frames, rate = video.cell([f"f-{k}.png" for k in range(3)], tmp_path, "row 1")
    assert torch.equal(frames, levels)
    assert rate == 8.0
    save_png(levels[0, :, :8], tmp_path / "small.png")
    for names in ([], ["f-0.png", "small.png"]):
        with pytest.raises(UsageError, match=r"row 1: its list of frames is empty, or they differ in size"):
            video.cell(names, tmp_path, "row 1")


def test_files_are_held_as_levels_and_read_as_floats(tmp_path) -> None:
    path = write_video(clip(), 8.0, tmp_path / "x.mp4")
    media = read_media([path, path])
    assert isinstance(media, Media)
    track = media["video"]
    assert isinstance(track, Track)
    assert track.held.nbytes == 2 * 9 * 3 * 32 * 48  # one byte a value
    assert torch.equal(track.data, track.held.float() / 255)
