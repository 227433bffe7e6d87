"""A recipe built: data, rewards, method and policy, once it is known that they fit.

The only place that sees policies, rewards and methods at once.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Set
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from genalign.data.prompts import Prompts, read_prompts
from genalign.data.samples import Samples
from genalign.evaluation.base_rows import drawing_digest
from genalign.files.places import adapter_path, data_path, fetch_adapter, fetch_model, find, model_path
from genalign.files.shipped import shipped
from genalign.media.form import ClipForm
from genalign.method import MethodSettings, build_method
from genalign.policy import clip_form_of, load_policy, modalities_of
from genalign.reward import Runner, build_reward, check_needs
from genalign.reward.fit.noisy import NoisyReward
from genalign.reward.runtime.environment import FileEnvironment
from genalign.reward.runtime.resting import Resting
from genalign.run.fits import (
    check_fit,
    check_noise,
    check_policy,
    check_split,
    check_staleness,
    check_weights,
    kind_of,
)
from genalign.run.recipe import Recipe
from genalign.training.monitor import Monitor
from genalign.types import ChecksPrompts, Method, Policy, Prompt, Reward, UsageError, Weights

log = logging.getLogger("genalign")


@dataclass
class Built:
    """What a recipe stands for. Rewards load their weights at their first call, the policy when it is first used.

    data: the training prompts. eval_rewards: the training reward and those of `eval.rewards`; held_out: the judges,
    which are never optimised; all score eval_prompts.
    """

    recipe: Recipe
    device: str
    data: Prompts
    reward: Reward | None
    method: Method
    eval_prompts: Prompts | None = None
    eval_rewards: list[Reward] = field(default_factory=list)
    held_out: list[Reward] = field(default_factory=list)
    monitor: Monitor | None = None
    environment: FileEnvironment | None = None

    @property
    def prompts_to_sample(self) -> Prompts:
        """The training prompts as sampling sees them: without their pictures, where these are the answers."""
        if not self.recipe.method.pictures_are_answers:
            return self.data
        return replace(self.data, rows=tuple(replace(prompt, media=None) for prompt in self.data))

    @property
    def rewarded_prompts(self) -> tuple[Prompt, ...]:
        """The prompts whose samples the training reward scored; none where pairs were given instead."""
        return self.prompts_to_sample.rows if self.reward is not None else ()

    @property
    def drawing(self) -> str | None:
        """The digest of how an evaluation draws the base; None where its model is not shipped, so that nobody could
        have shipped its rows."""
        settings, report = self.recipe.policy, self.recipe.eval
        names = [settings.model] if settings.writer is None else [settings.model, settings.writer]
        models = [model_path(name, self.recipe.folder) for name in names]
        models += [adapter_path(name, self.recipe.folder) for name in settings.adapters_merged]
        room = shipped("assets").resolve()
        own = [Path(model).resolve() for model in models if Path(model).resolve().is_relative_to(room)]
        if report is None or self.eval_prompts is None or len(own) < len(models):
            return None
        return drawing_digest(own, settings, report, self.eval_prompts.digest)

    @cached_property
    def policy(self) -> Policy:
        from accelerate.utils import set_seed

        set_seed(self.recipe.train.seed % 2**32)  # all global generators, so that adapters start equal on every rank
        settings = self.recipe.policy
        folder = fetch_model(model_path(settings.model, self.recipe.folder))
        if settings.writer is not None:
            writer = fetch_model(model_path(settings.writer, self.recipe.folder))
            settings = settings.model_copy(update={"writer": str(writer)})
        if settings.adapters_merged:
            adapters = [fetch_adapter(adapter_path(name, self.recipe.folder)) for name in settings.adapters_merged]
            settings = settings.model_copy(update={"merged": [str(adapter) for adapter in adapters]})
        if settings.quantization is not None and settings.quantization.endswith(".gguf"):
            file = find(settings.quantization, self.recipe.folder) or Path(settings.quantization)
            settings = settings.model_copy(update={"quantization": str(file)})
        if settings.cache is not None:
            at = self.recipe.folder / Path(settings.cache.folder).expanduser()
            settings = settings.model_copy(update={"cache": settings.cache.model_copy(update={"folder": str(at)})})
        return load_policy(settings, folder, self.device, self.environment)


def build(recipe: Recipe, device: str = "cpu") -> Built:
    """Build data, rewards and method, and check that they fit each other and the policy, before any weight loads.

    Raises:
        UsageError: a method that needs what the reward cannot give, a reward whose needs nothing offers, no prompts.
    """
    folder, settings = recipe.folder, recipe.eval
    model = model_path(recipe.policy.model, folder)
    made, form = modalities_of(model), clip_form_of(recipe.policy, model)
    data = read_prompts(data_path(recipe.data.prompts, folder), kind_of(made), recipe.takes_samples)
    data = replace(data, order=recipe.data.order)
    data.draw(0, recipe.data.prompts_per_step, recipe.train.seed)
    method = _on_given(recipe, data, made, form) if recipe.reward is None else method_of(recipe.method, folder)
    check_policy(recipe, made)
    check_split(recipe)
    environment = _environment(recipe, data)
    check_weights(method, recipe, made)
    check_noise(method, recipe, made)
    rest = recipe.policy.offload is not None
    reward = None if recipe.reward is None else _reward(recipe.reward, folder, made, data, rest)
    check_fit(method, reward, kind_of(made) in recipe.method.learns_from)
    check_staleness(recipe, method, reward, made)
    built = Built(recipe, device, data, reward, method, environment=environment)
    if settings is not None:
        prompts = built.eval_prompts = read_prompts(
            data_path(settings.prompts, folder), kind_of(made), recipe.takes_samples
        )
        training = set(map(_asked, data.rows))
        if shared := sum(_asked(prompt) in training for prompt in prompts.rows):
            what = "%d of %d prompts in %s are also training prompts, so this evaluation is not held out"
            log.warning(what, shared, len(prompts), settings.prompts)
        built.eval_rewards = [_reward(spec, folder, made, prompts, rest) for spec in settings.rewards]
        if reward is not None:
            built.eval_rewards.insert(0, reward)
        built.held_out = [_reward(spec, folder, made, prompts, rest) for spec in settings.judges]
    built.monitor = _monitor(built, made)
    return built


def _on_given(recipe: Recipe, data: Prompts, made: Set[str], form: ClipForm | None) -> Method:
    """The method of a recipe without a reward: on the pairs or the samples that its data hold, or on neither."""
    source = data.samples if recipe.takes_samples else data.pairs
    if source is None:
        if recipe.takes_samples and made != {"text"}:
            raise UsageError(
                f"{data.path} names no {kind_of(made)}s to learn from; name a file in each row, as "
                f'{{"prompt": ..., "{kind_of(made)}": ...}}, or add the key \'reward\''
            )
        return method_of(recipe.method, recipe.folder)
    if source.kind not in made:
        kind, verb = kind_of(made), "prefers" if data.pairs is not None else "names"
        raise UsageError(f"{data.path} {verb} {source.kind}s, but {recipe.policy.model} makes {kind}s")
    if len(made) > 1:
        raise UsageError(
            f"{recipe.policy.model} makes {' and '.join(sorted(made, reverse=True))} at once, which cannot be encoded "
            f"from files; train it on its own samples, with a reward"
        )
    source = replace(source, rows_together=recipe.policy.batch_size, form=form)
    source.check()
    if isinstance(source, Samples):
        return recipe.method.build_on_samples(source)
    return recipe.method.build_on(source, recipe.folder)


def check_prompts(built: Built) -> None:
    """Refuse a prompt that the policy cannot read, of those that it will train on or be evaluated on; its weights load.

    Raises:
        UsageError: with the file and the line: longer than the model's context, or media that the model cannot take.
    """
    if not isinstance(built.policy, ChecksPrompts):
        return
    check = built.policy.check_prompt
    pairs = built.data.pairs if built.reward is None else None
    if pairs is not None and pairs.kind == "text":
        for prompt in built.data:
            for answer in pairs.load([prompt.uid])["text"].data:
                _placed(built.data.place(prompt.uid), check, prompt, answer)
    else:
        for prompt in built.prompts_to_sample:
            _placed(built.data.place(prompt.uid), check, prompt)
    held_out = built.eval_prompts
    if held_out is not None and built.recipe.eval is not None:
        for prompt in held_out.rows[: built.recipe.eval.count]:
            _placed(held_out.place(prompt.uid), check, prompt)
    for prompt in built.monitor.prompts if built.monitor is not None else ():
        _placed("a prompt of train.monitor", check, prompt)


def _placed(place: str, check: Callable[..., None], *given: Any) -> None:
    try:
        check(*given)
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from error


def _asked(prompt: Prompt) -> tuple[str, ...]:
    """What makes two prompts one: the text, and the pictures that it is about."""
    pictures = prompt.media["image"] if prompt.media is not None and "image" in prompt.media else ()
    return prompt.text, *(hashlib.sha256(picture.contiguous().numpy().tobytes()).hexdigest() for picture in pictures)


def _monitor(built: Built, made: Set[str]) -> Monitor | None:
    settings, report, folder = built.recipe.train.monitor, built.recipe.eval, built.recipe.folder
    if settings is None:
        return None
    prompts = built.eval_prompts or built.prompts_to_sample
    if settings.prompts is not None:
        prompts = read_prompts(data_path(settings.prompts, folder), kind_of(made), built.recipe.takes_samples)
    rest = built.recipe.policy.offload is not None
    held_out = [_reward(spec, folder, made, prompts, rest) for spec in settings.held_out]
    if not held_out and settings.prompts is None:
        held_out = built.held_out
    if not held_out:
        raise UsageError("train.monitor has no reward to follow; name some in train.monitor.held_out")
    if report is not None:
        own = settings.model_dump(include={"steps", "guidance"}, exclude_none=True)
        settings = settings.model_copy(update={"steps": report.steps, "guidance": report.guidance[0], **own})
    # Counted apart: what a look scores is not among the failures and abstentions of the steps.
    proxy = built.reward.apart() if isinstance(built.reward, Runner) else built.reward
    weights: Weights = "policy" if built.recipe.train.ema is None else "ema"
    return Monitor(settings, _watched_prompts(built, prompts), proxy, held_out, weights)


def _watched_prompts(built: Built, prompts: Prompts) -> list[Prompt]:
    """Of eval.prompts those that the report leaves out, so that it stays blind to a choice by looks."""
    settings, report, rows = built.recipe.train.monitor, built.recipe.eval, list(prompts)
    if report is None or settings is None or settings.prompts is not None:
        return rows
    apart = rows[report.count :]
    if not apart and settings.stop == "peak":
        what = (
            "the checkpoint is chosen on prompts of the report, which flatters it: eval.count %d leaves none of %s out"
        )
        log.warning(what, report.count, report.prompts)
    return apart or rows


def _reward(
    spec: str | dict[str, Any], folder: Path, made: Set[str], prompts: Prompts, resting: bool = False
) -> Reward:
    """resting: its networks are on the device while it scores, and on the CPU else."""
    reward = build_reward(spec, folder)
    check_needs(reward, {"prompt", *made, *(f"facts.{name}" for name in prompts.facts())})
    if isinstance(reward, Runner):
        return reward
    return Runner(Resting(reward) if resting else reward)


def _environment(recipe: Recipe, data: Prompts) -> FileEnvironment | None:
    """What answers the model's turns.

    Raises:
        UsageError: it reads a fact that the prompts lack.
    """
    if recipe.policy.environment is None:
        return None
    found = FileEnvironment(recipe.policy.environment, recipe.folder)
    lacking = sorted(found.needs - {"text", "prompt", *(f"facts.{name}" for name in data.facts())})
    if lacking:
        raise UsageError(
            f"policy.environment {recipe.policy.environment} reads {lacking[0]}, which not all prompts of {data.path} "
            f"have; add it, or give the parameter a default"
        )
    return found


def method_of(settings: MethodSettings, folder: Path) -> Method:
    """The method of these settings, with the fitted reward that guides it, if one does; that loads when first called.

    Raises:
        UsageError: what the method cannot read, such as a malformed file of labelled pairs.
    """
    name = settings.guided_by
    if name is None:
        return build_method(settings, folder)

    @cache
    def latent() -> NoisyReward:
        found = find(name, folder, "assets") or find(name, Path())
        if found is None:
            raise UsageError(
                f"there is no fitted reward {name!r}; make one by genalign fit-reward RECIPE --out DIR, "
                f"and set method.noisy=DIR"
            )
        return NoisyReward(found)

    return settings.build_guided(latent)
