"""How tiny-music's autoencoder begins: as a transform into frequencies and back, which loses nothing."""

import math

import numpy as np
import torch

from genalign.lab import music
from genalign.lab.lapped import SOFTLY, begin_lapped, lapped_basis

HOP = music.STRIDES[0]


def test_the_basis_is_the_cosine_transform_written_out() -> None:
    """Against its formula in loops of float64."""
    made = lapped_basis(4)
    for row in range(4):
        for sample in range(8):
            window = math.sin(math.pi * (sample + 0.5) / 8)
            wave = math.cos(math.pi / 4 * (sample + 0.5 + 2) * (row + 0.5))
            assert abs(float(made[row, sample]) - math.sqrt(2 / 4) * window * wave) < 1e-6


def test_shifted_by_its_hop_it_is_orthonormal() -> None:
    basis = lapped_basis(HOP)
    torch.testing.assert_close(basis @ basis.T, torch.eye(HOP), rtol=0, atol=1e-5)
    overlap = basis[:, HOP:] @ basis[:, :HOP].T
    torch.testing.assert_close(overlap, torch.zeros(HOP, HOP), rtol=0, atol=1e-5)


def test_an_autoencoder_begins_by_taking_sounds_apart_and_putting_them_together() -> None:
    """Its first stage gives the transform of the wave as numpy has it, and its last stage the wave back."""
    vae = music.autoencoder()
    wave = 0.1 * torch.randn(1, 1, 8 * HOP, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = vae.encoder.layers[1](vae.encoder.layers[0](wave))[0]
    padded = np.pad(wave[0, 0].numpy(), HOP // 2)
    frames = np.stack([padded[start : start + 2 * HOP] for start in range(0, 8 * HOP, HOP)])
    wanted = lapped_basis(HOP).numpy() @ frames.T
    np.testing.assert_allclose(
        found[:, 1:-1].numpy(), wanted[:, 1:-1], atol=1e-4
    )  # at the ends zeros are padded, not 1

    before_elu = torch.where(found > 0, found, torch.log1p(found.clamp(min=-0.99)))
    with torch.no_grad():
        back = vae.decoder.layers[-2](vae.decoder.layers[-3](vae.decoder.layers[-4](before_elu[None])))
    middle = slice(2 * HOP, -2 * HOP)
    torch.testing.assert_close(back[0, 0, middle] / SOFTLY, wave[0, 0, middle], rtol=0, atol=1e-4)


def test_what_lies_between_is_left_as_it_was() -> None:
    vae = music.autoencoder()
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    begin_lapped(vae, HOP)
    between = [
        name for name in before if name.startswith(("encoder.layers.2", "encoder.layers.3", "decoder.layers.1."))
    ]
    assert between
    assert all(torch.equal(before[name], vae.state_dict()[name]) for name in between)
