"""`genalign fit-reward` on preferences or ratings: one YAML file names data, backbone, head and loss.

    data: {file: pairs.jsonl}                      # see data/forms.py for what a file may look like
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
from genalign.reward.fit.heads import AspectHeads, strangers
from genalign.reward.fit.losses import expected_win
from genalign.reward.fit.train import PERSONAL, Fit, PreferenceData, compare, fit_head
from genalign.types import UsageError, nearest


class FitData(BaseModel):
    """What is learnt from."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    file: str
    """Pairs or ratings, relative to the recipe; .json, .jsonl, .csv or .parquet."""
    aspect: str | list[str] = OVERALL
    """Which verdict, of files that judge several; of a list, each has a head of its own, and the reward all aspects."""
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
    aspects = _aspects(recipe)
    users = sorted({pair.user for pair in found.pairs} - {""}) if recipe.head.kind in PERSONAL else []
    places, judged = _preferences(recipe, found, aspects, users)
    features = read_features(backbone, found, places, settings.batch_size)
    judged = [replace(data, features=features) for data in judged]
    of_prompt = _of_prompt(recipe, backbone, aspects)
    head, results = _fit_heads(recipe, aspects, judged, len(users), of_prompt)
    more: dict[str, Any] = {"of_prompt": of_prompt}
    if isinstance(recipe.data.aspect, list):
        spread = head.score(features, strangers(features)).std(0)
        more |= {"aspects": aspects, "spread": spread.tolist()}
    report = {"source": str(source), **results}
    try:
        save_fitted(out, head, recipe, settings, found.kind, features.shape[1], users, **more)
        (out / "fit.json").write_text(json.dumps(report, indent=2) + "\n")
    except OSError as error:
        raise UsageError(f"cannot write {out} ({error.strerror}); choose another folder with --out") from error
    return report


def _fit_heads(
    recipe: FitRecipe, aspects: Sequence[str], judged: Sequence[PreferenceData], users: int, of_prompt: int
) -> tuple[Any, dict[str, Any]]:
    """The head, of a list of aspects one each, fitted to what is not held out; and its measures on what is."""
    learn, held_out = split(judged, recipe.data.held_out, recipe.fit.seed)
    heads, reads, results = [], [], {}
    for aspect, lesson, exam in zip(aspects, learn, held_out, strict=True):
        hidden = of_prompt if aspect in recipe.head.blind else 0
        reads.append(lesson.features.shape[1] - hidden)
        seen = [replace(data, features=data.features[:, : reads[-1]]) for data in (lesson, exam)]
        heads.append(fit_head(recipe, seen[0], users, of_prompt - hidden))
        counts = {"learnt_from": len(lesson), "held_out": len(exam), "users": users}
        results[aspect] = counts | evaluate(recipe, heads[-1], seen[1])
    if isinstance(recipe.data.aspect, list):
        return AspectHeads(heads, reads), {"aspects": results}
    return heads[0], results[aspects[0]]


def _aspects(recipe: FitRecipe) -> list[str]:
    """The verdicts that are learnt from.

    Raises:
        UsageError: none, several of a head or loss that has no number for a sample, or an unknown blind one.
    """
    chosen, head = recipe.data.aspect, recipe.head
    aspects = [chosen] if isinstance(chosen, str) else list(dict.fromkeys(chosen))
    if not aspects:
        raise UsageError("data.aspect lists nothing; name a verdict of the file")
    if isinstance(chosen, list) and (head.kind in PERSONAL or recipe.loss.name in ("gpm", "yes-no", "regression")):
        what = head.kind if head.kind in PERSONAL else recipe.loss.name
        raise UsageError(f"{what} fits one aspect at a time; write data.aspect: {aspects[0]}")
    if head.blind and isinstance(chosen, str):
        raise UsageError("head.blind is for a list of aspects; set backbone.prompt: false")
    unknown = next((name for name in head.blind if name not in aspects), None)
    if unknown is not None:
        raise UsageError(f"head.blind names {unknown!r}, which is not among data.aspect{nearest(unknown, aspects)}")
    return aspects


