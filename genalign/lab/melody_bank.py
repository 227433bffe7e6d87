"""The notes of MelodyWorld: real instruments, note by note, cut from a General MIDI sound font, and how one is played.

The bank lies beside the melodies as one FLAC file an instrument: every third semitone, STORED seconds each, mono at
16 kHz. Notes between them are the nearest one, resampled by a semitone, as samplers do.
"""

import struct
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from math import gcd
from pathlib import Path

import numpy as np

from genalign.files.shipped import shipped
from genalign.types import UsageError

RATE = 16_000  # samples a second
LOWEST, HIGHEST, APART = 40, 91, 3  # MIDI numbers of the stored notes, and semitones between them
STORED = 1.5  # seconds of a note
PEAK = 1 / 8  # of full scale: 13 bits are enough for a note, and take a third less room than 16
RELEASE = 0.06  # seconds in which a note ends
BEGIN = 0.015  # and in which one begins whose own beginning is left out
PROGRAMS = {  # General MIDI numbers, from 0
    "piano": 0, "marimba": 12, "organ": 19, "guitar": 25, "violin": 40, "trumpet": 56, "clarinet": 71, "flute": 73,
}  # fmt: skip
SLOW = {"organ": 0.12}  # seconds in which its pipes begin to speak, which are left out: quick notes would be gone
INSTRUMENTS = tuple(PROGRAMS)
HITS = {"kick": 36, "snare": 38, "hat": 42}  # keys of General MIDI's percussion channel
DRUMS, DRUM_CHANNEL = "drums", 9
RENDERED = 48_000  # samples a second of the synthesizer, which at 16,000 would fold what is above
RATIOS = {-1: (18, 17), 0: (1, 1), 1: (17, 18)}  # new over old samples: a semitone within a cent


