"""Tiny random pipelines of many families, built from configs without any download: one table, a family a row."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WIDTH = 16  # of every text encoder
TOKENS = 12


@dataclass(frozen=True)
class Family:
    """How to build a pipeline, and how to call it.

    pipeline: its class in diffusers. parts: its components; those that can be called are called, in their order, which
    decides the weights. call: what its size asks of __call__. on: what turns guidance on where the default alone does
    not. finish: what is set on the pipeline once it is built.
    """

    pipeline: str
    parts: dict[str, Any]
    flow: bool = False
    call: dict[str, Any] = field(default_factory=dict)
    on: dict[str, Any] = field(default_factory=dict)
    finish: dict[str, Any] = field(default_factory=dict)

    def build(self, **parts: Any) -> Any:
        """The same weights each time, but for the parts that are given."""
        import diffusers

        torch.manual_seed(0)
        made = {name: part() if callable(part) else part for name, part in {**self.parts, **parts}.items()}
        pipeline = getattr(diffusers, self.pipeline)(**made)
        for name, value in self.finish.items():
            setattr(pipeline, name, value)
        return pipeline


# ---- components -----------------------------------------------------------------------------------------------------


def part(name: str, **config: Any) -> Callable[[], Any]:
    """A network or a scheduler of diffusers, by its class."""

    def make() -> Any:
        import diffusers

        made = getattr(diffusers, name)(**config)
        return made.eval() if isinstance(made, torch.nn.Module) else made

    return make


def text_model(kind: str, config: str, **sizes: Any) -> Callable[[], Any]:
    """A text encoder of transformers, by its class and that of its config."""

    def make() -> Any:
        import transformers

        return getattr(transformers, kind)(getattr(transformers, config)(**sizes)).eval()

    return make


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


@functools.cache
def chat_tokenizer() -> Any:
    """A letter tokenizer that writes a conversation as its words, and ends in a token of its own."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letter_tokenizer().backend_tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<eos>",
        model_max_length=TOKENS,
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return tokenizer


# From here on, as many sizes a line as fit.
# fmt: off


def clip_text(projection: bool = False) -> Any:
    return text_model(
        "CLIPTextModelWithProjection" if projection else "CLIPTextModel", "CLIPTextConfig", vocab_size=54,
        hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=TOKENS, projection_dim=WIDTH, bos_token_id=52, eos_token_id=53, pad_token_id=53,
    )()


clip_text_projected = partial(clip_text, projection=True)
T5 = {"vocab_size": 30, "d_model": WIDTH, "d_kv": 8, "d_ff": 2 * WIDTH, "num_layers": 1, "num_heads": 2}
t5_text = text_model("T5EncoderModel", "T5Config", **T5)
umt5_text = text_model("UMT5EncoderModel", "UMT5Config", **T5)
DECODER = {
    "vocab_size": 30, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}
gemma_text = text_model("Gemma2Model", "Gemma2Config", **DECODER, head_dim=8)
qwen_text = text_model("Qwen2ForCausalLM", "Qwen2Config", **DECODER)
CHAT = {**DECODER, "num_hidden_layers": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
qwen3_text = text_model("Qwen3ForCausalLM", "Qwen3Config", **CHAT)
bert_text = text_model(
    "BertModel", "BertConfig", vocab_size=30, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=1,
    num_attention_heads=2, max_position_embeddings=77,
)

BLOCKS = {
    "block_out_channels": (8, 8), "norm_num_groups": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}
image_autoencoder = part("AutoencoderKL", latent_channels=4, **BLOCKS, sample_size=16, shift_factor=0.1)


def sana_autoencoder() -> Any:
    blocks = {
        "block_types": ("ResBlock", "ResBlock"),
        "block_out_channels": (8, 8),
        "qkv_multiscales": ((), ()),
        "layers_per_block": (1, 1),
    }
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in blocks.items()}
    return part(
        "AutoencoderDC", latent_channels=4, attention_head_dim=2, downsample_block_type="conv",
        upsample_block_type="interpolate", **sides,
    )()


def flux2_autoencoder() -> Any:
    vae = part("AutoencoderKLFlux2", latent_channels=4, **BLOCKS, layers_per_block=1, sample_size=16)()
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


qwen_autoencoder = part(
    "AutoencoderKLQwenImage", base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
    latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
)
movq = part("VQModel", **BLOCKS, latent_channels=4, num_vq_embeddings=8, vq_embed_dim=4)


