"""What every reward shares: a state of nothing, hashes, column names, and how aspects become one number."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from genalign.files.places import model_path
from genalign.types import MODALITIES, Media, Prompt, Reward, Scores, UsageError, nearest

Missing = Literal["zero_advantage", "renormalise", "invalid"]
Scope = Literal["sample", "group", "batch"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
CUT = "truncated/"  # in Scores.info, before a head's name: whether it had to cut what it read of a row


class ScoringError(Exception):
    """A scoring that went wrong, told in words a user can act on; becomes a mask, never a stop."""


class Reads(Protocol):
    """A reward, or a preference."""

    @property
    def needs(self) -> frozenset[str]: ...


class Stateless:
    """The three verbs of a reward that has no state of its own."""

    def update(self, scores: Scores, step: int) -> None:
        """Nothing to learn or to count."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if state:
            raise UsageError(
                f"{type(self).__name__} has no state, but was given {', '.join(state)}; check the checkpoint"
            )


def about(reward: Reward) -> dict[str, Any]:
    """What one must know of a reward to stand in for it, as plain data.

    Raises:
        UsageError: it has a state, which training could not move from where the stand-in is.
    """
    if reward.state_dict():
        raise UsageError(f"reward {reward.name!r} has a state that training moves; use its parts elsewhere, not it")
    return {
        "name": reward.name,
        "needs": sorted(reward.needs),
        "lacks": {kind: sorted(lacks(reward, {kind})) for kind in MODALITIES},
        "aspects": list(reward.aspects),
        "weights": aspect_weights(reward).tolist(),
        "looks_at": reward.looks_at,
        "version": reward.version,
    }


class RemoteProxy(Stateless):
    """A reward that is elsewhere: `_about`, what `about` says of it there, is asked for when first needed."""

    differentiable = False
    waits = True  # a call waits for somebody else, so it may go on beside sampling
    name: str
    _about: Mapping[str, Any]

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self._about["needs"])

    def lacks(self, offered: AbstractSet[str]) -> frozenset[str]:
        kinds = [kind for kind in MODALITIES if kind in offered]
        wanted = self._about.get("lacks", {}).get(kinds[0]) if len(kinds) == 1 else None
        return frozenset(self.needs if wanted is None else wanted) - offered

    @property
    def aspects(self) -> tuple[str, ...]:
        return tuple(self._about["aspects"])

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(self._about["weights"])

    @property
    def looks_at(self) -> Scope:
        return self._about["looks_at"]

    @property
    def version(self) -> str:
        return self._about["version"]


def digest(*parts: Any) -> str:
    """A short hash of JSON-like parts; the same on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def weights_digest(module: nn.Module) -> str:
    """A short hash of every parameter and buffer, names included."""
    sha = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        sha.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        sha.update(plain.reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()[:16]


def resolve_model(model: str | Path, folder: Path | None = None) -> str:
    """A model's folder, relative to `folder` or a shipped one, or a hub id as it is: see `model_path`."""
    return str(model_path(str(model), folder or Path()))


def column(part: Reward, aspect: str) -> str:
    """The name of a part's aspect inside a combination."""
    return aspect if aspect == part.name else f"{part.name}/{aspect}"


def aspect_weights(reward: Reward) -> Tensor:
    """(K,) what each aspect adds to the reward's total; 1 for each unless the reward has `weights`."""
    return torch.tensor(getattr(reward, "weights", None) or [1.0] * len(reward.aspects))


def widest(scopes: Iterable[Scope]) -> Scope:
    return max(scopes, key=SCOPES.index)


def combine(
    values: Tensor, valid: Tensor, failed: Tensor, weights: Tensor, group: Tensor | None, missing: Missing
) -> tuple[Tensor, Tensor]:
    """Weighted sum over columns, (B,) and where it may be read, (B,): the abstain rule.

    values, valid, failed: (B,P); weights (P,). Columns of weight 0 play no part. A row is unreadable where a column
    failed or where all abstain. Where only some abstain: "zero_advantage" puts the mean of the row's valid siblings in
    their place (without any: 0, the same for all siblings), so that they move no advantage; "renormalise" gives their
    weight to the others; "invalid" makes the row unreadable.
    """
    used = weights != 0
    values, valid, failed, weights = values[:, used], valid[:, used], failed[:, used], weights[used].to(values)
    readable = valid.any(1) & ~failed.any(1)
    values = torch.where(valid, values, 0.0)
    if missing == "invalid":
        readable = valid.all(1)
    elif missing == "zero_advantage":
        values = torch.where(valid, values, _siblings_mean(values, valid, group))
    total = values @ weights
    if missing == "renormalise":
        told = valid.to(values) @ weights.abs()
        total = total * weights.abs().sum() / torch.where(told > 0, told, 1.0)
    return torch.where(readable, total, 0.0), readable


