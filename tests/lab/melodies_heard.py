"""`python -m tests.lab.melodies_heard`: how many held-out pieces MelodyWorld's verifier hears right, as rendered and
worse; the table of docs/world.md."""

from collections.abc import Callable

import numpy as np
import torch

from genalign.lab import melody
from genalign.lab.melody_facts import check
from genalign.lab.melody_pieces import arrange, render
from genalign.lab.melody_verifier import read
from genalign.lab.world import Facts

COLUMNS = ("instruments", "order", "melody", "key", "tempo", "register", "loudness", "drums", "all_facts")
Worse = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def noisy(wave: np.ndarray, rng: np.random.Generator, decibels: float) -> np.ndarray:
    level = float(np.sqrt((wave**2).mean())) * 10 ** (-decibels / 20)
    return wave + level * rng.standard_normal(wave.shape).astype(np.float32)


def coarse(wave: np.ndarray, bits: int) -> np.ndarray:
    return np.round(wave * 2 ** (bits - 1)) / 2 ** (bits - 1)


def without_phases(wave: np.ndarray, rng: np.random.Generator, rounds: int = 32) -> np.ndarray:
    """A sound of the same amplitudes in a spectrogram of windows of 1024 (Griffin and Lim, 1984)."""
    window = torch.hann_window(1024)

    def bins_of(sound: torch.Tensor) -> torch.Tensor:
        return torch.stft(sound, 1024, 256, window=window, return_complex=True)

    wanted = bins_of(torch.from_numpy(wave[0])).abs()
    turns = torch.from_numpy(rng.uniform(0, 2 * np.pi, wanted.shape)).float()
    for _ in range(rounds):
        made = torch.istft(torch.polar(wanted, turns), 1024, 256, window=window, length=wave.shape[1])
        turns = bins_of(made).angle()
    return made.numpy()[None]


FAULTS: dict[str, tuple[int, Worse]] = {
    "as rendered": (300, lambda wave, rng: wave),
    "white noise, 20 dB below": (150, lambda wave, rng: noisy(wave, rng, 20)),
    "white noise, 10 dB below": (150, lambda wave, rng: noisy(wave, rng, 10)),
    "8 bits a sample": (150, lambda wave, rng: coarse(wave, 8)),
    "6 bits a sample": (150, lambda wave, rng: coarse(wave, 6)),
    "phases lost, Griffin-Lim": (30, without_phases),
}


def right(count: int, worse: Worse, seed: int = 90) -> dict[str, float]:
    """Share of pieces whose facts, where they are stated, are heard right, by kind."""
    rng = np.random.default_rng(seed)
    facts: list[Facts] = [melody.sample_facts(rng, "heldout") for _ in range(count)]
    heard = [check(each, read(worse(render(arrange(each, rng)), rng)).facts) for each in facts]
    stated = {kind: [row[kind] for row in heard if row[kind] is not None] for kind in COLUMNS}
    return {kind: float(np.mean(rows)) for kind, rows in stated.items()}


def main() -> None:
    print("| |" + "".join(f" {kind.replace('_', ' ')} |" for kind in COLUMNS))
    print("|---" * (len(COLUMNS) + 1) + "|")
    for name, (count, worse) in FAULTS.items():
        shares = right(count, worse)
        print(f"| {name} ({count}) |" + "".join(f" {shares[kind]:.3f} |" for kind in COLUMNS), flush=True)


if __name__ == "__main__":
    main()
