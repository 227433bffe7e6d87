"""Videos with their sound written by PyAV, as mp4 or webm."""

from __future__ import annotations

import io
import logging
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genalign.files.atomic import replace_file
from genalign.media.container import load_av
from genalign.types import UsageError
from genalign.types.samples import to_levels

log = logging.getLogger(__name__)

AAC = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)  # samples a second
OPUS = 48000
BT601, BT709 = 6, 1  # ITU-T H.273: the matrix that RGB was converted by, and the primaries and curve of screens


class Codecs(NamedTuple):
    """How a container is written: the first video codec of the list that is installed, and that of sound."""

    video: tuple[str, ...]
    options: dict[str, str]
    sound: str


CODECS = {
    ".mp4": Codecs(("libx264", "mpeg4"), {"crf": "16"}, "aac"),
    ".webm": Codecs(("libvpx-vp9", "libvpx"), {"crf": "16", "b": "0", "deadline": "good", "cpu-used": "4"}, "libopus"),
}


def write_video(row: Tensor, rate: float | None, path: Path, sound: tuple[Tensor, float | None] | None = None) -> Path:
    """Write (F,3,H,W), in [0,1] or as levels, with its sound (C,N): as .webm where `path` ends so, else as .mp4.

    Colours have half the resolution (yuv420p, the one form that every browser plays), which needs even sides: an odd
    one grows by one pixel, a repeated edge, and the log says so. The file names the matrix of its colours: of a file
    without one, browsers show an mp4 of 720 lines by another matrix, a green of (20, 200, 60) as (6, 175, 60). Sound
    has two channels where the wave has two, else one, their mean; its rate is kept where the codec knows it (Opus:
    48 kHz alone).

    Raises:
        UsageError: no frame rate, or PyAV is not installed.
    """
    av = load_av(str(path))
    if not rate:
        raise UsageError(f"{path} cannot be written without the frame rate of the video; give Track(video, rate)")
    path = path if path.suffix in CODECS else path.with_name(f"{path.name}.mp4")
    height, width = row.shape[-2:]
    if height % 2 or width % 2:
        log.info("%s is written %d pixels high and %d wide, since yuv420p needs even sides; its edge is repeated",
                 path, height + height % 2, width + width % 2)  # fmt: skip
    codecs, file = CODECS[path.suffix], io.BytesIO()
    codec = next((name for name in codecs.video if name in av.codecs_available), codecs.video[0])
    with av.open(file, "w", format=path.suffix[1:]) as container:
        stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
        stream.options = codecs.options if codec == codecs.video[0] else {}
        stream.codec_context.colorspace, stream.codec_context.color_primaries = BT601, BT709
        stream.codec_context.color_trc = BT709
        voice = None if sound is None else _voice(container, codecs.sound, *sound)
        for frame in row:
            pixels = _even(to_levels(frame)).permute(1, 2, 0).contiguous().numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
        if sound is not None:
            _mux(av, container, voice, *sound)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, file.getvalue())
    return path


def _even(frame: Tensor) -> Tensor:
    """(3,H,W) with even sides: the last row and column stand twice where they have to."""
    frame = torch.cat([frame, frame[:, -1:]], 1) if frame.shape[1] % 2 else frame
    return torch.cat([frame, frame[..., -1:]], -1) if frame.shape[-1] % 2 else frame


def _voice(container: Any, codec: str, wave: Tensor, rate: float | None) -> Any:
    own = round(rate or OPUS)
    known = OPUS if codec == "libopus" else own if own in AAC else min((one for one in AAC if one > own), default=96000)
    return container.add_stream(codec, rate=known, layout="stereo" if len(wave) == 2 else "mono")


def _mux(av: Any, container: Any, stream: Any, wave: Tensor, rate: float | None) -> None:
    """The sound (C,N) in two channels where it has two, else in one: the mean of its channels."""
    samples = wave.detach().float().clamp(-1, 1).cpu()
    samples = samples if len(samples) <= 2 else samples.mean(0, keepdim=True)
    layout = "stereo" if len(samples) == 2 else "mono"
    frame = av.AudioFrame.from_ndarray(samples.contiguous().numpy(), format="fltp", layout=layout)
    frame.sample_rate, frame.time_base, frame.pts = round(rate or OPUS), Fraction(1, round(rate or OPUS)), 0
    resampler = av.AudioResampler(format=stream.format, layout=layout, rate=stream.rate)
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
        container.mux(stream.encode(part))
    container.mux(stream.encode())
