"""Pictures of sounds: spectrograms, each under what was asked for; and the one of MelodyWorld."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from genalign.lab.melody import caption
from genalign.lab.melody_bank import RATE
from genalign.lab.melody_pieces import LENGTH, arrange, render

SHOWN = (  # melody, voices, key, tempo, register, loudness, drums
    ("Ode to Joy", ["flute"], "C major", "medium", "high", "loud", False),
    ("Ode to Joy", ["trumpet"], "C major", "medium", "high", "loud", False),
    ("Ode to Joy", ["marimba"], "C major", "medium", "high", "loud", False),
    ("Ode to Joy", ["organ"], "C major", "medium", "low", "loud", False),
    ("Korobeiniki", ["violin"], "A minor", "slow", "high", "loud", False),
    ("Korobeiniki", ["violin"], "E minor", "fast", "high", "loud", False),
    ("Korobeiniki", ["clarinet", "piano"], "A minor", "medium", "high", "loud", False),
    ("Korobeiniki", ["guitar"], "A minor", "medium", "low", "loud", True),
)
KINDS = ("melody", "voices", "key", "tempo", "register", "loudness", "drums")
WINDOW = 0.064  # seconds


def draw(path: Path, seed: int = 23) -> None:
    """SHOWN, as the world plays them."""
    rng = np.random.default_rng(seed)
    waves, texts = [], []
    for row in SHOWN:
        facts = dict(zip(KINDS, row, strict=True))
        waves.append(render(arrange(facts, rng))[0])
        texts.append(caption({**facts, "loudness": None, "drums": facts["drums"] or None}, rng))
    draw_spectrograms(waves, RATE, texts, path)


def draw_spectrograms(waves: Sequence[np.ndarray], rate: int, texts: Sequence[str], path: Path) -> None:
    """Eight sounds (N,), four in a row: seconds and kHz, the louder the brighter over 60 dB."""
    import PIL.Image
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), dpi=80, layout="constrained")
    for axis, wave, text in zip(figure.subplots(2, 4, sharex=True, sharey=True).flat, waves, texts, strict=True):
        axis.imshow(
            _levels(wave, rate), origin="lower", aspect="auto", cmap="magma", vmin=-60, vmax=0,
            extent=(0, LENGTH, 0, rate / 2000),
        )  # fmt: skip
        axis.set_title(_broken(text), fontsize=7)
        axis.set_ylim(0, min(5, rate / 2000))
        axis.tick_params(labelsize=6, length=2)
    figure.supxlabel("seconds", fontsize=7)
    figure.supylabel("kHz", fontsize=7)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    PIL.Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)


def _levels(wave: np.ndarray, rate: int) -> np.ndarray:
    """Decibels by the loudest (frequencies, frames)."""
    window = round(WINDOW * rate)
    frames = np.lib.stride_tricks.sliding_window_view(wave, window)[:: window // 8] * np.hanning(window)
    powers = np.abs(np.fft.rfft(frames, axis=1).T)
    return np.asarray(20 * np.log10(np.maximum(powers / powers.max(), 1e-6)))


def _broken(words: str) -> str:
    """Two lines of about the same length."""
    spaces = [place for place, letter in enumerate(words) if letter == " "]
    middle = min(spaces, key=lambda place: abs(place - len(words) / 2))
    return f"{words[:middle]}\n{words[middle + 1 :]}"
