"""Tiny random pipelines that make videos, and sound with them, in the form of tiny_pipelines.py."""

from __future__ import annotations

import copy
from typing import Any

import torch

from tests.helpers.tiny_pipelines import (
    CHAT,
    CLIP,
    DECODER,
    T5_TEXT,
    TOKENS,
    WIDTH,
    Family,
    chat_tokenizer,
    clip_tokenizer,
    flow,
    gemma_text,
    image_autoencoder,
    letter_tokenizer,
    part,
    qwen_text,
    text,
    text_model,
    umt5_text,
)

# From here on, as many sizes a line as fit.
# fmt: off

RATE = 16.0  # frames a second of pipelines that have no argument for it


def of_class(module: str, name: str, **config: Any) -> Any:
    """A network that only its own module of diffusers knows."""

    def make() -> Any:
        import importlib

        return getattr(importlib.import_module(f"diffusers.{module}"), name)(**config).eval()

    return make


def trained(make: Any) -> Any:
    """The same with something in place of gates that start at zero, through which nothing could be learnt."""

    def build() -> Any:
        network = make()
        for parameter in network.parameters():
            if not parameter.detach().any():
                torch.nn.init.normal_(parameter, std=0.1)
        return network

    return build


def wan_autoencoder(channels: int = 4, **config: Any) -> Any:
    return part(
        "AutoencoderKLWan", z_dim=channels, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True],
        scale_factor_spatial=2, scale_factor_temporal=2, latents_mean=[0.1] * channels, latents_std=[2.0] * channels,
        **{"base_dim": 8, **config},
    )


WAN_SIZES = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "text_dim": WIDTH, "freq_dim": 16,
    "ffn_dim": 16, "num_layers": 1, "rope_max_seq_len": 16,
}


def wan_transformer(**config: Any) -> Any:
    return part("WanTransformer3DModel", **{**WAN_SIZES, "in_channels": 4, "out_channels": 4, **config})


UMT5 = text(umt5_text, letter_tokenizer)
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
unipc = part("UniPCMultistepScheduler", **FLOW)
CLIP_SIZE = {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": TOKENS}
LARGER = {**CLIP_SIZE, "height": 32, "width": 32}
WAN = {"transformer": wan_transformer(), **UMT5, "vae": wan_autoencoder(), "scheduler": unipc}


def ltx_autoencoder() -> Any:
    return part(
        "AutoencoderKLLTXVideo", latent_channels=4, block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        down_block_types=("LTXVideoDownBlock3D",) * 2, layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, False), decoder_spatio_temporal_scaling=(True, False),
        decoder_inject_noise=(False,) * 3, downsample_type=("conv",) * 2, upsample_residual=(False,) * 2,
        upsample_factor=(1, 1), patch_size=2, patch_size_t=1,
    )()


ltx_transformer = part(
    "LTXVideoTransformer3DModel", in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12,
    cross_attention_dim=24, num_layers=1, caption_channels=WIDTH,
)
LTX = {"transformer": ltx_transformer, "scheduler": flow(use_dynamic_shifting=True), "vae": ltx_autoencoder, **T5_TEXT}


def own_letter_tokenizer() -> Any:
    """One that a pipeline may turn to the other side of padding."""
    return copy.deepcopy(letter_tokenizer())


HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
CONNECTORS = {
    f"{medium}_connector_{name}": value
    for medium in ("video", "audio")
    for name, value in {**HEADS, "num_layers": 1, "num_learnable_registers": None}.items()
}

def ltx_2_transformer(**config: Any) -> Any:
    return part(
        "LTX2VideoTransformer3DModel", in_channels=4, out_channels=4, **HEADS, cross_attention_dim=16,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=4,
        audio_cross_attention_dim=8, num_layers=2, caption_channels=WIDTH, rope_double_precision=False,
        rope_type="split", vae_scale_factors=(1, 2, 2), **config,
    )


