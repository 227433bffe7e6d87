"""The autoencoder of tiny-music, worked out from rendered pieces."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from genalign.lab.bank import KINDS
from genalign.lab.lapped import be_linear, principal_waves
from genalign.lab.melody_bank import RATE
from genalign.lab.music import CHANNELS, HOP, NOISE, SOUND_RATE, autoencoder
from genalign.media.resample import resampled


def pieces(seed: int, count: int) -> Tensor:
    """`count` rendered pieces of the training split at the rate of tiny-music, (B, 1, 24576); a function of seed."""
    rng, playing = np.random.default_rng(seed), KINDS["melodies"]
    rendered = [torch.from_numpy(playing.render(playing.lay_out(rng), rng))[None] for _ in range(count)]
    return torch.cat([resampled(wave, RATE, SOUND_RATE) for wave in rendered])


def build_autoencoder(count: int, seed: int = 21) -> Any:
    """From so many pieces."""
    vae = autoencoder()
    be_linear(vae, *principal_waves(pieces(seed, count), HOP, CHANNELS), NOISE)
    return vae.requires_grad_(False)


@torch.no_grad()
def reconstructed(vae: Any, waves: Tensor) -> Tensor:
    """Sounds (B, 1, N) there and back."""
    return torch.cat([vae.decode(vae.encode(some, sample_posterior=False).latents).sample for some in waves.split(16)])
