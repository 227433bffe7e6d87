"""CLIPScore, PickScore and HPSv2 on tiny models, against their formulas written out."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, Normalize, ToTensor
from torchvision.transforms import functional as F

from genalign.reward import build_reward
from genalign.reward.heads.clip import on_tensors
from genalign.reward.heads.clips import longest_side, transform_of
from genalign.types import Media, Track, UsageError
from tests.helpers.pictures import official_embeddings, pictures
from tests.helpers.tiny_heads import save_state, tiny_transformers_clip, write_json
from tests.helpers.toy_rewards import prompts


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_transformers_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.mark.parametrize(("height", "width"), [(32, 32), (47, 80), (64, 45), (20, 24)])
def test_pickscore_and_clipscore_are_their_cards_formulas(clip_folder: Path, height: int, width: int) -> None:
    """Invariants 1, 2."""
    drawn, media = pictures(4, height, width)
    asked = [*prompts(3), prompts(1)[0].__class__("a cat and the star " * 8)]  # the last is longer than the context
    net, seen, said = official_embeddings(clip_folder, drawn, [prompt.text for prompt in asked])
    cosine = (said @ seen.T).diagonal()
    pick = build_reward({"use": "pickscore", "model": str(clip_folder), "processor": str(clip_folder)}, Path())
    scale = net.logit_scale.exp().item()
    expected = scale * cosine
    assert expected.std() > 0.05
    assert torch.allclose(pick(asked, media).total, expected, atol=2e-3 * scale)
    assert pick.aspects == ("pickscore",)
    score = build_reward({"use": "clipscore", "model": str(clip_folder)}, Path())
    assert torch.allclose(score(asked, media).total, 100 * cosine, atol=0.2)
    assert score.version != pick.version


def test_pixels_after_preprocessing_are_the_official_ones(clip_folder: Path) -> None:
    from transformers import CLIPImageProcessor

    for size in [(47, 80), (64, 45), (33, 33), (20, 24)]:
        drawn = [Image.eval(one, lambda level: 64 + level // 2) for one in pictures(2, *size)[0]]  # nothing is cut at 0
        tensor = torch.stack([torch.from_numpy(np.array(one)) for one in drawn]).permute(0, 3, 1, 2) / 255
        ours = build_reward({"use": "clipscore", "model": str(clip_folder)}, Path())
        got = ours._loaded[1](tensor)  # type: ignore[attr-defined]
        official = CLIPImageProcessor.from_pretrained(clip_folder)(images=drawn, return_tensors="pt").pixel_values
        assert got.shape == official.shape
        assert (got - official).abs().max() * 255 * 0.27 < 1.6  # levels: it rounds to 8 bits after each of two passes


def test_a_preprocessor_config_of_2022_is_understood(tmp_path: Path, clip_folder: Path) -> None:
    """As openai/clip-vit-large-patch14 and laion/CLIP-ViT-H-14 publish it: sizes as plain numbers."""
    import shutil

    old = {"crop_size": 32, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3, "size": 32}
    old |= {"feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073]}
    folder = Path(shutil.copytree(clip_folder, tmp_path / "old"))
    write_json(old | {"image_std": [0.26862954, 0.26130258, 0.27577711]}, folder / "preprocessor_config.json")
    _, media = pictures(3, 47, 80)
    one, two = (build_reward({"use": "clipscore", "model": str(place)}, Path()) for place in (folder, clip_folder))
    assert torch.equal(one(prompts(3), media).total, two(prompts(3), media).total)


def test_gradients_reach_the_pixels_and_no_weight(clip_folder: Path) -> None:
    """Invariant 11."""
    pick = build_reward({"use": "pickscore", "model": str(clip_folder), "processor": str(clip_folder)}, Path())
    pixels = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)).requires_grad_()
    total = pick(prompts(2), Media(image=Track(pixels))).total.sum()
    (gradient,) = torch.autograd.grad(total, pixels)
    step = 1e-3 * gradient / gradient.norm()
    with torch.no_grad():
        up, down = (pick(prompts(2), Media(image=Track(pixels + sign * step))).total.sum() for sign in (1, -1))
    assert ((up - down) / 2e-3).item() == pytest.approx(gradient.norm().item(), rel=0.05)


@pytest.fixture(scope="module")
def tiny_arch(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small architecture known to open_clip by name, as ViT-H-14 is."""
    folder = tmp_path_factory.mktemp("arch")
    (folder / "ViT-tiny-test.json").write_text(
        '{"embed_dim": 16, "vision_cfg": {"image_size":32, "layers":1, "width":32, "head_width": 16, "patch_size": 8},'
        '"text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}}'
    )
    open_clip.add_model_config(folder)
    return "ViT-tiny-test"


