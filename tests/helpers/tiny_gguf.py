"""A tiny Llama as a GGUF file: tensors under llama.cpp's names and in its order of rows, and a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
HEADS, KEYS = 4, 2
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def words() -> list[str]:
    """The 256 bytes as byte-level tokenizers write them, what one merge of them makes, and control tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    return [*sorted(ByteLevel.alphabet()), "th", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def tiny_llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words()), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=KEYS, max_position_embeddings=256, initializer_range=0.2, bos_token_id=257,
        eos_token_id=259, pad_token_id=257, rope_theta=10000.0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def permuted(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries and keys as llama.cpp holds them, the two halves of each head interleaved."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def written(model: Any, path: Path, leave_out: str = "", bits: int = 32, template: str = CHAT) -> Path:
    """bits: 32, or 8 for matrices in blocks of 8 bits."""
    import gguf

    config, writer = model.config, gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_vocab_size(config.vocab_size)
    tokens = words()
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 257 + [3] * 3)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(259)
    writer.add_pad_token_id(257)
    writer.add_chat_template(template)
    for name, tensor in model.state_dict().items():
        if leave_out and leave_out in name:
            continue
        kept = permuted(tensor, HEADS if "q_proj" in name else KEYS) if "q_proj" in name or "k_proj" in name else tensor
        values = kept.float().contiguous().numpy()
        if bits == 8 and values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(renamed(name), gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(renamed(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def renamed(name: str) -> str:
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, end = name.rsplit(".", 1)
    if stem in whole:
        return f"{whole[stem]}.{end}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.{end}"
