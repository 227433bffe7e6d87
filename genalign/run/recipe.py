"""Recipes: one YAML file with six keys, checked as a whole before any weight loads.

    policy: {...}   data: {...}   reward: file.yaml | {...}   method: {name: ...}   train: {...}   eval: {...}

A relative path in a recipe is relative to the recipe's folder, then to the shipped rooms; a model is a folder, a name
in the shipped assets, or a hub id.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, PrivateAttr, SerializeAsAny

from genalign.data.prompts import DataSettings
from genalign.evaluation.settings import EvalSettings
from genalign.files.places import portable, stable_name
from genalign.files.settings import read_recipe
from genalign.method.settings import MethodSettings
from genalign.policy.settings import PolicySettings
from genalign.training.settings import TrainSettings

RECIPE = "recipe.yaml"  # in a run folder
MAY_CHANGE = (  # on resuming: none of these reaches the arithmetic of a step
    "train.steps",
    "train.resume",
    "train.copy_to",
    "train.backend",
    "train.report_to",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.sample_every",
    "train.monitor",
    "eval",
)


class Recipe(BaseModel):
    """A training run, whole. `folder` is what its relative paths are relative to."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    policy: PolicySettings
    """The model, its adapter and how it is sampled."""
    data: DataSettings
    """The prompts."""
    reward: str | dict[str, Any] | None = None
    """What is good: a reward file, `file.py:function`, or a reward file's mapping. None: given pairs show it."""
    method: SerializeAsAny[MethodSettings]
    """How the policy learns from it."""
    train: TrainSettings = TrainSettings()
    """Steps, optimizer, checkpoints."""
    eval: EvalSettings | None = None
    """Before against after on held-out prompts; None: no evaluation at the end."""
    _folder: Path = PrivateAttr(default=Path())
    _name: str = PrivateAttr(default="recipe")

    @property
    def folder(self) -> Path:
        return self._folder

    @property
    def name(self) -> str:
        """File stem: run folders are called after it."""
        return self._name

    @property
    def takes_samples(self) -> bool:
        """Whether it learns from given samples, without a reward."""
        return self.reward is None and self.method.learns_from_samples

    def resolved(self) -> dict[str, Any]:
        """Plain data with every default written out, which means the same from any folder: what is shipped goes by its
        name, so that a run folder can move between machines; what is local goes by its full path."""
        plain = portable(self.model_dump(mode="json"), self.folder, folders=True)
        places: list[tuple[dict[str, Any] | None, str, tuple[str, ...]]] = [
            (plain["policy"], "model", ("assets",)),
            (plain["policy"], "writer", ("assets",)),
            (plain["policy"], "merged", ("assets",)),
            (plain["data"], "prompts", ("assets",)),
            (plain["eval"], "prompts", ("assets",)),
            (plain["train"]["monitor"], "prompts", ("assets",)),
            *((plain["method"], key, rooms) for key, rooms in self.method.folders.items()),
        ]
        for section, key, rooms in places:
            if section is None or not section[key]:
                continue
            if isinstance(section[key], list):
                section[key] = [stable_name(name, self.folder, *rooms) for name in section[key]]
            else:
                section[key] = stable_name(section[key], self.folder, *rooms)
        reward = plain["reward"]
        if isinstance(reward, str) and Path(reward).is_absolute():  # else it is a name, which is found from anywhere
            plain["reward"] = stable_name(reward, self.folder, "rewards")
        return plain


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, a path or a name that `genalign ls` prints, and apply `a.b=c` overrides (values are YAML).

    Paths in the recipe are relative to its folder. Those in overrides are seen from the working directory first: files,
    and folders that are written with a slash.

    Raises:
        UsageError: no such recipe, not YAML, an unknown key (the nearest one is named) or a value of the wrong kind.
    """
    parsed, path = read_recipe(str(recipe), overrides, Recipe)
    parsed._folder, parsed._name = path.resolve().parent, path.stem
    return parsed


def may_change(recipe: Recipe) -> list[str]:
    """The keys that a resumed run may set anew; how far a rate has fallen depends on how many steps there are."""
    falling = recipe.train.schedule != "constant"
    return [key for key in MAY_CHANGE if not (falling and key == "train.steps")]
