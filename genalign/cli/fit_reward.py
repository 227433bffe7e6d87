"""A reward fitted to preferences, or one that reads noisy latents: `fit_reward`; `print_fit` is genalign fit-reward."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from genalign.files.atomic import replace_file, replacing
from genalign.method.search.nrg import GuidanceSettings
from genalign.reward.fit.noisy import Bank, NoisyNet, measure, noisy_loss, reader, save_noisy
from genalign.reward.fit.recipe import fit_to_preferences, is_fit_recipe
from genalign.run.build import Built, build
from genalign.run.launcher import join_ranks
from genalign.run.recipe import load_recipe
from genalign.types import ForwardProcess, UsageError

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
HELD_OUT = 0.1  # of the prompts


def fit_reward(recipe: str | Path, overrides: Sequence[str] = (), out: str | Path | None = None) -> dict[str, Any]:
    """Fit what a recipe describes, write it into a folder with fit.json, and return what fit.json holds.

    A recipe with a backbone instead of a policy fits a head to preferences or ratings (see reward/fit/recipe.py); one
    of method nrg samples its policy, scores the samples, and fits a reward that reads noisy latents. A killed fit goes
    on where it was: samples and checkpoints stay.

    Args:
        recipe: a file, or a shipped name. overrides: `a.b=c` of it.
        out: where to (None: see `fit_folder`).

    Raises:
        UsageError: a recipe of another method, or without a reward, preferences that it cannot read, or a folder that
            cannot be written.
    """
    name, folder = str(recipe), fit_folder(recipe, out)
    if is_fit_recipe(name):
        return fit_to_preferences(name, overrides, folder)
    loaded = load_recipe(name, overrides)
    settings = loaded.method
    if not isinstance(settings, GuidanceSettings):
        raise UsageError(
            f"fit-reward fits what method nrg guides by, not {settings.name}; take a recipe like image-nrg, or "
            f"one with a backbone"
        )
    built = build(loaded, join_ranks())
    if built.reward is None:
        raise UsageError("fit-reward learns to foresee a reward; add the key 'reward' to the recipe")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {folder} ({error.strerror}); choose another folder with --out") from error
    bank = _bank(built, settings, folder)
    result = _fit(built, bank, settings, folder)
    replace_file(folder / "fit.json", json.dumps(result, indent=2) + "\n")
    return result


def fit_folder(recipe: str | Path, out: str | Path | None = None) -> Path:
    """Where a fit is written: `out`, or runs/fit-RECIPE."""
    return Path(out) if out is not None else Path("runs") / f"fit-{Path(recipe).stem}"


def _bank(built: Built, settings: GuidanceSettings, out: Path) -> Bank:
    """Samples of the base, drawn and scored once and kept in `out`/bank.safetensors."""
    recipe, path = built.recipe, out / "bank.safetensors"
    plain = recipe.resolved()
    parts = [plain["policy"], plain["reward"], plain["method"]["fit"]["prompts"], plain["method"]["fit"]["per_prompt"]]
    assert built.reward is not None
    parts += [built.data.digest, built.reward.version, recipe.train.seed]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
    if path.is_file():
        with safe_open(path, "pt") as file:
            kept = file.metadata() or {}
            if kept.get("digest") == digest:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return Bank(prompts=tuple(json.loads(kept["prompts"])), **tensors)
    bank = _draw(built, settings)
    tensors = {name: getattr(bank, name).contiguous() for name in ("latents", "group", "values", "valid", "weights")}
    with replacing(path) as draft:
        save_file(tensors, draft, metadata={"digest": digest, "prompts": json.dumps(bank.prompts)})
    for stale in out.glob("fit.safetensors*"):
        stale.unlink()
    return bank


@torch.no_grad()
def _draw(built: Built, settings: GuidanceSettings) -> Bank:
    from tqdm import tqdm

    policy, recipe, reward = built.policy, built.recipe, built.reward
    assert reward is not None
    if not isinstance(policy, ForwardProcess):
        raise UsageError(f"{type(policy).__name__} has no latents to fit a reward to; nrg is for diffusion models")
    size = max(1, recipe.policy.batch_size // settings.fit.per_prompt)
    chosen = built.data.draw(0, min(settings.fit.prompts, len(built.data)), recipe.train.seed)
    latents, groups, values, valid, texts = [], [], [], [], []
    with policy.weights("reference"), tqdm(total=len(chosen), desc="samples", leave=False, disable=None) as bar:
        for at in range(0, len(chosen), size):
            part = chosen[at : at + size]
            trajectory = policy.rollout(part, settings.fit.per_prompt, recipe.train.seed)
            scores = reward(trajectory.prompts, trajectory.media, trajectory.group)
            latents.append(policy.clean(trajectory).half().cpu())
            groups.append(trajectory.group)
            values.append(scores.values.cpu())
            valid.append(scores.valid.cpu())
            texts += [prompt.text for prompt in trajectory.prompts]
            bar.update(len(part))
    return Bank(
        torch.cat(latents), torch.cat(groups), tuple(texts), torch.cat(values), torch.cat(valid), scores.weights.float()
    )


def _fit(built: Built, bank: Bank, settings: GuidanceSettings, out: Path) -> dict[str, Any]:
    from genalign.training.fit import fit

    how, seed, reward = settings.fit, built.recipe.train.seed, built.reward
    assert reward is not None
    text = reader(how.text, how.words, built.recipe.folder)(bank.prompts)  # (N,E)
    names = torch.unique(bank.group)
    order = names[torch.from_numpy(np.random.default_rng(seed).permutation(len(names)))]
    kept = max(1, round(HELD_OUT * len(names)))
    examined, train = order[:kept], order[kept:]
    if not len(train):
        raise UsageError("method.fit.prompts leaves nothing to train on; raise it")
    torch.manual_seed(seed)
    net = NoisyNet(bank.latents.shape[1:], text.shape[1], bank.values.shape[1])

    def loss_of(step: int) -> Tensor:
        drawn = np.random.default_rng((seed, step)).choice(len(train), min(how.prompts_per_batch, len(train)), False)
        rows = torch.isin(bank.group, train[torch.from_numpy(drawn)]).nonzero()[:, 0]
        return noisy_loss(net, bank, text, rows, seed * 1_000_003 + step, how.noise_aware)

    fit(net, loss_of, steps=how.steps, learning_rate=how.learning_rate, state=out / "fit.safetensors")
    rows = torch.isin(bank.group, examined).nonzero()[:, 0]
    accuracy = measure(net, bank, text, rows, LEVELS, how.noise_aware)  # (levels, K)
    save_noisy(net, out, bank, text, reward.aspects, how.text, how.noise_aware, how.words)
    by_level: dict[str, list[float | None]] = {}
    for name, column in zip(reward.aspects, accuracy.T.tolist(), strict=True):
        by_level[name] = [None if value != value else value for value in column]  # NaN: no pair to order
    result = {"samples": len(bank.group), "held_out_prompts": kept, "levels": list(LEVELS)}
    return {**result, "accuracy": by_level}


# ---- genalign fit-reward --------------------------------------------------------------------------------------------


def print_fit(result: dict[str, Any], recipe: str, out: Path) -> None:
    """The table of a fit's measures, and how to use what was fitted."""
    if "levels" in result:
        _print_levels(result)
        print(f"{out}: sample with it by genalign sample {recipe} PROMPT method.noisy={out}")
    else:
        _print_measures(result)
        print(f"{out}: name it in a reward file by 'use: {out}', or score by genalign score {out} --media FILE")


def _print_levels(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"pairs of {result['held_out_prompts']} held-out prompts ordered rightly, by noise level"
    table = Table("objective", *(f"t = {level:g}" for level in result["levels"]), title=title)
    for name, row in result["accuracy"].items():
        table.add_row(name, *("-" if value is None else f"{value:.1%}" for value in row))
    Console().print(table)


def _print_measures(result: dict[str, Any]) -> None:
    """A column an aspect, where there are several."""
    from rich.console import Console
    from rich.table import Table

    columns: dict[str, dict[str, Any]] = result.get("aspects") or {"value": result}
    held_out = max(column["held_out"] for column in columns.values())
    table = Table("measure", *columns, title=f"{held_out} held-out of {result['source']}")
    for name in next(iter(columns.values())):
        if name not in ("source", "held_out"):
            table.add_row(name, *(_number(column[name]) for column in columns.values()))
    Console().print(table)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, int) else f"{value:.4f}"
