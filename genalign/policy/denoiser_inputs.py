"""What pipelines hand to their denoisers, as shapes alone: a function a class of denoiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Drawn:
    """What is drawn: rows of one forward pass, sides and frames of the latents, channels of them, tokens of a text."""

    rows: int
    height: int
    width: int
    frames: int
    channels: int
    tokens: int


def denoiser_inputs(kind: str, config: Any, drawn: Drawn, dtype: torch.dtype) -> dict[str, Any] | None:
    """Arguments of a denoiser's forward pass on "meta"; None of a class that is not known here."""
    known = KNOWN.get(kind)
    return None if known is None else known(config, drawn, dtype)


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _grid(drawn: Drawn) -> dict[str, Tensor]:
    return {"timestep": _empty(drawn.rows)}


def _picture(d: Drawn, dtype: torch.dtype) -> Tensor:
    return _empty(d.rows, d.channels, d.height, d.width, dtype=dtype)


def _packed(d: Drawn, dtype: torch.dtype) -> Tensor:
    """Two by two latents a token."""
    return _empty(d.rows, d.height // 2 * (d.width // 2), 4 * d.channels, dtype=dtype)


def _sd3(c: Any, d: Drawn, dtype: torch.dtype) -> dict[str, Any]:
    return {
        **_grid(d),
        "hidden_states": _picture(d, dtype),
        "encoder_hidden_states": _empty(d.rows, d.tokens, c.joint_attention_dim, dtype=dtype),
        "pooled_projections": _empty(d.rows, c.pooled_projection_dim, dtype=dtype),
    }


def _unet(c: Any, d: Drawn, dtype: torch.dtype) -> dict[str, Any]:
    found: dict[str, Any] = {
        **_grid(d),
        "sample": _empty(d.rows, c.in_channels, d.height, d.width, dtype=dtype),
        "encoder_hidden_states": _empty(d.rows, d.tokens, c.cross_attention_dim, dtype=dtype),
    }
    if c.addition_embed_type == "text_time":
        pooled = c.projection_class_embeddings_input_dim - 6 * c.addition_time_embed_dim
        found["added_cond_kwargs"] = {
            "text_embeds": _empty(d.rows, pooled, dtype=dtype),
            "time_ids": _empty(d.rows, 6, dtype=dtype),
        }
    return found


def _flux(c: Any, d: Drawn, dtype: torch.dtype) -> dict[str, Any]:
    packed = _packed(d, dtype)
    return {
        **_grid(d),
        "hidden_states": packed,
        "encoder_hidden_states": _empty(d.rows, d.tokens, c.joint_attention_dim, dtype=dtype),
        "pooled_projections": _empty(d.rows, c.pooled_projection_dim, dtype=dtype),
        "img_ids": _empty(packed.shape[1], 3, dtype=dtype),
        "txt_ids": _empty(d.tokens, 3, dtype=dtype),
        "guidance": _empty(d.rows) if c.guidance_embeds else None,
    }


def _flux2(c: Any, d: Drawn, dtype: torch.dtype) -> dict[str, Any]:
    packed = _packed(d, dtype)
    return {
        **_grid(d),
        "hidden_states": packed,
        "encoder_hidden_states": _empty(d.rows, d.tokens, c.joint_attention_dim, dtype=dtype),
        "img_ids": _empty(packed.shape[1], 4),
        "txt_ids": _empty(d.tokens, 4),
        "guidance": _empty(d.rows) if c.guidance_embeds else None,
    }


def _pixart(c: Any, d: Drawn, dtype: torch.dtype) -> dict[str, Any]:
    return {
        **_grid(d),
        "hidden_states": _picture(d, dtype),
        "encoder_hidden_states": _empty(d.rows, d.tokens, c.caption_channels, dtype=dtype),
        "encoder_attention_mask": _empty(d.rows, d.tokens, dtype=dtype),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def _wan(c: Any, d: Drawn, dtype: torch.dtype) -> dict[str, Any]:
    return {
        **_grid(d),
        "hidden_states": _empty(d.rows, c.in_channels, d.frames, d.height, d.width, dtype=dtype),
        "encoder_hidden_states": _empty(d.rows, d.tokens, c.text_dim, dtype=dtype),
    }


KNOWN: dict[str, Callable[[Any, Drawn, torch.dtype], dict[str, Any]]] = {
    "SD3Transformer2DModel": _sd3,
    "UNet2DConditionModel": _unet,
    "FluxTransformer2DModel": _flux,
    "Flux2Transformer2DModel": _flux2,
    "PixArtTransformer2DModel": _pixart,
    "WanTransformer3DModel": _wan,
}
