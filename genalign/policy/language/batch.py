"""Rows of a language model: what a prompt becomes, and several of them, with their completions, as one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """A prompt as the model reads it.

    ids: its tokens. opening: the tags of the answer that its template already opened. along: what the model's processor
    gives beside each token, such as mm_token_type_ids, by name. media: what it makes of the prompt's media, by the name
    of the model's argument (pixel_values, image_grid_thw ...). seen: these as the model's vision towers have encoded
    them, by modality, in the place of pixels.
    """

    ids: tuple[int, ...]
    opening: str = ""
    along: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    media: Mapping[str, Tensor] = field(default_factory=dict, compare=False)
    seen: Mapping[str, Any] = field(default_factory=dict, compare=False)


def batch(
    rows: Sequence[Encoded], completions: Sequence[Sequence[int]], pad: int, device: torch.device
) -> dict[str, Any]:
    """The model's arguments for R prompts with their completions, padded on the right."""
    return beside_tokens(rows, pad, device, completions) | media_of(rows, device)


def beside_tokens(
    rows: Sequence[Encoded], pad: int, device: torch.device, completions: Sequence[Sequence[int]] | None = None
) -> dict[str, Tensor]:
    """Tokens, attention and what else stands beside tokens, (R,L) each: of prompts, padded on the left; or of these
    with their completions, padded on the right. Beside completions and padding everything is 0."""
    written = [()] * len(rows) if completions is None else completions
    ids = [(*row.ids, *own) for row, own in zip(rows, written, strict=True)]
    width, left = max(map(len, ids)), completions is None

    def padded(values: Sequence[Sequence[int]], filler: int) -> Tensor:
        out = torch.full((len(rows), width), filler)
        for place, row, own in zip(out, ids, values, strict=True):
            start = width - len(row) if left else 0
            place[start : start + len(own)] = torch.tensor(own)
        return out.to(device)

    found = {"input_ids": padded(ids, pad), "attention_mask": padded([[1] * len(own) for own in ids], 0)}
    for name in sorted({name for row in rows for name in row.along}):
        found[name] = padded([row.along.get(name, ()) for row in rows], 0)
    return found


def media_of(rows: Sequence[Encoded], device: torch.device) -> dict[str, Any]:
    """The media of R rows as the model's arguments: one behind the other, the smaller ones filled up by zeros."""
    found: dict[str, Any] = {}
    for name in sorted({name for row in rows for name in row.media}):
        found[name] = _joined([row.media[name] for row in rows if name in row.media]).to(device)
    for medium in sorted({name for row in rows for name in row.seen}):
        encoded = _together([row.seen[medium] for row in rows if medium in row.seen])
        found.setdefault("mm_encoder_outputs", {})[medium] = encoded
    return found


def _joined(parts: Sequence[Tensor]) -> Tensor:
    most = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    return torch.cat([_filled(part, most) for part in parts])


def _filled(part: Tensor, most: Sequence[int]) -> Tensor:
    lacking = [wanted - has for wanted, has in zip(most, part.shape[1:], strict=True)]
    if not any(lacking):
        return part
    return F.pad(part, [side for missing in reversed(lacking) for side in (0, missing)])


def _together(parts: Sequence[Any]) -> Any:
    """The outputs of a vision tower for several prompts as one: features of each picture, and of each layer, if any."""
    kind = type(parts[0])
    found = {"pooler_output": _listed([part.pooler_output for part in parts])}
    layers = getattr(parts[0], "deepstack_features", None)
    if layers is not None:
        found["deepstack_features"] = [
            _listed([part.deepstack_features[layer] for part in parts]) for layer in range(len(layers))
        ]
    return kind(**found)


def _listed(parts: Sequence[Any]) -> Any:
    if all(isinstance(part, Tensor) for part in parts):
        return torch.cat(list(parts))
    return [picture for part in parts for picture in part]