LTX_2 = {
    "transformer": ltx_2_transformer(),
    "connectors": of_class(
        "pipelines.ltx2.connectors", "LTX2TextConnectors", caption_channels=WIDTH, text_proj_in_factor=2, **CONNECTORS,
        connector_rope_base_seq_len=32, rope_double_precision=False, rope_type="split",
    ),
    "vae": part(
        "AutoencoderKLLTX2Video", latent_channels=4, block_out_channels=(8,), decoder_block_out_channels=(8,),
        down_block_types=("LTX2VideoDownBlock3D",), layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,), decoder_inject_noise=(False, False),
        downsample_type=("spatial",), upsample_type=("spatial",), upsample_residual=(False,), upsample_factor=(1,),
        patch_size=1, patch_size_t=1, decoder_causal=False,
    ),
    "audio_vae": part(
        "AutoencoderKLLTX2Audio", base_channels=4, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2,
        mel_bins=8,
    ),
    "vocoder": of_class(
        "pipelines.ltx2.vocoder", "LTX2Vocoder", in_channels=16, hidden_channels=16, upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2], resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]], output_sampling_rate=16000,
    ),
    **text(gemma_text, own_letter_tokenizer),
    "scheduler": flow(use_dynamic_shifting=True, shift_terminal=0.1),
}

GATED = {f"{medium}{what}": True for medium in ("", "audio_") for what in ("gated_attn", "cross_attn_mod")}
LTX_2_3 = {  # its text is projected for each medium before the denoiser, and its vocoder goes on to a higher rate
    **LTX_2,
    "transformer": ltx_2_transformer(**GATED, use_prompt_embeddings=False, perturbed_attn=True),
    "connectors": of_class(
        "pipelines.ltx2.connectors", "LTX2TextConnectors", caption_channels=WIDTH, text_proj_in_factor=2,
        **{**CONNECTORS, "audio_connector_attention_head_dim": 4}, video_gated_attn=True, audio_gated_attn=True,
        connector_rope_base_seq_len=32, rope_double_precision=False, rope_type="split", per_modality_projections=True,
        video_hidden_dim=16, audio_hidden_dim=8, proj_bias=True,
    ),
    "vocoder": of_class(
        "pipelines.ltx2.vocoder", "LTX2VocoderWithBWE", in_channels=16, hidden_channels=16, num_mel_channels=8,
        upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2], resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]],
        bwe_in_channels=16, bwe_hidden_channels=16, bwe_upsample_kernel_sizes=[8, 5], bwe_upsample_factors=[4, 3],
        bwe_resnet_kernel_sizes=[3], bwe_resnet_dilations=[[1, 3, 5]], filter_length=8, hop_length=4, window_length=8,
    ),
}


def cogvideo_transformer(**config: Any) -> Any:
    return part(
        "CogVideoXTransformer3DModel", **{
            "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
            "time_embed_dim": 8, "text_embed_dim": WIDTH, "num_layers": 1, "sample_width": 4, "sample_height": 4,
            "sample_frames": 5, "temporal_compression_ratio": 2, "max_text_seq_length": TOKENS, **config,
        },
    )


COGVIDEO = {
    "transformer": cogvideo_transformer(),
    "vae": part(
        "AutoencoderKLCogVideoX", down_block_types=("CogVideoXDownBlock3D",) * 2, latent_channels=4,
        up_block_types=("CogVideoXUpBlock3D",) * 2, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=2,
    ),
    **T5_TEXT,
    "scheduler": part(
        "CogVideoXDPMScheduler", prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=3.0,
        timestep_spacing="trailing", clip_sample=False,
    ),
}


long_clip_text = text_model(
    "CLIPTextModel", "CLIPTextConfig", vocab_size=54, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1,
    num_attention_heads=2, max_position_embeddings=77, bos_token_id=52, eos_token_id=53, pad_token_id=53,
)


def hunyuan_autoencoder(channels: int = 4) -> Any:
    return part(
        "AutoencoderKLHunyuanVideo", latent_channels=channels, down_block_types=("HunyuanVideoDownBlock3D",) * 3,
        up_block_types=("HunyuanVideoUpBlock3D",) * 3, block_out_channels=(8, 8, 8), layers_per_block=1,
        norm_num_groups=4, spatial_compression_ratio=4, temporal_compression_ratio=4, mid_block_add_attention=False,
    )


