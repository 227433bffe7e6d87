"""CLIPScore, PickScore, HPSv2, LAION aesthetic and ImageReward on tiny models, against their formulas written out."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
from transformers import AutoTokenizer, CLIPModel

from genalign.reward import build_reward
from genalign.reward.heads.aesthetic import FILE as AESTHETIC_FILE
from genalign.reward.heads.aesthetic import Mlp
from genalign.reward.heads.blip import FILE as BLIP_FILE
from genalign.reward.heads.blip import BlipRegressor, published_names
from genalign.types import Media, Track, UsageError
from tests.tiny_heads import randomise, save_state, tiny_transformers_clip, word_tokenizer, write_json
from tests.toy_rewards import prompts


def pictures(rows: int, height: int, width: int) -> tuple[list[Image.Image], Media]:
    """Smooth colours with a hard-edged box and speckle, in both forms."""
    rng = np.random.default_rng(height)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    drawn = []
    for _ in range(rows):
        picture = 0.5 + 0.5 * np.sin(9 * x[..., None] + 7 * y[..., None] + rng.uniform(0, 6, size=3))
        picture[height // 4 : height // 2, width // 3 : width // 2] = rng.integers(0, 2, size=3)
        picture += 0.1 * rng.standard_normal(picture.shape)
        drawn.append((picture.clip(0, 1) * 255).round().astype(np.uint8))
    tensor = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255
    return [Image.fromarray(one) for one in drawn], Media(image=Track(tensor))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_transformers_clip(tmp_path_factory.mktemp("clip") / "clip")


def official_embeddings(
    folder: Path, drawn: list[Image.Image], asked: list[str]
) -> tuple[CLIPModel, torch.Tensor, torch.Tensor]:
    """PickScore's model card: the processor on PIL images and texts cut at the context, embeddings of length 1."""
    from transformers import CLIPImageProcessor

    net = CLIPModel.from_pretrained(folder).eval()
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), CLIPImageProcessor.from_pretrained(folder)
    longest = net.config.text_config.max_position_embeddings
    read = tokenizer(asked, padding=True, truncation=True, max_length=longest, return_tensors="pt")
    with torch.no_grad():
        seen = net.get_image_features(**processor(images=drawn, return_tensors="pt")).pooler_output
        said = net.get_text_features(input_ids=read.input_ids, attention_mask=read.attention_mask).pooler_output
    return net, seen / seen.norm(dim=-1, keepdim=True), said / said.norm(dim=-1, keepdim=True)


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


def test_hpsv2_is_the_cosine_by_its_own_transform(tmp_path: Path, tiny_arch: str) -> None:
    """Invariants 1, 2."""
    torch.manual_seed(3)
    net = open_clip.create_model(tiny_arch).eval()
    save_state(net.state_dict(), tmp_path / "HPS_v2.1_compressed.safetensors")
    drawn, media = pictures(4, 50, 70)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    resize = Resize(32, InterpolationMode.BICUBIC, antialias=True)
    official = Compose([ToTensor(), resize, CenterCrop(32), Normalize(mean, std)])  # on the tensor: hpsv2's order
    asked = prompts(4)
    tokens = open_clip.get_tokenizer(tiny_arch)([prompt.text for prompt in asked])
    with torch.no_grad():
        seen = net.encode_image(torch.stack([official(one) for one in drawn]), normalize=True)
        expected = (seen @ net.encode_text(tokens, normalize=True).T).diagonal()
    reward = build_reward({"use": "hpsv2.1", "model": str(tmp_path), "arch": tiny_arch}, Path())
    assert expected.std() > 1e-3
    assert torch.allclose(reward(asked, media).total, expected, atol=1e-5)  # no 8-bit rounding on either side
    assert reward.aspects == ("hpsv2.1",)


def test_hpsv2_keys_and_shapes_are_those_of_open_clips_vit_h_14() -> None:
    with torch.device("meta"):
        net = open_clip.CLIP(**open_clip.get_model_config("ViT-H-14"))
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert shapes["visual.conv1.weight"] == (1280, 3, 14, 14)
    assert shapes["text_projection"] == (1024, 1024)
    assert shapes["token_embedding.weight"] == (49408, 1024)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 986_109_441  # 2.0 GB in half precision


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


def test_published_linear_stack_has_its_keys_and_shapes() -> None:
    shapes = {key: tuple(value.shape) for key, value in Mlp(768).state_dict().items()}
    linear = {"0": (1024, 768), "2": (128, 1024), "4": (64, 128), "6": (16, 64), "7": (1, 16)}
    weights = {f"layers.{k}.weight": shape for k, shape in linear.items()}
    assert shapes == weights | {f"layers.{k}.bias": (shape[0],) for k, shape in linear.items()}


