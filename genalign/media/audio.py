"""Sounds from and to files, by libsndfile; a medium (see medium.py)."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genalign.files.atomic import replace_file
from genalign.files.untrusted import neighbour
from genalign.media.medium import Budget, Sounds
from genalign.types import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

NOUN = "sound"
SUFFIXES: tuple[str, ...] = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".aif")
WRITTEN = {".wav": "PCM_24", ".flac": "PCM_24", ".ogg": "VORBIS"}  # and how samples are stored
RANGE: tuple[float, float] | None = (-1.01, 1.01)
SILENT = 1e-3  # peak below which a sound is inaudible: -60 dB
CLIPPED = 0.999
PICTURE = (320, 160)  # of a sound, in px


def read(path: Path) -> tuple[Tensor, float]:
    """All channels (C,N) fp32, in [-1,1] unless the file holds larger floats, and the sample rate in Hz.

    Raises:
        UsageError: the file is missing, empty, or not a sound that libsndfile reads; or soundfile is not installed.
    """
    return _decoded(str(path), str(path))


def _decoded(file: Any, name: str) -> tuple[Tensor, float]:
    soundfile = _soundfile(name)
    try:
        data, rate = soundfile.read(file, dtype="float32", always_2d=True)  # (N, C)
    except (OSError, RuntimeError, TypeError) as error:  # LibsndfileError is a RuntimeError
        raise UsageError(f"{name} cannot be read as a sound: {error}") from error
    if not len(data):
        raise UsageError(f"{name} holds no sample; drop it")
    return torch.from_numpy(data.T.copy()), float(rate)


def _soundfile(name: str) -> Any:
    try:
        import soundfile
    except ImportError as error:
        raise UsageError(f"{name} is a sound, which needs soundfile; pip install 'genalign[audio]'") from error
    return soundfile


def cell(value: Any, root: Path, where: str) -> tuple[Tensor, float]:
    """A file's name, its bytes, or a row of datasets: undecoded, or {"array", "sampling_rate"}."""
    if isinstance(value, Mapping) and "array" in value:
        wave = torch.as_tensor(value["array"]).float()
        return (wave[None] if wave.ndim == 1 else wave), float(value["sampling_rate"])
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return _decoded(io.BytesIO(value), where)
    if isinstance(value, str):
        return read(neighbour(root, value, where))
    raise UsageError(f"{where} ({type(value).__name__} is not a sound); drop that row")


def write(row: Tensor, rate: float | None, path: Path, sound: Any = None) -> Path:
    """Write (C,N) in [-1,1] with 24 bits a sample: a .wav, or a .flac where `path` ends so; or as Vorbis, an .ogg.

    All hold exactly N samples at the rate, which is rounded to a whole number.

    Raises:
        UsageError: no sample rate, or soundfile is not installed.
    """
    soundfile = _soundfile(str(path))
    if not rate:
        raise UsageError(f"{path} cannot be written without the sample rate of the sound; give Track(audio, rate)")
    path = path if path.suffix in WRITTEN else path.with_name(f"{path.name}.wav")
    file, samples = io.BytesIO(), row.detach().float().clamp(-1, 1).cpu()  # (C, N)
    soundfile.write(file, samples.T.numpy(), round(rate), format=path.suffix[1:].upper(), subtype=WRITTEN[path.suffix])
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, file.getvalue())
    return path


def sheet(
    base: Sequence[Tensor],
    tuned: Sequence[Tensor],
    drawn: Sequence[tuple[str, int]],
    path: Path,
    rate: float | None,
    sounds: Sounds | None = None,
) -> Path:
    """Waveforms over spectrograms, base beside tuned; the sounds themselves stand beside the picture."""
    from genalign.media.grid import grid, save, write_pairs

    shown = [[picture(row, rate or 1.0) for row in rows] for rows in (base, tuned)]
    save(grid(shown[0], shown[1], [prompt for prompt, _ in drawn], columns=2), path)
    write_pairs("audio", lambda row, stem, sound: write(row, rate, stem), base, tuned, drawn, path)
    return path