def resize_max_size(picture: Tensor, size: int) -> Tensor:
    """ResizeMaxSize of tgxs002/HPSv2, after ToTensor: the longest side becomes `size`, black around the rest."""
    height, width = picture.shape[1:]
    scale = size / float(max(height, width))
    tall, wide = round(height * scale), round(width * scale)
    picture = F.resize(picture, [tall, wide], InterpolationMode.BICUBIC, antialias=True)
    below, right = size - tall, size - wide
    return F.pad(picture, [right // 2, below // 2, right - right // 2, below - below // 2], fill=0)


@pytest.mark.parametrize(("height", "width"), [(50, 70), (70, 50), (32, 32), (20, 24), (9, 5), (27, 48), (300, 500)])
def test_hpsv2_is_the_cosine_by_its_own_transform(tmp_path: Path, tiny_arch: str, height: int, width: int) -> None:
    """Invariants 1, 2."""
    torch.manual_seed(3)
    net = open_clip.create_model(tiny_arch).eval()
    save_state(net.state_dict(), tmp_path / "HPS_v2.1_compressed.safetensors")
    drawn, media = pictures(4, height, width)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD

    def official(picture: Image.Image) -> Tensor:
        return Normalize(mean, std)(resize_max_size(ToTensor()(picture), 32))

    asked = prompts(4)
    tokens = open_clip.get_tokenizer(tiny_arch)([prompt.text for prompt in asked])
    with torch.no_grad():
        seen = net.encode_image(torch.stack([official(one) for one in drawn]), normalize=True)
        expected = (seen @ net.encode_text(tokens, normalize=True).T).diagonal()
    reward = build_reward({"use": "hpsv2.1", "model": str(tmp_path), "arch": tiny_arch}, Path())
    assert expected.std() > 1e-3
    assert torch.allclose(reward(asked, media).total, expected, atol=1e-5)  # no 8-bit rounding on either side
    assert reward.aspects == ("hpsv2.1",)
    other = build_reward(
        {"use": "hpsv2.1", "model": str(tmp_path), "arch": tiny_arch, "resize_mode": "shortest"}, Path()
    )
    assert other.version != reward.version  # the two share no cache


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(1080, 1920, (126, 224)), (85, 320, (59, 224)), (45, 320, (31, 224))]
)
def test_the_longest_side_is_rounded_as_hpsv2_rounds_it(height: int, width: int, expected: tuple[int, int]) -> None:
    """At 85/320 and 45/320 its product falls below the half that the quotient of open_clip hits."""
    assert tuple(longest_side(SimpleNamespace(size=(width, height)), (224, 224), 1.0)) == expected
    assert tuple(resize_max_size(torch.rand(3, height, width), 224).shape[1:]) == (224, 224)


def test_the_edges_of_a_wide_picture_count_for_hpsv2(tmp_path: Path, tiny_arch: str) -> None:
    """A 16:9 picture lost 44% of its width."""
    torch.manual_seed(3)
    save_state(open_clip.create_model(tiny_arch).state_dict(), tmp_path / "HPS_v2_compressed.safetensors")
    reward = build_reward({"use": "hpsv2", "model": str(tmp_path), "arch": tiny_arch}, Path())
    pixels = torch.rand(1, 3, 36, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(reward(prompts(1), Media(image=Track(pixels))).total.sum(), pixels)
    assert bool((gradient.abs().sum((0, 1)) > 0).all())


@pytest.mark.parametrize("mode", ["longest", "shortest", "squash"])
@pytest.mark.parametrize(("height", "width"), [(47, 80), (80, 33), (7, 5), (300, 90)])
def test_every_resize_mode_of_open_clip_has_its_tensor_form(mode: str, height: int, width: int) -> None:
    """open_clip's own transform of PIL images, with a gray fill."""
    drawn, _ = pictures(2, height, width)
    drawn = [Image.eval(one, lambda level: 64 + level // 2) for one in drawn]  # nothing is cut at 0
    tensor = torch.stack([torch.from_numpy(np.array(one)) for one in drawn]).permute(0, 3, 1, 2) / 255
    official = open_clip.transform.image_transform(32, is_train=False, resize_mode=mode, fill_color=128)
    expected = torch.stack([official(one) for one in drawn])
    got = on_tensors(official)(tensor)
    assert got.shape == expected.shape
    assert (got - expected).abs().max() * 255 * 0.27 < 1.6  # levels: PIL rounds to 8 bits after each of two passes


def processor_of(folder: Path, **changes: object) -> Path:
    from transformers import CLIPImageProcessor

    settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, **changes}
    CLIPImageProcessor(**settings).save_pretrained(folder)
    return folder


def test_a_processor_that_does_not_normalise_is_taken_at_that(tmp_path: Path, clip_folder: Path) -> None:
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor.from_pretrained(processor_of(tmp_path, do_normalize=False))
    drawn = [Image.eval(one, lambda level: 64 + level // 2) for one in pictures(2, 47, 80)[0]]  # nothing is cut at 0
    tensor = torch.stack([torch.from_numpy(np.array(one)) for one in drawn]).permute(0, 3, 1, 2) / 255
    official = processor(images=drawn, return_tensors="pt").pixel_values
    assert official.min() >= 0
    assert (transform_of(processor)(tensor) - official).abs().max() * 255 < 1.6


@pytest.mark.parametrize(
    "changes",
    [{"resample": 1}, {"do_rescale": False}, {"do_resize": False}, {"crop_size": {"height": 40, "width": 40}}],
)
def test_a_processor_without_a_tensor_form_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    from transformers import CLIPImageProcessor

    with pytest.raises(UsageError, match=r"no tensor form in genalign|crops .* from"):
        transform_of(CLIPImageProcessor.from_pretrained(processor_of(tmp_path, **changes)))


def test_hpsv2_keys_and_shapes_are_those_of_open_clips_vit_h_14() -> None:
    with torch.device("meta"):
        net = open_clip.CLIP(**open_clip.get_model_config("ViT-H-14"))
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert shapes["visual.conv1.weight"] == (1280, 3, 14, 14)
    assert shapes["text_projection"] == (1024, 1024)
    assert shapes["token_embedding.weight"] == (49408, 1024)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 986_109_441  # 2.0 GB in half precision