HUNYUAN = {
    "transformer": part(
        "HunyuanVideoTransformer3DModel", in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10,
        num_layers=1, num_single_layers=1, num_refiner_layers=1, guidance_embeds=True, text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH, rope_axes_dim=(2, 4, 4),
    ),
    "vae": hunyuan_autoencoder(),
    **text(text_model("LlamaModel", "LlamaConfig", **CHAT), letter_tokenizer),
    **text(long_clip_text, clip_tokenizer, 2),
    "scheduler": flow(shift=7.0),
}


def byte_tokenizer() -> Any:
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


def sliced_hunyuan_autoencoder() -> Any:
    vae = part(
        "AutoencoderKLHunyuanVideo15", latent_channels=4, block_out_channels=(8, 8), layers_per_block=1,
        spatial_compression_ratio=2, temporal_compression_ratio=2, downsample_match_channel=False,
        upsample_match_channel=False,
    )()
    vae.enable_slicing()  # it cannot decode two rows at a time
    return vae


def guider() -> Any:
    from diffusers import ClassifierFreeGuidance

    return ClassifierFreeGuidance(guidance_scale=5.0)


HUNYUAN_15 = {
    "transformer": part(
        "HunyuanVideo15Transformer3DModel", in_channels=9, out_channels=4, **HEADS, num_layers=1, num_refiner_layers=1,
        text_embed_dim=WIDTH, text_embed_2_dim=WIDTH, image_embed_dim=12, rope_axes_dim=(2, 2, 4), target_size=16,
        task_type="t2v",
    ),
    "vae": sliced_hunyuan_autoencoder,
    **text(text_model("Qwen2Model", "Qwen2Config", **{**DECODER, "num_hidden_layers": 2}), chat_tokenizer),
    **text(text_model("T5EncoderModel", "T5Config", vocab_size=384, d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1,
                      num_heads=2), byte_tokenizer, 2),
    "guider": guider,
    "scheduler": flow(shift=7.0),
}
MOCHI = {
    "transformer": part(
        "MochiTransformer3DModel", **HEADS, num_layers=2, pooled_projection_dim=16, in_channels=12,
        text_embed_dim=WIDTH, time_embed_dim=4, max_sequence_length=TOKENS,
    ),
    "vae": part(
        "AutoencoderKLMochi", encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5, add_attention_block=(False,) * 5,
    ),
    **T5_TEXT,
    "scheduler": flow(invert_sigmas=True),
}
ANIMATED = {
    "unet": part(
        "UNet2DConditionModel", sample_size=8, block_out_channels=(8, 8), layers_per_block=1, cross_attention_dim=WIDTH,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2, norm_num_groups=2,
    ),
    "motion_adapter": trained(part(
        "MotionAdapter", block_out_channels=(8, 8), motion_layers_per_block=1, motion_norm_num_groups=2,
        motion_num_attention_heads=2,
    )),
    "vae": image_autoencoder,
    **CLIP,
    "scheduler": part("DDIMScheduler", beta_schedule="linear", clip_sample=False, steps_offset=1),
}


def tiled_allegro_autoencoder() -> Any:
    vae = part(
        "AutoencoderKLAllegro", down_block_types=("AllegroDownBlock3D",) * 2, latent_channels=4, layers_per_block=1,
        up_block_types=("AllegroUpBlock3D",) * 2, block_out_channels=(8, 8), norm_num_groups=2,
        temporal_downsample_blocks=(True, True), temporal_upsample_blocks=(True, True), sample_size=16,
    )()
    vae.enable_tiling()
    vae.enable_slicing()  # it cannot decode two rows at a time
    vae.kernel, vae.stride = (8, 16, 16), (4, 8, 8)  # of tiles: it draws nothing below one
    return vae


