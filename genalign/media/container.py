"""Video files read by PyAV: their frames by time stamps and display matrix, and their sound."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from genalign.types import UsageError

log = logging.getLogger(__name__)

FILMS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,gif,avi"  # a playlist would name files and addresses of its own
GIF = "gif"  # its frames are not those that were written: equal ones became one that lasts longer
ALIGNED = 0.02  # seconds


class Header(NamedTuple):
    """What a file says of its video before a frame is decoded. frames and seconds: None where it does not say."""

    frames: int | None
    rate: float
    height: int
    width: int
    seconds: float | None = None


# ---- reading --------------------------------------------------------------------------------------------------------


def load_video(path: Path | str, fps: float | None = 2.0, most: int | None = None) -> tuple[Tensor, float]:
    """Frames (F,3,H,W) as levels uint8 of a video file, at most `fps` a second of it (None: all), and their rate in Hz.

    most: how many of them; what follows is not read, nor missed where the file is cut short behind them.

    Frame k is the one nearest to the time k / rate, by the file's own time stamps: a video of a variable frame rate
    is given at its average one, where long frames repeat; a GIF, whose writers make one long frame of equal ones, at
    the rate of which each frame lasts whole steps. Frames are turned and mirrored as the file says.

    Raises:
        UsageError: the file is missing, cut short, or not a video, or PyAV is not installed.
    """
    return decoded(_opened(path), str(path), fps, most)


def header(path: Path | str) -> Header:
    """The file's word about its video; nothing is decoded.

    Raises:
        UsageError: as `load_video`.
    """
    av = load_av(str(path))
    try:
        with _opened(path) as file, av.open(file, options={"format_whitelist": FILMS}) as container:
            stream = container.streams.video[0]
            rate = _rate(container, stream, 1.0)
            _check_end(container, stream, Path(path))
            seconds = _stated_end(container, stream) or (container.duration or 0) / 1e6 or None
            frames = None if container.format.name == GIF else stream.frames or None
            return Header(frames, rate, stream.height, stream.width, seconds)
    except (av.FFmpegError, OSError, IndexError) as error:
        raise UsageError(_unreadable(str(path), error)) from error


def _check_end(container: Any, stream: Any, path: Path) -> None:
    """Raises UsageError where a file is cut short that says so without a frame decoded: its index, which may stand
    before the frames, leads beyond its end; or, of Matroska, its last frames are not there."""
    size, stated = path.stat().st_size, _stated_end(container, stream)
    if (end := max((entry.pos + entry.size for entry in stream.index_entries), default=0)) > size:
        raise _cut_short(str(path), f"{size} of its {end} or more bytes")
    if stated and "matroska" in container.format.name:
        container.seek(int(stated * 1e6))
        last = max((_end_of(packet) for packet in container.demux(stream)), default=0.0)
        if last < stated - 1.5 / float(stream.average_rate or 1):
            raise _cut_short(str(path), f"{last:.2f} of its {stated:.2f} seconds")


def decoded(file: IO[bytes], name: str, fps: float | None, most: int | None = None) -> tuple[Tensor, float]:
    """`load_video` of an open file, which is closed; `name` stands in sentences about it."""
    av = load_av(name)
    try:
        with file, av.open(file, options={"format_whitelist": FILMS}) as container:
            stream = container.streams.video[0]
            native = _rate(container, stream, fps or 1.0)
            rate = native if fps is None else min(fps, native)
            frames = list(islice(_at_rate(_whole(container, stream, native, name), native, rate), most))
    except (av.FFmpegError, OSError, IndexError) as error:
        raise UsageError(_unreadable(name, error)) from error
    if not frames:
        raise UsageError(f"{name} holds no frame; drop it")
    if len({frame.shape for frame in frames}) > 1:
        raise UsageError(f"{name} changes its picture size midway; cut it there")
    return torch.stack(frames).permute(0, 3, 1, 2).contiguous(), rate


def _rate(container: Any, stream: Any, otherwise: float) -> float:
    """Frames a second, as `load_video` gives them."""
    steps = stream.base_rate if container.format.name == GIF and stream.frames > 1 else None
    return float(steps or stream.average_rate or stream.guessed_rate or otherwise)


def _opened(path: Path | str) -> IO[bytes]:
    """The file itself, so that FFmpeg sees bytes and no name that it could take for an address."""
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise UsageError(f"{path} cannot be read as a video: {error.strerror}") from error


def _unreadable(name: str, error: Exception) -> str:
    reason = "it holds none" if isinstance(error, IndexError) else getattr(error, "strerror", None) or error
    return f"{name} cannot be read as a video: {reason}; it may be cut short, so fetch or write it again, or drop it"


def _whole(container: Any, stream: Any, native: float, name: str) -> Iterator[Any]:
    """All frames. An mp4 that is cut short has no index or a broken last frame; a webm or mkv ends as if it were whole.

    Raises:
        UsageError: there are fewer frames or seconds than the file says.
    """
    count, end = 0, 0.0
    for packet in container.demux(stream):
        count += packet.size > 0
        end = max(end, _end_of(packet))
        yield from packet.decode()
    seconds = _stated_end(container, stream)
    if count < stream.frames or end < seconds - 1.5 / native:
        there = f"{count} of its {stream.frames} frames" if stream.frames else f"{end:.2f} of its {seconds:.2f} seconds"
        raise _cut_short(name, there)


def _cut_short(name: str, there: str) -> UsageError:
    return UsageError(f"{name} is cut short: only {there} are there; fetch or write it again, or drop it")


def _end_of(packet: Any) -> float:
    """The time in seconds at which a packet's frame ends; 0 of an empty packet."""
    if not packet.size or packet.pts is None:
        return 0.0
    return float((packet.pts + (packet.duration or 0)) * packet.time_base)


