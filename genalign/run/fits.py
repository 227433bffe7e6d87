"""Whether the parts that a recipe names fit each other, said before any weight loads."""

from __future__ import annotations

from collections.abc import Set

from genalign.files.places import model_path
from genalign.policy import denoises_text
from genalign.policy.settings import PolicySettings
from genalign.reward import Runner
from genalign.run.recipe import Recipe
from genalign.types import MODALITIES, Method, Modality, Pausing, Reward, UsageError


def kind_of(made: Set[str]) -> Modality:
    """Which of the media that a model makes its plain pairs of samples hold: what is seen before what is heard."""
    return next(medium for medium in MODALITIES if medium in made)


def check_policy(recipe: Recipe, made: Set[str]) -> None:
    """Refuse a setting of models that draw, where a language model would not read it."""
    plain, file = PolicySettings(model=recipe.policy.model), recipe.policy.quantization or ""
    for key in ("vae", "cache"):
        if made == {"text"} and getattr(recipe.policy, key) != getattr(plain, key):
            raise UsageError(
                f"policy.{key} is of models that draw, but {recipe.policy.model} writes text; leave it out, and lower"
                " policy.batch_size to save memory"
            )
    if made == {"text"} and file.endswith(".gguf"):
        raise UsageError(
            f"policy.quantization {file} holds a denoiser in the bits of the file, but {recipe.policy.model} writes"
            " text; set policy.model to a .gguf file of a language model, or take bitsandbytes-nf4"
        )
    if recipe.policy.environment is not None and made != {"text"}:
        raise UsageError(
            f"policy.environment answers language models, but {recipe.policy.model} makes {kind_of(made)}s; "
            f"leave it out"
        )


def check_weights(method: Method, recipe: Recipe, made: Set[str]) -> None:
    """Refuse a method that needs of the policy what its kind, or the recipe, does not give."""
    if (
        "forward" in method.needs
        and made == {"text"}
        and not denoises_text(model_path(recipe.policy.model, recipe.folder))
    ):
        raise UsageError(
            f"method {method.name} needs the forward process of a diffusion model, but {recipe.policy.model} writes "
            f"text; take dpo, grpo or rloo"
        )
    if "ema" in method.needs and recipe.train.ema is None:
        raise UsageError(
            f"method {method.name} draws its samples with averaged weights, but train.ema is null; set train.ema=0.9"
        )


def check_noise(method: Method, recipe: Recipe, made: Set[str]) -> None:
    """Refuse a method that learns from the density of recorded steps where no step of the sampler has one."""
    sampler = recipe.policy.sampler
    reads_steps = "rollout" in method.needs and "forward" not in method.needs
    if not reads_steps or made == {"text"} or recipe.policy.writer is not None:
        return
    faults = {
        "steps is 1, and a last step adds none; take more steps": sampler.steps == 1,
        "kernel is ode; take flow-sde, cps or ddim": sampler.kernel == "ode",
        "noise is 0; raise it": sampler.noise == 0,
    }
    for fault, present in faults.items():
        if present:
            raise UsageError(
                f"method {method.name} learns from the noise that sampling steps add, but policy.sampler.{fault}, or a "
                f"method that reads no steps, such as nft or draft"
            )


def check_fit(method: Method, reward: Reward | None, takes_pairs: bool = False) -> None:
    """Refuse a method that needs what the reward cannot give. takes_pairs: it learns from given pairs as well.

    Raises:
        UsageError: naming both, and what to do.
    """
    if reward is None and method.needs & {"reward", "reward_grad"}:
        pairs = ", or 'chosen' and 'rejected' to each row of data.prompts" if takes_pairs else ""
        raise UsageError(f"method {method.name} needs a reward, but the recipe has none; add the key 'reward'{pairs}")
    if reward is not None and "reward_grad" in method.needs and not reward.differentiable:
        raise UsageError(
            f"method {method.name} needs gradients of the reward, but reward {reward.name} is not differentiable; "
            f"take a differentiable reward such as clip, or a method that only needs scores"
        )
    if reward is not None and "constraints" in method.needs and not any(a.endswith("/excess") for a in reward.aspects):
        raise UsageError(
            f"method.advantage is lagrangian, but reward {reward.name} has no constraint; put one beside the task in a "
            f"sum (key 'constraint'), or take another advantage"
        )
    if reward is not None and "pairs" in method.needs and "reward" not in method.needs:
        raise UsageError(
            f"method {method.name} learns from labelled pairs and would never call reward {reward.name}; "
            f"drop the key 'reward' or method.pairs"
        )


def check_staleness(recipe: Recipe, method: Method, reward: Reward | None, made: Set[str]) -> None:
    """Refuse to learn from samples of a step ago where that would be wrong, or no faster."""
    if recipe.train.staleness == 0:
        return
    if not isinstance(method, Pausing) or "reward" not in method.needs:
        raise UsageError(
            f"train.staleness 1 scores a step's samples beside the sampling of the next, but method {method.name} has "
            f"none that a reward scores, or keeps no density of those that it drew a step ago; set train.staleness=0"
        )
    if isinstance(reward, Runner) and not reward.prefetches(frozenset(made)):
        raise UsageError(
            f"train.staleness 1 would gain nothing: reward {reward.name} is computed in this process, or on all "
            f"samples at once; set train.staleness=0, or score elsewhere, as by run: {{on: process}}"
        )


def check_split(recipe: Recipe) -> None:
    """Refuse to split weights over ranks that are moved, or held in another form than torch's own."""
    for key in ("offload", "quantization"):
        if recipe.train.backend == "fsdp2" and getattr(recipe.policy, key) is not None:
            raise UsageError(
                f"train.backend fsdp2 splits the frozen weights over ranks, which policy.{key} does not bear; leave "
                f"one of them out"
            )
