"""tiny-music-judge: the held-out judge of MelodyWorld, which was never, and must never be, a training reward.

It differs from the rule verifier in everything but the meaning of the facts: a network over a spectrogram whose rows
are thirds of semitones, so that a melody in another key is the same picture higher up. Trained on rendered
pieces alone.
"""

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from genalign.lab.facts_judge import FactsJudge
from genalign.lab.melody import KINDS, LOUDNESSES, REGISTERS, SECONDS, TEMPI, change_one_fact, is_stated, sample_facts
from genalign.lab.melody_bank import INSTRUMENTS, RATE
from genalign.lab.melody_facts import check
from genalign.lab.melody_pieces import SAMPLES, arrange, render
from genalign.lab.melody_songs import KEYS, songs
from genalign.lab.world import Facts
from genalign.media.resample import resampled
from genalign.training.fit import fit
from genalign.types import Media, Prompt, Track, UsageError

WINDOW, HOP = 2048, 384  # samples
LOWEST, ROWS, FINE = 38, 192, 3  # MIDI number of the first row, rows, and rows of a semitone
FLOOR = 1e-3  # amplitude below which nothing is seen
HEADS: dict[str, tuple[Any, ...]] = {
    "lead": INSTRUMENTS, "second": (*SECONDS, None), "melody": tuple(songs()), "key": KEYS, "tempo": TEMPI,
    "register": REGISTERS, "loudness": LOUDNESSES, "drums": (True, False),
}  # fmt: skip


