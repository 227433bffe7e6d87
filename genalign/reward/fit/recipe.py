"""`genalign fit-reward` on preferences or ratings: one YAML file names data, backbone, head and loss.

    data: {file: pairs.jsonl}                      # see comparisons.py for what a file may look like
    backbone: {kind: clip, model: tiny-clip}       # or text, vlm; it stays frozen
    head: {kind: linear}                           # or mlp; or pal, vpl, micro, where pairs name their user
    loss: {name: bradley-terry}                    # or ties, margin, soft, yes-no, gpm, regression
    votes: {how: soften}                           # how strong each preference is; leave out to trust all labels alike
    fit: {steps: 500}

It writes a folder that `use: FOLDER` of any reward file loads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from genalign.data.comparisons import read_comparisons
from genalign.data.judged import OVERALL, Comparisons
from genalign.files.places import find, recipe_path
from genalign.files.settings import read_recipe, read_yaml
from genalign.reward.fit import measures
from genalign.reward.fit.backbones import Backbone, BackboneSettings, build_backbone
from genalign.reward.fit.fitted import save_fitted
from genalign.reward.fit.train import PERSONAL, Fit, PreferenceData, compare, fit_head
from genalign.types import UsageError, nearest


class FitData(BaseModel):
    """What is learnt from."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    file: str
    """Pairs or ratings, relative to the recipe; .json, .jsonl, .csv or .parquet."""
    aspect: str = OVERALL
    """Which verdict, of files that judge several."""
    held_out: float = Field(default=0.1, ge=0, lt=1)
    """Share of the prompts (never of the pairs) that are held out for evaluation."""


