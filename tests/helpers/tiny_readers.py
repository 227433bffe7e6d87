"""Vision-language models of the real classes with tiny random weights, and their real processors, made in code.

Weights are drawn wide enough that logits have a spread of 1 or so: what is wrong in them then shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tests.helpers.tiny_language import WORDS

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}
SIGLIP = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
QWEN_EYE = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 32,
    "initializer_range": 0.3,
}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "mrope_interleaved": True, "rope_theta": 10000.0}
QWEN_MARKS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
CLIP = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}

# How the templates of these families write a picture, a clip, a sound.
QWEN = (
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<|vision_start|><|video_pad|><|vision_end|>",
    "<|audio_bos|><|AUDIO|><|audio_eos|>",
)


def template(picture: str, clip: str = "", sound: str = "") -> str:
    """A chat template of parts, as processors have them."""
    kinds = {"image": picture, "video": clip, "audio": sound}
    cases = "".join(f"{{% elif part['type'] == '{kind}' %}}{{{{ {mark!r} }}}}" for kind, mark in kinds.items() if mark)
    return (
        "{% for m in messages %}{{ m['role'] }} {% for part in m['content'] %}"
        "{% if part['type'] == 'text' %}{{ part['text'] }}" + cases + "{% endif %}{% endfor %} {% endfor %}"
        "{% if add_generation_prompt %}yes{% endif %}"
    )


def tokenizer(marks: dict[str, str], more: tuple[str, ...] = ()) -> Any:
    """Words as those of tiny_language, and special tokens under the names by which a processor looks for them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *WORDS, "user", "system"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        extra_special_tokens=marks,
    )  # fmt: skip
    made.add_tokens(list(more), special_tokens=True)
    return made


@dataclass(frozen=True)
class Sees:
    """build: the model and its processor. media: what its processor reads, of those tried. tower: what the names of the
    vision tower's layers begin with."""

    build: Callable[[], tuple[Any, Any]]
    media: frozenset[str] = frozenset({"image"})


def ids_of(words: Any, **marks: str) -> dict[str, int]:
    return {name: words.convert_tokens_to_ids(mark) for name, mark in marks.items()}


def common(words: Any) -> dict[str, Any]:
    return {"vocab_size": len(words), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **TEXT}


def made(kind: Any, config: Any) -> Any:
    torch.manual_seed(0)
    model = kind(config).eval()
    model.generation_config.eos_token_id = 2
    return model


def qwen_ids(words: Any) -> dict[str, int]:
    return ids_of(
        words, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>", vision_start_token_id="<|vision_start|>",
        vision_end_token_id="<|vision_end|>",
    )  # fmt: skip


def qwen_parts(words: Any, processor: Any, video: Any) -> Any:
    from transformers import Qwen2VLImageProcessor

    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    small = {"size": {"shortest_edge": 64, "longest_edge": 1024}}
    return processor(
        image_processor=Qwen2VLImageProcessor(**sizes, **small), tokenizer=words,
        video_processor=video(**sizes, size={"shortest_edge": 64, "longest_edge": 1024}),
        chat_template=template(*QWEN[:2]),
    )  # fmt: skip


