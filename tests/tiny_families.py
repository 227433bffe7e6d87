"""More tiny random pipelines, for the sweep over families; what `tiny_pipelines.py` holds is tested in depth."""

from __future__ import annotations

import functools
from typing import Any

import torch

from tests.tiny_pipelines import (
    BETAS,
    SMALL,
    TOKENS,
    WIDTH,
    Family,
    clip_text,
    clip_tokenizer,
    gemma_text,
    image_autoencoder,
    letter_tokenizer,
    t5_text,
    unet,
)


@functools.cache
def chat_tokenizer() -> Any:
    """A letter tokenizer that writes a conversation as its words, and ends in a token of its own."""
    from transformers import PreTrainedTokenizerFast

    plain = letter_tokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<eos>",
        model_max_length=TOKENS,
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return tokenizer


def language_model(kind: str, layers: int = 2, **config: Any) -> Any:
    """Qwen3, Llama or Glm by transformers' own names."""
    import transformers

    made = getattr(transformers, f"{kind}Config")(
        vocab_size=30,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **config,
    )
    return getattr(transformers, f"{kind}Model" if kind == "Glm" else f"{kind}ForCausalLM")(made).eval()


def flow_scheduler(**config: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**config)


def flux2_klein() -> Any:
    from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel

    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        latent_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        layers_per_block=1,
        sample_size=16,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return Flux2KleinPipeline(
        scheduler=flow_scheduler(use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=language_model("Qwen3", layers=3),
        tokenizer=chat_tokenizer(),
        transformer=transformer.eval(),
    )


def lumina2() -> Any:
    from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

    torch.manual_seed(0)
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(64, 16, 16),
        cap_feat_dim=WIDTH,
    )
    return Lumina2Pipeline(
        transformer=transformer.eval(),
        scheduler=flow_scheduler(shift=6.0),
        vae=image_autoencoder(),
        text_encoder=gemma_text(),
        tokenizer=letter_tokenizer(),
    )


def chroma() -> Any:
    from diffusers import ChromaPipeline, ChromaTransformer2DModel

    torch.manual_seed(0)
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return ChromaPipeline(
        scheduler=flow_scheduler(use_dynamic_shifting=True),
        vae=image_autoencoder(),
        text_encoder=t5_text(),
        tokenizer=letter_tokenizer(),
        transformer=transformer.eval(),
    )


def hidream() -> Any:
    from diffusers import HiDreamImagePipeline, HiDreamImageTransformer2DModel

    torch.manual_seed(0)
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[WIDTH, WIDTH],
        text_emb_dim=2 * WIDTH,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 6, 6),
        max_resolution=(8, 8),
        llama_layers=[0, 1],
    )
    pipeline = HiDreamImagePipeline(
        scheduler=flow_scheduler(shift=3.0),
        vae=image_autoencoder(),
        text_encoder=clip_text(projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text(projection=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_text(),
        tokenizer_3=letter_tokenizer(),
        text_encoder_4=language_model("Llama", attn_implementation="eager"),
        tokenizer_4=chat_tokenizer(),
        transformer=transformer.eval(),
    )
    pipeline.default_sample_size = 8  # it scales every size to this many latents
    return pipeline


def z_image() -> Any:
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[64, 16, 16],
    )
    return ZImagePipeline(
        scheduler=flow_scheduler(shift=3.0),
        vae=image_autoencoder(),
        text_encoder=language_model("Qwen3"),
        tokenizer=chat_tokenizer(),
        transformer=transformer.eval(),
    )


def aura_flow() -> Any:
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pos_embed_max_size=16,
    )
    text = UMT5Config(vocab_size=30, d_model=WIDTH, d_kv=8, d_ff=2 * WIDTH, num_layers=1, num_heads=2)
    return AuraFlowPipeline(
        tokenizer=letter_tokenizer(),
        text_encoder=UMT5EncoderModel(text).eval(),
        vae=image_autoencoder(),
        transformer=transformer.eval(),
        scheduler=flow_scheduler(shift=1.73),
    )


def cogview4() -> Any:
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel

    torch.manual_seed(0)
    transformer = CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=WIDTH,
        time_embed_dim=16,
        condition_dim=4,
        pos_embed_max_size=16,
        sample_size=8,
        rope_axes_dim=(16, 16),
    )
    return CogView4Pipeline(
        tokenizer=letter_tokenizer(),
        text_encoder=language_model("Glm"),
        vae=image_autoencoder(),
        transformer=transformer.eval(),
        scheduler=flow_scheduler(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75),
    )


