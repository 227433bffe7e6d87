"""A reward that `genalign fit-reward` fitted: a folder with reward.json and reward.safetensors, named by `use`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from genalign.data.judged import Kind
from genalign.files.shipped import shipped
from genalign.reward.base import Stateless, cut_info, digest, weights_digest
from genalign.reward.fit.backbones import Backbone, BackboneSettings, ClipFeatures, build_backbone
from genalign.reward.fit.heads import AspectHeads
from genalign.reward.fit.train import PERSONAL, Fit, build_head
from genalign.reward.prefetch import Prefetch
from genalign.reward.scores import readable_rows
from genalign.types import Media, Prompt, Scores, UsageError, nearest

CONFIG, WEIGHTS = "reward.json", "reward.safetensors"


def save_fitted(
    folder: Path,
    head: Any,
    fit: Fit,
    backbone: BackboneSettings,
    reads: Kind,
    features: int,
    users: Sequence[str],
    **more: Any,
) -> None:
    """Write a head and what it needs to be used: the backbone by name, the width of its features, its users. more:
    of_prompt, how many of the features come of the prompt; and of several aspects their names and spreads."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "backbone": backbone.model_dump(),
        "reads": reads,
        "features": features,
        "users": list(users),
        **more,
        **fit.model_dump(include={"head", "loss"}),
    }
    save_file({name: tensor.contiguous() for name, tensor in head.state_dict().items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def fitted_folder(name: str, *beside: Path) -> Path | None:
    """The folder of a fitted reward called `name`, relative to one of `beside` or among the shipped ones, if any."""
    places = (place / Path(name).expanduser() for place in (*beside, shipped("assets")))
    return next((place.resolve() for place in places if (place / CONFIG).is_file()), None)


class FittedReward(Stateless):
    """One number a sample, in logits (or in the unit of the ratings it was fitted to); higher is better. Of a fit to
    several aspects one number each, and their sum as the total, each divided by its spread over what it was fitted to.

    folder: what `genalign fit-reward` wrote. user: whose taste, of a personal reward; None: that of the user whom a
    prompt's facts name, or a stranger's. A head that only compares (losses gpm, yes-no) scores by the share of its
    siblings that a sample beats, in [0,1], and abstains where there are none; `compare` gives its logits.

    Raises:
        UsageError: no fitted reward there, one that cannot be read, or an unknown user.
    """

    def __init__(
        self, folder: str | Path, *, user: str | None = None, batch_size: int | None = None, name: str | None = None
    ) -> None:
        self.folder = Path(folder)
        self.name = name or self.folder.name
        try:
            config = json.loads((self.folder / CONFIG).read_text(encoding="utf-8"))
            self.fit = Fit.model_validate({key: config[key] for key in ("head", "loss")})
            settings = BackboneSettings.model_validate(config["backbone"])
            self.users, self.features = tuple(map(str, config["users"])), int(config["features"])
            reads: Kind = config["reads"]
            self.of_prompt = int(config.get("of_prompt", 0))
            self.several = "aspects" in config
            self.aspects = tuple(map(str, config["aspects"])) if self.several else (self.name,)
            self.weights = tuple(1 / float(spread) for spread in config["spread"]) if self.several else ()
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, ValidationError) as error:
            raise UsageError(
                f"{self.folder} holds no fitted reward ({error}); make one by genalign fit-reward"
            ) from error
        if user is not None and user not in self.users:
            raise UsageError(f"reward {self.name!r} does not know the user {user!r}{nearest(user, self.users)}")
        self.user = user
        settings = settings.model_copy(update={"batch_size": batch_size or settings.batch_size})
        self.backbone: Backbone = build_backbone(settings, reads, self.folder)
        self.needs = self.backbone.needs
        self.pairwise = self.fit.loss.name in ("gpm", "yes-no") and self.fit.head.kind not in PERSONAL
        self.looks_at: Literal["sample", "group"] = "group" if self.pairwise else "sample"
        self.differentiable = self.backbone.differentiable and not self.pairwise

    @cached_property
    def head(self) -> Any:
        head = self._untrained()
        try:
            head.load_state_dict(load_file(self.folder / WEIGHTS))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UsageError(
                f"{self.folder / WEIGHTS} does not fit {CONFIG}: {' '.join(str(error).split())}"
            ) from error
        return head.eval().requires_grad_(False)

    def _untrained(self) -> Any:
        if not self.several:
            return build_head(self.fit, self.features, len(self.users), self.of_prompt)
        heads, reads = [], []
        for aspect in self.aspects:
            of_prompt = 0 if aspect in self.fit.head.blind else self.of_prompt
            reads.append(self.features - (self.of_prompt - of_prompt))
            heads.append(build_head(self.fit, reads[-1], 0, of_prompt))
        return AspectHeads(heads, reads)

    @property
    def version(self) -> str:
        return digest("fitted", self.name, self.backbone.version, weights_digest(self.head), self.users, self.user)

    def prefetches(self, modalities: AbstractSet[str]) -> tuple[Prefetch, ...]:
        backbone = self.backbone
        return backbone.clip.prefetches(modalities) if isinstance(backbone, ClipFeatures) else ()

    @readable_rows
    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        rows = self.backbone.features(prompts, media)
        head, users = self.head.to(rows.device), self._users(prompts).to(rows.device)
        cut = cut_info(self.name, self.backbone.cut(prompts, media))
        if self.several:
            values = head.score(rows, users).cpu()
            valid = torch.ones_like(values, dtype=torch.bool)
            weights = torch.tensor(self.weights)
            return Scores(self.aspects, values, valid, ~valid, values @ weights, valid.all(1), weights, info=cut)
        if self.pairwise:
            value, valid = self._win_rate(rows, users, torch.arange(len(rows)) if group is None else group)
        else:
            value, valid = head.score(rows, users).cpu(), torch.ones(len(rows), dtype=torch.bool)
        none = torch.zeros_like(valid)[:, None]
        return Scores(self.aspects, value[:, None], valid[:, None], none, value, valid, torch.ones(1), info=cut)

    def faults(self, prompts: Sequence[Prompt], media: Media) -> list[str | None]:
        """Also: what the backbone cannot read."""
        both = zip(super().faults(prompts, media), self.backbone.faults(media, len(prompts)), strict=True)
        return [fault or more for fault, more in both]

    def compare(self, prompts: Sequence[Prompt], a: Media, b: Media) -> Tensor:
        """(B,) logits that a is better than b, antisymmetric; NaN where either cannot be read."""
        faults = zip(self.faults(prompts, a), self.faults(prompts, b), strict=True)
        rows = [row for row, both in enumerate(faults) if both == (None, None)]
        if len(rows) < len(prompts):
            lead = torch.full((len(prompts),), torch.nan)
            if rows:
                lead[rows] = self.compare([prompts[row] for row in rows], a.select(rows), b.select(rows))
            return lead
        rows_a, rows_b = self.backbone.features(prompts, a), self.backbone.features(prompts, b)
        head, users = self.head.to(rows_a.device), self._users(prompts).to(rows_a.device)
        if self.several:
            weights = torch.tensor(self.weights, device=rows_a.device)
            return ((head.score(rows_a, users) - head.score(rows_b, users)) @ weights).cpu()
        return head.compare(rows_a, rows_b, users).cpu()

    def _users(self, prompts: Sequence[Prompt]) -> Tensor:
        names = [self.user if self.user is not None else prompt.facts.get("user") for prompt in prompts]
        place = {name: number for number, name in enumerate(self.users)}
        return torch.tensor([place.get(str(name), -1) for name in names])

    def _win_rate(self, rows: Tensor, users: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) the mean probability of beating a sibling, and whether there is one."""
        value, valid = torch.zeros(len(rows)), torch.zeros(len(rows), dtype=torch.bool)
        for name in group.unique():
            mine = (group == name).nonzero()[:, 0]
            if len(mine) < 2:
                continue
            a, b = torch.cartesian_prod(mine, mine).unbind(1)
            won = self.head.compare(rows[a], rows[b], users[a]).sigmoid().cpu().view(len(mine), len(mine))
            value[mine] = (won.sum(1) - won.diagonal()) / (len(mine) - 1)
            valid[mine] = True
        return value, valid
