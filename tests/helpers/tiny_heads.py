"""Tiny random checkpoints in the layouts that published rewards come in."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
)

from genalign.reward.heads.aesthetic import Mlp

WORDS = ("a", "two", "cat", "cats", "star", "and", "the", "prompt", "number", *"0123456789", "good", "bad", "rate", ":")
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
VISION = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {% for c in m.content %}"
    "{% if c.type == 'text' %}{{ c.text }}{% else %}<|vision_start|><|{{ c.type }}_pad|><|vision_end|>{% endif %}"
    "{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>the {% endif %}"
)
TEXT_CHAT = "<s>{% for m in messages %}{{ 'a' if m.role == 'user' else 'the' }} : {{ m.content }} </s>{% endfor %}"


def randomise(net: nn.Module, std: float = 0.2, seed: int = 0) -> nn.Module:
    """Random weights large enough that every part of the network is seen in its output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * std)
    return net.eval()


def word_tokenizer(special: Sequence[str] = SPECIAL, chat: str | None = None) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing

    vocabulary = {word: at for at, word in enumerate((*special, *WORDS))}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    ends = [(word, vocabulary[word]) for word in ("<s>", "</s>")]
    inner.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    more = [word for word in special if word not in SPECIAL]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **named, model_max_length=512)
    tokenizer.add_tokens(more, special_tokens=True)
    tokenizer.chat_template = chat
    return tokenizer


def tiny_transformers_clip(folder: Path, size: int = 32) -> Path:
    """A CLIPModel of random weights, with its image processor and a tokenizer of whole words."""
    text = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 12, "eos_token_id": 2, "bos_token_id": 1}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": size, "patch_size": 8}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    randomise(clip)
    clip.logit_scale.data.fill_(3.0)
    clip.save_pretrained(folder)
    crop = {"height": size, "width": size}
    CLIPImageProcessor(size={"shortest_edge": size}, crop_size=crop).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


VISION_SIZES = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 14, "mlp_ratio": 2}
VISION_SIZES |= {"spatial_merge_size": 2, "temporal_patch_size": 2, "in_chans": 3, "in_channels": 3}


def tiny_qwen_base(folder: Path) -> Path:
    """What is read of a Qwen2-VL-Instruct beside its weights: config.json and the tokenizer with its chat template."""
    word_tokenizer((*SPECIAL, *VISION), QWEN_CHAT).save_pretrained(folder)
    told = {"model_type": "qwen2_vl", "image_token_id": 8, "video_token_id": 9, "hidden_size": 32, "vocab_size": 64}
    told |= {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    told |= {"rope_theta": 1000000.0, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    told |= {"max_position_embeddings": 2048, "vision_config": VISION_SIZES}
    write_json(told, folder / "config.json")  # flat, as transformers 4 wrote the published ones
    return folder


def qwen_config() -> Qwen2VLConfig:
    text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "pad_token_id": 0}
    text |= {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}, "bos_token_id": 1, "eos_token_id": 2}
    text |= {"rope_theta": 1000000.0}
    return Qwen2VLConfig(text_config=text, vision_config=VISION_SIZES, image_token_id=8, video_token_id=9)


def as_transformers_4(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Qwen2-VL's state dict under the names that transformers 4.45 gave it, language head included."""
    named = {
        key.replace("model.language_model.", "model.").replace("model.visual.", "visual."): v
        for key, v in state.items()
    }
    return {**named, "lm_head.weight": torch.zeros(3, 2)}


BLIP_VISION = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
BLIP_TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


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


def tiny_clap(folder: Path) -> Path:
    audio = {"patch_embeds_hidden_size": 8, "hidden_size": 16, "depths": [1, 1], "num_attention_heads": [1, 2]}
    audio |= {"window_size": 4, "spec_size": 64, "num_mel_bins": 16, "patch_size": 4, "patch_stride": [4, 4]}
    audio |= {"enable_fusion": False, "projection_dim": 12, "num_hidden_layers": 2}
    text = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 40, "projection_dim": 12, "pad_token_id": 0}
    net = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=12))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    net.save_pretrained(folder)
    ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=8000,
        hop_length=80,
        max_length_s=1,
        fft_window_size=256,
        frequency_max=4000,
        truncation="rand_trunc",
        padding="repeatpad",
    ).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def tiny_classifier(folder: Path, pad: int | None = 0) -> Path:
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=40, num_labels=1, pad_token_id=pad, bos_token_id=1, eos_token_id=2, **size)
    randomise(LlamaForSequenceClassification(config)).save_pretrained(folder)
    word_tokenizer(chat=TEXT_CHAT).save_pretrained(folder)
    return folder


AUDIOBOX: dict[str, Any] = {
    "proj_num_layer": 2,
    "proj_ln": True,
    "nth_layer": 3,
    "use_weighted_layer_sum": True,
    "normalize_embed": True,
    "output_dim": 1,
    "target_transform": {
        axis: {"mean": 5.0 + at, "std": 1.0 + at / 2} for at, axis in enumerate(("CE", "CU", "PC", "PQ"))
    },
}
WAVLM = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
WAVLM |= {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}


def save_state(state: Mapping[str, Tensor], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.detach().clone().contiguous() for key, value in state.items()}, path)
    return path


def write_json(told: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told))
    return path