def picture(row: Tensor, rate: float) -> Image:
    """The wave of (C,N), its channels averaged, over its spectrogram in dB; the axes are seconds and kHz."""
    import PIL.Image
    from matplotlib.figure import Figure

    wave = torch.nan_to_num(row.detach().float().cpu(), posinf=0.0, neginf=0.0).mean(0)  # (N,)
    seconds, pixel = len(wave) / rate, max(1, len(wave) // (2 * PICTURE[0]))  # two envelopes a pixel
    figure = Figure(figsize=(PICTURE[0] / 80, PICTURE[1] / 80), dpi=80, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    spans = wave.split(pixel)
    starts = [k * pixel / rate for k in range(len(spans))]
    lowest, highest = [float(span.min()) for span in spans], [float(span.max()) for span in spans]
    upper.fill_between(starts, lowest, highest, linewidth=0.6, color="#1f6feb")
    window = 512
    padded = torch.nn.functional.pad(wave, (0, max(0, window - len(wave))))
    powers = torch.stft(
        padded, window, window // 4, window=torch.hann_window(window), center=False, return_complex=True
    )
    levels = 20 * powers.abs().clamp(min=1e-6).log10()  # (257, frames), dB
    top, reach = float(levels.max()), (0, seconds, 0, rate / 2000)
    lower.imshow(levels, origin="lower", aspect="auto", vmin=top - 80, vmax=top + 1e-3, extent=reach, cmap="magma")
    upper.set(ylim=(-1, 1), xlim=(0, seconds))
    lower.set_ylabel("kHz", fontsize=6, labelpad=1)
    for axis in (upper, lower):
        axis.tick_params(labelsize=6, length=2, pad=1)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return PIL.Image.open(file).convert("RGB")


def symptoms(rows: Sequence[Tensor]) -> dict[str, float]:
    """Shares: `silent` of inaudible rows, `clipped` and `not_finite` of samples; `loudness`, the mean RMS."""
    waves = [row.detach().float().cpu() for row in rows]
    finite = [torch.nan_to_num(wave, posinf=0.0, neginf=0.0) for wave in waves]
    count = max(len(waves), 1)
    return {
        "silent": sum(float(wave.abs().max() < SILENT) for wave in finite) / count,
        "clipped": sum(float((wave.abs() >= CLIPPED).float().mean()) for wave in waves) / count,
        "not_finite": sum(float((~wave.isfinite()).float().mean()) for wave in waves) / count,
        "loudness": sum(float(wave.square().mean().sqrt()) for wave in finite) / count,
    }


def distance(first: Tensor, second: Tensor) -> float:
    """Over the length that both have."""
    length = min(first.shape[-1], second.shape[-1])
    apart = first.detach().float().cpu()[..., :length] - second.detach().float().cpu()[..., :length]
    return float(apart.square().mean().sqrt())


def extent(row: Tensor, rate: float | None) -> float:
    return row.shape[-1] / rate if rate else float(row.shape[-1])


def decode(given: Any, rate: float | None, budget: Budget) -> tuple[Tensor, float]:
    soundfile = _soundfile("a row of audio")
    with soundfile.SoundFile(io.BytesIO(base64.b64decode(given, validate=True))) as file:
        budget.take(file.frames * file.channels)
        data = file.read(file.frames, dtype="float32", always_2d=True)
        return torch.from_numpy(data.T.copy()), float(file.samplerate)  # (C,N)


def element(folder: Path, shown: str, label: str) -> str:
    data = base64.b64encode((folder / shown).read_bytes()).decode()
    source = f"data:audio/{'flac' if shown.endswith('.flac') else 'wav'};base64,{data}"
    return f'<audio controls preload="metadata" aria-label="{html.escape(label)}" src="{source}"></audio>'