VISION = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def blip_state(vision: dict[str, int], text: dict[str, int]) -> dict[str, torch.Tensor]:
    """A random state dict under the key names of ImageReward.pt (BLIP's own), not through our renaming."""
    width, inner, read = vision["hidden_size"], vision["intermediate_size"], text["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 197, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for block in range(vision["num_hidden_layers"]):
        linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        linear |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
        for part, shape in linear.items():
            shapes |= {f"blocks.{block}.{part}.weight": shape, f"blocks.{block}.{part}.bias": shape[:1]}
        for part in ("norm1", "norm2"):
            shapes |= {f"blocks.{block}.{part}.weight": (width,), f"blocks.{block}.{part}.bias": (width,)}
    shapes = {f"blip.visual_encoder.{key}": shape for key, shape in shapes.items()}
    words: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (text["vocab_size"], read),
        "embeddings.position_embeddings.weight": (512, read),
        "embeddings.LayerNorm.weight": (read,),
        "embeddings.LayerNorm.bias": (read,),
    }
    for layer in range(text["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        for kind, source in (("attention", read), ("crossattention", width)):
            linear = {"self.query": (read, read), "self.key": (read, source), "self.value": (read, source)}
            for part, shape in (linear | {"output.dense": (read, read)}).items():
                words |= {f"{at}.{kind}.{part}.weight": shape, f"{at}.{kind}.{part}.bias": shape[:1]}
            words |= {f"{at}.{kind}.output.LayerNorm.{part}": (read,) for part in ("weight", "bias")}
        wide = text["intermediate_size"]
        for part, shape in {"intermediate.dense": (wide, read), "output.dense": (read, wide)}.items():
            words |= {f"{at}.{part}.weight": shape, f"{at}.{part}.bias": shape[:1]}
        words |= {f"{at}.output.LayerNorm.{part}": (read,) for part in ("weight", "bias")}
    shapes |= {f"blip.text_encoder.{key}": shape for key, shape in words.items()}
    rng = torch.Generator().manual_seed(5)
    state = {key: torch.randn(shape, generator=rng) * 0.2 for key, shape in shapes.items()}
    state |= {f"mlp.{key}": value for key, value in randomise(Mlp(read), 0.3).state_dict().items()}
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(512)[None]  # what a checkpoint also holds
    return state | {"blip.vision_proj.weight": torch.zeros(256, width), "blip.text_proj.weight": torch.zeros(256, read)}


def attend(
    x: torch.Tensor, y: torch.Tensor, w: dict[str, torch.Tensor], heads: int, mask: torch.Tensor | None
) -> torch.Tensor:
    """Attention of BLIP's text tower, head by head."""
    q, k, v = (
        F.linear(z, w[f"self.{n}.weight"], w[f"self.{n}.bias"]) for n, z in (("query", x), ("key", y), ("value", y))
    )
    size = q.shape[-1] // heads
    out = []
    for head in range(heads):
        at = slice(head * size, (head + 1) * size)
        logits = q[:, at] @ k[:, at].T / size**0.5
        logits = logits if mask is None else logits.masked_fill(mask[None] == 0, -1e9)
        out.append(logits.softmax(-1) @ v[:, at])
    dense = F.linear(torch.cat(out, 1), w["output.dense.weight"], w["output.dense.bias"])
    return F.layer_norm(dense + x, x.shape[-1:], w["output.LayerNorm.weight"], w["output.LayerNorm.bias"], 1e-12)


def image_reward_by_hand(
    state: dict[str, torch.Tensor], pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor
) -> float:
    """One row through ImageReward's forward pass (ImageReward.py, vit.py, med.py), in float64."""
    state = {key: value.double() for key, value in state.items()}

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

    see, read, mlp = part("blip.visual_encoder."), part("blip.text_encoder."), part("mlp.")
    patches = F.conv2d(pixels[None].double(), see["patch_embed.proj.weight"], see["patch_embed.proj.bias"], stride=16)
    x = torch.cat([see["cls_token"][0], patches[0].flatten(1).T]) + see["pos_embed"][0]
    width, block = x.shape[1], part("blip.visual_encoder.blocks.0.")
    y = F.layer_norm(x, (width,), block["norm1.weight"], block["norm1.bias"], 1e-6)
    q, k, v = F.linear(y, block["attn.qkv.weight"], block["attn.qkv.bias"]).chunk(3, 1)
    half = width // 2
    heads = [(q[:, a] @ k[:, a].T / half**0.5).softmax(-1) @ v[:, a] for a in (slice(0, half), slice(half, width))]
    x = x + F.linear(torch.cat(heads, 1), block["attn.proj.weight"], block["attn.proj.bias"])
    y = F.layer_norm(x, (width,), block["norm2.weight"], block["norm2.bias"], 1e-6)
    y = F.gelu(F.linear(y, block["mlp.fc1.weight"], block["mlp.fc1.bias"]))
    x = x + F.linear(y, block["mlp.fc2.weight"], block["mlp.fc2.bias"])
    seen = F.layer_norm(x, (width,), see["norm.weight"], see["norm.bias"], 1e-6)
    h = read["embeddings.word_embeddings.weight"][ids] + read["embeddings.position_embeddings.weight"][: len(ids)]
    h = F.layer_norm(h, h.shape[-1:], read["embeddings.LayerNorm.weight"], read["embeddings.LayerNorm.bias"], 1e-12)
    for layer in range(2):
        at = f"blip.text_encoder.encoder.layer.{layer}."
        h = attend(h, h, part(f"{at}attention."), 2, mask)
        h = attend(h, seen, part(f"{at}crossattention."), 2, None)
        w = part(at)
        y = F.gelu(F.linear(h, w["intermediate.dense.weight"], w["intermediate.dense.bias"]))
        y = F.linear(y, w["output.dense.weight"], w["output.dense.bias"])
        h = F.layer_norm(y + h, h.shape[-1:], w["output.LayerNorm.weight"], w["output.LayerNorm.bias"], 1e-12)
    score = h[0]
    for k_ in ("0", "2", "4", "6", "7"):
        score = F.linear(score, mlp[f"layers.{k_}.weight"], mlp[f"layers.{k_}.bias"])
    return (score.item() - 0.16717362830052426) / 1.0333394966054072


def test_imagereward_is_its_forward_pass_written_out(tmp_path: Path) -> None:
    """Invariants 1, 2."""
    state = blip_state(VISION, TEXT)
    save_state(state, tmp_path / BLIP_FILE)
    tokenizer = word_tokenizer()
    tokenizer.save_pretrained(tmp_path / "words")
    drawn, media = pictures(3, 224, 224)
    asked = [prompts(2)[0], prompts(2)[1], prompts(1)[0].__class__("two cats and the star " * 9)]  # longer than 35
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    official = Compose([Resize(224, InterpolationMode.BICUBIC), CenterCrop(224), ToTensor(), Normalize(mean, std)])
    read = tokenizer([p.text for p in asked], padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    expected = [
        image_reward_by_hand(state, official(drawn[row]), read.input_ids[row], read.attention_mask[row])
        for row in range(3)
    ]
    spec = {"use": "imagereward", "model": str(tmp_path), "tokenizer": str(tmp_path / "words")}
    reward = build_reward({**spec, "vision": VISION, "text": TEXT, "batch_size": 2}, Path())
    got = reward(asked, media).total
    assert np.std(expected) > 0.05
    assert got.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    pixels = media["image"].data.clone().requires_grad_()  # type: ignore[union-attr]
    reward(asked, Media(image=Track(pixels))).total.sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 0


def test_imagereward_takes_every_weight_of_the_public_checkpoint() -> None:
    from accelerate import init_empty_weights

    large = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    base = {"vocab_size": 30524, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
    with init_empty_weights():
        net = BlipRegressor()
    own = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    with torch.device("meta"):
        one = {k: tuple(v.shape) for k, v in blip_state_shapes(large, base).items()}
    assert own == one


def blip_state_shapes(vision: dict[str, int], text: dict[str, int]) -> dict[str, torch.Tensor]:
    """The public sizes by BLIP's names, renamed, without what ImageReward never reads."""
    small = {"hidden_size": 8, "intermediate_size": 12, "vocab_size": 10}
    grown = {8: vision["hidden_size"], 12: vision["intermediate_size"]}
    with torch.device("cpu"):
        state = blip_state({**vision, **small}, {**text, "hidden_size": 6, "intermediate_size": 14, "vocab_size": 10})
    grown |= {
        24: 3 * vision["hidden_size"],
        6: text["hidden_size"],
        14: text["intermediate_size"],
        10: text["vocab_size"],
    }
    unread = ("vision_proj", "text_proj", "position_ids")
    return {
        published_names(key): torch.empty([grown.get(size, size) for size in value.shape])
        for key, value in state.items()
        if not any(word in key for word in unread)
    }


def test_a_checkpoint_of_another_model_is_refused_by_its_first_wrong_weight(tmp_path: Path) -> None:
    state = blip_state(VISION, TEXT)
    del state["blip.visual_encoder.norm.bias"]
    save_state(state, tmp_path / BLIP_FILE)
    word_tokenizer().save_pretrained(tmp_path)
    spec = {"use": "imagereward", "model": str(tmp_path), "tokenizer": str(tmp_path), "vision": VISION, "text": TEXT}
    with pytest.raises(UsageError, match=r"no weight 'vision.post_layernorm.bias'"):
        build_reward(spec, Path())(prompts(1), pictures(1, 224, 224)[1])
    save_state(blip_state(VISION, TEXT), tmp_path / BLIP_FILE)
    wider = build_reward({**spec, "vision": {**VISION, "hidden_size": 32}}, Path())
    with pytest.raises(UsageError, match=r"has shape \(.*16.*\), but BlipRegressor needs \(.*32.*\)"):
        wider(prompts(1), pictures(1, 224, 224)[1])
