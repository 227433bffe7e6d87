"""Sounds as rows of features, for measures of sets: by CLAP's two towers, or by a mel spectrogram without weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from genalign.reward.base import digest
from genalign.reward.heads.audio import Clap
from genalign.reward.heads.waves import log_mel, mono_waves
from genalign.reward.heads.weights import weights_file
from genalign.reward.prefetch import Prefetch
from genalign.types import Media, Track, UsageError

MEL = "mel"  # the name of features that need no model
RATE, FRAME, HOP, BANDS = 16_000, 512, 256, 32  # of the mel spectrogram
LOWEST, HIGHEST = 60.0, 7600.0  # Hz
FLOOR = -80.0  # decibels of full scale: what is softer is silence


class MelFeatures:
    """(B,64): of the mel spectrogram in 32 bands, in tens of decibels, the mean over time of each, and its deviation.

    Not what anybody perceives, but of every machine: which timbre, register and loudness, not which melody. It reads no
    texts.
    """

    unit = False  # rows are taken as long as they are
    width = 2 * BANDS

    def __init__(self, batch_size: int = 64) -> None:
        self.batch_size = batch_size

    @property
    def version(self) -> str:
        return digest(MEL, RATE, FRAME, HOP, BANDS, LOWEST, HIGHEST, FLOOR)

    def prefetches(self, modalities: AbstractSet[str]) -> tuple[Prefetch, ...]:
        return ()

    @cached_property
    def _filters(self) -> Tensor:
        """(FRAME/2 + 1, BANDS): triangles that touch, evenly spaced in mel (O'Shaughnessy, 1987), of height 1."""
        ends = torch.tensor([LOWEST, HIGHEST], dtype=torch.float64)
        low, high = (2595 * (1 + ends / 700).log10()).tolist()
        edges = 700 * (10 ** (torch.linspace(low, high, BANDS + 2, dtype=torch.float64) / 2595) - 1)
        lines = torch.arange(FRAME // 2 + 1, dtype=torch.float64)[:, None] * RATE / FRAME
        rising = (lines - edges[:-2]) / (edges[1:-1] - edges[:-2])
        falling = (edges[2:] - lines) / (edges[2:] - edges[1:-1])
        return torch.minimum(rising, falling).clamp(min=0).float()

    def see(self, media: Media) -> Tensor:
        rows = []
        for wave in mono_waves(media, RATE, MEL):
            padded = torch.nn.functional.pad(wave, (0, max(0, FRAME - len(wave))))
            full = 20 * torch.log10(torch.tensor(FRAME / 4))  # of a sine at full scale
            levels = (log_mel(padded[None], self._filters.to(wave.device), FRAME, HOP)[0] - full).clamp(min=FLOOR) / 10
            rows.append(torch.cat([levels.mean(0), levels.std(0, correction=0)]))
        return torch.stack(rows)

    def read(self, prompts: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        raise UsageError("features of a mel spectrogram read no texts; take sounds as exemplars, or a CLAP model")


class ClapFeatures:
    """(B,E): a CLAP model's features of sounds and texts. model, batch_size: as of `Clap`."""

    unit = True

    def __init__(self, model: str | Path, batch_size: int = 16) -> None:
        self.clap, self.batch_size = Clap(model, batch_size=batch_size), batch_size

    @property
    def version(self) -> str:
        return self.clap.version

    def prefetches(self, modalities: AbstractSet[str]) -> tuple[Prefetch, ...]:
        return ()

    def see(self, media: Media) -> Tensor:
        return self.clap.hear(media)

    @torch.no_grad()
    def read(self, prompts: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        return self.clap.read(prompts, device)


SoundFeatures = MelFeatures | ClapFeatures


def sound_features(model: str | Path, batch_size: int, to_sounds: bool = False) -> SoundFeatures | None:
    """By MEL, or by a CLAP model; None of another model, which then is one of pictures. What a hub id names that is not
    on this machine yet is known by what it is compared with (to_sounds)."""
    if str(model) == MEL:
        return MelFeatures(batch_size)
    try:
        config = json.loads(weights_file(model, "config.json").read_text(encoding="utf-8"))
    except (UsageError, OSError, ValueError):
        return ClapFeatures(model, batch_size) if to_sounds and not Path(model).exists() else None
    return ClapFeatures(model, batch_size) if config.get("model_type") == "clap" else None


def windows(media: Media, seconds: float) -> tuple[Media, list[int]]:
    """Sounds cut into windows of so many seconds that overlap by half; and how many each has. The last one ends where
    the sound does; a sound that is shorter is one."""
    track = media["audio"]
    parts: list[tuple[Tensor, float]] = []
    counts = []
    for row in range(media.rows):
        rate, wave = track.rate_of(row), track.row(row)
        if not rate:
            raise UsageError("windows of a sound need its sample rate; give Track(audio, rate)")
        size = max(1, round(seconds * rate))
        last = max(0, wave.shape[-1] - size)
        starts = [*range(0, last, max(1, size // 2)), last]
        parts += [(wave[..., start : start + size], rate) for start in starts]
        counts.append(len(starts))
    return Media(audio=Track.of([wave for wave, _ in parts], [rate for _, rate in parts])), counts