@lru_cache(maxsize=2048)
def note(instrument: str, pitch: int) -> np.ndarray:
    """(24000,) float32, read-only: how the instrument sounds at this MIDI number, of RMS 1 over its loudest 0.3 s.

    Raises:
        ValueError: an unknown instrument, or a pitch that is more than a semitone outside the bank.
    """
    if instrument not in PROGRAMS or not LOWEST - 1 <= pitch <= HIGHEST + 1:
        raise ValueError(f"the bank holds {', '.join(PROGRAMS)} from {LOWEST - 1} to {HIGHEST + 1}, not {instrument!r}")
    index = min(max(round((pitch - LOWEST) / APART), 0), (HIGHEST - LOWEST) // APART)
    up, down = RATIOS[pitch - LOWEST - APART * index]
    return _levelled(_stored(instrument)[index], up, down)


@lru_cache(maxsize=8)
def hit(name: str) -> np.ndarray:
    """(24000,) float32, read-only: one of HITS, of RMS 1 over its loudest 0.3 s."""
    return _levelled(_stored(DRUMS)[list(HITS).index(name)], 1, 1)


def _levelled(wave: np.ndarray, up: int, down: int) -> np.ndarray:
    from scipy.signal import resample_poly

    length = round(STORED * RATE)
    wave = resample_poly(wave, up, down) if up != down else wave
    wave = np.pad(wave, (0, max(0, length - len(wave))))[:length]
    windows = np.lib.stride_tricks.sliding_window_view(wave**2, round(0.3 * RATE))[::160]
    level = np.sqrt(windows.mean(axis=1).max())
    wave = np.asarray(wave / level, np.float32)
    wave[-round(RELEASE * RATE) :] *= _release()
    wave.setflags(write=False)
    return wave


def _release() -> np.ndarray:
    return np.asarray(np.cos(np.linspace(0, np.pi / 2, round(RELEASE * RATE))) ** 2, np.float32)


def played(instrument: str, pitch: int, seconds: float) -> np.ndarray:
    """(N,) float32: a note that is held for so long and then let go; after STORED seconds it ends by itself."""
    whole = note(instrument, pitch)
    held = round(seconds * RATE)
    end = _release()
    if held + len(end) >= len(whole):
        return whole
    wave = whole[: held + len(end)].copy()
    wave[held:] *= end
    return wave


@lru_cache(maxsize=16)
def _stored(name: str) -> np.ndarray:
    """(notes, 24000) float32."""
    from genalign.media.audio import read

    wave, rate = read(shipped("assets", "melodyworld", f"{name}.flac"))
    assert rate == RATE
    return np.asarray(wave[0].numpy() / PEAK).reshape(-1, round(STORED * RATE))


def build_bank(font: Path, folder: Path) -> None:
    """One FLAC an instrument, and one of the drums, from a sound font in SF2 by the program fluidsynth.

    Raises:
        UsageError: fluidsynth is not installed, or cannot play the font.
    """
    from soundfile import write

    folder.mkdir(parents=True, exist_ok=True)
    keys = list(range(LOWEST, HIGHEST + 1, APART))
    for name, program in PROGRAMS.items():
        sound = _rendered(font, keys, program, 0, SLOW.get(name, 0.0))
        write(folder / f"{name}.flac", sound, RATE, subtype="PCM_16")
    write(folder / f"{DRUMS}.flac", _rendered(font, list(HITS.values()), 0, DRUM_CHANNEL, 0.0), RATE, subtype="PCM_16")


def _rendered(font: Path, keys: Sequence[int], program: int, channel: int, slow: float) -> np.ndarray:
    """(notes * 24000,): each key by itself, at the same peak, its first `slow` seconds left out."""
    from scipy.signal import resample_poly
    from soundfile import read

    every = 2 * STORED
    with tempfile.TemporaryDirectory() as folder:
        score, wave = Path(folder) / "notes.mid", Path(folder) / "notes.wav"
        score.write_bytes(midi_file(keys, STORED + slow, every, program, channel))
        plain = ["-R", "0", "-C", "0"]  # neither reverberation nor chorus
        command = ["fluidsynth", "-niq", *plain, "-r", str(RENDERED), "-O", "float", "-T", "wav", "-F", str(wave)]
        try:
            subprocess.run([*command, str(font), str(score)], check=True, capture_output=True)
            sound = read(wave, dtype="float32", always_2d=True)[0].mean(axis=1)
        except (OSError, subprocess.CalledProcessError, RuntimeError) as error:
            cure = "install Debian's fluidsynth and fluid-soundfont-gm"
            raise UsageError(f"fluidsynth cannot play {font}: {error}; {cure}") from error
    notes = []
    shrink = gcd(RENDERED, RATE)
    for index in range(len(keys)):
        start = round((index * every + slow) * RENDERED)
        one = resample_poly(sound[start : start + round(STORED * RENDERED)], RATE // shrink, RENDERED // shrink)
        if not np.abs(one).max() > 0:
            raise UsageError(f"{font} is silent at key {keys[index]} of program {program}; take FluidR3_GM.sf2")
        begin = round(BEGIN * RATE)
        one[:begin] *= np.linspace(0, 1, begin) if slow else 1
        notes.append(PEAK * one / np.abs(one).max())
    return np.concatenate(notes)


def midi_file(keys: Sequence[int], held: float, every: float, program: int, channel: int) -> bytes:
    """A MIDI file of format 0 with a thousand ticks a second: one key after the other, `every` seconds apart."""
    events = [(0, bytes([0xC0 | channel, program]))]
    for index, key in enumerate(keys):
        start = round(1000 * index * every)
        events += [(start, bytes([0x90 | channel, key, 100]))]
        events += [(start + round(1000 * held), bytes([0x80 | channel, key, 0]))]
    events.append((round(1000 * every * len(keys)), b"\xff\x2f\x00"))
    track, last = b"\x00\xff\x51\x03" + (500_000).to_bytes(3, "big"), 0  # half a second a quarter note of 500 ticks
    for time, event in events:
        track += _variable_length(time - last) + event
        last = time
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, 500) + b"MTrk" + struct.pack(">I", len(track)) + track


def _variable_length(number: int) -> bytes:
    """Seven bits a byte, the highest first; all but the last byte have the eighth bit set."""
    digits = [number & 127]
    while number := number >> 7:
        digits.append(128 | number & 127)
    return bytes(reversed(digits))
