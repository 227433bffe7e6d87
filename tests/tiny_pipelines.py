"""Tiny random pipelines of many families, built from configs without any download."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WIDTH = 16  # of every text encoder
TOKENS = 12


@functools.cache
def clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    folder = Path(tempfile.mkdtemp())
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: k for k, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS)


@functools.cache
def letter_tokenizer() -> Any:
    """One token a letter, as T5, Gemma and Qwen tokenizers are called."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: k for k, token in enumerate(["<pad>", "<unk>", "<eos>", *LETTERS, " "])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", model_max_length=TOKENS
    )


def clip_text(projection: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=WIDTH,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def t5_text() -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=30, d_model=WIDTH, d_kv=8, d_ff=2 * WIDTH, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval()


def gemma_text() -> Any:
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=30,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return Gemma2Model(config).eval()


def qwen_text() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=30,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return Qwen2ForCausalLM(config).eval()


def image_autoencoder() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        latent_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        sample_size=16,
        shift_factor=0.1,
    ).eval()


def unet(**config: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        norm_num_groups=4,
        **config,
    ).eval()


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def stable_diffusion() -> Any:
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    torch.manual_seed(0)
    return StableDiffusionPipeline(
        vae=image_autoencoder(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        unet=unet(cross_attention_dim=WIDTH),
        scheduler=PNDMScheduler(skip_prk_steps=True, **BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    torch.manual_seed(0)
    return StableDiffusionXLPipeline(
        vae=image_autoencoder(),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(projection=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet(
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + WIDTH,
        ),
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading", **BETAS),
        add_watermarker=False,
    )


def stable_diffusion_3(width: int = 16, layers: int = 2, size: int = 8) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=size,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        attention_head_dim=width // 2,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=width,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=size,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=image_autoencoder(),
        text_encoder=clip_text(projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text(projection=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def flux() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=image_autoencoder(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_text(),
        tokenizer_2=letter_tokenizer(),
        transformer=transformer.eval(),
    )


def pixart_sigma() -> Any:
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        use_additional_conditions=False,
    )
    return PixArtSigmaPipeline(
        tokenizer=letter_tokenizer(),
        text_encoder=t5_text(),
        vae=image_autoencoder(),
        transformer=transformer.eval(),
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    )


def sana() -> Any:
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=16,
    )
    blocks = {
        "block_types": ("ResBlock", "ResBlock"),
        "block_out_channels": (8, 8),
        "qkv_multiscales": ((), ()),
        "layers_per_block": (1, 1),
    }
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in blocks.items()},
    )
    return SanaPipeline(
        tokenizer=letter_tokenizer(),
        text_encoder=gemma_text(),
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, beta_schedule="linear"
        ),
    )


def qwen_image() -> Any:
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )

    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    pipeline = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=qwen_text(),
        tokenizer=letter_tokenizer(),
        transformer=transformer.eval(),
    )
    pipeline.prompt_template_encode, pipeline.prompt_template_encode_start_idx = "{}", 0
    return pipeline


@dataclass(frozen=True)
class Family:
    """build: a pipeline, the same weights each time. call: what its size asks of __call__. on: what turns guidance on
    where the default alone does not."""

    build: Callable[[], Any]
    flow: bool
    call: dict[str, Any] = field(default_factory=dict)
    on: dict[str, Any] = field(default_factory=dict)


SMALL = {"height": 16, "width": 16}
FAMILIES = {
    "stable-diffusion": Family(stable_diffusion, flow=False),
    "stable-diffusion-xl": Family(stable_diffusion_xl, flow=False),
    "stable-diffusion-3": Family(stable_diffusion_3, flow=True),
    "flux": Family(flux, flow=True, call={**SMALL, "max_sequence_length": TOKENS}),
    "pixart-sigma": Family(
        pixart_sigma,
        flow=False,
        call={**SMALL, "max_sequence_length": TOKENS, "use_resolution_binning": False, "clean_caption": False},
    ),
    "sana": Family(
        sana,
        flow=True,
        call={
            "height": 32,  # Sana asks for multiples of 32
            "width": 32,
            "max_sequence_length": TOKENS,
            "use_resolution_binning": False,
            "clean_caption": False,
            "complex_human_instruction": None,
        },
    ),
    "qwen-image": Family(qwen_image, flow=True, call=SMALL, on={"negative_prompt": " "}),
}