def qwen2_5_vl() -> tuple[Any, Any]:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLVideoProcessor,
    )

    words = tokenizer(QWEN_MARKS)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    eye = {**QWEN_EYE, "window_size": 16, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(
        text_config={**common(words), "rope_parameters": rope}, vision_config=eye, **qwen_ids(words)
    )
    model = made(Qwen2_5_VLForConditionalGeneration, config)
    return model, qwen_parts(words, Qwen2_5_VLProcessor, Qwen2VLVideoProcessor)


def qwen3_vl() -> tuple[Any, Any]:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor

    words = tokenizer(QWEN_MARKS)
    eye = {**QWEN_EYE, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    config = Qwen3VLConfig(
        text_config={**common(words), "head_dim": 8, "rope_parameters": MROPE}, vision_config=eye, **qwen_ids(words)
    )
    model = made(Qwen3VLForConditionalGeneration, config)
    return model, qwen_parts(words, Qwen3VLProcessor, Qwen3VLVideoProcessor)


def qwen3_5() -> tuple[Any, Any]:
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor

    words = tokenizer(QWEN_MARKS)
    linear = {
        "head_dim": 8, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "layer_types": ["linear_attention", "full_attention"],
    }  # fmt: skip
    rope = {**MROPE, "partial_rotary_factor": 1.0}
    eye = {**QWEN_EYE, "num_position_embeddings": 16}
    config = Qwen3_5Config(
        text_config={**common(words), **linear, "rope_parameters": rope}, vision_config=eye, **qwen_ids(words)
    )
    model = made(Qwen3_5ForConditionalGeneration, config)
    return model, qwen_parts(words, Qwen3VLProcessor, Qwen3VLVideoProcessor)


def glm4v() -> tuple[Any, Any]:
    from transformers import (
        Glm4vConfig,
        Glm4vForConditionalGeneration,
        Glm4vImageProcessor,
        Glm4vProcessor,
        Glm4vVideoProcessor,
    )

    marks = {"image_token": "<|image|>", "video_token": "<|video|>"}
    more = ("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>")
    words = tokenizer(marks, more)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    eye = {**QWEN_EYE, "image_size": 16}
    config = Glm4vConfig(
        text_config={**common(words), "rope_parameters": rope}, vision_config=eye,
        **ids_of(
            words, image_token_id="<|image|>", video_token_id="<|video|>", image_start_token_id=more[0],
            image_end_token_id=more[1], video_start_token_id=more[2], video_end_token_id=more[3],
        ),
    )  # fmt: skip
    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    processor = Glm4vProcessor(
        image_processor=Glm4vImageProcessor(**sizes, size={"shortest_edge": 64, "longest_edge": 2048}), tokenizer=words,
        video_processor=Glm4vVideoProcessor(**sizes, size={"shortest_edge": 64, "longest_edge": 2048}),
        chat_template=template(
            "<|begin_of_image|><|image|><|end_of_image|>", "<|begin_of_video|><|video|><|end_of_video|>"
        ),
    )  # fmt: skip
    return made(Glm4vForConditionalGeneration, config), processor


def gemma3() -> tuple[Any, Any]:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ImageProcessor, Gemma3Processor

    words = tokenizer(
        {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    )
    text = {
        **common(words), "head_dim": 8, "sliding_window": 16, "final_logit_softcapping": 5.0,
        "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"],
    }  # fmt: skip
    config = Gemma3Config(
        text_config=text, vision_config=SIGLIP, mm_tokens_per_image=4,
        **ids_of(
            words, image_token_index="<image_soft_token>", boi_token_index="<start_of_image>",
            eoi_token_index="<end_of_image>",
        ),
    )  # fmt: skip
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": 16, "width": 16}), tokenizer=words, image_seq_length=4,
        chat_template="{{ bos_token }}" + template("<start_of_image>"),
    )  # fmt: skip
    return made(Gemma3ForConditionalGeneration, config), processor


def gemma4() -> tuple[Any, Any]:
    from transformers import (
        Gemma4Config,
        Gemma4ForConditionalGeneration,
        Gemma4ImageProcessor,
        Gemma4Processor,
        Gemma4VideoProcessor,
    )
    from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor

    marks = {
        "image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "audio_token": "<|audio|>",
        "boa_token": "<|audio>", "eoa_token": "<audio|>",
    }  # fmt: skip
    words = tokenizer(marks, ("<|video|>",))
    text = {
        **common(words), "head_dim": 8, "global_head_dim": 8, "sliding_window": 16, "final_logit_softcapping": 5.0,
        "layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": len(words), "hidden_size_per_layer_input": 8,
    }  # fmt: skip
    eye = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 8, "patch_size": 4, "pooling_kernel_size": 2,
        "position_embedding_size": 64, "default_output_length": 4,
    }  # fmt: skip
    config = Gemma4Config(
        text_config=text, vision_config=eye, audio_config=None,
        **ids_of(
            words, image_token_id="<|image|>", boi_token_id="<|image>", eoi_token_id="<image|>",
            audio_token_id="<|audio|>", boa_token_id="<|audio>", video_token_id="<|video|>",
        ),
    )  # fmt: skip
    eyes = {"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 70}
    processor = Gemma4Processor(
        feature_extractor=Gemma4AudioFeatureExtractor(), image_processor=Gemma4ImageProcessor(**eyes), tokenizer=words,
        video_processor=Gemma4VideoProcessor(**eyes), image_seq_length=70,
        chat_template="{{ bos_token }}" + template("<|image|>", "<|video|>"),
    )  # fmt: skip
    return made(Gemma4ForConditionalGeneration, config), processor


def idefics3() -> tuple[Any, Any]:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessor, Idefics3Processor

    words = tokenizer({"image_token": "<image>"}, ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>"))
    config = Idefics3Config(
        text_config={**common(words), "model_type": "llama"}, vision_config=SIGLIP, scale_factor=2,
        image_token_id=words.convert_tokens_to_ids("<image>"), pad_token_id=0,
    )  # fmt: skip
    images = Idefics3ImageProcessor(
        do_image_splitting=False, size={"longest_edge": 16}, max_image_size={"longest_edge": 16}, **CLIP
    )
    processor = Idefics3Processor(images, words, image_seq_len=4, chat_template=template("<image>"))
    return made(Idefics3ForConditionalGeneration, config), processor


def smolvlm() -> tuple[Any, Any]:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessor, SmolVLMProcessor
    from transformers.models.smolvlm import processing_smolvlm
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

    if processing_smolvlm.num2words is None:  # a package that spells numbers, for the prompts of clips alone
        processing_smolvlm.num2words = str
    words = tokenizer(
        {
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
        }
    )
    config = SmolVLMConfig(
        text_config={**common(words), "model_type": "llama"}, vision_config=SIGLIP, scale_factor=2,
        image_token_id=words.convert_tokens_to_ids("<image>"), pad_token_id=0,
    )  # fmt: skip
    edges = {"size": {"longest_edge": 16}, "max_image_size": {"longest_edge": 16}}
    clips = {"max_frames": 4, "fps": 1}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(do_image_splitting=False, **edges, **CLIP), words,
        SmolVLMVideoProcessor(**edges, **CLIP, video_sampling=clips), image_seq_len=4,
        chat_template=template("<image>"),
    )  # fmt: skip
    return made(SmolVLMForConditionalGeneration, config), processor


def llava_onevision() -> tuple[Any, Any]:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    words = tokenizer({"image_token": "<image>", "video_token": "<video>"})
    config = LlavaOnevisionConfig(
        text_config={**common(words), "model_type": "qwen2"},
        vision_config={**SIGLIP, "model_type": "siglip_vision_model"},
        image_grid_pinpoints=[[16, 16], [16, 32], [32, 16]], vision_feature_layer=-1,
        vision_aspect_ratio="anyres_max_9", vision_feature_select_strategy="full",
        **ids_of(words, image_token_index="<image>", video_token_index="<video>"),
    )  # fmt: skip
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(
            size={"height": 16, "width": 16}, image_grid_pinpoints=[[16, 16], [16, 32], [32, 16]], **CLIP
        ),
        tokenizer=words, video_processor=LlavaOnevisionVideoProcessor(size={"height": 16, "width": 16}, **CLIP),
        num_image_tokens=16, vision_feature_select_strategy="full", chat_template=template("<image>", "<video>"),
    )  # fmt: skip
    return made(LlavaOnevisionForConditionalGeneration, config), processor


