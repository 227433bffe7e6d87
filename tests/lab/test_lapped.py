"""tiny-music's autoencoder: a transform into frequencies and back, which keeps the waves that sounds are made of."""

import math

import numpy as np
import pytest
import torch
from diffusers import LongCatAudioDiTVae

from genalign.lab.lapped import be_linear, lapped_basis, principal_waves

HOP = 64


def an_autoencoder(count: int) -> LongCatAudioDiTVae:
    shortcuts = dict.fromkeys(("downsample_shortcut", "upsample_shortcut", "in_shortcut", "out_shortcut"), "none")
    return LongCatAudioDiTVae(
        channels=1, c_mults=[count], strides=[HOP], latent_dim=count, encoder_latent_dim=2 * count, act_fn="snake",
        scale=1.0, downsampling_ratio=HOP, **shortcuts,
    )  # fmt: skip


def noises(rows: int, seed: int) -> torch.Tensor:
    return 0.1 * torch.randn(rows, 1, 8 * HOP, generator=torch.Generator().manual_seed(seed))


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


@torch.no_grad()
def test_an_autoencoder_is_the_transform_and_its_way_back() -> None:
    """Its latents are the transform as numpy has it; of all frequencies its sounds are those it was given; and its
    posterior is as wide as was asked everywhere."""
    vae, basis = an_autoencoder(HOP), lapped_basis(HOP)
    be_linear(vae, basis, basis, noise=0.1)
    waves = noises(2, seed=0)
    latents = vae.encode(waves, sample_posterior=False).latents
    for row in range(2):
        padded = np.pad(waves[row, 0].numpy().astype(np.float64), HOP // 2)
        frames = np.stack([padded[start : start + 2 * HOP] for start in range(0, 8 * HOP, HOP)])
        np.testing.assert_allclose(latents[row].numpy(), basis.numpy() @ frames.T, atol=1e-5)
    middle = slice(HOP, -HOP)  # at the ends there is no next frame
    torch.testing.assert_close(vae.decode(latents).sample[..., middle], waves[..., middle], rtol=0, atol=1e-5)
    drawn = vae.encode(waves, generator=torch.Generator().manual_seed(1)).latents
    assert float((drawn - latents).std()) == pytest.approx(0.1, rel=0.1)


@torch.no_grad()
def test_latents_of_two_sounds_together_are_the_sum_of_theirs() -> None:
    vae = an_autoencoder(16)
    be_linear(vae, *principal_waves(noises(64, seed=2), HOP, 16), noise=0.1)
    one, other = noises(1, seed=3), noises(1, seed=4)
    first, second, both = (vae.encode(x, sample_posterior=False).latents for x in (one, other, one + other))
    torch.testing.assert_close(both, first + second, rtol=0, atol=1e-5)
    back = [vae.decode(latents).sample for latents in (first, second, both)]
    torch.testing.assert_close(back[2], back[0] + back[1], rtol=0, atol=1e-5)


def test_the_waves_that_sounds_are_made_of_are_kept_whatever_their_loudness() -> None:
    """Sounds of four frequencies, one of them a hundred times softer: of four waves they come back as they were."""
    basis = lapped_basis(HOP)
    generator = torch.Generator().manual_seed(5)
    bins = torch.zeros(32, HOP, 8)
    bins[:, [3, 10, 21, 40]] = torch.randn(32, 4, 8, generator=generator)
    bins[:, 40] *= 0.01
    bins[..., [0, -1]] = 0  # which the ends cut
    sounds = torch.nn.functional.conv_transpose1d(bins, basis[:, None], stride=HOP, padding=HOP // 2)
    sounds *= torch.logspace(-2, 0, 32)[:, None, None]
    apart, together = principal_waves(sounds, HOP, 4)
    latents = torch.nn.functional.conv1d(sounds, apart[:, None], stride=HOP, padding=HOP // 2)
    assert float(latents.square().mean()) == pytest.approx(1, rel=1e-4)
    back = torch.nn.functional.conv_transpose1d(latents, together[:, None], stride=HOP, padding=HOP // 2)
    torch.testing.assert_close(
        back[..., HOP:-HOP], sounds[..., HOP:-HOP], rtol=0, atol=1e-4 * float(sounds.abs().max())
    )