ALLEGRO = {
    "transformer": part(
        "AllegroTransformer3DModel", num_attention_heads=2, attention_head_dim=12, num_layers=1, cross_attention_dim=24,
        sample_width=8, sample_height=8, sample_frames=8, caption_channels=WIDTH,
    ),
    "vae": tiled_allegro_autoencoder,
    **T5_TEXT,
    "scheduler": part("EulerAncestralDiscreteScheduler", beta_schedule="linear", beta_start=0.00085, beta_end=0.012),
}
SANA = {
    "transformer": part(
        "SanaVideoTransformer3DModel", in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12,
        num_layers=1, num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24,
        caption_channels=WIDTH, sample_size=8, qk_norm="rms_norm_across_heads", rope_max_seq_len=16,
    ),
    "vae": wan_autoencoder(),
    **text(gemma_text, letter_tokenizer),
    "scheduler": part("DPMSolverMultistepScheduler", **FLOW),
}
SKYREELS = {
    "transformer": part("SkyReelsV2Transformer3DModel", **WAN_SIZES, in_channels=4, out_channels=4),
    **UMT5,
    "vae": wan_autoencoder(),
    "scheduler": part("UniPCMultistepScheduler", **{**FLOW, "flow_shift": 8.0}),
}


class Processor:
    """As pipelines call the processor of a vision language model that is shown no picture."""

    def __call__(self, text: Any, images: Any = None, videos: Any = None, **options: Any) -> Any:
        return letter_tokenizer()(text, **options)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        return letter_tokenizer().decode(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(letter_tokenizer(), name)


KANDINSKY_5 = {
    "transformer": trained(part(
        "Kandinsky5Transformer3DModel", in_visual_dim=4, in_text_dim=WIDTH, in_text_dim2=WIDTH, time_dim=16,
        out_visual_dim=4, model_dim=16, ff_dim=16, num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 6, 6),
    )),
    "vae": hunyuan_autoencoder(),
    "text_encoder": qwen_text, "tokenizer": Processor,
    **text(long_clip_text, clip_tokenizer, 2),
    "scheduler": flow(shift=5.0),
}

CLIPS = {
    "wan": Family("WanPipeline", WAN, flow=True, call=CLIP_SIZE),
    "wan-2-2": Family(
        "WanPipeline",
        {**WAN, "transformer": wan_transformer(), "transformer_2": wan_transformer(), "boundary_ratio": 0.875},
        flow=True,
        call=CLIP_SIZE,
    ),
    "wan-2-2-5b": Family("WanPipeline", {**WAN, "expand_timesteps": True}, flow=True, call=CLIP_SIZE),
    "ltx": Family("LTXPipeline", LTX, flow=True, call=LARGER),
    "ltx-2": Family(
        "LTX2Pipeline", LTX_2, flow=True,
        call={**LARGER, "spatio_temporal_guidance_blocks": [1]},
    ),
    "ltx-2-3": Family(
        "LTX2Pipeline", LTX_2_3, flow=True,
        call={**LARGER, "spatio_temporal_guidance_blocks": [1]},
    ),
    "cogvideox": Family("CogVideoXPipeline", COGVIDEO, call=CLIP_SIZE),
    "hunyuan-video": Family(
        "HunyuanVideoPipeline", HUNYUAN, flow=True,
        call={**CLIP_SIZE, "prompt_template": {"template": "{}", "crop_start": 0}},
    ),
    "hunyuan-video-1-5": Family(
        "HunyuanVideo15Pipeline", HUNYUAN_15, flow=True,
        call={key: value for key, value in CLIP_SIZE.items() if key != "max_sequence_length"},
        finish={"system_message": "", "prompt_template_encode_start_idx": 0, "tokenizer_max_length": TOKENS,
                "tokenizer_2_max_length": TOKENS,
                "vision_num_semantic_tokens": 2},
    ),
    "mochi": Family("MochiPipeline", MOCHI, flow=True, call={**CLIP_SIZE, "num_frames": 7}),
    "animatediff": Family(
        "AnimateDiffPipeline", ANIMATED, call={"height": 16, "width": 16, "num_frames": 4, "decode_chunk_size": 3},
    ),
    "allegro": Family("AllegroPipeline", ALLEGRO, call={**CLIP_SIZE, "num_frames": 8, "clean_caption": False}),
    "sana-video": Family(
        "SanaVideoPipeline", SANA, flow=True,
        call={
            "height": 32, "width": 32, "frames": 5, "max_sequence_length": TOKENS, "use_resolution_binning": False,
            "clean_caption": False, "complex_human_instruction": None,
        },
    ),
    "skyreels-v2": Family("SkyReelsV2Pipeline", SKYREELS, flow=True, call=CLIP_SIZE),
    "kandinsky-5": Family(
        "Kandinsky5T2VPipeline", KANDINSKY_5, flow=True, call=CLIP_SIZE,
        finish={"prompt_template": "{}", "prompt_template_encode_start_idx": 0},
    ),
}