def llava() -> tuple[Any, Any]:
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    words = tokenizer({"image_token": "<image>"})
    eye = {**SIGLIP, "projection_dim": 16, "model_type": "clip_vision_model"}
    config = LlavaConfig(
        text_config={**common(words), "model_type": "llama"}, vision_config=eye, vision_feature_layer=-1,
        image_token_index=words.convert_tokens_to_ids("<image>"), image_seq_length=16,
    )  # fmt: skip
    images = CLIPImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False)
    processor = LlavaProcessor(
        image_processor=images, tokenizer=words, patch_size=4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=template("<image>"),
    )  # fmt: skip
    return made(LlavaForConditionalGeneration, config), processor


def internvl() -> tuple[Any, Any]:
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    marks = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    words = tokenizer(marks)
    config = InternVLConfig(
        text_config={**common(words), "model_type": "qwen2"},
        vision_config={**SIGLIP, "image_size": [16, 16], "patch_size": [4, 4]}, image_seq_length=4,
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
    )  # fmt: skip
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size={"height": 16, "width": 16}, max_patches=2), tokenizer=words,
        video_processor=InternVLVideoProcessor(size={"height": 16, "width": 16}), image_seq_length=4,
        chat_template=template("<IMG_CONTEXT>", "<video>"),
    )  # fmt: skip
    return made(InternVLForConditionalGeneration, config), processor


