"""What a recipe may say under `method`, and the presets that fill in the rest."""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from genalign.types import UsageError

GRADIENT = {"advantage", "std", "baseline", "advantage_clip", "clip_nats", "kl_beta", "loss_per"}
PREFERENCE = {"loss", "beta", "gamma", "pair_rule", "min_gap", "pairs", "trajectories"}

PRESETS: dict[str, dict[str, Any]] = {
    "ddpo": {"group": 4, "baseline": "batch", "std": "batch", "advantage_clip": 5.0, "clip_nats": (1.6, 1.6)},
    "flow-grpo": {"group": 16, "std": "batch", "advantage_clip": 5.0, "clip_nats": (1.0, 1.0)},
    "grpo": {"group": 8, "clip_nats": (0.22, 0.18)},
    "rloo": {"group": 4, "baseline": "leave_one_out", "std": "none", "loss_per": "row", "clip_nats": (0.22, 0.18)},
    "d3po": {"group": 4, "loss": "sigmoid", "beta": 0.1},
    "dpo": {"group": 4, "loss": "sigmoid", "beta": 0.1},
}


class MethodSettings(BaseModel):
    """A method is a preset's name; keys given beside it replace what the preset says.

    Raises UsageError for an unknown name, and for a key that the named method would never read.
    """

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str
    """ddpo, flow-grpo, grpo, rloo (policy gradients); d3po, dpo (preferences)."""
    group: int = Field(8, ge=1)
    """Samples per prompt."""
    updates_per_rollout: int = Field(1, ge=1)
    """Optimizer updates each rollout is split into; more than one makes the later ones off-policy."""

    advantage: Literal["sum_then_normalise", "normalise_then_sum"] = "sum_then_normalise"
    """Normalise the reward's total, or each of its aspects before they are summed (GDPO)."""
    std: Literal["group", "batch", "none"] = "group"
    """Divide a centred score by the standard deviation of its group, of the whole batch, or not at all."""
    baseline: Literal["group", "batch", "leave_one_out"] = "group"
    """What a score is compared with: the mean of its group, of the batch, or of its siblings."""
    advantage_clip: float | None = Field(None, gt=0)
    """Bound on |advantage|; null: none."""
    clip_nats: tuple[float, float] = (0.2, 0.2)
    """How far, down and up, a step's summed log-ratio may move before its gradient stops, in nats."""
    kl_beta: float = Field(0.0, ge=0)
    """Weight of the KL divergence from the reference per step, in nats."""
    loss_per: Literal["step", "row"] = "step"
    """What the loss is a mean over: steps of rows that count (GRPO), or rows, whose steps are summed (RLOO)."""

    loss: Literal["sigmoid", "ipo", "hinge", "simpo"] = "sigmoid"
    """The preference loss."""
    beta: float = Field(0.1, gt=0)
    """Inverse temperature of the preference, per nat of the summed log-ratio (ipo, simpo: of the mean one)."""
    gamma: float = 0.0
    """Margin of simpo."""
    pair_rule: Literal["best_worst", "all"] = "best_worst"
    """Pairs made of a scored group: its best and worst sample, or every two."""
    min_gap: float = Field(0.0, ge=0)
    """Least difference of reward between winner and loser."""
    pairs: str | None = None
    """A .jsonl of labelled pairs, {prompt, chosen_seed, rejected_seed, model, sampler} a line; null: by reward."""

    trajectories: str | None = None
    """A folder of stored trajectories to read labelled pairs from; null: they are drawn again from their seeds."""

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("name"), str):
            return given
        name = given["name"]
        if name not in PRESETS:
            close = difflib.get_close_matches(name, PRESETS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(PRESETS)}"
            raise UsageError(f"there is no method {name!r}; {hint}")
        return {**PRESETS[name], **given}

    @model_validator(mode="after")
    def _consistent(self) -> MethodSettings:
        idle = GRADIENT if self.by_preference else PREFERENCE
        for key in sorted(idle):
            if getattr(self, key) != type(self).model_fields[key].default:
                kin = ", ".join(
                    name for name in PRESETS if key in (GRADIENT if "loss" not in PRESETS[name] else PREFERENCE)
                )
                raise UsageError(f"method {self.name} does not read method.{key}; drop it or take one of {kin}")
        if self.trajectories is not None and self.pairs is None:
            raise UsageError("method.trajectories holds the samples of labelled pairs; name those in method.pairs")
        if self.group == 1 and self.baseline != "batch" and self.pairs is None:
            raise UsageError(f"method {self.name} compares siblings, so method.group must be at least 2")
        return self

    @property
    def by_preference(self) -> bool:
        """Whether the method learns from pairs; else from advantages."""
        return "loss" in PRESETS[self.name]
