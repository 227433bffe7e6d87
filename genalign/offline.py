"""What needs no training: `sample`, `score` and `eval` of the command line."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from genalign.data import read_prompts
from genalign.launch import RECIPE, load_run
from genalign.places import fetch_model, modality_of, model_path, portable, shipped_recipes
from genalign.policy.diffusion import DiffusionPolicy
from genalign.recipe import Built, build, load_recipe
from genalign.searches import judge_of, reward_of, search_files, searches_of, write_sample
from genalign.types import Media, Policy, Prompt, Track, UsageError, Weights

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


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
    seeds = [args.seed + k for _ in prompts for k in range(args.n)]
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


def score_files(args: Namespace) -> None:
    """Print every aspect and the total of each file."""
    from genalign.reward import Runner, build_reward, check_needs

    prompts = _prompts_of_files(args)
    media = _read_media(args.media)
    reward = Runner(build_reward(args.reward, Path()), max_failure=1.0)
    facts = set.intersection(*(set(prompt.facts) for prompt in prompts)) if prompts else set()
    check_needs(reward, {*media, *(["prompt"] if args.prompt or args.prompts else []), *(f"facts.{f}" for f in facts)})
    with torch.no_grad():
        scores = reward(prompts, media, None)
    columns = [*scores.names, "total"]
    rows = []
    for k, file in enumerate(args.media):
        values = [*scores.values[k].tolist(), scores.total[k].item()]
        valid = [*scores.valid[k].tolist(), bool(scores.total_valid[k])]
        named = {name: value if ok else None for name, value, ok in zip(columns, values, valid, strict=True)}
        failed = [name for name, wrong in zip(scores.names, scores.failed[k].tolist(), strict=True) if wrong]
        rows.append({"file": str(file), "reward": reward.name, **named, "failed": failed})
    if args.json:
        print("\n".join(json.dumps(row) for row in rows))
    else:
        _print_scores(rows, columns)


def _print_scores(rows: list[dict[str, object]], columns: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("file", *columns)
    for row in rows:
        failed = row["failed"]
        assert isinstance(failed, list)
        cells = ["failed" if name in failed else "-" if row[name] is None else f"{row[name]:.4f}" for name in columns]
        table.add_row(str(row["file"]), *cells)
    Console().print(table)


def _prompts_of_files(args: Namespace) -> list[Prompt]:
    if args.prompt and args.prompts:
        raise UsageError("give genalign score either --prompt or --prompts FILE")
    given = list(read_prompts(args.prompts)) if args.prompts else [Prompt(t, uid=k) for k, t in enumerate(args.prompt)]
    if len(given) <= 1:
        given = (given or [Prompt("")]) * len(args.media)
    if len(given) != len(args.media):
        raise UsageError(
            f"there are {len(given)} prompts for {len(args.media)} media files; give one for all, or one each"
        )
    return given


def _read_media(files: list[Path]) -> Media:
    """One Media of all files; images must agree in size."""
    for file in files:
        if not file.is_file():
            raise UsageError(f"there is no media file {file}; check --media")
    suffixes = {file.suffix.lower() for file in files}
    if suffixes <= {".txt"}:
        return Media(text=Track([file.read_text() for file in files]))
    if not suffixes <= set(IMAGES):
        raise UsageError(
            f"genalign score reads {', '.join(IMAGES)} or .txt, all of one kind, not {', '.join(sorted(suffixes))}"
        )
    from genalign.media import load_png

    images = [load_png(file) for file in files]
    same = len({image.shape for image in images}) == 1
    return Media(image=Track(torch.stack(images) if same else images))


def evaluate_run(args: Namespace) -> None:
    """Evaluate a finished run anew, with further rewards if asked for."""
    from genalign.card import write_card
    from genalign.evaluate import evaluate, print_table
    from genalign.report import write_report

    more = [str(portable(name, Path())) for name in args.reward]  # relative to here, not to the run
    built = load_run(args.run, device(), more)
    settings = built.recipe.eval
    if settings is None or built.eval_prompts is None:
        raise UsageError(f"{args.run / RECIPE} has no key 'eval'; add one that names eval.prompts")
    prompts = list(built.eval_prompts)
    rewards, taught = built.eval_rewards, built.taught
    result = evaluate(built.policy, prompts, rewards, built.held_out, settings, args.run, training=taught)
    write_report(args.run)
    write_card(args.run)
    if args.json:
        print("\n".join(json.dumps({"metric": name, **row}) for name, row in result["metrics"].items()))
    else:
        print_table(result)