VISION = {
    "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 8, "patch_size": 4, "projection_dim": WIDTH,
}


def image_processor() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(crop_size=8, size=8)


# These begin with a picture.
ANIMATING = {
    "wan-i2v": Family(
        "WanImageToVideoPipeline",
        {
            **WAN,
            "transformer": wan_transformer(in_channels=10, image_dim=WIDTH, added_kv_proj_dim=24),
            "image_encoder": text_model("CLIPVisionModel", "CLIPVisionConfig", **VISION),
            "image_processor": image_processor,
        },
        flow=True,
        call=CLIP_SIZE,
    ),
    "cogvideox-i2v": Family(
        "CogVideoXImageToVideoPipeline",
        {**COGVIDEO, "transformer": cogvideo_transformer(in_channels=8)},
        call=CLIP_SIZE,
    ),
    "ltx-i2v": Family("LTXImageToVideoPipeline", LTX, flow=True, call=LARGER),
}
# This one with a first and a last frame.
ANIMATING["wan-flf2v"] = Family(
    "WanImageToVideoPipeline",
    {
        **ANIMATING["wan-i2v"].parts,
        "transformer": wan_transformer(in_channels=10, image_dim=WIDTH, added_kv_proj_dim=24, pos_embed_seq_len=10),
    },
    flow=True,
    call=CLIP_SIZE,
)
ANIMATING["ltx-2-i2v"] = Family(
    "LTX2ImageToVideoPipeline", LTX_2, flow=True,
    call={**LARGER, "spatio_temporal_guidance_blocks": [1], "image_crf": 0},
)
# And this one with a clip.
REDRAWING = {
    "cogvideox-v2v": Family(
        "CogVideoXVideoToVideoPipeline",
        COGVIDEO,
        call={"height": 16, "width": 16, "max_sequence_length": TOKENS, "strength": 0.8},
    ),
}


class Checker(torch.nn.Module):
    """Stands for a safety checker that is no part of diffusers."""


COSMOS = {
    "transformer": part(
        "CosmosTransformer3DModel", in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16,
        num_layers=1, text_embed_dim=WIDTH,
        adaln_lora_dim=4, max_size=(4, 16, 16),
    ),
    "vae": wan_autoencoder(),
    **T5_TEXT,
    "safety_checker": Checker,
}
cosmos_autoencoder = part(
    "AutoencoderKLCosmos", latent_channels=4, encoder_block_out_channels=(8,) * 4, decode_block_out_channels=(8,) * 4,
    attention_resolutions=(8,), resolution=16, num_layers=1, patch_size=2, spatial_compression_ratio=4,
    temporal_compression_ratio=4, latents_mean=None, latents_std=None,
)
EDM = {**COSMOS, "vae": cosmos_autoencoder, "scheduler": part("EDMEulerScheduler")}

# Those that cannot be aligned, and the reason that each gives.
REFUSED_CLIPS = {
    "cosmos": (Family("CosmosTextToWorldPipeline", EDM), "EDMEulerScheduler has neither betas nor a flow"),
    "cosmos-2-5": (
        Family("Cosmos2_5_PredictBasePipeline", {**COSMOS, "scheduler": unipc}),
        "does not run without its safety_checker",
    ),
}

# fmt: on