def _stated_end(container: Any, stream: Any) -> float:
    """The time in seconds at which the file says that its video ends; 0 where it says nothing of the video alone."""
    tag = stream.metadata.get("DURATION", "")  # of Matroska: 00:00:04.000000000
    parts = tag.split(":")
    if len(parts) == 3 and all(part.replace(".", "", 1).isdigit() for part in parts):
        return float(parts[0]) * 3600 + float(parts[1]) * 60 + float(parts[2])
    alone = len(container.streams) == 1 and "matroska" in container.format.name
    return (container.duration or 0) / 1e6 if alone else 0.0


def _at_rate(frames: Iterator[Any], native: float, rate: float) -> Iterator[Tensor]:
    """Of frames with time stamps the ones nearest to 0, 1/rate, 2/rate ..., each (H,W,3) uint8."""
    half, due = 0.5 / native, 0  # half a frame apart counts as nearest
    start, time, length, held = 0.0, 0.0, 1 / native, None
    for number, frame in enumerate(frames):
        stamp = number / native if frame.time is None else float(frame.time)
        if held is None:
            start = stamp
        else:
            length = stamp - start - time
        time = stamp - start
        shown: Tensor | None = None
        while held is not None and due / rate + half < time - 1e-9:
            shown = _pixels(held) if shown is None else shown
            yield shown
            due += 1
        held = frame
    if held is not None and held.duration:  # else the last is as long as the one before
        length = float(held.duration * held.time_base)
    while held is not None and due / rate + half < time + length - 1e-9:
        yield _pixels(held)
        due += 1


def _pixels(frame: Any) -> Tensor:
    """(H,W,3) as a player shows it: mirrored and turned by quarters as the file's display matrix says."""
    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24"))
    side = frame.side_data.get("DISPLAYMATRIX")
    if side is None:
        return pixels
    a, b, _, c, d = torch.frombuffer(bytearray(side), dtype=torch.int32)[:5].double().tolist()  # x' = a x + c y
    if a * d - b * c < 0:  # mirrored left to right, then turned
        pixels, a, b = pixels.flip(1), -a, -b
    turns = -round(math.atan2(b, a) / (math.pi / 2)) % 4  # FFmpeg's b and c have the signs of ISO 14496-12: clockwise
    return torch.rot90(pixels, turns, (0, 1)) if turns else pixels


def load_sound(path: Path) -> tuple[Tensor, float] | None:
    """`sound_of` the file at `path`.

    Raises:
        UsageError: the file is missing or damaged, or PyAV is not installed.
    """
    return sound_of(_opened(path), str(path))


def has_sound(path: Path) -> bool:
    """Whether a video file carries sound, by its header.

    Raises:
        UsageError: as `load_sound`.
    """
    av = load_av(str(path))
    try:
        with _opened(path) as file, av.open(file, options={"format_whitelist": FILMS}) as container:
            return bool(container.streams.audio)
    except (av.FFmpegError, OSError) as error:
        raise UsageError(_unreadable(str(path), error)) from error


def sound_of(file: IO[bytes], name: str) -> tuple[Tensor, float] | None:
    """The sound (C,N) fp32 in [-1,1] that a video file carries, and its sample rate; None where it has none. The file
    is closed; `name` stands in sentences about it.

    It begins with the first frame: silence is put before what begins later, what begins earlier is cut.

    Raises:
        UsageError: it is damaged, or PyAV is not installed.
    """
    av = load_av(name)
    try:
        with file, av.open(file, options={"format_whitelist": FILMS}) as container:
            if not container.streams.audio:
                return None
            stream = container.streams.audio[0]
            resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
            parts: list[Any] = []
            for frame in container.decode(stream):
                if not parts:
                    late = _late(container, frame)
                parts += [part.to_ndarray() for part in resampler.resample(frame)]
            parts += [part.to_ndarray() for part in resampler.resample(None)]
            rate = float(stream.rate)
    except (av.FFmpegError, OSError) as error:
        raise UsageError(f"the sound of {name} cannot be read: {error}") from error
    if not parts:
        return None
    wave, shift = torch.cat([torch.from_numpy(part) for part in parts], 1), round(late * rate)
    wave = wave[:, -shift:] if shift < 0 else torch.nn.functional.pad(wave, (shift, 0))
    return (wave.clamp(-1, 1), rate) if wave.numel() else None  # lossy codecs overshoot


def _late(container: Any, first: Any) -> float:
    """Seconds by which the sound begins after the picture; 0 below ALIGNED, to which containers round."""
    videos = container.streams.video
    start = float((videos[0].start_time or 0) * videos[0].time_base) if videos else 0.0
    late = 0.0 if first.time is None else float(first.time) - start
    return late if abs(late) > ALIGNED else 0.0


def load_av(name: str) -> Any:
    """PyAV, which is imported where a video is read or written."""
    try:
        import av
    except ImportError as error:
        raise UsageError(f"{name} is a video, which needs PyAV; pip install 'genalign[video]'") from error
    return av
