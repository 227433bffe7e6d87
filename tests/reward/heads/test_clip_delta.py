"""CLIP-delta on tiny models, against its formula written out frame by frame."""

from pathlib import Path

import pytest
import torch

from genalign.files.shipped import shipped
from genalign.reward import build_reward
from genalign.types import Media, Prompt, Track, UsageError
from tests.helpers.pictures import official_embeddings, pictures
from tests.helpers.tiny_heads import tiny_transformers_clip


def test_it_is_pickscore_by_26_less_the_likeness_to_the_source(tmp_path: Path) -> None:
    """Embeddings by transformers' own processor and model."""
    folder = str(tiny_transformers_clip(tmp_path / "clip"))
    drawn, media = pictures(4, 47, 80)
    frames = media["image"].data
    net, seen, said = official_embeddings(Path(folder), drawn, ["two stars", "a cat"])
    edited = Media(video=Track(torch.stack([frames[[0, 3]], frames[[1, 3]]]), rate=8.0))  # first frames: 0, 1
    asked = [
        Prompt("two stars", Media(video=Track(frames[None, [2, 3]], rate=8.0))),
        Prompt("a cat", Media(image=Track(frames[[1]]))),
    ]
    reward = build_reward({"use": "clip-delta", "model": folder, "processor": folder, "weight": 0.5}, Path())
    scale = net.logit_scale.exp() / 26
    expected = torch.stack([scale * seen[0] @ said[0] - 0.5 * seen[0] @ seen[2], scale * seen[1] @ said[1] - 0.5])
    scores = reward(asked, edited)
    assert torch.allclose(scores.total, expected, atol=3e-3)
    assert (scores.total[0] - scores.total[1]).abs() > 0.02
    both = build_reward({"use": "clip-delta", "model": folder, "processor": folder, "frames": 2, "scale": 1}, Path())
    by_hand = ((seen[0] + seen[3]) @ said[0] - seen[0] @ seen[2] - 1) / 2
    assert both(asked, edited).total[0].item() == pytest.approx(by_hand.item(), abs=3e-3)
    assert both.version != reward.version


def test_an_open_clip_model_abstentions_sizes_and_gradients() -> None:
    reward = build_reward({"use": "clip-delta", "model": "tiny-clip", "scale": 2.0}, Path())
    small, large = torch.rand(3, 3, 48, 48, requires_grad=True), torch.rand(5, 3, 64, 80)
    asked = [Prompt("a cat"), Prompt("a cat", Media(video=Track(large[None])))] * 2
    scores = reward(asked, Media(video=Track([small, small, large, large], rate=8.0)))
    assert scores.valid[:, 0].tolist() == [False, True, False, True]
    clip = build_reward({"use": "clip", "model": str(shipped("assets", "tiny-clip"))}, Path())
    shown = clip([Prompt("a cat")], Media(image=Track(large[:1]))).total
    assert scores.total[3].item() == pytest.approx(2 * shown.item() - 1, abs=1e-4)  # its own source
    scores.total.sum().backward()
    assert small.grad is not None
    assert small.grad[0].abs().max() > 0
    assert small.grad[1:].abs().max() == 0  # the first frame alone is read
    with pytest.raises(UsageError, match="1 is the least"):
        build_reward({"use": "clip-delta", "model": "tiny-clip", "frames": 0}, Path())
