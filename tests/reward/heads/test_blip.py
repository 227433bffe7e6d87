"""ImageReward on a tiny model, against its forward pass written out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from genalign.reward import build_reward
from genalign.reward.heads.blip import FILE as BLIP_FILE
from genalign.reward.heads.blip import BlipRegressor, published_names
from genalign.types import Media, Track, UsageError
from tests.helpers.pictures import pictures
from tests.helpers.tiny_heads import BLIP_TEXT, BLIP_VISION, blip_state, save_state, word_tokenizer
from tests.helpers.toy_rewards import prompts


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
    state = blip_state(BLIP_VISION, BLIP_TEXT)
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
    reward = build_reward({**spec, "vision": BLIP_VISION, "text": BLIP_TEXT, "batch_size": 2}, Path())
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
    state = blip_state(BLIP_VISION, BLIP_TEXT)
    del state["blip.visual_encoder.norm.bias"]
    save_state(state, tmp_path / BLIP_FILE)
    word_tokenizer().save_pretrained(tmp_path)
    spec = {
        "use": "imagereward",
        "model": str(tmp_path),
        "tokenizer": str(tmp_path),
        "vision": BLIP_VISION,
        "text": BLIP_TEXT,
    }
    with pytest.raises(UsageError, match=r"no weight 'vision.post_layernorm.bias'"):
        build_reward(spec, Path())(prompts(1), pictures(1, 224, 224)[1])
    save_state(blip_state(BLIP_VISION, BLIP_TEXT), tmp_path / BLIP_FILE)
    wider = build_reward({**spec, "vision": {**BLIP_VISION, "hidden_size": 32}}, Path())
    with pytest.raises(UsageError, match=r"has shape \(.*16.*\), but BlipRegressor needs \(.*32.*\)"):
        wider(prompts(1), pictures(1, 224, 224)[1])


@pytest.mark.parametrize(("height", "width"), [(300, 500), (500, 301), (227, 224), (40, 60), (3, 7)])
def test_pixels_are_those_of_the_official_transform(tmp_path: Path, height: int, width: int) -> None:
    """_transform of ImageReward.py on PIL images: the shortest side to 224, the middle, a margin rounded to even."""
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    official = Compose([Resize(224, InterpolationMode.BICUBIC), CenterCrop(224), ToTensor(), Normalize(mean, std)])
    save_state(blip_state(BLIP_VISION, BLIP_TEXT), tmp_path / BLIP_FILE)
    word_tokenizer().save_pretrained(tmp_path)
    where = {"model": str(tmp_path), "tokenizer": str(tmp_path)}
    reward = build_reward({"use": "imagereward", **where, "vision": BLIP_VISION, "text": BLIP_TEXT}, Path())
    drawn = [Image.eval(one, lambda level: 64 + level // 2) for one in pictures(2, height, width)[0]]  # none cut at 0
    tensor = torch.stack([torch.from_numpy(np.array(one)) for one in drawn]).permute(0, 3, 1, 2) / 255
    got, expected = reward._loaded[1](tensor), torch.stack([official(one) for one in drawn])  # type: ignore[attr-defined]
    assert (got - expected).abs().max() * 255 * 0.27 < 1.6  # levels: PIL rounds to 8 bits after each of two passes
