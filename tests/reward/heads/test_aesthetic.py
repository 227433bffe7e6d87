"""The LAION aesthetic head on a tiny model, against its formula written out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from genalign.reward import build_reward
from genalign.reward.heads.aesthetic import FILE as AESTHETIC_FILE
from genalign.reward.heads.aesthetic import Mlp
from tests.helpers.pictures import official_embeddings, pictures
from tests.helpers.tiny_heads import save_state, tiny_transformers_clip
from tests.helpers.toy_rewards import prompts


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_transformers_clip(tmp_path_factory.mktemp("clip") / "clip")


def test_aesthetic_is_a_linear_stack_on_the_unit_embedding(tmp_path: Path, clip_folder: Path) -> None:
    """simple_inference.py of the improved aesthetic predictor: no ReLU anywhere."""
    shapes = {"0": (1024, 12), "2": (128, 1024), "4": (64, 128), "6": (16, 64), "7": (1, 16)}
    rng = torch.Generator().manual_seed(0)
    state = {f"layers.{k}.weight": torch.randn(shape, generator=rng) * 0.3 for k, shape in shapes.items()}
    state |= {f"layers.{k}.bias": torch.randn(shape[0], generator=rng) * 0.3 for k, shape in shapes.items()}
    save_state(state, tmp_path / AESTHETIC_FILE)
    drawn, media = pictures(4, 32, 32)  # as the model reads them: nothing is resized, nothing rounded
    _, seen, _ = official_embeddings(clip_folder, drawn, ["a"] * 4)
    expected = seen.double()
    for k in shapes:
        expected = expected @ state[f"layers.{k}.weight"].double().T + state[f"layers.{k}.bias"].double()
    reward = build_reward({"use": "aesthetic", "model": str(clip_folder), "weights": str(tmp_path)}, Path())
    assert reward.needs == {"image"}
    assert expected.std() > 0.01
    assert torch.allclose(reward(prompts(4), media).total, expected[:, 0].float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(32, 35), (35, 32), (32, 39), (47, 80), (20, 24), (7, 5), (300, 90)])
def test_pixels_are_those_of_openais_preprocess(tmp_path: Path, clip_folder: Path, height: int, width: int) -> None:
    """clip.load's _transform, which the official predictor uses. A margin of 3 is 2 to the left there, 1 in HF's."""
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    bicubic = InterpolationMode.BICUBIC
    official = Compose([Resize(32, interpolation=bicubic), CenterCrop(32), ToTensor(), Normalize(mean, std)])
    drawn, _ = pictures(2, height, width)
    drawn = [Image.eval(one, lambda level: 64 + level // 2) for one in drawn]  # nothing is cut at 0
    tensor = torch.stack([torch.from_numpy(np.array(one)) for one in drawn]).permute(0, 3, 1, 2) / 255
    save_state(Mlp(12).state_dict(), tmp_path / AESTHETIC_FILE)
    reward = build_reward({"use": "aesthetic", "model": str(clip_folder), "weights": str(tmp_path)}, Path())
    got = reward._loaded[1](tensor)  # type: ignore[attr-defined]
    expected = torch.stack([official(one) for one in drawn])
    assert (got - expected).abs().max() * 255 * 0.27 < 1.6  # levels: PIL rounds to 8 bits after each of two passes


def test_published_linear_stack_has_its_keys_and_shapes() -> None:
    shapes = {key: tuple(value.shape) for key, value in Mlp(768).state_dict().items()}
    linear = {"0": (1024, 768), "2": (128, 1024), "4": (64, 128), "6": (16, 64), "7": (1, 16)}
    weights = {f"layers.{k}.weight": shape for k, shape in linear.items()}
    assert shapes == weights | {f"layers.{k}.bias": (shape[0],) for k, shape in linear.items()}
