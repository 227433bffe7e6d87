"""Videos from and to files, by PyAV; a medium (see medium.py)."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from genalign.files.atomic import replace_file
from genalign.files.untrusted import neighbour
from genalign.media import image
from genalign.media.medium import Budget
from genalign.types import UsageError

SUFFIXES: tuple[str, ...] = (".mp4", ".webm", ".mov", ".mkv", ".gif")
RANGE: tuple[float, float] | None = (-0.01, 1.01)
FILMS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,gif,avi"  # a playlist would name files and addresses of its own
BLACK = 0.02  # mean below which a frame counts as black
FROZEN = 0.5 / 255  # mean change below which a frame repeats the one before
STRIP, STRIP_HEIGHT = 4, 96  # frames of a video in a sheet, and their greatest height in px


def load_video(path: Path | str, fps: float | None = 2.0) -> tuple[Tensor, float]:
    """Frames (F,3,H,W) fp32 in [0,1] of a video file, at most `fps` a second of it (None: all), and their rate in Hz.

    Frame k is the one nearest to the time k / rate, by the file's own time stamps: a video of a variable frame rate
    is given at its average one, where long frames repeat. Frames are turned as the file says.

    Raises:
        UsageError: the file is missing or not a video, or PyAV is not installed.
    """
    return _decoded(_opened(path), str(path), fps)


def _opened(path: Path | str) -> IO[bytes]:
    """The file itself, so that FFmpeg sees bytes and no name that it could take for an address."""
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise UsageError(f"{path} cannot be read as a video: {error.strerror}") from error


def _decoded(file: IO[bytes], name: str, fps: float | None) -> tuple[Tensor, float]:
    av = _av(name)
    try:
        with file, av.open(file, options={"format_whitelist": FILMS}) as container:
            stream = container.streams.video[0]
            native = float(stream.average_rate or stream.guessed_rate or fps or 1.0)
            rate = native if fps is None else min(fps, native)
            frames = list(_at_rate(container.decode(stream), native, rate))
    except (av.FFmpegError, OSError, IndexError) as error:
        raise UsageError(f"{name} cannot be read as a video: {error}") from error
    if not frames:
        raise UsageError(f"{name} holds no frame; drop it")
    if len({frame.shape for frame in frames}) > 1:
        raise UsageError(f"{name} changes its picture size midway; cut it there")
    return torch.stack(frames).permute(0, 3, 1, 2).float().div(255), rate


def _at_rate(decoded: Iterator[Any], native: float, rate: float) -> Iterator[Tensor]:
    """Of frames with time stamps the ones nearest to 0, 1/rate, 2/rate ..., each (H,W,3) uint8."""
    half, due = 0.5 / native, 0  # half a frame apart counts as nearest
    start, time, length, held = 0.0, 0.0, 1 / native, None
    for number, frame in enumerate(decoded):
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
    while held is not None and due / rate + half < time + length - 1e-9:  # the last is as long as the one before
        yield _pixels(held)
        due += 1


def _pixels(frame: Any) -> Tensor:
    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24"))  # (H, W, 3)
    turns = round(getattr(frame, "rotation", 0) / 90) % 4  # counter-clockwise
    return torch.rot90(pixels, turns, (0, 1)) if turns else pixels


def load_sound(path: Path) -> tuple[Tensor, float] | None:
    """The sound (C,N) fp32 in [-1,1] that a video file carries, and its sample rate; None where it has none.

    Raises:
        UsageError: the file is missing or damaged, or PyAV is not installed.
    """
    av = _av(str(path))
    try:
        with _opened(path) as file, av.open(file, options={"format_whitelist": FILMS}) as container:
            if not container.streams.audio:
                return None
            stream = container.streams.audio[0]
            resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
            parts = []
            for frame in container.decode(stream):
                parts += [part.to_ndarray() for part in resampler.resample(frame)]
            parts += [part.to_ndarray() for part in resampler.resample(None)]
            rate = float(stream.rate)
    except (av.FFmpegError, OSError) as error:
        raise UsageError(f"the sound of {path} cannot be read: {error}") from error
    wave = torch.cat([torch.from_numpy(part) for part in parts], 1) if parts else torch.empty(0, 0)
    return (wave.clamp(-1, 1), rate) if wave.numel() else None  # lossy codecs overshoot


def _av(name: str) -> Any:
    try:
        import av
    except ImportError as error:
        raise UsageError(f"{name} is a video, which needs PyAV; pip install 'genalign[video]'") from error
    return av


# ---- the medium -----------------------------------------------------------------------------------------------------


def read(path: Path) -> tuple[Tensor, float]:
    return load_video(path, None)


def cell(value: Any, root: Path, where: str) -> tuple[Tensor, float]:
    """A file's name, its bytes, or an undecoded row of datasets; all its frames, of which each scorer takes its own."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return _decoded(io.BytesIO(value), where, None)
    return load_video(neighbour(root, str(value), where), None)


