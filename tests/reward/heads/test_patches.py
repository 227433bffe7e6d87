"""Patches of pictures and videos, against Qwen's own."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from genalign.reward.heads.patches import patches, sampled_frames, smart_size
from genalign.types import UsageError
from tests.helpers.pictures import as_tensor, photographs


@pytest.mark.parametrize(("height", "width"), [(448, 448), (100, 150), (300, 90), (1100, 600)])
def test_image_patches_are_qwens_own(height: int, width: int) -> None:
    """The official way: PIL's bicubic to hpsv3's 256 patches of 28 x 28 pixels, then Qwen2-VL's image processor."""
    (picture,) = photographs(1, height, width)
    tall, wide = smart_size(height, width, 28, 200704, 200704)
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 12845056})
    official = processor(images=[picture.resize((wide, tall), Image.Resampling.BICUBIC)], return_tensors="pt")
    got, grid = patches(as_tensor([picture]), 14, 2, 2, 200704, 200704)
    assert [grid] == official["image_grid_thw"].tolist()
    levels = (got - official["pixel_values"]).abs() * 255 * 0.27
    assert levels.max() < 2  # the official one rounds to 8 bits after each of two passes
    assert official["pixel_values"].std() > 0.3


def test_video_patches_put_two_frames_in_one_and_repeat_the_last() -> None:
    """Invariant 5."""
    frames = as_tensor(photographs(3, 56, 84))
    got, grid = patches(frames, 14, 2, 2, 0, 200704)
    assert grid == [2, 4, 6]
    padded = torch.cat([frames, frames[-1:]])
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    row = 0
    for pair in range(2):  # the order of Qwen2-VL's processor, written out
        for block_y in range(2):
            for block_x in range(3):
                for y in range(2):
                    for x in range(2):
                        top, left = (2 * block_y + y) * 14, (2 * block_x + x) * 14
                        cut = padded[2 * pair : 2 * pair + 2, :, top : top + 14, left : left + 14]
                        expected = ((cut - mean[:, None, None]) / std[:, None, None]).transpose(0, 1).flatten()
                        assert torch.allclose(got[row], expected, atol=1e-5)
                        row += 1
    assert row == len(got)


@pytest.mark.parametrize(
    ("total", "rate", "expected"),
    [(81, 16, 10), (16, 8, 4), (3, 1, 2), (5, 30, 4), (2, 2, 2), (49, 24, 4), (120, 8, 30)],
)
def test_frames_are_two_a_second_first_and_last_among_them(total: int, rate: float, expected: int) -> None:
    """Invariant 5."""
    chosen = sampled_frames(total, rate, 2.0)
    assert len(chosen) == expected
    assert chosen[0] == 0
    assert chosen[-1] == total - 1
    gaps = np.diff(chosen)
    assert gaps.max() - gaps.min() <= 1
    with pytest.raises(UsageError, match="too short"):
        sampled_frames(1, 8, 2.0)


def test_sizes_keep_the_pixels_within_their_limits() -> None:
    for height, width in [(448, 448), (1080, 1920), (64, 64), (200, 777)]:
        tall, wide = smart_size(height, width, 28, 100352, 200704)
        assert tall % 28 == wide % 28 == 0
        assert 100352 <= tall * wide <= 200704
        assert tall / wide == pytest.approx(height / width, rel=0.15)
    with pytest.raises(UsageError, match="too narrow"):
        smart_size(10, 3000, 28, 1, 10**9)
