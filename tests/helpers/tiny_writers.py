"""Causal language models of the real classes with tiny random weights, made in code, over the words of tiny_language.

Weights are drawn wide enough that logits have a spread of 1 or so: what is wrong in them then shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.helpers.tiny_language import tiny_language

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


def built(name: str, **more: Any) -> Callable[[], tuple[Any, Any]]:
    """name: what the config's and the model's classes begin with."""

    def build() -> tuple[Any, Any]:
        import transformers

        words = tiny_language()[1]
        config = getattr(transformers, f"{name}Config")(
            **{"vocab_size": len(words), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **SIZES, **more}
        )
        torch.manual_seed(0)
        return getattr(transformers, f"{name}ForCausalLM")(config).eval(), words

    return build


WRITERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen3": built("Qwen3", head_dim=8, tie_word_embeddings=True),
    "gemma2": built("Gemma2", head_dim=8, final_logit_softcapping=5.0, query_pre_attn_scalar=8),
    "granite": built("Granite", logits_scaling=4.0),
    "cohere": built("Cohere", logit_scale=0.5),
    "phi": built("Phi"),  # its head has a bias
    "mixtral": built("Mixtral", **EXPERTS),
    "qwen3-moe": built("Qwen3Moe", head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
    "mamba2": built("Mamba2", num_heads=8, head_dim=8, state_size=8, n_groups=1, chunk_size=8),
    "falcon-h1": built(
        "FalconH1", head_dim=8, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=8,
        lm_head_multiplier=0.5,
    ),
    "qwen3-next": built(
        "Qwen3Next", head_dim=8, linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2,
        linear_num_value_heads=4, layer_types=["linear_attention", "full_attention"], num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16,
    ),
    "recurrent-gemma": built(
        "RecurrentGemma", lru_width=32, block_types=["recurrent", "attention"], attention_window_size=16,
        logits_soft_cap=5.0, w_init_variance_scale=3.0, pad_token_id=None,  # so that what it embeds as padding is not 0
    ),
}  # fmt: skip
