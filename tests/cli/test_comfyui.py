"""The names that ComfyUI knows, written out family by family, and the weights that it makes of an exported adapter.

The names are those of model_lora_keys_unet in ComfyUI's comfy/lora.py (with comfy/utils.py: unet_to_diffusers,
mmdit_to_diffusers, flux_to_diffusers, pixart_to_diffusers, auraflow_to_diffusers, z_image_to_diffusers).
"""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from genalign.cli.comfyui import comfyui_tensors
from genalign.cli.export import export
from genalign.policy.adapter import ATTENTION
from genalign.types import GenalignError, UsageError
from tests.helpers.finished_run import finished_run
from tests.helpers.tiny_pipelines import FAMILIES, MORE, part

QKV, OUT = ("to_q", "to_k", "to_v"), ("to_out.0",)
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
BOTH = (*QKV, *ADDED, *OUT, "to_add_out")
UNET = [
    f"lora_unet_{block}_transformer_blocks_0_{attention}_{projection}"
    for block in ("down_blocks_1_attentions_0", "mid_block_attentions_0", "up_blocks_0_attentions_0",
                  "up_blocks_0_attentions_1")
    for attention in ("attn1", "attn2")
    for projection in ("to_q", "to_k", "to_v", "to_out_0")
]  # fmt: skip
# Of SDXL by its own depths: no attention at the first level, 2 blocks of it at the second, 10 at the third and between.
SDXL = [
    f"lora_unet_{place}_attentions_{number}_transformer_blocks_{block}_{attention}_{projection}"
    for place, numbers, depth in (
        ("down_blocks_1", 2, 2), ("down_blocks_2", 2, 10), ("mid_block", 1, 10),
        ("up_blocks_0", 3, 10), ("up_blocks_1", 3, 2),
    )
    for number in range(numbers)
    for block in range(depth)
    for attention in ("attn1", "attn2")
    for projection in ("to_q", "to_k", "to_v", "to_out_0")
]  # fmt: skip
sdxl_unet = part(
    "UNet2DConditionModel",
    sample_size=8,
    block_out_channels=(8, 8, 8),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=[1, 2, 10],
    attention_head_dim=2,
    norm_num_groups=4,
    cross_attention_dim=8,
    addition_embed_type="text_time",
    addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=6 * 4 + 8,
)
UNETS = ("stable-diffusion", "stable-diffusion-xl")
KNOWN = {
    "stable-diffusion": UNET,
    "stable-diffusion-xl": SDXL,
    "stable-diffusion-3": [
        *(f"transformer.transformer_blocks.0.attn.{layer}" for layer in BOTH),
        *(f"transformer.transformer_blocks.1.attn.{layer}" for layer in (*QKV, *ADDED, *OUT)),  # the last has no more
    ],
    "flux": [
        *(f"transformer.transformer_blocks.0.attn.{layer}" for layer in BOTH),
        *(f"transformer.single_transformer_blocks.0.attn.{layer}" for layer in QKV),
    ],
    "chroma": [
        *(f"transformer.transformer_blocks.0.attn.{layer}" for layer in BOTH),
        *(f"transformer.single_transformer_blocks.0.attn.{layer}" for layer in QKV),
    ],
    "pixart-sigma": [
        f"transformer.transformer_blocks.{block}.{attention}.{layer}"
        for block in (0, 1)
        for attention in ("attn1", "attn2")
        for layer in (*QKV, *OUT)
    ],
    "qwen-image": [f"transformer.transformer_blocks.{block}.attn.{layer}" for block in (0, 1) for layer in BOTH],
    "z-image": [
        f"transformer.{block}.attention.{layer}"
        for block in ("noise_refiner.0", "context_refiner.0", "layers.0")
        for layer in (*QKV, *OUT)
    ],
    "aura-flow": [
        *(f"transformer.joint_transformer_blocks.0.attn.{layer}" for layer in BOTH),
        *(f"transformer.single_transformer_blocks.0.attn.{layer}" for layer in (*QKV, *OUT)),
    ],
    "hidream": [
        f"transformer.{block}.0.block.attn1.{layer}"
        for block in ("double_stream_blocks", "single_stream_blocks")
        for layer in QKV
    ],
    "lumina2": [
        f"diffusion_model.{block}.attention.{layer}"
        for block in ("noise_refiner.0", "context_refiner.0", "layers.0")
        for layer in ("qkv", "out")
    ],
}


def denoiser(name):
    if name == "stable-diffusion-xl":
        torch.manual_seed(0)
        return sdxl_unet().float()
    parts = {**FAMILIES, **MORE}[name].parts
    torch.manual_seed(0)
    return (parts.get("transformer") or parts["unet"])().float()