def _siblings_mean(values: Tensor, valid: Tensor, group: Tensor | None) -> Tensor:
    if group is None:
        return torch.zeros_like(values)
    _, index = torch.unique(group.to(values.device), return_inverse=True)
    zeros = values.new_zeros(int(index.max()) + 1 if len(index) else 0, values.shape[1])
    sums = zeros.index_add(0, index, values)
    counts = zeros.index_add(0, index, valid.to(values))
    return (sums / counts.clamp(min=1))[index]


def total_confidence(scores: Scores) -> Tensor:
    """(B,) confidence in the total: the mean over its valid columns, by absolute weight; 0 where it cannot be read."""
    if scores.confidence is None:
        return scores.total_valid.to(scores.values.dtype)
    share = scores.valid.to(scores.values.dtype) * scores.weights.abs()
    mean = (scores.confidence * share).sum(1) / share.sum(1).clamp(min=1e-12)
    return torch.where(scores.total_valid, mean, 0.0)


def sure(
    aspects: tuple[str, ...], values: Tensor, std: Tensor | None = None, info: Mapping[str, list[Any]] | None = None
) -> Scores:
    """Scores (B,K) of a reward that speaks of every row: the total is the sum of the aspects."""
    valid = torch.ones_like(values, dtype=torch.bool)
    ones = torch.ones(len(aspects))
    return Scores(aspects, values, valid, ~valid, values.sum(1), valid.all(1), ones, std=std, info=info or {})


def all_silent(reward: Reward, rows: int) -> Scores:
    """What a reward says that has nothing to say of any row."""
    values = torch.zeros(rows, len(reward.aspects))
    none = torch.zeros_like(values, dtype=torch.bool)
    return Scores(reward.aspects, values, none, none, torch.zeros(rows), none.any(1), aspect_weights(reward))


def all_failed(reward: Reward, rows: int, error: str) -> Scores:
    """What a reward says that could not be asked at all."""
    silent = all_silent(reward, rows)
    return replace(silent, failed=torch.ones_like(silent.failed), info={"error": [error] * rows})


def cat_scores(parts: Sequence[Scores]) -> Scores:
    """Join batches of one reward's scores; confidence and std are kept where any batch has them."""
    first = parts[0]
    keys = {key: None for part in parts for key in part.info}
    return Scores(
        names=first.names,
        values=torch.cat([part.values for part in parts]),
        valid=torch.cat([part.valid for part in parts]),
        failed=torch.cat([part.failed for part in parts]),
        total=torch.cat([part.total for part in parts]),
        total_valid=torch.cat([part.total_valid for part in parts]),
        weights=first.weights,
        confidence=_cat_optional([part.confidence for part in parts], [part.valid for part in parts]),
        std=_cat_optional([part.std for part in parts], [torch.zeros_like(part.values) for part in parts]),
        info={key: [row for part in parts for row in part.info.get(key, [None] * len(part.total))] for key in keys},
    )


def _cat_optional(given: Sequence[Tensor | None], otherwise: Sequence[Tensor]) -> Tensor | None:
    if all(tensor is None for tensor in given):
        return None
    return torch.cat([b.float() if a is None else a for a, b in zip(given, otherwise, strict=True)])


def lacks(reward: Reads, offered: AbstractSet[str]) -> frozenset[str]:
    """What is not `offered` and keeps the reward from saying anything; nothing where it can speak.

    offered: modalities, "prompt", and keys as "facts.answer". A reward made of rewards does not lack a modality for a
    part that the others can do without: that part abstains, and its facts are not asked for.
    """
    own = getattr(reward, "lacks", None)
    return reward.needs - offered if own is None else own(offered)


def unheard(reward: Reward, offered: AbstractSet[str]) -> bool:
    """Whether the reward abstains from all such data, since it reads another modality."""
    return not lacks(reward, offered).isdisjoint(MODALITIES)


def check_needs(reward: Reward, available: Iterable[str]) -> None:
    """Refuse a reward that reads what the data lacks; see `lacks`.

    Raises:
        UsageError: naming the reward, what it needs, and the nearest name on offer.
    """
    offered = set(available)
    lacking = sorted(lacks(reward, offered))
    if lacking:
        absent = [need for need in lacking if need in MODALITIES] or lacking[:1]
        told = f"{'needs' if len(absent) == 1 else 'reads'} {', '.join(map(repr, absent))}"
        raise UsageError(f"reward {reward.name!r} {told}, which the data does not offer{nearest(absent[0], offered)}")


def texts(prompts: Sequence[Prompt]) -> list[str]:
    return [prompt.text for prompt in prompts]


def image_batches(media: Media, size: int) -> list[Tensor]:
    """The images in fp32, (R,3,H,W) with R <= size; one by one where their shapes differ. Autograd is kept."""
    data = media["image"].data
    if isinstance(data, Tensor):
        return list(data.float().split(size))
    return [row[None].float() for row in data if isinstance(row, Tensor)]


def told_cut(name: str, cut: Sequence[bool]) -> dict[str, list[bool]]:
    """What a head that reads texts says beside its scores; `Runner.log` has the share of rows."""
    return {CUT + name: list(cut)}
