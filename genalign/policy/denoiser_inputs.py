"""What a pipeline hands to its denoiser, as shapes alone, by the names of the arguments that the denoiser takes."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TEXT = (
    "joint_attention_dim",
    "caption_channels",
    "text_dim",
    "cap_feat_dim",
    "cross_attention_dim",
)  # how configurations name its width
LATENTS, TIME = {"hidden_states", "sample", "x"}, {"timestep", "t"}  # how denoisers name what they take


@dataclass(frozen=True)
class Drawn:
    """What is drawn: rows of one forward pass, sides and frames of the latents, channels of them, tokens of a text."""

    rows: int
    height: int
    width: int
    frames: int
    channels: int
    tokens: int


def denoiser_inputs(denoiser: nn.Module, drawn: Drawn, dtype: torch.dtype) -> dict[str, Any] | None:
    """Arguments of a denoiser's forward pass on "meta"; None where it needs one that is not known here."""
    parameters = inspect.signature(denoiser.forward).parameters
    config: Any = denoiser.config
    text = next((config[name] for name in TEXT if config.get(name)), None)
    if not isinstance(text, int) or not LATENTS & set(parameters) or not TIME & set(parameters):
        return None

    def empty(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=kind, device="meta")

    rows, tokens = drawn.rows, drawn.tokens
    latents = _latents(parameters, config, drawn)
    axes = len(config.get("axes_dims_rope") or ())
    known = {
        "hidden_states": empty(*latents),
        "sample": empty(*latents),
        "timestep": empty(rows, kind=torch.float32),
        "encoder_hidden_states": empty(rows, tokens, text),
        "pooled_projections": empty(rows, config.get("pooled_projection_dim") or 0),
        "img_ids": empty(latents[1], axes),
        "txt_ids": empty(tokens, axes),
        "guidance": empty(rows, kind=torch.float32) if config.get("guidance_embeds") else None,
        "added_cond_kwargs": _conditions(config, rows, dtype),
        "img_shapes": [[(1, drawn.height // 2, drawn.width // 2)]] * rows,
        "x": [empty(drawn.channels, 1, drawn.height, drawn.width) for _ in range(rows)],  # a list of pictures
        "t": empty(rows, kind=torch.float32),
        "cap_feats": [empty(tokens, text) for _ in range(rows)],
    }
    needed = [name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
    if any(name not in known for name in needed if name != "return_dict"):
        return None
    return {name: value for name, value in known.items() if name in parameters}


def takes_packed(parameters: Any) -> bool:
    """Whether two by two latents are one token, whose place is given beside it."""
    return "img_ids" in parameters or "img_shapes" in parameters


def _latents(parameters: Any, config: Any, d: Drawn) -> tuple[int, ...]:
    if takes_packed(parameters):
        return d.rows, d.height // 2 * (d.width // 2), 4 * d.channels
    channels = config.get("in_channels") or d.channels
    clip = isinstance(config.get("patch_size"), tuple | list)
    return (d.rows, channels, *([d.frames] if clip else []), d.height, d.width)


def _conditions(config: Any, rows: int, dtype: torch.dtype) -> dict[str, Any]:
    if config.get("addition_embed_type") != "text_time":
        return {"resolution": None, "aspect_ratio": None}
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    size = {"text_embeds": (rows, pooled), "time_ids": (rows, 6)}
    return {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in size.items()}
