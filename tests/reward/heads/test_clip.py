"""CLIP against open_clip's own path, loops and finite differences."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from genalign.reward import ClipReward, HeadReward, Sharpness
from genalign.types import Media, Reward, Track, UsageError
from tests.helpers.toy_rewards import images, prompts, texts, tiny_clip, tiny_text_head


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("models") / "clip")


def pil_cosines(folder: Path, pictures: list[Image.Image], captions: list[str]) -> torch.Tensor:
    net, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(captions)
    with torch.no_grad():
        seen = net.eval().encode_image(torch.stack([preprocess(picture) for picture in pictures]))
        return F.cosine_similarity(seen, net.encode_text(tokens), dim=1)


def photographs(rows: int, height: int, width: int) -> list[np.ndarray]:
    """Smooth colours with hard edges and speckle: what resizing and clamping could get wrong."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    pictures = []
    for _ in range(rows):
        phase = rng.uniform(0, 6, size=3)
        picture = 0.5 + 0.5 * np.sin(9 * x[..., None] + 7 * y[..., None] + phase)
        picture[height // 4 : height // 2, width // 3 : width // 2] = rng.integers(0, 2, size=3)
        picture += 0.2 * rng.standard_normal(picture.shape)
        pictures.append((picture.clip(0, 1) * 255).round().astype(np.uint8))
    return pictures


@pytest.mark.parametrize(
    ("height", "width", "interpolation", "resize_mode"),
    [
        (64, 64, "bicubic", "shortest"),
        (96, 61, "bicubic", "shortest"),
        (50, 80, "bilinear", "squash"),
        (20, 20, "bicubic", "shortest"),
    ],
)
def test_tensor_path_equals_pil_path(
    tmp_path: Path, height: int, width: int, interpolation: str, resize_mode: str
) -> None:
    """Invariant 1."""
    folder = tiny_clip(tmp_path / "clip", interpolation, resize_mode)
    pictures = photographs(6, height, width)
    asked = prompts(6)
    expected = pil_cosines(folder, [Image.fromarray(p) for p in pictures], [p.text for p in asked])
    tensor = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    got = ClipReward(folder)(asked, Media(image=Track(tensor))).total
    assert expected.std() > 5e-3  # the images differ by more than the tolerance
    assert (got - expected).abs().max() < 1e-3


def test_clip_is_differentiable_to_the_pixels_only(clip_folder: Path) -> None:
    """Invariant 11."""
    clip = ClipReward(clip_folder, scale=3.0, offset=0.5)
    pixels = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(3)).mul(0.8).add(0.1).requires_grad_()
    asked = prompts(2)

    def score(at: torch.Tensor) -> torch.Tensor:
        return clip(asked, Media(image=Track(at))).total.sum()

    (gradient,) = torch.autograd.grad(score(pixels), pixels)
    direction = gradient / gradient.norm()
    step = 0.02
    with torch.no_grad():
        finite = (score(pixels + step * direction) - score(pixels - step * direction)) / (2 * step)
    assert gradient.norm() > 1e-3
    assert finite.item() == pytest.approx(gradient.norm().item(), rel=0.02)
    net = clip._loaded[0]
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_clip_scale_and_offset_are_affine(clip_folder: Path) -> None:
    asked, given = prompts(3), images(3)
    cosine = ClipReward(clip_folder)(asked, given).total
    assert torch.allclose(ClipReward(clip_folder, scale=3.0, offset=0.5)(asked, given).total, 3 * cosine + 0.5)
    assert cosine.abs().max() <= 1


@pytest.mark.parametrize("kind", ["clip", "sharpness", "mean", "last"])
def test_batch_size_and_order_do_not_matter(tmp_path: Path, kind: str) -> None:
    """Invariant 8."""
    rows = 8
    given = images(rows) if kind in ("clip", "sharpness") else texts(*["a cat", "two cats and the star", "", "a"] * 2)

    def build(batch_size: int) -> Reward:
        if kind == "clip":
            return ClipReward(folder, batch_size=batch_size)
        return Sharpness() if kind == "sharpness" else HeadReward(folder, batch_size=batch_size)

    folder = tmp_path / "model"
    if kind != "sharpness":
        tiny_clip(folder) if kind == "clip" else tiny_text_head(folder, pool=kind)
    asked = prompts(rows)
    whole = build(64)(asked, given).total
    single = torch.cat([build(64)([asked[i]], given.select([i])).total for i in range(rows)])
    order = [5, 2, 7, 0, 1, 6, 3, 4]
    shuffled = build(64)([asked[i] for i in order], given.select(order)).total
    assert whole.std() > 1e-4
    assert torch.allclose(build(1)(asked, given).total, whole, atol=1e-5)
    assert torch.allclose(single, whole, atol=1e-5)
    assert torch.allclose(shuffled, whole[order], atol=1e-5)


def test_images_of_different_sizes_are_scored_one_by_one(clip_folder: Path) -> None:
    pictures = [torch.rand(3, 40, 40), torch.rand(3, 30, 50)]
    asked = prompts(2)
    for reward in (ClipReward(clip_folder), Sharpness()):
        together = reward(asked, Media(image=Track(pictures))).total
        alone = [reward([asked[i]], Media(image=Track(pictures[i][None]))).total for i in range(2)]
        assert torch.allclose(together, torch.cat(alone), atol=1e-6)


def test_version_changes_with_weights_preprocessing_and_settings(tmp_path: Path, clip_folder: Path) -> None:
    version = ClipReward(clip_folder).version
    assert ClipReward(tiny_clip(tmp_path / "same")).version == version
    assert ClipReward(tiny_clip(tmp_path / "other", interpolation="bilinear")).version != version
    assert ClipReward(clip_folder, scale=2.0).version != version
    changed = tiny_clip(tmp_path / "changed")
    weights = open_clip.create_model_and_transforms(f"local-dir:{changed}")[0].state_dict()
    weights["text_projection"][0, 0] += 1
    from safetensors.torch import save_file

    save_file(weights, changed / "open_clip_model.safetensors")
    assert ClipReward(changed).version != version


def test_clip_models_that_cannot_be_read_are_refused(tmp_path: Path, clip_folder: Path) -> None:
    with pytest.raises(UsageError, match="no model folder 'no-such-clip'"):
        ClipReward("no-such-clip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no \.safetensors file"):
        ClipReward(tmp_path / "empty")
    torn = tiny_clip(tmp_path / "torn")
    whole = (torn / "open_clip_model.safetensors").read_bytes()
    (torn / "open_clip_model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=f"CLIP model {torn} cannot be loaded"):
        ClipReward(torn)(prompts(1), images(1))