def unet(**config: Any) -> Callable[[], Any]:
    return part(
        "UNet2DConditionModel", sample_size=8, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2, norm_num_groups=4, **{"cross_attention_dim": WIDTH, **config},
    )


def sd3_transformer(width: int = 16, layers: int = 2, size: int = 8) -> Callable[[], Any]:
    return part(
        "SD3Transformer2DModel", sample_size=size, patch_size=2, in_channels=4, out_channels=4, num_layers=layers,
        attention_head_dim=width // 2, num_attention_heads=2, joint_attention_dim=2 * WIDTH,
        caption_projection_dim=width, pooled_projection_dim=2 * WIDTH, pos_embed_max_size=size,
    )


HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
PACKED = {**HEADS, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "joint_attention_dim": WIDTH}
ROPE = {"axes_dims_rope": (4, 6, 6)}
PATCHED = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4}
flux_transformer = part("FluxTransformer2DModel", **PACKED, **ROPE, pooled_projection_dim=WIDTH, guidance_embeds=True)

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
flow = partial(part, "FlowMatchEulerDiscreteScheduler")
dynamic = flow(use_dynamic_shifting=True)
SAFE = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def text(encoder: Any, tokenizer: Any, number: int = 1) -> dict[str, Any]:
    """The two parts that read the prompt; number: which of the pipeline's encoders it is."""
    end = f"_{number}" if number > 1 else ""
    return {f"text_encoder{end}": encoder, f"tokenizer{end}": tokenizer}


CLIP, T5_TEXT = text(clip_text, clip_tokenizer), text(t5_text, letter_tokenizer)
CLIP_AND_T5 = {**CLIP, **text(t5_text, letter_tokenizer, 2)}
PROJECTED = {**text(clip_text_projected, clip_tokenizer), **text(clip_text_projected, clip_tokenizer, 2)}
CHAT_TEXT = text(qwen3_text, chat_tokenizer)
VAE = {"vae": image_autoencoder}


# ---- the table ------------------------------------------------------------------------------------------------------

SMALL = {"height": 16, "width": 16}
SHORT = {**SMALL, "max_sequence_length": TOKENS}
PLAIN = {"use_resolution_binning": False, "clean_caption": False}

