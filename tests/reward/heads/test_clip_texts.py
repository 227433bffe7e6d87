"""CLIP-IQA against its formula by scipy on transformers' own embeddings."""

from pathlib import Path

import pytest
from scipy.special import softmax

from genalign.reward import build_reward
from genalign.types import Media, Track, UsageError
from tests.helpers.pictures import official_embeddings, pictures
from tests.helpers.tiny_heads import tiny_transformers_clip
from tests.helpers.toy_rewards import prompts


def test_it_is_the_share_of_the_first_text(tmp_path: Path) -> None:
    folder = tiny_transformers_clip(tmp_path / "clip")
    drawn, media = pictures(4, 32, 32)  # the model's own size: nothing is resized
    texts = ["a good cat", "a bad cat", "two cats"]
    reward = build_reward({"use": "clip-iqa", "model": str(folder), "texts": texts}, Path())
    _, seen, said = official_embeddings(folder, drawn, texts)
    expected = softmax(100 * (seen @ said.T).double().numpy(), axis=1)[:, 0]
    assert expected.max() > 1.5 * expected.min()
    assert reward(prompts(4), media).total.tolist() == pytest.approx(expected.tolist(), rel=2e-3)
    assert reward.needs == {"image"}
    pixels = media["image"].data.clone().requires_grad_()  # type: ignore[union-attr]
    reward(prompts(4), Media(image=Track(pixels))).total.sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 0


@pytest.mark.parametrize("texts", ["good", ["good"], ["good", 3]])
def test_texts_are_a_list_of_two_or_more(texts: object, tmp_path: Path) -> None:
    folder = tiny_transformers_clip(tmp_path / "clip")
    with pytest.raises(UsageError, match="write a list of two texts or more"):
        build_reward({"use": "clip-iqa", "model": str(folder), "texts": texts}, Path())