def write(row: Tensor, rate: float | None, path: Path, sound: tuple[Tensor, float | None] | None = None) -> Path:
    """Write (F,3,H,W) in [0,1] as an .mp4 that browsers play; odd sides grow by one pixel, which H.264 needs.

    Raises:
        UsageError: no frame rate, or PyAV is not installed.
    """
    av = _av(str(path))
    if not rate:
        raise UsageError(f"{path} cannot be written without the frame rate of the video; give Track(video, rate)")
    path = path if path.suffix == ".mp4" else path.with_name(f"{path.name}.mp4")
    frames = row.detach().float().clamp(0, 1).mul(255).round().to("cpu", torch.uint8)  # (F, 3, H, W)
    frames = torch.cat([frames, frames[..., -1:, :]], -2) if frames.shape[-2] % 2 else frames
    frames = torch.cat([frames, frames[..., -1:]], -1) if frames.shape[-1] % 2 else frames
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[-2:], "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "16"}
        voice = None if sound is None else _voice(container, *sound)
        for frame in frames:
            pixels = av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
            container.mux(stream.encode(pixels))
        container.mux(stream.encode())
        if sound is not None:
            _mux(av, container, voice, sound[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, file.getvalue())
    return path


def _voice(container: Any, wave: Tensor, rate: float | None) -> Any:
    return container.add_stream("aac", rate=round(rate or 48000), layout="stereo" if len(wave) == 2 else "mono")


def _mux(av: Any, container: Any, stream: Any, wave: Tensor) -> None:
    """The sound (C,N) in two channels where it has two, else in one: the mean of its channels."""
    samples = wave.detach().float().clamp(-1, 1).cpu()
    samples = samples if len(samples) <= 2 else samples.mean(0, keepdim=True)
    layout = "stereo" if len(samples) == 2 else "mono"
    frame = av.AudioFrame.from_ndarray(samples.contiguous().numpy(), format="fltp", layout=layout)
    frame.sample_rate = stream.rate
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


def sheet(
    base: Sequence[Tensor], tuned: Sequence[Tensor], drawn: Sequence[tuple[str, int]], path: Path, rate: float | None
) -> Path:
    """Some frames of each in a strip, base beside tuned; the videos themselves stand beside the picture."""
    from genalign.media.grid import grid, save, write_pairs

    shown = [[_strip(row) for row in rows] for rows in (base, tuned)]
    save(grid(shown[0], shown[1], [prompt for prompt, _ in drawn], columns=1), path)
    if rate:
        write_pairs("video", lambda row, stem: write(row, rate, stem), base, tuned, drawn, path)
    return path


def _strip(row: Tensor) -> Any:
    """STRIP evenly spaced frames of (F,3,H,W) side by side."""
    import PIL.Image

    numbers = torch.linspace(0, len(row) - 1, STRIP).round().long().tolist()
    frames = [image.to_pil(row[number]) for number in numbers]
    width, height = frames[0].size
    if height > STRIP_HEIGHT:
        width, height = max(1, round(width * STRIP_HEIGHT / height)), STRIP_HEIGHT
    strip = PIL.Image.new("RGB", (STRIP * width + 2 * (STRIP - 1), height), "white")
    for place, frame in enumerate(frames):
        strip.paste(frame.resize((width, height)), (place * (width + 2), 0))
    return strip


def symptoms(rows: Sequence[Tensor]) -> dict[str, float]:
    """Shares of frames: `black`, and `frozen`, i.e. as the one before; `saturation` as of images."""
    count, found = max(len(rows), 1), {"black": 0.0, "frozen": 0.0, "saturation": 0.0}
    for row in rows:
        frames = row.detach().float().cpu()  # (F, 3, H, W)
        changes = (frames[1:] - frames[:-1]).abs().mean((1, 2, 3))  # (F-1,)
        found["black"] += float((frames.mean((1, 2, 3)) < BLACK).float().mean()) / count
        found["frozen"] += float((changes < FROZEN).float().mean()) / count if len(changes) else 0.0
        found["saturation"] += float((frames.amax(1) - frames.amin(1)).mean()) / count
    return found


def distance(first: Tensor, second: Tensor) -> float:
    """Over the frames that both have."""
    length = min(len(first), len(second))
    return image.distance(first[:length], second[:length])


def extent(row: Tensor, rate: float | None) -> float:
    return float(len(row))


def decode(given: Any, rate: float | None, budget: Budget) -> tuple[Tensor, float | None]:
    return torch.stack([image.decode(frame, None, budget)[0] for frame in given]), rate


def element(folder: Path, shown: str, label: str) -> str:
    data = base64.b64encode((folder / shown).read_bytes()).decode()
    source = f"data:video/mp4;base64,{data}"
    return f'<video controls loop playsinline aria-label="{html.escape(label)}" src="{source}"></video>'
