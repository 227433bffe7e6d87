"""genalign: align generative models with rewards, one reward interface for all. Names load when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genalign.cli.eval_reward import evaluate_reward
    from genalign.cli.evaluate import evaluate_run, evaluate_suites
    from genalign.cli.fit_reward import fit_reward
    from genalign.cli.sample import sample
    from genalign.cli.score import score
    from genalign.cli.search import search
    from genalign.policy import load_policy
    from genalign.reward import build_reward
    from genalign.run.build import build
    from genalign.run.recipe import load_recipe
    from genalign.training.loop import train
    from genalign.training.progress import start
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
    "evaluate_reward",
    "evaluate_run",
    "evaluate_suites",
    "fit_reward",
    "load_policy",
    "load_recipe",
    "sample",
    "score",
    "search",
    "start",
    "train",
]
_HOMES = {
    "build": "run.build",
    "build_reward": "reward",
    "evaluate_reward": "cli.eval_reward",
    "evaluate_run": "cli.evaluate",
    "evaluate_suites": "cli.evaluate",
    "fit_reward": "cli.fit_reward",
    "load_policy": "policy",
    "load_recipe": "run.recipe",
    "sample": "cli.sample",
    "score": "cli.score",
    "search": "cli.search",
    "start": "training.progress",
    "train": "training.loop",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'genalign' has no attribute {name!r}")
    return getattr(import_module(f"genalign.{_HOMES.get(name, 'types')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
