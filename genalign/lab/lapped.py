"""A waveform autoencoder that begins as a lapped transform, which takes sounds apart into frequencies and back exactly.

Begun at random, its layers at the full rate must first find out what a frequency is (docs/world.md#tiny-music).
"""

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

SOFTLY = 0.3  # how loud the frequencies of a decoder's random layers are at first


def lapped_basis(hop: int) -> Tensor:
    """(hop, 2 hop): the orthonormal rows of the modified discrete cosine transform with a sine window, overlapping by
    half (Princen, Johnson and Bradley, 1987)."""
    sample, row = np.arange(2 * hop), np.arange(hop)[:, None]
    window = np.sin(np.pi / (2 * hop) * (sample + 0.5))
    waves = np.cos(np.pi / hop * (sample + 0.5 + hop / 2) * (row + 0.5))
    return torch.from_numpy(np.sqrt(2 / hop) * window * waves).float()


@torch.no_grad()
def begin_lapped(vae: Any, hop: int) -> None:
    """Let a LongCatAudioDiTVae of ELUs, whose first stride is `hop`, begin with what follows as random as it is: the
    layers at the full rate pass the wave on, and those of the first stride are the transform and its inverse.

    An ELU passes on what is above 0, so the wave goes through it with 1 added; a second channel, which is 1
    everywhere, takes that away at the end, where the last layer has no bias.
    """
    first, down = vae.encoder.layers[0], vae.encoder.layers[1].layers
    up, last = vae.decoder.layers[-4].layers, vae.decoder.layers[-2]
    basis, channels = lapped_basis(hop), first.out_channels
    for unit in (*down[:3], *up[2:]):
        _put(unit.layers[3], torch.zeros(channels, channels, 1), torch.zeros(channels))
    one = torch.eye(channels)[0]

    wave = torch.zeros(channels, 1, 7)
    wave[0, 0, 3] = 1.0
    _put(first, wave, one)
    kernel = torch.zeros(hop, channels, 2 * hop)
    kernel[:, 0] = basis
    _put(down[4], kernel, -basis.sum(dim=1))
    _put(up[1], SOFTLY * kernel, torch.ones(channels))
    difference = torch.zeros(1, channels, 7)
    difference[0, 0, 3], difference[0, 1, 3] = 1.0, -1.0
    _put(last, difference, None)


def _put(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """A weight into a layer under weight normalisation; where a row is 0, its direction stays as random as it is."""
    given = cast(Any, layer)
    length = weight.flatten(1).norm(dim=1).view(-1, 1, 1)
    given.weight_v.copy_(torch.where(length > 0, weight, given.weight_v))
    given.weight_g.copy_(length)
    if bias is not None:
        given.bias.copy_(bias)
