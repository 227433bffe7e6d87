"""`genalign sample`: draw samples from a model, a recipe or a run."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from genalign.cli.search import judge_of, reward_of, search_files, searches_of, write_sample
from genalign.data.prompts import read_prompts
from genalign.files.places import fetch_model, modality_of, model_path, shipped_recipes
from genalign.policy.diffusion import DiffusionPolicy
from genalign.run.build import Built, build
from genalign.run.launch import RECIPE, load_run
from genalign.run.recipe import load_recipe
from genalign.types import Media, Policy, Prompt, UsageError, Weights


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def sample_files(args: Namespace) -> None:
    """Write DIR/00000.png ... and DIR/samples.jsonl; sample k of every prompt is drawn from seed + k. `told` is what a
    writer (policy.writer) made of the prompt.

    A rollout also writes DIR/trajectories/, and in samples.jsonl the digests that labelled pairs carry. A search writes
    its best samples, with their scores.
    """
    prompts = _prompts(args)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "samples.jsonl").write_text("")
    except OSError as error:
        raise UsageError(f"cannot write {args.out} ({error.strerror}); choose another folder with --out") from error
    if args.rollout and (args.guidance is not None or args.steps is not None):
        raise UsageError("--rollout samples as the recipe says; drop --guidance and --steps, or set them in the recipe")
    source = _source(args)
    repeated = [prompt for prompt in prompts for _ in range(args.n)]
    seeds = [(args.seed + k) % 2**64 for _ in prompts for k in range(args.n)]
    searches = searches_of(args, source.built)
    if searches:
        reward = reward_of(args, source.built, searches, source.modality, prompts)
        judge = judge_of(source.built, source.modality, prompts, reward)
        with source.policy.weights(source.weights):
            count = search_files(args, source.policy, searches, reward, repeated, seeds, source.batch, judge)
    else:
        count = _draw(args, source, repeated, seeds)
    print(f"{count} samples in {args.out}")


def _draw(args: Namespace, source: _Source, prompts: list[Prompt], seeds: list[int]) -> int:
    policy = source.policy
    with policy.weights(source.weights), (args.out / "samples.jsonl").open("w") as index:
        for first in range(0, len(prompts), source.batch):
            part = prompts[first : first + source.batch]
            own = seeds[first : first + source.batch]
            if args.rollout:
                media, digests = _roll_out(policy, part, own, args.out / "trajectories" / f"{first:05d}.safetensors")
            else:
                media, digests = policy.generate(part, own, guidance=args.guidance, steps=args.steps), {}
            for k, prompt in enumerate(part):
                file = write_sample(media, k, args.out / f"{first + k:05d}")
                row = {"file": file.name, "prompt": prompt.text, "facts": dict(prompt.facts), "seed": own[k]}
                if "text" in media and len(media) > 1:  # of policy.writer
                    row["told"] = media["text"].data[k]
                row |= digests
                index.write(json.dumps(row) + "\n")
    return len(prompts)


def _roll_out(policy: Policy, prompts: list[Prompt], seeds: list[int], path: Path) -> tuple[Media, dict[str, str]]:
    """Samples as training draws them, their trajectory in `path`, and the digests of model and sampler."""
    if not isinstance(policy, DiffusionPolicy):
        raise UsageError("--rollout stores the trajectories of diffusion models only; drop it")
    trajectory = policy.rollout(prompts, 1, seeds)
    policy.save_trajectory(trajectory, path)
    return trajectory.media, policy.digest()


def _prompts(args: Namespace) -> list[Prompt]:
    if (args.prompt is None) == (args.prompts is None):
        raise UsageError("give genalign sample either a PROMPT or --prompts FILE")
    if args.n < 1:
        raise UsageError(f"--n is {args.n}; it must be at least 1")
    return [Prompt(args.prompt)] if args.prompts is None else list(read_prompts(args.prompts))


@dataclass
class _Source:
    """Where samples come from: a policy that loads when it is first read, the weights to draw with, the batch size."""

    load: Callable[[], Policy]
    weights: Weights
    batch: int
    modality: str
    built: Built | None = None

    @cached_property
    def policy(self) -> Policy:
        return self.load()


def _source(args: Namespace) -> _Source:
    folder = Path(args.source)
    run, recipe_file = (folder / RECIPE).is_file(), folder.suffix == ".yaml" or args.source in shipped_recipes()
    if args.overrides and not recipe_file:
        raise UsageError(f"{args.overrides[0]!r} would change a recipe, but {args.source} is none; drop it")
    if run or recipe_file:
        built = load_run(folder, device()) if run else build(load_recipe(args.source, args.overrides), device())
        settings, tuned = built.recipe.policy, run and not (args.base or args.rollout)
        modality = modality_of(model_path(settings.model, built.recipe.folder))
        return _Source(lambda: built.policy, "policy" if tuned else "reference", settings.batch_size, modality, built)
    from genalign.policy import load_policy
    from genalign.policy.settings import PolicySettings, Sampler

    if args.rollout:
        raise UsageError(f"--rollout needs a sampler; give it a recipe or a run instead of the model {args.source}")
    plain = PolicySettings(model=args.source, sampler=Sampler(kernel="ode"))
    found = model_path(args.source, Path())
    return _Source(
        lambda: load_policy(plain, fetch_model(found), device()), "reference", plain.batch_size, modality_of(found)
    )
