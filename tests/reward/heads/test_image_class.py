"""Image classifiers as rewards, against transformers' own pipeline for them."""

from pathlib import Path

import pytest
import torch

from genalign.reward import build_reward
from genalign.types import UsageError
from tests.helpers.pictures import pictures
from tests.helpers.tiny_heads import randomise
from tests.helpers.toy_rewards import prompts


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of random weights with the two labels of the published one."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    folder = tmp_path_factory.mktemp("classifier")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    labels = {0: "normal", 1: "nsfw"}
    config = ViTConfig(
        **sizes, image_size=16, patch_size=8, id2label=labels, label2id={v: k for k, v in labels.items()}
    )
    randomise(ViTForImageClassification(config)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def test_it_is_the_probability_that_the_pipeline_gives(classifier: Path) -> None:
    from transformers import pipeline

    drawn, media = pictures(5, 20, 28)
    official = pipeline("image-classification", model=str(classifier), device="cpu")
    expected = []
    for picture in drawn:
        by_label = {one["label"]: one["score"] for one in official(picture)}
        expected.append(by_label["normal"])
    assert torch.tensor(expected).std() > 1e-3
    reward = build_reward({"use": "safe", "model": str(classifier), "batch_size": 2}, Path())
    assert reward(prompts(5), media).total.tolist() == pytest.approx(expected, abs=1e-5)
    assert reward.aspects == ("safe",)
    other = build_reward({"use": "safe", "model": str(classifier), "label": "nsfw"}, Path())
    assert other(prompts(5), media).total.tolist() == pytest.approx([1 - p for p in expected], abs=1e-5)
    assert other.version != reward.version


def test_a_label_that_it_does_not_have_is_refused(classifier: Path) -> None:
    with pytest.raises(UsageError, match="has no label 'norml'; did you mean 'normal'"):
        build_reward({"use": "safe", "model": str(classifier), "label": "norml"}, Path())(
            prompts(1), pictures(1, 8, 8)[1]
        )
