"""A recipe built: data, rewards, method and policy, and whether they fit, before any weight loads.

The only place that sees policies, rewards and methods at once.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from genalign.data.prompts import Prompts, read_prompts
from genalign.files.places import data_path, fetch_model, find, modality_of, model_path
from genalign.method import build_method
from genalign.method.search.nrg import Guidance
from genalign.policy import load_policy
from genalign.reward import Runner, build_reward, check_needs
from genalign.reward.fit.noisy import NoisyReward
from genalign.run.recipe import Recipe
from genalign.training.monitor import Monitor
from genalign.types import Method, Policy, Prompt, Reward, UsageError, Weights

log = logging.getLogger("genalign")


@dataclass
class Built:
    """What a recipe stands for. Rewards load their weights at their first call, the policy when it is first read.

    eval_rewards: the training reward and those of `eval.rewards`; held_out: the judge; both for eval_prompts.
    """

    recipe: Recipe
    device: str
    data: Prompts
    reward: Reward | None
    method: Method
    eval_prompts: Prompts | None = None
    eval_rewards: list[Reward] = field(default_factory=list)
    held_out: Reward | None = None
    monitor: Monitor | None = None

    @property
    def asked(self) -> Prompts:
        """The training prompts as the policy is asked: without their pictures, where these are the answers."""
        if getattr(self.recipe.method, "positives", None) != "pictures":
            return self.data
        return replace(self.data, rows=tuple(replace(prompt, media=None) for prompt in self.data))

    @property
    def taught(self) -> tuple[Prompt, ...]:
        """The prompts that the training reward was followed on; none where pairs were given instead."""
        return self.asked.rows if self.reward is not None else ()

    @cached_property
    def policy(self) -> Policy:
        from accelerate.utils import set_seed

        set_seed(self.recipe.train.seed % 2**32)  # of all global generators, so that adapters start equal on every rank
        settings = self.recipe.policy
        folder = fetch_model(model_path(settings.model, self.recipe.folder))
        if settings.writer is not None:
            writer = fetch_model(model_path(settings.writer, self.recipe.folder))
            settings = settings.model_copy(update={"writer": str(writer)})
        return load_policy(settings, folder, self.device)


def build(recipe: Recipe, device: str = "cpu") -> Built:
    """Build data, rewards and method, and check that they fit each other and the policy, before any weight loads.

    Raises:
        UsageError: a method that needs what the reward cannot give, a reward whose needs nothing offers, no prompts.
    """
    folder, settings = recipe.folder, recipe.eval
    data = read_prompts(data_path(recipe.data.prompts, folder))
    data.draw(0, recipe.data.prompts_per_step, recipe.train.seed)
    if recipe.reward is None and data.pairs is not None:
        method = recipe.method.build_on(replace(data.pairs, rows_together=recipe.policy.batch_size))
    else:
        method = with_latent_reward(build_method(recipe.method, folder), folder)
    modality = modality_of(model_path(recipe.policy.model, folder))
    _check_weights(method, recipe, modality)
    _check_noise(method, recipe, modality)
    reward = None if recipe.reward is None else _reward(recipe.reward, folder, modality, data)
    check_fit(method, reward)
    built = Built(recipe, device, data, reward, method)
    if settings is not None:
        prompts = built.eval_prompts = read_prompts(data_path(settings.prompts, folder))
        known = {prompt.text for prompt in data.rows}
        if shown := sum(prompt.text in known for prompt in prompts.rows):
            log.warning("%d of %d prompts in %s are trained on: no exam", shown, len(prompts), settings.prompts)
        built.eval_rewards = [_reward(spec, folder, modality, prompts) for spec in settings.rewards]
        if reward is not None:
            built.eval_rewards.insert(0, reward)
        if settings.held_out is not None:
            built.held_out = _reward(settings.held_out, folder, modality, prompts)
    built.monitor = _monitor(built, modality)
    return built


def _monitor(built: Built, modality: str) -> Monitor | None:
    settings, folder = built.recipe.train.monitor, built.recipe.folder
    if settings is None:
        return None
    prompts = built.eval_prompts or built.asked
    if settings.prompts is not None:
        prompts = read_prompts(data_path(settings.prompts, folder))
    held_out = [_reward(spec, folder, modality, prompts) for spec in settings.held_out]
    if not held_out and built.held_out is not None and settings.prompts is None:
        held_out = [built.held_out]
    if not held_out:
        raise UsageError("train.monitor has no reward to follow; name some in train.monitor.held_out")
    weights: Weights = "policy" if built.recipe.train.ema is None else "ema"
    return Monitor(settings, list(prompts), built.reward, held_out, weights)


def _reward(spec: str | dict[str, Any], folder: Path, modality: str, prompts: Prompts) -> Reward:
    reward = build_reward(spec, folder)
    check_needs(reward, {"prompt", modality, *(f"facts.{name}" for name in prompts.facts())})
    return reward if isinstance(reward, Runner) else Runner(reward)


def _check_weights(method: Method, recipe: Recipe, modality: str) -> None:
    """Refuse a method that needs of the policy what its kind, or the recipe, does not give."""
    if "forward" in method.needs and modality == "text":
        raise UsageError(
            f"method {method.name} needs the forward process of a diffusion model, but {recipe.policy.model} writes "
            f"text; take dpo, grpo or rloo"
        )
    if "ema" in method.needs and recipe.train.ema is None:
        raise UsageError(
            f"method {method.name} draws its samples with averaged weights, but train.ema is null; set train.ema=0.9"
        )


def _check_noise(method: Method, recipe: Recipe, modality: str) -> None:
    """Refuse a method that learns from the density of recorded steps where no step of the sampler has one."""
    sampler = recipe.policy.sampler
    reads_steps = "rollout" in method.needs and "forward" not in method.needs
    if not reads_steps or modality == "text" or recipe.policy.writer is not None:
        return
    silent = {
        "steps is 1, and a last step adds none; take more steps": sampler.steps == 1,
        "kernel is ode; take flow-sde, cps or ddim": sampler.kernel == "ode",
        "noise is 0; raise it": sampler.noise == 0,
    }
    for fault, so in silent.items():
        if so:
            raise UsageError(
                f"method {method.name} learns from the noise that sampling steps add, but policy.sampler.{fault}, or a "
                f"method that reads no steps, such as nft or draft"
            )


def with_latent_reward(method: Method, folder: Path) -> Method:
    """`method`, told where the reward is that guides it, if one does; that loads when it is first asked."""
    if isinstance(method, Guidance):
        name = method.settings.noisy

        @cache
        def latent() -> NoisyReward:
            found = find(name, folder, "assets") or find(name, Path())
            if found is None:
                raise UsageError(
                    f"there is no fitted reward {name!r}; make one by genalign fit-reward RECIPE --out DIR, "
                    f"and set method.noisy=DIR"
                )
            return NoisyReward(found)

        method.latent = latent
    return method


def check_fit(method: Method, reward: Reward | None) -> None:
    """Refuse a method that needs what the reward cannot give.

    Raises:
        UsageError: naming both, and what to do.
    """
    if reward is None and method.needs & {"reward", "reward_grad"}:
        raise UsageError(f"method {method.name} needs a reward, but the recipe has none; add the key 'reward'")
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
            f"method {method.name} learns from labelled pairs and would never ask reward {reward.name}; "
            f"drop the key 'reward' or method.pairs"
        )