@lru_cache(maxsize=1)
def bands() -> Tensor:
    """(1025, 192): how much each bin of a spectrum is of each row: triangles a semitone wide, or of low ones a bin."""
    pitch = LOWEST + torch.arange(ROWS) / FINE
    centre = 440 * 2 ** ((pitch - 69) / 12) * WINDOW / RATE  # in bins
    half = torch.clamp(centre * (2 ** (1 / 12) - 1), min=1.0)
    bins = torch.arange(WINDOW // 2 + 1)
    return (1 - (bins[:, None] - centre).abs() / half).clamp(min=0)


def spectrogram(waves: Tensor) -> Tensor:
    """(B, N) -> (B, 2, 192, frames): logarithms of amplitudes as they are heard, and by the loudest of the sound."""
    window = torch.hann_window(WINDOW)
    bins = torch.stft(waves, WINDOW, HOP, window=window, return_complex=True).abs() / window.sum()
    rows = torch.einsum("bft,fr->brt", bins, bands())
    loudest = rows.amax(dim=(1, 2), keepdim=True).clamp(min=1e-5)
    return torch.stack([(rows + FLOOR).log() / 4 + 1, (rows / loudest + FLOOR).log() / 4 + 1], dim=1)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class MusicNet(nn.Module):
    """Convolutions over pitch and time, then over time alone, and a linear head for each kind of fact."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.seen = nn.Sequential(
            nn.Conv2d(2, width, (9, 5), stride=(3, 2), padding=(4, 2)), _Block(width),
            nn.Conv2d(width, width, 3, stride=(2, 2), padding=1), _Block(width),
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, 16, 1), nn.SiLU(),
        )  # fmt: skip
        deep = 4 * width
        self.over_time = nn.Sequential(
            nn.Conv1d(16 * ROWS // 6, deep, 3, padding=1), nn.SiLU(),
            nn.Conv1d(deep, deep, 5, padding=2), nn.SiLU(), nn.Conv1d(deep, deep // 2, 5, padding=2), nn.SiLU(),
        )  # fmt: skip
        frames = math.ceil((SAMPLES // HOP + 1) / 4)
        self.whole = nn.Sequential(nn.Linear(deep // 2 * frames, deep), nn.SiLU())
        self.heads = nn.ModuleDict({kind: nn.Linear(2 * deep, len(words)) for kind, words in HEADS.items()})

    def forward(self, waves: Tensor) -> dict[str, Tensor]:
        """Sounds (B, N) -> logits (B, words) by kind of fact."""
        seen = self.seen(spectrogram(waves))  # (B, 16, 32, T)
        features = self.over_time(seen.flatten(1, 2))  # (B, D / 2, T)
        pooled = torch.cat([features.mean(dim=2), features.amax(dim=2)], dim=1)
        read = torch.cat([pooled, self.whole(features.flatten(1))], dim=1)
        return {kind: head(read) for kind, head in self.heads.items()}


def truth(facts: Facts) -> list[int]:
    """The classes of HEADS that are right of a piece."""
    lead, *second = facts["voices"]
    known = {**facts, "lead": lead, "second": second[0] if second else None}
    return [words.index(known[kind]) for kind, words in HEADS.items()]


@torch.no_grad()
def heard_facts(net: MusicNet, waves: Tensor) -> list[dict[str, Any]]:
    """What the network hears in sounds (B, N), written as facts."""
    best = {kind: logits.argmax(dim=1).tolist() for kind, logits in net(waves).items()}
    rows = []
    for row in range(len(waves)):
        found = {kind: words[best[kind][row]] for kind, words in HEADS.items()}
        voices = [voice for voice in (found.pop("lead"), found.pop("second")) if voice is not None]
        rows.append({**found, "voices": voices})
    return rows


@lru_cache(maxsize=2)
def _load(folder: Path) -> MusicNet:
    net = MusicNet(json.loads((folder / "config.json").read_text())["width"])
    net.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()})
    return net.eval().requires_grad_(False)


class MusicJudge(FactsJudge):
    """Held-out reward of MelodyWorld: all_facts, melody, instruments, order, key, tempo, register, loudness and drums,
    as `melody_facts.check` defines them.

    Raises:
        UsageError: its weights are missing, a prompt without such facts, or sounds of another length or rate.
    """

    name = "music-judge"
    part = "music-judge"
    needs = frozenset({"audio", "facts.voices"})
    aspects = ("all_facts", *KINDS)
    weights = (1.0, *[0.0] * len(KINDS))

    def seen(self, prompts: Sequence[Prompt], media: Media) -> list[dict[str, Any]]:
        track = media["audio"]
        waves = []
        for row, wave in enumerate(track.data):
            mono, rate = torch.as_tensor(wave).float().cpu().mean(dim=0), track.rate_of(row)
            if rate is None or round(len(mono) * RATE / rate) != SAMPLES:
                raise UsageError(f"this judge hears {SAMPLES / RATE} s of sound; give it MelodyWorld's sounds")
            waves.append(resampled(mono, round(rate), RATE))
        if any("voices" not in prompt.facts for prompt in prompts):
            raise UsageError("this judge needs prompts with facts of voices (facts.voices); use melodyworld/*.jsonl")
        net, found = _load(self.folder), []
        for start in range(0, len(prompts), 32):
            found += heard_facts(net, torch.stack(waves[start : start + 32]))
        return found

    def checked(self, stated: Facts, seen: Facts) -> dict[str, bool | None]:
        return check(stated, seen)


def save_judge(net: MusicNet, folder: Path) -> None:
    """Write config.json and model.safetensors (fp16)."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.half().contiguous() for name, t in net.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"width": net.seen[0].out_channels}) + "\n")


def build_judge(work: Path, steps: int = 2000, rows: int = 24, seed: int = 27) -> MusicNet:
    """Train on rendered pieces and true facts alone, all heads by cross-entropy; never on generated sounds, nor on the
    verifier's output."""
    torch.manual_seed(seed)
    net = MusicNet()

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng((seed, step))
        pieces = [arrange(sample_facts(rng), rng) for _ in range(rows)]
        right = torch.tensor([truth(piece.facts) for piece in pieces])
        waves = torch.from_numpy(np.stack([shaken(render(piece)[0], rng) for piece in pieces]))
        heard = net(waves)
        return torch.stack([F.cross_entropy(heard[kind], right[:, k]) for k, kind in enumerate(HEADS)]).sum()

    state = work / "music-judge.safetensors"
    fit(net, loss_of, steps=steps, learning_rate=2e-3, muon=0.02, state=state, ema_decay=0.99)
    return net


def shaken(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N,) float32 with what a generator does to a sound: noise up to -15 dB of its level, a tilted spectrum, a cut-off
    between 3 and 8 kHz, 0.7 dB more or less, and up to 30 ms sooner or later."""
    level = float(np.sqrt((wave**2).mean()))
    bins = np.fft.rfft(np.roll(wave, int(rng.integers(-480, 481))))
    frequencies = np.fft.rfftfreq(len(wave), 1 / RATE)
    tilt = (np.maximum(frequencies, 50) / 500) ** rng.uniform(-0.15, 0.15)
    bins *= tilt * (frequencies < rng.uniform(3000, 8000))
    made = np.fft.irfft(bins, len(wave))
    made += level * 10 ** (rng.uniform(-45, -15) / 20) * rng.standard_normal(len(wave))
    made *= level / max(float(np.sqrt((made**2).mean())), 1e-9) * 10 ** (rng.uniform(-0.7, 0.7) / 20)
    return np.asarray(made, np.float32)


def judge_accuracy(folder: Path, count: int = 500, seed: int = 31) -> tuple[float, dict[str, float]]:
    """Share of clean held-out pieces judged wholly right, and of captions with a fact changed rejected, by its kind."""
    rng, judge = np.random.default_rng(seed), MusicJudge(folder)
    facts = [sample_facts(rng, "heldout") for _ in range(count)]
    waves = torch.from_numpy(np.stack([render(arrange(each, rng)) for each in facts]))
    right = judge([Prompt("", facts=each) for each in facts], Media(audio=Track(waves, RATE))).total.mean()
    rejected = {}
    for kind in KINDS:
        rows = [k for k, each in enumerate(facts) if is_stated(kind, each)]
        wrong = [Prompt("", facts=change_one_fact(facts[k], rng, (kind,))) for k in rows]
        rejected[kind] = float(1 - judge(wrong, Media(audio=Track(waves[rows], RATE))).total.mean())
    return float(right), rejected
