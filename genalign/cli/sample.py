"""Samples from a model, a recipe or a run, drawn one by one: what a program calls; sample_files.py writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from genalign.data.prompts import read_prompts
from genalign.files.places import fetch_model, model_path, shipped_recipes
from genalign.files.settings import apply_override, settings_of
from genalign.policy import modalities_of
from genalign.run.build import Built, build
from genalign.run.folder import load_run
from genalign.run.recipe import RECIPE, load_recipe
from genalign.types import ChecksPrompts, Media, Policy, Prompt, Trajectory, UsageError


def device() -> str:
    """Where models load: on a GPU if torch sees one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


PLAIN = "plain"  # the search that is none: what the others are compared with


@runtime_checkable
class Storing(Protocol):
    """A policy whose trajectories can be written, and that names by digests what drew them."""

    def save_trajectory(self, trajectory: Trajectory, path: Path) -> None: ...

    def digest(self) -> Mapping[str, str]: ...


@dataclass
class Source:
    """Where samples come from; `open_source` makes one, and it can be drawn from again and again.

    load: makes the policy when it is first drawn from. tuned: it has an adapter that can be switched off. batch:
    samples in one forward pass. made: the modalities that the model makes. built: the recipe, where there is one.
    """

    load: Callable[[], Policy]
    tuned: bool
    batch: int
    made: Set[str]
    built: Built | None = None

    @cached_property
    def policy(self) -> Policy:
        return self.load()


@dataclass(frozen=True)
class Sample:
    """One sample: media of one row, its prompt, and the seed that draws it again.

    search: the search that found it, None of a plain draw. score: the reward that it was searched by, None where that
    abstained. units: what it cost in network passes of one sample. digests: of model and sampler, of a stored rollout.
    """

    media: Media
    prompt: Prompt
    seed: int
    search: str | None = None
    score: float | None = None
    units: float = 0.0
    digests: Mapping[str, str] = field(default_factory=dict)


def open_source(source: str | Path, overrides: Sequence[str] = ()) -> Source:
    """A run folder, a recipe (a file, or a shipped name), a model's folder, a shipped model or a hub id, to draw from.

    overrides: `a.b=c` of a recipe; of a model alone `policy.b=c`, such as the frame rate of one that does not say it.
    Weights load when the first sample is drawn.

    Raises:
        UsageError: none of these, overrides of a run, or of a model others than of its policy.
        GenalignError: the run has no adapter yet, or the hub cannot be reached.
    """
    name, folder = str(source), Path(source)
    run, recipe_file = (folder / RECIPE).is_file(), folder.suffix == ".yaml" or name in shipped_recipes()
    for override in overrides if not recipe_file else ():
        if run or not override.startswith("policy."):
            keys = "" if run else ", and of a model only keys of policy can be set"
            raise UsageError(f"{override!r} would change a recipe, but {name} is not one{keys}; drop it")
    if run or recipe_file:
        built = load_run(folder, device()) if run else build(load_recipe(name, overrides), device())
        settings = built.recipe.policy
        made = modalities_of(model_path(settings.model, built.recipe.folder))
        return Source(lambda: built.policy, run, settings.batch_size, made, built)
    from genalign.policy import load_policy
    from genalign.policy.settings import PolicySettings

    given: dict[str, Any] = {"policy": {"model": name, "sampler": {"kernel": "ode"}}}
    for override in overrides:
        apply_override(given, override)
    plain = settings_of(given["policy"], PolicySettings, "policy")
    found = model_path(plain.model, Path())
    made = modalities_of(found)
    return Source(lambda: load_policy(plain, fetch_model(found), device()), False, plain.batch_size, made)