def hunyuan_dit() -> Any:
    from diffusers import DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    transformer = HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=16,
        num_layers=2,
        cross_attention_dim=WIDTH,
        cross_attention_dim_t5=WIDTH,
        pooled_projection_dim=WIDTH,
        text_len=77,
        text_len_t5=256,
    )
    text = BertConfig(
        vocab_size=30,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
    )
    return HunyuanDiTPipeline(
        vae=image_autoencoder(),
        text_encoder=BertModel(text).eval(),
        tokenizer=letter_tokenizer(),
        transformer=transformer.eval(),
        scheduler=DDPMScheduler(**BETAS, prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=t5_text(),
        tokenizer_2=letter_tokenizer(),
    )


def latent_consistency() -> Any:
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    torch.manual_seed(0)
    return LatentConsistencyModelPipeline(
        vae=image_autoencoder(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        unet=unet(cross_attention_dim=WIDTH, time_cond_proj_dim=16),
        scheduler=LCMScheduler(**BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def bria() -> Any:
    from diffusers import BriaPipeline, BriaTransformer2DModel

    torch.manual_seed(0)
    transformer = BriaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=[4, 6, 6],
    )
    return BriaPipeline(
        transformer=transformer.eval(),
        scheduler=flow_scheduler(shift=3.0),
        vae=image_autoencoder(),
        text_encoder=t5_text(),
        tokenizer=letter_tokenizer(),
    )


def omnigen() -> Any:
    from diffusers import OmniGenPipeline, OmniGenTransformer2DModel

    torch.manual_seed(0)
    transformer = OmniGenTransformer2DModel(
        in_channels=4,
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        num_layers=1,
        pad_token_id=0,
        vocab_size=30,
        max_position_embeddings=1024,
        original_max_position_embeddings=1024,
        rope_scaling={"long_factor": [1.0] * 4, "short_factor": [1.0] * 4},
        pos_embed_max_size=16,
        time_step_dim=16,
    )
    return OmniGenPipeline(
        transformer=transformer.eval(),
        scheduler=flow_scheduler(invert_sigmas=True),
        vae=image_autoencoder(),
        tokenizer=letter_tokenizer(),
    )


def kandinsky_3() -> Any:
    from diffusers import DDPMScheduler, Kandinsky3Pipeline, Kandinsky3UNet, VQModel

    torch.manual_seed(0)
    model = Kandinsky3UNet(
        time_embedding_dim=16,
        groups=2,
        attention_head_dim=4,
        layers_per_block=1,
        block_out_channels=(8, 8),
        cross_attention_dim=8,
        encoder_hid_dim=WIDTH,
    )
    movq = VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        num_vq_embeddings=8,
        norm_num_groups=2,
        vq_embed_dim=4,
    )
    return Kandinsky3Pipeline(
        tokenizer=letter_tokenizer(),
        text_encoder=t5_text(),
        unet=model.eval(),
        scheduler=DDPMScheduler(**BETAS),
        movq=movq.eval(),
    )


def kandinsky_2_2() -> Any:
    from diffusers import DDPMScheduler, KandinskyV22Pipeline

    movq = kandinsky_3().movq
    return KandinskyV22Pipeline(unet=unet(cross_attention_dim=WIDTH), scheduler=DDPMScheduler(**BETAS), movq=movq)


def two_denoisers() -> Any:
    """As pipelines are built that draw the first steps with one network and the rest with another."""
    from diffusers import WanPipeline, WanTransformer3DModel

    torch.manual_seed(0)
    parts = [
        WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=WIDTH,
            freq_dim=16,
            ffn_dim=16,
            num_layers=1,
            rope_max_seq_len=16,
        )
        for _ in range(2)
    ]
    return WanPipeline(
        tokenizer=letter_tokenizer(),
        text_encoder=t5_text(),
        transformer=parts[0],
        transformer_2=parts[1],
        vae=None,
        scheduler=flow_scheduler(),
    )


def flux_kontext() -> Any:
    from diffusers import FluxKontextPipeline, FluxTransformer2DModel

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
    return FluxKontextPipeline(
        scheduler=flow_scheduler(use_dynamic_shifting=True),
        vae=image_autoencoder(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_text(),
        tokenizer_2=letter_tokenizer(),
        transformer=transformer.eval(),
    )


def instruct_pix2pix() -> Any:
    from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionInstructPix2PixPipeline

    torch.manual_seed(0)
    return StableDiffusionInstructPix2PixPipeline(
        vae=image_autoencoder(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        unet=unet(cross_attention_dim=WIDTH, in_channels=8),
        scheduler=EulerAncestralDiscreteScheduler(**BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


SHORT = {**SMALL, "max_sequence_length": TOKENS}
MORE = {
    "flux2-klein": Family(flux2_klein, flow=True, call={**SHORT, "text_encoder_out_layers": (1, 2, 3)}),
    "lumina2": Family(
        lumina2, flow=True, call={"height": 64, "width": 64, "max_sequence_length": 48, "system_prompt": "x"}
    ),
    "chroma": Family(chroma, flow=True, call=SHORT),
    "hidream": Family(hidream, flow=True, call=SHORT),
    "z-image": Family(z_image, flow=True, call=SHORT),
    "aura-flow": Family(aura_flow, flow=True, call=SHORT),
    "cogview4": Family(cogview4, flow=True, call={**SMALL, "max_sequence_length": 16}),
    "hunyuan-dit": Family(hunyuan_dit, flow=False, call={**SMALL, "use_resolution_binning": False}),
    "bria": Family(bria, flow=True, call=SHORT),
}

# These draw from a text and an image.
EDIT = {
    "flux-kontext": Family(flux_kontext, flow=True, call={**SHORT, "max_area": 256, "_auto_resize": False}),
    "instruct-pix2pix": Family(instruct_pix2pix, flow=False),
}

# Families that cannot be aligned, and what each says of it.
REFUSED = {
    "omnigen": (omnigen, "sets invert_sigmas, which no Gaussian step describes"),
    "kandinsky-3": (kandinsky_3, "has no image_processor, so the range of what it makes is not known"),
    "kandinsky-2-2": (kandinsky_2_2, "has no image_processor"),
    "wan-2-2": (two_denoisers, "samples with transformer and transformer_2"),
}
