"""genalign: align generative models with rewards, one reward interface for all. Names load when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genalign.loop import start, train
    from genalign.policy import load_policy
    from genalign.recipe import build, load_recipe
    from genalign.reward import build_reward
    from genalign.types import GenalignError, Media, Policy, Prompt, Reward, Scores, Track, Trajectory, UsageError

__all__ = [
    "GenalignError",
    "Media",
    "Policy",
    "Prompt",
    "Reward",
    "Scores",
    "Track",
    "Trajectory",
    "UsageError",
    "build",
    "build_reward",
    "load_policy",
    "load_recipe",
    "start",
    "train",
]
_HOMES = {
    "build": "recipe",
    "build_reward": "reward",
    "load_policy": "policy",
    "load_recipe": "recipe",
    "start": "loop",
    "train": "loop",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'genalign' has no attribute {name!r}")
    return getattr(import_module(f"genalign.{_HOMES.get(name, 'types')}"), name)
