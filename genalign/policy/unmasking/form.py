"""How a diffusion language model is asked for what is not written: as masks in the text, or as noise on a canvas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from genalign.types import UsageError

Ids = Sequence[int]


class Form(Protocol):
    """What a model reads: the context, all of which is written, and the block behind it, of which some is.

    forbidden: ids that no answer may hold. whole: tokens of a whole block.
    """

    @property
    def forbidden(self) -> tuple[int, ...]: ...

    @property
    def whole(self) -> int: ...

    @property
    def masked(self) -> bool:
        """Whether what is not written is a mask, so that answers have a masked likelihood."""
        ...

    def ends(self, prompt: int, longest: int) -> list[int]:
        """Where the blocks of an answer end, counted from its begin, behind a prompt of so many tokens."""
        ...

    def filler(self, count: int, generator: torch.Generator) -> Tensor:
        """What stands where nothing is written: (count,) ids."""
        ...

    def inputs(self, contexts: Sequence[Ids], blocks: Sequence[Ids], pad: int, device: torch.device) -> dict[str, Any]:
        """The model's arguments for R contexts and blocks, padded on the right; padding is never attended to."""
        ...

    def offset(self, context: int) -> int:
        """Where in the model's output a block begins behind a context of so many tokens."""
        ...


@dataclass(frozen=True)
class MasksInText:
    """One text whose unwritten places hold the mask token; attention goes both ways, up to the end of the block.

    Blocks end at multiples of block_length, counted from the begin of the prompt, as in LLaDA2's pipeline of diffusers
    for a prompt without padding.
    """

    mask: int
    block_length: int

    @property
    def forbidden(self) -> tuple[int, ...]:
        return (self.mask,)

    @property
    def whole(self) -> int:
        return self.block_length

    @property
    def masked(self) -> bool:
        return True

    def ends(self, prompt: int, longest: int) -> list[int]:
        first = self.block_length - prompt % self.block_length
        return [*range(first, longest, self.block_length), longest]

    def filler(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.full((count,), self.mask)

    def inputs(self, contexts: Sequence[Ids], blocks: Sequence[Ids], pad: int, device: torch.device) -> dict[str, Any]:
        ids, mask = _padded([[*context, *block] for context, block in zip(contexts, blocks, strict=True)], pad, device)
        positions = torch.arange(ids.shape[1], device=device).expand(ids.shape)
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}

    def offset(self, context: int) -> int:
        return context


@dataclass(frozen=True)
class NoiseOnCanvas:
    """A canvas of fixed length behind an encoded context; its unwritten places hold random tokens, new ones each step.

    So the model's own sampling goes, but for its self-conditioning on the logits of the step before, which is left out,
    as in part of its training: what a step was drawn by could else not be computed again without all steps before it.
    """

    canvas_length: int
    vocabulary: int
    forbidden: tuple[int, ...] = ()

    @property
    def whole(self) -> int:
        return self.canvas_length

    @property
    def masked(self) -> bool:
        return False

    def ends(self, prompt: int, longest: int) -> list[int]:
        if longest % self.canvas_length:
            raise UsageError(
                f"policy.max_new_tokens is {longest}, but the model writes {self.canvas_length} tokens at a time; take "
                f"a multiple of that"
            )
        return [*range(self.canvas_length, longest + 1, self.canvas_length)]

    def filler(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self.vocabulary, (count,), generator=generator)

    def inputs(self, contexts: Sequence[Ids], blocks: Sequence[Ids], pad: int, device: torch.device) -> dict[str, Any]:
        ids, mask = _padded(contexts, pad, device)
        canvas = torch.tensor([list(block) for block in blocks], device=device)
        lengths = mask.sum(1, keepdim=True)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": torch.arange(ids.shape[1], device=device).expand(ids.shape),
            "decoder_input_ids": canvas,
            "decoder_attention_mask": torch.cat([mask, torch.ones_like(canvas)], 1),
            "decoder_position_ids": lengths + torch.arange(canvas.shape[1], device=device),
        }

    def offset(self, context: int) -> int:
        return 0


def _padded(rows: Sequence[Ids], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention (R,L) of rows of several lengths."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask
