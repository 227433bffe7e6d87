"""tiny-flow: a rectified-flow transformer with a CLIP text encoder, as a StableDiffusion3Pipeline."""

from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from genalign.files.shipped import shipped
from genalign.lab.text import MAX_TOKENS, shipped_tokenizer

TEXT_WIDTH = 128
SHIFT = 3.0  # background and layout are decided where sigma > 0.8: sampling and training both dwell there


def text_encoder(tokenizer: Any, projected: bool = True) -> Any:
    """The text tower of tiny-clip as a transformers model, with or without the projection of its end token."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    tower = CLIPTextModelWithProjection(config)
    tower.load_state_dict(_clip_weights(load_file(shipped("assets", "tiny-clip", "open_clip_model.safetensors"))))
    if projected:
        return tower.eval().requires_grad_(False)
    plain = CLIPTextModel(config)
    weights = {name.removeprefix("text_model."): tensor for name, tensor in tower.state_dict().items()}
    plain.load_state_dict({name: tensor for name, tensor in weights.items() if name in plain.state_dict()})
    return plain.eval().requires_grad_(False)


def _clip_weights(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """An open_clip text tower under transformers' names."""
    named = {
        "text_model.embeddings.token_embedding.weight": given["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": given["positional_embedding"],
        "text_projection.weight": given["text_projection"].T,
    }
    parts = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}
    parts |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for kind in ("weight", "bias"):
        named[f"text_model.final_layer_norm.{kind}"] = given[f"ln_final.{kind}"]
        for layer in range(3):
            old, new = f"transformer.resblocks.{layer}", f"text_model.encoder.layers.{layer}"
            for theirs, ours in parts.items():
                named[f"{new}.{ours}.{kind}"] = given[f"{old}.{theirs}.{kind}"]
            for letter, block in zip("qkv", given[f"{old}.attn.in_proj_{kind}"].chunk(3), strict=True):
                named[f"{new}.self_attn.{letter}_proj.{kind}"] = block
    return {name: tensor.float().contiguous() for name, tensor in named.items()}


def transformer(width: int = 192, layers: int = 6) -> Any:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        attention_head_dim=64,
        num_attention_heads=width // 64,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=width,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )


def assemble(vae: Any) -> Any:
    """The pipeline with an untrained transformer and the text tower of tiny-clip, which it holds twice."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    torch.manual_seed(3)
    tokenizer = shipped_tokenizer()
    text = text_encoder(tokenizer)
    encoder_3, tokenizer_3 = blank_t5()
    return StableDiffusion3Pipeline(
        transformer=transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        text_encoder_2=text,
        tokenizer_2=tokenizer,
        text_encoder_3=encoder_3,
        tokenizer_3=tokenizer_3,
    )


def blank_t5() -> tuple[Any, Any]:
    """A T5 encoder and tokenizer of no effect: the pipeline class requires them, tiny-flow does not read them.

    The tokenizer turns any text into the end token; the encoder's last norm has weight zero, so its output is exactly
    what the pipeline puts where a T5 is missing.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    backend = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(Regex(".+"), "")
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=1
    )
    config = T5Config(
        vocab_size=len(tokenizer), d_model=2 * TEXT_WIDTH, d_kv=8, d_ff=8, num_layers=1, num_heads=1,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    encoder = T5EncoderModel(config)
    nn.init.zeros_(encoder.encoder.final_layer_norm.weight)
    return encoder, tokenizer
