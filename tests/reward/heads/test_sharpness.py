"""Sharpness against a loop."""

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate

from genalign.reward import Sharpness
from genalign.types import Media, Track
from tests.helpers.toy_rewards import images, prompts


def test_sharpness_is_the_variance_of_the_laplacian_of_the_luma() -> None:
    given = images(3)
    expected = []
    for picture in given["image"].data:
        luma = np.tensordot([0.299, 0.587, 0.114], picture.double().numpy(), 1)  # type: ignore[union-attr]
        edges = correlate(luma, np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]]))[1:-1, 1:-1]
        expected.append(edges.var() / (edges.var() + 0.01))
    assert Sharpness()(prompts(3), given).total.tolist() == pytest.approx(expected, abs=1e-6)
    flat = Media(image=Track(torch.full((1, 3, 8, 8), 0.3)))
    assert Sharpness()(prompts(1), flat).total.item() == pytest.approx(0, abs=1e-6)
