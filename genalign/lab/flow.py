"""tiny-flow: a rectified-flow transformer with a CLIP text encoder, as a StableDiffusion3Pipeline."""

import copy
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from genalign.files.shipped import shipped
from genalign.lab.autoencoder import scenes
from genalign.lab.text import MAX_TOKENS, shipped_tokenizer
from genalign.lab.world import web_caption
from genalign.training.fit import compiled, fit

TEXT_WIDTH = 128
GUIDANCE = 4.0  # what the distilled model draws with: where the undistilled one was judged best
SHIFT = 3.0  # background and layout are decided where sigma > 0.8: sampling and training both dwell there


def latent_bank(vae: Any, work: Path, count: int = 49_152, seed: int = 2) -> tuple[Tensor, list[dict[str, Any]]]:
    """Latents (N, 4, 16, 16) of rendered training scenes and their facts, made once and kept in `work`."""
    path = work / "bank.safetensors"
    if not path.exists():
        parts, facts = [], []
        for chunk in range(count // 256):
            images, rows = scenes(seed * 10_000_000 + chunk, 256)
            with torch.no_grad():
                parts.append(vae.encode(images.mul(2).sub(1)).latents.half())
            facts += rows
        (work / "bank.json").write_text(json.dumps(facts))
        save_file({"latents": torch.cat(parts).contiguous()}, path)
    return load_file(path)["latents"], json.loads((work / "bank.json").read_text())


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


def web_batch(
    bank: tuple[Tensor, list[dict[str, Any]]], scale: float, step: int, rows: int, seed: int
) -> tuple[Tensor, Tensor, list[str], torch.Generator]:
    """Scaled clean latents and noise, (rows, 4, 16, 16) fp32, web-like captions, and a generator for the times.

    A tenth of the captions is empty, for guidance.
    """
    rng = np.random.default_rng((seed, step))
    index = rng.integers(len(bank[1]), size=rows)
    texts = ["" if rng.random() < 0.1 else web_caption(bank[1][i], rng) for i in index]
    clean = bank[0][torch.from_numpy(index)].float() * scale
    draw = torch.Generator().manual_seed(step)
    return clean, torch.randn(clean.shape, generator=draw), texts, draw


def read_tokens(tokenizer: Any, texts: list[str]) -> Tensor:
    """Token ids (B, MAX_TOKENS), padded as the pipelines pad them."""
    encoded = tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    return cast("Tensor", encoded.input_ids)


def build_flow(work: Path, vae: Any, steps: int = 12_000, distil_steps: int = 1500, rows: int = 48) -> Any:
    """Train the transformer on web-like captions, read by the frozen text tower of tiny-clip; returns the pipeline.

    First velocity matching with logit-normal times, mean 1.4 and deviation 1.5 (Esser et al. 2024, arXiv 2403.03206,
    section 3.1, where they are 0 and 1) in every second row, and uniform ones in [0.9, 1] in the others: layout is a
    mean over many latents, so a noisy latent shows it already below sigma 0.9, and only above can text decide it.
    Then guidance distillation (Meng et al. 2023, arXiv 2210.03142, section 3.1) at the one scale GUIDANCE, so that the
    model draws best without guidance and a sample costs one call a step, as with FLUX.1-dev. One batch in 24 carries
    the 256 zero tokens that the pipeline appends by default where it has no T5, so that both layouts draw.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    torch.manual_seed(3)
    tokenizer = shipped_tokenizer()
    text, denoiser = text_encoder(tokenizer), transformer()
    bank, scale = latent_bank(vae, work), float(vae.config.scaling_factor)

    def velocity(forward: Any, noisy: Tensor, sigma: Tensor, texts: list[str], zeros: int) -> Tensor:
        # plain matrix products: the fused attention's backward pass is slow on a CPU at 90 tokens
        with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            read = text(read_tokens(tokenizer, texts), output_hidden_states=True)
            context = read.hidden_states[-2].repeat(1, 1, 2)  # the pipeline has this tower twice
            context = torch.cat([context, context.new_zeros(len(texts), zeros, context.shape[-1])], dim=1)
            pooled = read.text_embeds.repeat(1, 2)
            out = forward(noisy, context, pooled, timestep=sigma * 1000, return_dict=False)[0]
        return cast("Tensor", out.float())

    def draw(step: int, seed: int) -> tuple[Tensor, Tensor, Tensor, list[str], int]:
        clean, noise, texts, generator = web_batch(bank, scale, step, rows, seed)
        sigma = torch.sigmoid(1.4 + 1.5 * torch.randn(rows, generator=generator))
        sigma[::2] = 1 - 0.1 * torch.rand(len(sigma[::2]), generator=generator)
        mixed = torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1))
        return noise - clean, mixed, sigma, texts, 256 if step % 24 == 7 else step % 3

    student = compiled(denoiser)

    def matching(step: int) -> Tensor:
        target, noisy, sigma, texts, zeros = draw(step, seed=3)
        return (velocity(student, noisy, sigma, texts, zeros) - target).square().mean()

    fit(denoiser, matching, steps=steps, learning_rate=1.2e-3, state=work / "flow.safetensors")
    teacher = copy.deepcopy(denoiser)

    def distillation(step: int) -> Tensor:
        _, noisy, sigma, texts, zeros = draw(step, seed=4)
        with torch.no_grad():
            blank = velocity(teacher, noisy, sigma, [""] * rows, zeros)
            conditional = velocity(teacher, noisy, sigma, texts, zeros)
        return (
            (velocity(student, noisy, sigma, texts, zeros) - torch.lerp(blank, conditional, GUIDANCE)).square().mean()
        )

    fit(denoiser, distillation, steps=distil_steps, learning_rate=5e-4, state=work / "flow-distilled.safetensors")
    encoder_3, tokenizer_3 = blank_t5()
    return StableDiffusion3Pipeline(
        transformer=denoiser,
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
