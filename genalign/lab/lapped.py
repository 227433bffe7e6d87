"""A waveform autoencoder that nothing trains: the principal components of a lapped transform, and their way back.

What it makes of two sounds together is the sum of what it makes of each, so that a denoiser meets a note as the same
latents whatever else is played (docs/world.md#tiny-music).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

LINEAR = -30.0, 30.0  # logarithms of a Snake's frequency and divisor at which it passes on what it is given
FAINT = 1e-4  # of the mean power of a frequency: what is fainter is not weighed more


def lapped_basis(hop: int) -> Tensor:
    """(hop, 2 hop): the orthonormal rows of the modified discrete cosine transform with a sine window, overlapping by
    half (Princen, Johnson and Bradley, 1987)."""
    sample, row = np.arange(2 * hop), np.arange(hop)[:, None]
    window = np.sin(np.pi / (2 * hop) * (sample + 0.5))
    waves = np.cos(np.pi / hop * (sample + 0.5 + hop / 2) * (row + 0.5))
    return torch.from_numpy(np.sqrt(2 / hop) * window * waves).float()


def principal_waves(sounds: Tensor, hop: int, count: int) -> tuple[Tensor, Tensor]:
    """The `count` waves (count, 2 hop) that sounds (B, 1, N) of any loudness are made of most, to take sounds apart
    with and to put them together with.

    They are principal components of the transform's frequencies, each weighed by the square root of how faint it is:
    an instrument is told by overtones that hold little of the power. Latents have unit mean square.
    """
    basis = lapped_basis(hop)
    level = sounds.square().mean(dim=(1, 2), keepdim=True).sqrt()
    bins = F.conv1d(sounds / level, basis[:, None], stride=hop, padding=hop // 2)  # (B, hop, frames)
    power = bins.square().mean(dim=(0, 2))
    weight = (power / power.mean() + FAINT) ** -0.25
    rows = (bins * weight[:, None]).transpose(1, 2).flatten(0, 1).double()
    main = torch.linalg.eigh(rows.T @ rows)[1].flip(1)[:, :count].float()  # (hop, count)
    apart, together = (main * weight[:, None]).T @ basis, (main / weight[:, None]).T @ basis
    size = F.conv1d(sounds, apart[:, None], stride=hop, padding=hop // 2).square().mean().sqrt()
    return apart / size, together * size


@torch.no_grad()
def be_linear(vae: Any, apart: Tensor, together: Tensor, noise: float) -> None:
    """Let a LongCatAudioDiTVae of one block and one channel at the full rate be these waves (count, 2 hop): all other
    layers pass on what they are given. Its posterior's deviation is `noise` everywhere."""
    for module in vae.modules():
        if hasattr(module, "alpha") and hasattr(module, "beta"):
            module.alpha.fill_(LINEAR[0])
            module.beta.fill_(LINEAR[1])
    down, up = vae.encoder.layers[1].layers, vae.decoder.layers[1].layers
    for unit in (*down[:3], *up[2:]):
        _put(unit.layers[3], torch.zeros(1, 1, 1))
    one = torch.eye(len(apart))
    _put(vae.encoder.layers[0], _middle(torch.ones(1, 1), 7))
    _put(down[4], apart[:, None])
    _put(vae.encoder.layers[2], _middle(torch.cat([one, torch.zeros_like(one)]), 3))
    vae.encoder.layers[2].bias[len(apart) :] = float(torch.tensor(noise).expm1().log())  # softplus of it is `noise`
    _put(vae.decoder.layers[0], _middle(one, 7))
    _put(up[1], together[:, None])
    _put(vae.decoder.layers[3], _middle(torch.ones(1, 1), 7))


def _middle(weight: Tensor, width: int) -> Tensor:
    """(out, in) as a convolution of an odd width that looks at its middle alone."""
    return F.pad(weight[..., None], (width // 2, width // 2))


def _put(layer: Any, weight: Tensor) -> None:
    """A weight into a layer under weight normalisation, without bias; where a row is 0, its direction stays."""
    length = weight.flatten(1).norm(dim=1).view(-1, 1, 1)
    layer.weight_v.copy_(torch.where(length > 0, weight, layer.weight_v))
    layer.weight_g.copy_(length)
    if isinstance(layer.bias, nn.Parameter):
        layer.bias.zero_()
