"""The autoencoder of tiny-music, trained by reconstruction on rendered pieces."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genalign.lab.autoencoder import off_unit_size
from genalign.lab.bank import KINDS
from genalign.lab.melody_bank import RATE
from genalign.lab.music import HOP, LATENTS, NOISE, SOUND_RATE, autoencoder
from genalign.media.resample import resampled
from genalign.training.fit import fit

WINDOWS = (64, 256, 1024)  # samples
CROP = LATENTS[0] // 2  # latents of a training sound
FAINT = 0.01  # of a sound's level: what is fainter need not be right
OF_WAVES = 3.0
SOUNDS = 8_192  # rendered once, of which each batch takes some


def pieces(seed: int, count: int) -> Tensor:
    """`count` rendered pieces of the training split at the rate of tiny-music, (B, 1, 24576); a function of seed."""
    rng, playing = np.random.default_rng(seed), KINDS["melodies"]
    rendered = [torch.from_numpy(playing.render(playing.lay_out(rng), rng))[None] for _ in range(count)]
    return torch.cat([resampled(wave, RATE, SOUND_RATE) for wave in rendered])


def unlike(made: Tensor, wanted: Tensor) -> Tensor:
    """How differently two sounds (B, 1, N) sound: their spectra by amounts and by decibels, over windows of several
    lengths (Yamamoto et al. 2020, arXiv 1910.11480, equations 4 to 6), and how far the waves are apart, in squares,
    which alone tell the phase. Soft pieces count as much as loud ones."""
    level = wanted.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-4)
    made, wanted = (made / level).squeeze(1), (wanted / level).squeeze(1)
    loss = OF_WAVES * (made - wanted).square().mean()
    for window in WINDOWS:
        ours, theirs = spectra(made, window), spectra(wanted, window)
        loss = loss + (ours - theirs).abs().mean() / theirs.mean()
        loss = loss + 0.5 * ((ours + FAINT).log() - (theirs + FAINT).log()).abs().mean()
    return loss


def spectra(waves: Tensor, window: int) -> Tensor:
    """(B, N) of level 1 -> amplitudes (B, window / 2 + 1, frames)."""
    shape = torch.hann_window(window)
    bins = torch.stft(waves, window, window // 4, window=shape, return_complex=True)
    return (bins.real.square() + bins.imag.square() + 1e-9).sqrt() / shape.square().sum().sqrt()


def build_autoencoder(work: Path, steps: int, rows: int = 8, seed: int = 21) -> Any:
    """Train on crops, with noise on the latents, so that a denoiser's small errors decode well."""
    vae, sounds = autoencoder(), pieces(seed, max(rows, min(SOUNDS, steps * rows)))

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng((seed, step, 1))
        starts = rng.integers(LATENTS[0] - CROP + 1, size=rows) * HOP
        whole = rng.integers(len(sounds), size=rows)
        wanted = torch.stack([sounds[i, :, at : at + CROP * HOP] for i, at in zip(whole, starts, strict=True)])
        noise = torch.Generator().manual_seed(step)
        mean = vae.encode(wanted, sample_posterior=False).latents
        decoded = vae.decode(mean + NOISE * torch.randn(mean.shape, generator=noise)).sample
        return unlike(decoded, wanted) + 0.02 * off_unit_size(mean)

    state = work / "autoencoder.safetensors"
    fit(vae, loss_of, steps=steps, learning_rate=1.5e-3, muon=0.03, state=state, weight_decay=0.0)
    return vae.requires_grad_(False)


@torch.no_grad()
def reconstructed(vae: Any, waves: Tensor) -> Tensor:
    """Sounds (B, 1, N) there and back."""
    return torch.cat([vae.decode(vae.encode(some, sample_posterior=False).latents).sample for some in waves.split(16)])