# These are tested in depth.
FAMILIES = {
    "stable-diffusion": Family(
        "StableDiffusionPipeline",
        {**VAE, **CLIP, "unet": unet(), "scheduler": part("PNDMScheduler", skip_prk_steps=True, **BETAS), **SAFE},
    ),
    "stable-diffusion-xl": Family(
        "StableDiffusionXLPipeline",
        {
            **VAE,
            **CLIP,
            **text(clip_text_projected, clip_tokenizer, 2),
            "unet": unet(
                cross_attention_dim=2 * WIDTH, addition_embed_type="text_time", addition_time_embed_dim=4,
                projection_class_embeddings_input_dim=6 * 4 + WIDTH,
            ),
            "scheduler": part("EulerDiscreteScheduler", timestep_spacing="leading", **BETAS),
            "add_watermarker": False,
        },
    ),
    "stable-diffusion-3": Family(
        "StableDiffusion3Pipeline",
        {"transformer": sd3_transformer(), "scheduler": flow(shift=3.0), **VAE, **PROJECTED, **text(None, None, 3)},
        flow=True,
    ),
    "flux": Family(
        "FluxPipeline",
        {"transformer": flux_transformer, "scheduler": dynamic, **VAE, **CLIP_AND_T5},
        flow=True,
        call=SHORT,
    ),
    "pixart-sigma": Family(
        "PixArtSigmaPipeline",
        {
            "transformer": part(
                "PixArtTransformer2DModel", sample_size=8, num_layers=2, num_attention_heads=2, attention_head_dim=8,
                cross_attention_dim=16, caption_channels=WIDTH, use_additional_conditions=False,
            ),
            **T5_TEXT,
            **VAE,
            "scheduler": part("DPMSolverMultistepScheduler", beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
        },
        call={**SHORT, **PLAIN},
    ),
    "sana": Family(
        "SanaPipeline",
        {
            "transformer": part(
                "SanaTransformer2DModel", **PATCHED, out_channels=4, num_layers=2, num_cross_attention_heads=2,
                cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=WIDTH, sample_size=16,
            ),
            "vae": sana_autoencoder,
            **text(gemma_text, letter_tokenizer),
            "scheduler": part(
                "DPMSolverMultistepScheduler", prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0,
                beta_schedule="linear",
            ),
        },
        flow=True,
        call={"height": 32, "width": 32, "max_sequence_length": TOKENS, **PLAIN, "complex_human_instruction": None},
    ),
    "qwen-image": Family(
        "QwenImagePipeline",
        {
            "transformer": part(
                "QwenImageTransformer2DModel", **HEADS, **ROPE, in_channels=16, out_channels=4, num_layers=2,
                joint_attention_dim=WIDTH,
            ),
            "vae": qwen_autoencoder,
            **text(qwen_text, letter_tokenizer),
            "scheduler": dynamic,
        },
        flow=True,
        call=SMALL,
        on={"negative_prompt": " "},
        finish={"prompt_template_encode": "{}", "prompt_template_encode_start_idx": 0},
    ),
}

# These are swept over.
MORE = {
    "flux2-klein": Family(
        "Flux2KleinPipeline",
        {
            "transformer": part(
                "Flux2Transformer2DModel", **{**PACKED, "joint_attention_dim": 3 * WIDTH}, axes_dims_rope=(4, 4, 4, 4),
                guidance_embeds=False,
            ),
            "vae": flux2_autoencoder,
            **text(text_model("Qwen3ForCausalLM", "Qwen3Config", **{**CHAT, "num_hidden_layers": 3}), chat_tokenizer),
            "scheduler": dynamic,
        },
        flow=True,
        call={**SHORT, "text_encoder_out_layers": (1, 2, 3)},
    ),
    "lumina2": Family(
        "Lumina2Pipeline",
        {
            "transformer": part(
                "Lumina2Transformer2DModel", sample_size=8, in_channels=4, hidden_size=24, num_layers=1,
                num_refiner_layers=1, num_attention_heads=2, num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 4, 4),
                axes_lens=(64, 16, 16), cap_feat_dim=WIDTH,
            ),
            "scheduler": flow(shift=6.0),
            **VAE,
            **text(gemma_text, letter_tokenizer),
        },
        flow=True,
        call={"height": 64, "width": 64, "max_sequence_length": 48, "system_prompt": "x"},
    ),
    "chroma": Family(
        "ChromaPipeline",
        {
            "transformer": part(
                "ChromaTransformer2DModel", **PACKED, **ROPE, approximator_num_channels=8, approximator_hidden_dim=16,
                approximator_layers=1,
            ),
            "scheduler": dynamic,
            **VAE,
            **T5_TEXT,
        },
        flow=True,
        call=SHORT,
    ),
    "hidream": Family(
        "HiDreamImagePipeline",
        {
            "transformer": part(
                "HiDreamImageTransformer2DModel", **HEADS, **ROPE, patch_size=2, in_channels=4, out_channels=4,
                num_layers=1, num_single_layers=1, caption_channels=[WIDTH, WIDTH], text_emb_dim=2 * WIDTH,
                num_routed_experts=2, num_activated_experts=1, max_resolution=(8, 8), llama_layers=[0, 1],
            ),
            "scheduler": flow(shift=3.0),
            **VAE,
            **PROJECTED,
            **text(t5_text, letter_tokenizer, 3),
            **text(
                text_model("LlamaForCausalLM", "LlamaConfig", **CHAT, attn_implementation="eager"), chat_tokenizer, 4
            ),
        },
        flow=True,
        call=SHORT,
        finish={"default_sample_size": 8},  # it scales every size to this many latents
    ),
    "z-image": Family(
        "ZImagePipeline",
        {
            "transformer": part(
                "ZImageTransformer2DModel", in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2,
                n_kv_heads=2, cap_feat_dim=WIDTH, axes_dims=[4, 6, 6], axes_lens=[64, 16, 16],
            ),
            "scheduler": flow(shift=3.0),
            **VAE,
            **CHAT_TEXT,
        },
        flow=True,
        call=SHORT,
    ),
    "aura-flow": Family(
        "AuraFlowPipeline",
        {
            "transformer": part(
                "AuraFlowTransformer2DModel", **PATCHED, sample_size=8, num_mmdit_layers=1, num_single_dit_layers=1,
                joint_attention_dim=WIDTH, caption_projection_dim=16, pos_embed_max_size=16,
            ),
            **text(umt5_text, letter_tokenizer),
            **VAE,
            "scheduler": flow(shift=1.73),
        },
        flow=True,
        call=SHORT,
    ),
    "cogview4": Family(
        "CogView4Pipeline",
        {
            "transformer": part(
                "CogView4Transformer2DModel", **PATCHED, out_channels=4, num_layers=1, text_embed_dim=WIDTH,
                time_embed_dim=16, condition_dim=4, pos_embed_max_size=16, sample_size=8, rope_axes_dim=(16, 16),
            ),
            **text(text_model("GlmModel", "GlmConfig", **CHAT), letter_tokenizer),
            **VAE,
            "scheduler": flow(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75),
        },
        flow=True,
        call={**SMALL, "max_sequence_length": 16},
    ),
    "hunyuan-dit": Family(
        "HunyuanDiTPipeline",
        {
            "transformer": part(
                "HunyuanDiT2DModel", **PATCHED, patch_size=2, sample_size=8, hidden_size=16, num_layers=2,
                cross_attention_dim=WIDTH, cross_attention_dim_t5=WIDTH, pooled_projection_dim=WIDTH, text_len=77,
                text_len_t5=256,
            ),
            **VAE,
            **text(bert_text, letter_tokenizer),
            **text(t5_text, letter_tokenizer, 2),
            "scheduler": part("DDPMScheduler", **BETAS, prediction_type="v_prediction"),
            **SAFE,
        },
        call={**SMALL, "use_resolution_binning": False},
    ),
    "bria": Family(
        "BriaPipeline",
        {
            "transformer": part("BriaTransformer2DModel", **PACKED, axes_dims_rope=[4, 6, 6]),
            "scheduler": flow(shift=3.0),
            **VAE,
            **T5_TEXT,
        },
        flow=True,
        call=SHORT,
    ),
}

