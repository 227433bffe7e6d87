"""The shipped rules about pictures, against values worked out by hand."""

import pytest
import torch

from genalign.files.shipped import shipped
from genalign.reward import build_reward
from genalign.types import Media, Prompt, Track

WHITE, BLACK, GRAY, RED = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (0.4, 0.4, 0.4), (1.0, 0.0, 0.0)


def scored(rule: str, *pictures: list[tuple[float, float, float]]) -> list[float]:
    """Each picture is a row of pixels."""
    images = torch.tensor(pictures).transpose(1, 2)[:, :, None]  # (B,3,1,W)
    reward = build_reward(f"picture_rules.py:{rule}", shipped("rewards"))
    return reward([Prompt("-")] * len(images), Media(image=Track(images))).values[:, 0].tolist()


def test_lightness_is_the_darkest_colour():
    assert scored("light", [WHITE] * 2, [BLACK] * 2, [RED] * 2, [WHITE, GRAY]) == pytest.approx([1, 0, 0, 0.7])


def test_colourfulness_is_that_of_the_paper():
    """Red beside gray: red - green is 1 and 0, (red + green) / 2 - blue is 0.5 and 0."""
    spread, size = (0.5**2 + 0.25**2) ** 0.5, (0.5**2 + 0.25**2) ** 0.5
    told = scored("colourful", [GRAY] * 2, [RED] * 2, [RED, GRAY])
    assert told == pytest.approx([0, 0.3 * (1 + 0.25) ** 0.5, spread + 0.3 * size], abs=1e-6)