class FitRecipe(Fit):
    """A fit, whole: head, loss, votes and fit as in train.py, and what they are given."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    data: FitData
    """What is learnt from."""
    backbone: BackboneSettings
    """What turns samples into features."""


def is_fit_recipe(name: str) -> bool:
    """Whether a recipe fits a reward to preferences; the other kind, of noisy latents, names a policy and a method."""
    plain = read_yaml(recipe_path(name))
    return isinstance(plain, dict) and ("backbone" in plain or not {"policy", "method"} & set(plain))


def load_fit_recipe(name: str, overrides: Sequence[str] = ()) -> tuple[FitRecipe, Path]:
    """The recipe, and what its paths are relative to.

    Raises:
        UsageError: no such file, not YAML, an unknown key (the nearest is named) or a value that does not fit.
    """
    recipe, path = read_recipe(name, overrides, FitRecipe)
    return recipe, path.resolve().parent


def fit_to_preferences(name: str, overrides: Sequence[str], out: Path) -> dict[str, Any]:
    """Fit, evaluate on held-out prompts, and write reward.json, reward.safetensors and fit.json into `out`.

    Returns what fit.json holds.

    Raises:
        UsageError: as `load_fit_recipe`; data that cannot be read or have nothing to learn from; no place to write.
    """
    recipe, folder = load_fit_recipe(name, overrides)
    source = folder / recipe.data.file
    found = read_comparisons(source)
    settings = _portable(recipe.backbone, folder)
    backbone = build_backbone(settings, found.kind, folder)
    users = sorted({pair.user for pair in found.pairs} - {""}) if recipe.head.kind in PERSONAL else []
    places, data = _preferences(recipe, found, users)
    data = replace(data, features=read_features(backbone, found, places, settings.batch_size))
    learn, held_out = split(data, recipe.data.held_out, recipe.fit.seed)
    head = fit_head(recipe, learn, len(users))
    results = {"source": str(source), "learnt_from": len(learn), "held_out": len(held_out), "users": len(users)}
    results |= evaluate(recipe, head, held_out)
    try:
        save_fitted(out, head, recipe, settings, found.kind, data.features.shape[1], users)
        (out / "fit.json").write_text(json.dumps(results, indent=2) + "\n")
    except OSError as error:
        raise UsageError(f"cannot write {out} ({error.strerror}); choose another folder with --out") from error
    return results


def read_features(backbone: Backbone, found: Comparisons, places: Sequence[int], size: int) -> Tensor:
    """(M,H) of the items at `places`, a batch at a time."""
    from tqdm import tqdm

    rows, size = [], found.at_once(size)
    with tqdm(total=len(places), desc="features", leave=False, disable=None) as bar, torch.no_grad():
        for at in range(0, len(places), size):
            part = places[at : at + size]
            rows.append(backbone.features(*found.load(part)).float().cpu())
            bar.update(len(part))
    return torch.cat(rows)


def split(data: PreferenceData, share: float, seed: int) -> tuple[PreferenceData, PreferenceData]:
    """What is learnt from and what is held out: whole prompts, at least one where `share` is not 0."""
    names = data.group.unique()
    kept = min(max(1, round(share * len(names))), len(names) - 1) if share else 0
    chosen = names[torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))[:kept]]
    held = torch.isin(data.group, chosen)
    return data.select((~held).nonzero()[:, 0]), data.select(held.nonzero()[:, 0])


def evaluate(recipe: FitRecipe, head: Any, held_out: PreferenceData) -> dict[str, Any]:
    """Measures on held-out prompts; None where there is nothing to measure."""
    if recipe.loss.name == "regression":
        with torch.no_grad():
            scores = head.score(held_out.features[held_out.a], held_out.users)
        varies = len(held_out) > 1 and float(scores.std()) > 0 and float(held_out.p.std()) > 0
        rho = float(np.corrcoef(scores.numpy(), held_out.p.numpy())[0, 1]) if varies else measures.NOTHING
        error = float((scores - held_out.p).square().mean().sqrt()) if len(held_out) else measures.NOTHING
        results = {"correlation": rho, "rmse": error}
    else:
        h, delta = held_out.p.double().numpy(), compare(head, held_out).double().numpy()
        best, eps = measures.accuracy_with_ties(h, delta)
        ece, brier = measures.calibration(h, delta)
        results = {"accuracy": measures.accuracy(h, delta), "accuracy_with_ties": best, "ties_below": eps}
        results |= {"ece": ece, "brier": brier}
    return {name: None if value != value else value for name, value in results.items()}


def _preferences(recipe: FitRecipe, found: Comparisons, users: Sequence[str]) -> tuple[list[int], PreferenceData]:
    """Which items are needed, and the preferences about them, still without features."""
    none = torch.zeros(0)
    if recipe.loss.name == "regression":
        if not found.ratings:
            raise UsageError(
                f"{found.source} rates nothing, so loss regression has nothing to learn; take bradley-terry"
            )
        places = sorted(found.ratings)
        rows = torch.arange(len(places))
        group = torch.tensor([found.group(found.items[place].prompt) for place in places])
        rated = torch.tensor([found.ratings[place] for place in places])
        return places, PreferenceData(none, rows, rows, rated, torch.full_like(rows, -1), group)
    pairs = [pair for pair in found.pairs if pair.aspect == recipe.data.aspect]
    if not pairs:
        known = {pair.aspect for pair in found.pairs}
        hint = nearest(recipe.data.aspect, sorted(known)) if known else "; for ratings take loss.name: regression"
        raise UsageError(f"{found.source} judges no {recipe.data.aspect!r}{hint}")
    places = sorted({pair.a for pair in pairs} | {pair.b for pair in pairs})
    number = {place: k for k, place in enumerate(places)}
    whose = {user: k for k, user in enumerate(users)}
    data = PreferenceData(
        none,
        torch.tensor([number[pair.a] for pair in pairs]),
        torch.tensor([number[pair.b] for pair in pairs]),
        torch.tensor([pair.p for pair in pairs]),
        torch.tensor([whose.get(pair.user, -1) for pair in pairs]),
        torch.tensor([pair.group for pair in pairs]),
    )
    return places, data


def _portable(settings: BackboneSettings, folder: Path) -> BackboneSettings:
    """A model beside the recipe by its absolute path; shipped names and hub ids as they are."""
    beside = find(settings.model, folder)
    return settings if beside is None else settings.model_copy(update={"model": str(beside)})