def qwen2_5_omni() -> tuple[Any, Any]:
    from transformers import (
        Qwen2_5OmniProcessor,
        Qwen2_5OmniThinkerForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
        WhisperFeatureExtractor,
    )
    from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniThinkerConfig

    marks = {
        "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "audio_token": "<|AUDIO|>",
        "vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>",
        "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>",
    }  # fmt: skip
    words = tokenizer(marks)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    ear = {
        "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "num_mel_bins": 8,
        "n_window": 10, "output_dim": 32, "max_source_positions": 100,
    }  # fmt: skip
    config = Qwen2_5OmniThinkerConfig(
        text_config={**common(words), "rope_parameters": rope}, audio_config=ear,
        vision_config={**QWEN_EYE, "window_size": 16, "fullatt_block_indexes": [1]}, initializer_range=0.3,
        **ids_of(
            words, image_token_index="<|image_pad|>", video_token_index="<|video_pad|>", audio_token_index="<|AUDIO|>",
            audio_start_token_id="<|audio_bos|>", audio_end_token_id="<|audio_eos|>", user_token_id="user",
            vision_start_token_id="<|vision_start|>", vision_end_token_id="<|vision_end|>",
        ),
    )  # fmt: skip
    sizes = {
        "patch_size": 4,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 64, "longest_edge": 1024},
    }
    processor = Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes), video_processor=Qwen2VLVideoProcessor(**sizes),
        feature_extractor=WhisperFeatureExtractor(feature_size=8, chunk_length=2), tokenizer=words,
        chat_template=template(*QWEN),
    )  # fmt: skip
    return made(Qwen2_5OmniThinkerForConditionalGeneration, config), processor


CLIPS = frozenset({"image", "video"})
READERS: dict[str, Sees] = {
    "qwen2.5-vl": Sees(qwen2_5_vl, CLIPS),
    "qwen3-vl": Sees(qwen3_vl, CLIPS),
    "qwen3.5": Sees(qwen3_5, CLIPS),
    "glm-4v": Sees(glm4v, CLIPS),
    "gemma3": Sees(gemma3),
    "gemma4": Sees(gemma4, CLIPS),
    "idefics3": Sees(idefics3),
    "smolvlm": Sees(smolvlm),
    "llava": Sees(llava),
    "llava-onevision": Sees(llava_onevision, CLIPS),
    "internvl": Sees(internvl, CLIPS),
    "qwen2.5-omni": Sees(qwen2_5_omni, frozenset({"image", "audio"})),
}