def _of_prompt(recipe: FitRecipe, backbone: Backbone, aspects: Sequence[str]) -> int:
    """How many features come of the prompt alone, where the recipe needs to know it; else 0.

    Raises:
        UsageError: the backbone does not tell the two apart.
    """
    matched = recipe.head.kind == "match" and set(aspects) - set(recipe.head.blind)
    if not matched and not recipe.head.blind:
        return 0
    if not backbone.of_prompt:
        what = "head match" if matched else "head.blind"
        raise UsageError(f"{what} needs a backbone that reads the prompt apart; set backbone.kind: clip, prompt: true")
    return backbone.of_prompt


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


def split(
    judged: Sequence[PreferenceData], share: float, seed: int
) -> tuple[list[PreferenceData], list[PreferenceData]]:
    """What is learnt from and what is held out, of each: whole prompts, at least one where `share` is not 0, and the
    same ones of all."""
    names = torch.cat([data.group for data in judged]).unique()
    kept = min(max(1, round(share * len(names))), len(names) - 1) if share else 0
    chosen = names[torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))[:kept]]
    learn, held_out = [], []
    for data in judged:
        held = torch.isin(data.group, chosen)
        learn.append(data.select((~held).nonzero()[:, 0]))
        held_out.append(data.select(held.nonzero()[:, 0]))
    return learn, held_out


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
        meant = compare(head, held_out).double()
        if recipe.loss.name == "ties":  # whose probability of a lead takes half of the ties'
            meant = expected_win(meant, recipe.loss.k).logit()
        ece, brier = measures.calibration(h, meant.numpy())
        results = {"accuracy": measures.accuracy(h, delta), "accuracy_with_ties": best, "ties_below": eps}
        results |= {"ece": ece, "brier": brier}
    return {name: None if value != value else value for name, value in results.items()}


def _preferences(
    recipe: FitRecipe, found: Comparisons, aspects: Sequence[str], users: Sequence[str]
) -> tuple[list[int], list[PreferenceData]]:
    """Which items are needed, and the preferences about them by aspect, still without features."""
    if recipe.loss.name == "regression":
        places, rated = _ratings(found)
        return places, [rated]
    by_aspect = []
    for aspect in aspects:
        pairs = [pair for pair in found.pairs if pair.aspect == aspect]
        if not pairs:
            known = {pair.aspect for pair in found.pairs}
            hint = nearest(aspect, sorted(known)) if known else "; for ratings take loss.name: regression"
            raise UsageError(f"{found.source} judges no {aspect!r}{hint}")
        by_aspect.append(pairs)
    places = sorted({place for pairs in by_aspect for pair in pairs for place in (pair.a, pair.b)})
    number = {place: k for k, place in enumerate(places)}
    whose = {user: k for k, user in enumerate(users)}
    judged = []
    for pairs in by_aspect:
        judged.append(
            PreferenceData(
                torch.zeros(0),
                torch.tensor([number[pair.a] for pair in pairs]),
                torch.tensor([number[pair.b] for pair in pairs]),
                torch.tensor([pair.p for pair in pairs]),
                torch.tensor([whose.get(pair.user, -1) for pair in pairs]),
                torch.tensor([pair.group for pair in pairs]),
            )
        )
    return places, judged


def _ratings(found: Comparisons) -> tuple[list[int], PreferenceData]:
    if not found.ratings:
        raise UsageError(f"{found.source} rates nothing, so loss regression has nothing to learn; take bradley-terry")
    places = sorted(found.ratings)
    rows = torch.arange(len(places))
    group = torch.tensor([found.group(found.items[place].prompt) for place in places])
    rated = torch.tensor([found.ratings[place] for place in places])
    return places, PreferenceData(torch.zeros(0), rows, rows, rated, torch.full_like(rows, -1), group)


def _portable(settings: BackboneSettings, folder: Path) -> BackboneSettings:
    """A model beside the recipe by its absolute path; shipped names and hub ids as they are."""
    beside = find(settings.model, folder)
    return settings if beside is None else settings.model_copy(update={"model": str(beside)})