def attention(net):
    linear = [name for name, module in net.named_modules() if isinstance(module, torch.nn.Linear)]
    return [name for name in linear if any(name.endswith(f".{target}") for target in ATTENTION[0])]


def exported(name, place):
    """The tensors of a run's export, and the denoiser with the run's adapter merged by peft."""
    targets = attention(denoiser(name))
    run = finished_run(place, denoiser(name), targets, type(denoiser(name)).__name__)
    tensors = load_file(export(run, "comfyui", place / "out.safetensors"))
    merged = PeftModel.from_pretrained(denoiser(name), run / "adapter").merge_and_unload()
    return tensors, dict(merged.named_parameters())


@pytest.mark.parametrize("name", KNOWN)
def test_every_layer_has_a_name_that_comfyui_knows(name, tmp_path):
    tensors, _ = exported(name, tmp_path)
    kinds = ("lora_down.weight", "lora_up.weight") if name in UNETS else ("lora_A.weight", "lora_B.weight")
    assert set(tensors) == {f"{known}.{kind}" for known in KNOWN[name] for kind in (*kinds, "alpha")}


@pytest.mark.parametrize("name", ["stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3", "lumina2"])
def test_comfyui_makes_the_weights_that_peft_merges(name, tmp_path):
    """W + alpha / rank * up @ down, as ComfyUI and A1111 compute it."""
    tensors, merged = exported(name, tmp_path)
    plain = dict(denoiser(name).named_parameters())
    names = {key.rpartition(".alpha")[0] for key in tensors if key.endswith(".alpha")}
    for known in names:
        pair = [t for key, t in tensors.items() if key.startswith(f"{known}.lora")]
        down = next(tensors[f"{known}.{kind}.weight"] for kind in ("lora_A", "lora_down") if
                    f"{known}.{kind}.weight" in tensors)  # fmt: skip
        up = next(t for t in pair if t is not down)
        change = tensors[f"{known}.alpha"] / down.shape[0] * up @ down
        for own, rows in sources(known, plain):
            torch.testing.assert_close(plain[own] + change[rows], merged[own])
            assert not torch.equal(plain[own], merged[own])


def sources(known, plain):
    """The parameters of diffusers that a name of ComfyUI stands for, and their rows in its weight."""
    if known.startswith("lora_unet_"):
        flat = known.removeprefix("lora_unet_")
        return [(own, slice(None)) for own in plain if own.removesuffix(".weight").replace(".", "_") == flat]
    if known.startswith("transformer."):
        return [(f"{known.removeprefix('transformer.')}.weight", slice(None))]
    block = known.removeprefix("diffusion_model.").rpartition(".attention.")[0]
    if known.endswith(".out"):
        return [(f"{block}.attn.to_out.0.weight", slice(None))]
    found, at = [], 0
    for layer in QKV:  # the rows of q, k and v follow each other in the fused layer
        rows = len(plain[f"{block}.attn.{layer}.weight"])
        found.append((f"{block}.attn.{layer}.weight", slice(at, at + rows)))
        at += rows
    return found


def lora(name="block.to_q", rank=4):
    return {f"base_model.model.{name}.lora_A.weight": torch.ones(rank, 8),
            f"base_model.model.{name}.lora_B.weight": torch.ones(8, rank)}  # fmt: skip


def test_a_rank_stabilised_scale_and_an_alpha_of_a_layer_are_kept():
    """PEFT: alpha / sqrt(rank) with use_rslora, and alpha_pattern in the place of lora_alpha."""
    config = {"lora_alpha": 6.0, "use_rslora": True, "alpha_pattern": {"block.to_q": 3.0}}
    assert comfyui_tensors(lora(), config, "SD3Transformer2DModel")["transformer.block.to_q.alpha"] == 3.0 / 2 * 4


@pytest.mark.parametrize("kind", ["Flux2Transformer2DModel", "WanTransformer3DModel", "SanaTransformer2DModel"])
def test_a_family_that_comfyui_has_no_names_for_is_refused(kind, tmp_path):
    run = finished_run(tmp_path, denoiser("flux"), attention(denoiser("flux")), kind)
    with pytest.raises(UsageError, match=f"no names for the layers of {kind}.*take --to diffusers"):
        export(run, "comfyui", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_not_a_pair_is_refused():
    with pytest.raises(GenalignError, match="is not a LoRA matrix"):
        comfyui_tensors({"base_model.model.x.lora_magnitude_vector": torch.ones(8)}, {"lora_alpha": 1}, "X")
    with pytest.raises(GenalignError, match="no lora_B beside it"):
        comfyui_tensors(dict([*lora().items()][:1]), {"lora_alpha": 1}, "FluxTransformer2DModel")
    with pytest.raises(UsageError, match="adapt all three"):
        comfyui_tensors(lora("layers.0.attn.to_q"), {"lora_alpha": 1}, "Lumina2Transformer2DModel")