def sample(
    source: str | Path | Source,
    prompts: str | Path | Iterable[str | Prompt],
    *,
    n: int = 1,
    seed: int = 0,
    guidance: float | None = None,
    steps: int | None = None,
    base: bool = False,
    overrides: Sequence[str] = (),
    trajectories: Path | None = None,
) -> Iterator[Sample]:
    """Draw `n` samples of every prompt, one micro-batch at a time, and yield them in the order of the prompts.

    Args:
        source: see `open_source`; or what it returned, whose model stays loaded between calls.
        prompts: one text, a Path of a prompts file, or texts and Prompts.
        seed: of a prompt's first sample; its next one has the next seed.
        guidance: guidance scale (None: the pipeline's own). steps: denoising steps, or tokens (None: the recipe's).
        base: with the adapter of a run switched off.
        overrides: see `open_source`.
        trajectories: a folder. Samples are then rollouts of the base as training draws them, and their trajectories
            are written there, to be labelled.

    Raises:
        UsageError: at the call, before any weight of a recipe or model loads: no such source, no prompts, n below 1,
            guidance or steps beside trajectories.
    """
    if trajectories is not None and (guidance is not None or steps is not None):
        raise UsageError("a rollout samples as the recipe says; drop guidance and steps, or set them in the recipe")
    rows, seeds = rows_of(listed(prompts), n, seed)
    opened = opened_source(source, overrides)
    if trajectories is not None and opened.built is None:
        raise UsageError(f"a rollout needs a sampler; take a recipe or a run instead of the model {source}")
    return _draw(opened, rows, seeds, guidance, steps, base, trajectories)


def _draw(
    source: Source,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    guidance: float | None,
    steps: int | None,
    base: bool,
    trajectories: Path | None,
) -> Iterator[Sample]:
    policy = source.policy
    check_prompts(policy, prompts)
    tuned = source.tuned and not base and trajectories is None
    for first in range(0, len(prompts), source.batch):
        part, own = prompts[first : first + source.batch], seeds[first : first + source.batch]
        digests: Mapping[str, str] = {}
        with policy.weights("policy" if tuned else "reference"):
            if trajectories is None:
                media = policy.generate(part, own, guidance=guidance, steps=steps)
            else:
                media, digests = _roll_out(policy, part, own, trajectories / f"{first:05d}.safetensors")
        for k, prompt in enumerate(part):
            yield Sample(media.select([k]), prompt, own[k], digests=digests)


def _roll_out(
    policy: Policy, prompts: Sequence[Prompt], seeds: Sequence[int], path: Path
) -> tuple[Media, Mapping[str, str]]:
    """Samples as training draws them, their trajectory in `path`, and the digests of model and sampler."""
    if not isinstance(policy, Storing):
        raise UsageError("only the trajectories of diffusion models are stored; drop --rollout")
    trajectory = policy.rollout(prompts, 1, seeds)
    policy.save_trajectory(trajectory, path)
    return trajectory.media, policy.digest()


def opened_source(source: str | Path | Source, overrides: Sequence[str] = ()) -> Source:
    """`source` opened, where it is not yet."""
    if not isinstance(source, Source):
        return open_source(source, overrides)
    if overrides:
        raise UsageError("overrides belong to open_source, which read the recipe; this source is open already")
    return source


def listed(prompts: str | Path | Iterable[str | Prompt]) -> list[Prompt]:
    """Prompts from one text, the Path of a prompts file, or texts and Prompts; a text's uid is its place.

    Raises:
        UsageError: there are none, or the file cannot be read.
    """
    if isinstance(prompts, Path):
        return list(read_prompts(prompts))
    texts = [prompts] if isinstance(prompts, str) else prompts
    given = [Prompt(one, uid=uid) if isinstance(one, str) else one for uid, one in enumerate(texts)]
    if not given:
        raise UsageError("there are no prompts; give at least one")
    return given


def rows_of(prompts: Sequence[Prompt], n: int, seed: int) -> tuple[list[Prompt], list[int]]:
    """Every prompt `n` times, and a seed for each row: sample k of a prompt has seed + k."""
    if n < 1:
        raise UsageError(f"n is {n}; it must be at least 1")
    rows: list[Prompt] = []
    seeds: list[int] = []
    for prompt in prompts:
        rows += [prompt] * n
        seeds += [number % 2**64 for number in range(seed, seed + n)]  # what torch takes
    return rows, seeds


def check_prompts(policy: Policy, prompts: Sequence[Prompt]) -> None:
    """Refuse a prompt that the policy cannot read, before the first is drawn."""
    if isinstance(policy, ChecksPrompts):
        for prompt in prompts:
            policy.check_prompt(prompt)
