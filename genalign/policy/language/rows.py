"""What policies that write share about the rows of a rollout: a prompt and a seed each, read once and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Any

from torch import Tensor

from genalign.policy.language.batch import Encoded
from genalign.types import GenalignError, Prompt, UsageError, sample_seed

Rows = tuple[Prompt, ...]


def rows_of(prompts: Sequence[Prompt], per_prompt: int, seed: int | Sequence[int]) -> tuple[Rows, list[int]]:
    """The prompt and the seed of each row, as `Policy.rollout` has them.

    Raises:
        UsageError: there are none, or not one seed a row.
    """
    rows = tuple(prompt for prompt in prompts for _ in range(per_prompt))
    if isinstance(seed, int):
        seeds = [sample_seed(seed, prompt.uid, k) for prompt in prompts for k in range(per_prompt)]
    else:
        seeds = list(seed)
    if not rows or len(seeds) != len(rows):
        raise UsageError(f"a rollout needs prompts and one seed a row, not {len(seeds)} seeds for {len(rows)} rows")
    return rows, seeds


def encoded_once(prompts: Sequence[Prompt], encode: Callable[[Prompt], Encoded]) -> list[Encoded]:
    """Each prompt as `encode` reads it, which is asked once for prompts that are the same."""
    known: dict[Any, Encoded] = {}
    keys = [(prompt.text, id(prompt.media), prompt.uid if "messages" in prompt.facts else None) for prompt in prompts]
    for key, prompt in zip(keys, prompts, strict=True):
        if key not in known:
            known[key] = encode(prompt)
    return [known[key] for key in keys]


def up_to_end(ids: Sequence[int], ends: Set[int]) -> list[int]:
    """What was written, up to and with its first end token."""
    end = next((i for i, token in enumerate(ids) if token in ends), len(ids) - 1)
    return list(ids[: end + 1])


def check_room(model: Any, prompt: Prompt, encoded: Encoded, longest: int) -> None:
    """Raises UsageError where a prompt and `longest` tokens more are longer than the model's context."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and len(encoded.ids) + longest > limit:
        raise UsageError(
            f"prompt {prompt.text[:40]!r} has {len(encoded.ids)} tokens, which leaves no room for {longest} more "
            f"in the model's {limit}; shorten it or lower policy.max_new_tokens"
        )


def check_guidance(guidance: float | None) -> None:
    """Raises UsageError where guidance is asked for, which no model that writes has."""
    if guidance not in (None, 1.0):
        raise UsageError(f"a language model has no guidance; leave it out instead of {guidance}")


def check_finite(logp: Tensor) -> None:
    """Raises GenalignError where log-probabilities are no numbers."""
    if not bool(logp.isfinite().all()):
        raise GenalignError(
            "the model gives log-probabilities that are NaN or infinite; set policy.dtype=float32, or check the weights"
        )