# These draw from a text and an image.
EDIT = {
    "flux-kontext": Family(
        "FluxKontextPipeline",
        {"transformer": flux_transformer, "scheduler": dynamic, **VAE, **CLIP_AND_T5},
        flow=True,
        call={**SHORT, "max_area": 256, "_auto_resize": False},
    ),
    "instruct-pix2pix": Family(
        "StableDiffusionInstructPix2PixPipeline",
        {
            **VAE,
            **CLIP,
            "unet": unet(in_channels=8),
            "scheduler": part("EulerAncestralDiscreteScheduler", **BETAS),
            **SAFE,
        },
    ),
}

DEEP = {  # eightfold, as the pipeline expects
    "block_out_channels": (8,) * 4, "norm_num_groups": 2, "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
OMNIGEN = {
    "transformer": part(
        "OmniGenTransformer2DModel", in_channels=4, hidden_size=16, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=32, num_layers=1, pad_token_id=0, vocab_size=30, max_position_embeddings=1024,
        original_max_position_embeddings=1024, rope_scaling={"long_factor": [1.0] * 4, "short_factor": [1.0] * 4},
        pos_embed_max_size=16, time_step_dim=16,
    ),
    "scheduler": flow(invert_sigmas=True),
    "vae": part("AutoencoderKL", latent_channels=4, **DEEP, sample_size=16),
    "tokenizer": letter_tokenizer,
}
KANDINSKY_3 = {
    "unet": part(
        "Kandinsky3UNet", time_embedding_dim=16, groups=2, attention_head_dim=4, layers_per_block=1,
        block_out_channels=(8, 8), cross_attention_dim=8, encoder_hid_dim=WIDTH,
    ),
    "movq": movq,
    **T5_TEXT,
    "scheduler": part("DDPMScheduler", **BETAS),
}
KANDINSKY_2 = {"movq": movq, "unet": unet(), "scheduler": part("DDPMScheduler", **BETAS)}
CONSISTENCY = {**VAE, **CLIP, "unet": unet(time_cond_proj_dim=16), "scheduler": part("LCMScheduler", **BETAS), **SAFE}

# Families that cannot be aligned, and the reason that each gives.
REFUSED = {
    "kandinsky-3": (
        Family("Kandinsky3Pipeline", KANDINSKY_3).build,
        "has no image_processor, so the range of what it makes is not known",
    ),
    "kandinsky-2-2": (Family("KandinskyV22Pipeline", KANDINSKY_2).build, "has no image_processor"),
}

# fmt: on


def stable_diffusion() -> Any:
    return FAMILIES["stable-diffusion"].build()


def stable_diffusion_3(width: int = 16, layers: int = 2, size: int = 8) -> Any:
    return FAMILIES["stable-diffusion-3"].build(transformer=sd3_transformer(width, layers, size))


def latent_consistency() -> Any:
    return Family("LatentConsistencyModelPipeline", CONSISTENCY).build()
