"""What the page draws from: a recipe's base, and the runs beside it, opened when first used and one at a time."""

from __future__ import annotations

import json
import random
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from genalign.cli.sample import Source, open_source
from genalign.files.places import model_path, shipped_recipes
from genalign.run.fits import kind_of
from genalign.run.recipe import RECIPE, Recipe, load_recipe
from genalign.types import GenalignError, Policy, Prompt, Reward, UsageError, nearest

BASE = "base"
KEPT = 3  # models in memory
OFFERED = 200  # prompts in the page's list


class Models:
    """The base of a recipe, and the runs with an adapter in the folder `runs` or given as `run`, by their names.

    A name that comes from the page is looked up among these and nowhere else.

    Raises:
        UsageError: as of `open_source`; or the recipe's model makes what the page cannot show.
    """

    def __init__(self, recipe: str = "image-d3po", overrides: Sequence[str] = (), runs: Path = Path("runs")) -> None:
        self.runs, self.run = runs, Path(recipe) if (Path(recipe) / RECIPE).is_file() else None
        if self.run is not None and overrides:
            raise UsageError(f"{overrides[0]!r} would change a recipe, but {recipe} is a run; drop it")
        if self.run is None and not (recipe in shipped_recipes() or Path(recipe).suffix == ".yaml" or is_model(recipe)):
            raise UsageError(f"there is no recipe or run {recipe!r}{nearest(recipe, shipped_recipes())}")
        self._recipe, self._overrides = recipe if self.run is None else str(self.run / RECIPE), tuple(overrides)
        base = open_source(self._recipe, self._overrides)
        if base.built is None:
            raise UsageError(
                f"{recipe} is a model, and the page needs a recipe, which says how it samples and what is good; run "
                f"genalign demo image-d3po policy.model={recipe}"
            )
        self.built, self.modality = base.built, kind_of(base.made)
        self._opened: OrderedDict[str, Source] = OrderedDict({BASE: base})
        self._drawing = threading.Lock()

    @property
    def words(self) -> list[str]:
        """The recipe and its overrides, as `genalign train` takes them."""
        return [self._recipe, *self._overrides]

    @property
    def recipe(self) -> Recipe:
        return self.built.recipe

    def names(self) -> list[str]:
        """The base and every run with an adapter of the same model, the newest first."""
        own = [] if self.run is None else [self.run]
        found = [*own, *(path.parent for path in self.runs.glob(f"*/{RECIPE}"))]
        fitting = {path.name: path for path in reversed(found) if (path / "adapter").is_dir() and self._fits(path)}
        return [BASE, *sorted(fitting, key=lambda name: -fitting[name].stat().st_mtime)]

    def _fits(self, run: Path) -> bool:
        try:
            recipe = load_recipe(run / RECIPE)
            return self._model(recipe) == self._model(self.recipe)
        except GenalignError:
            return False

    @staticmethod
    def _model(recipe: Recipe) -> Path | str:
        return model_path(recipe.policy.model, recipe.folder)

    def folder(self, name: str) -> Path:
        """The run folder of a name that `names` gives.

        Raises:
            UsageError: there is none.
        """
        if self.run is not None and name == self.run.name:
            return self.run
        for path in self.runs.glob(f"*/{RECIPE}"):
            if path.parent.name == name:
                return path.parent
        raise UsageError(f"there is no run {name!r}; choose one of the list")

    @contextmanager
    def drawing(self, name: str, grown: bool = False) -> Iterator[Source]:
        """A source to draw from, for this thread alone.

        grown: the recipe with the run's adapter merged into its frozen weights: the base of the next round of votes.

        Raises:
            UsageError: no such run. GenalignError: its adapter cannot be read.
        """
        with self._drawing:
            yield self._open(name, grown)

    def _open(self, name: str, grown: bool) -> Source:
        key = f"{name}+" if grown else name
        if key not in self._opened:
            folder = self.folder(name)
            source = (
                open_source(self._recipe, [*self._overrides, *self.merging(name)]) if grown else open_source(folder)
            )
            self._opened[key] = source
            others = [one for one in self._opened if one not in (BASE, key)]
            for one in others[: max(0, len(self._opened) - KEPT)]:
                del self._opened[one]
        self._opened.move_to_end(key)
        return self._opened[key]

    def merging(self, name: str) -> list[str]:
        """The overrides by which a recipe begins with a run's adapter, behind those that the run began with; none of
        the base."""
        if name == BASE:
            return []
        folder = self.folder(name)
        earlier = load_recipe(folder / RECIPE).policy.adapters_merged
        adapters = [*earlier, str((folder / "adapter").resolve())]
        return [f"policy.merged={json.dumps(adapters)}", "policy.dtype=float32"]  # else rounding eats most

    # ---- prompts and rewards -----------------------------------------------------------------------------------------

    @cached_property
    def _known(self) -> dict[str, Prompt]:
        return named([*(self.built.eval_prompts or ()), *self.built.data])

    def prompt(self, text: str) -> Prompt:
        """A prompt of the recipe's files, with its facts, or one without.

        Raises:
            UsageError: nothing is asked for.
        """
        if not text.strip():
            raise UsageError("there is no prompt; write one")
        return self._known.get(text.strip(), Prompt(text.strip()))

    @cached_property
    def offered(self) -> list[str]:
        """Prompts for the page's list: those of the evaluation, or where there is none of the training."""
        return list(named(self.built.eval_prompts or self.built.data))[:OFFERED]

    @cached_property
    def plain(self) -> list[Prompt]:
        """Training prompts that are text alone, which votes are about."""
        found = list({prompt.text: prompt for prompt in self.built.data if prompt.media is None}.values())
        if not found:
            raise UsageError(f"every prompt of {self.recipe.data.prompts} brings media; votes are about text alone")
        return random.Random(0).sample(found, len(found))

    @property
    def rewards(self) -> list[tuple[Reward, bool]]:
        """Each reward of the recipe and whether it is held out; the training reward first."""
        shown = [*self.built.eval_rewards] or ([self.built.reward] if self.built.reward is not None else [])
        return [*((reward, False) for reward in shown), *((judge, True) for judge in self.built.held_out)]

    def lacks(self, reward: Reward, prompt: Prompt) -> frozenset[str]:
        """What a reward reads and neither the prompt nor a sample of it offers."""
        return reward.lacks({"prompt", self.modality, *(f"facts.{name}" for name in prompt.facts)})


def named(rows: Iterable[Prompt]) -> dict[str, Prompt]:
    """Prompts by their text; of several with one text that bring media, the further ones are numbered."""
    found: dict[str, Prompt] = {}
    for prompt in rows:
        name, number = prompt.text, 1
        while prompt.media is not None and name in found:
            number += 1
            name = f"{prompt.text} ({number})"
        found.setdefault(name, prompt)
    return found


def row_seeds(policy: Policy, prompt: Prompt, count: int, seed: int) -> list[int]:
    """Seeds of siblings as a rollout draws them: with sampler.shared_start they differ by the scored noise alone."""
    own = getattr(policy, "row_seeds", None)
    if own is not None:
        found: list[int] = own([prompt], count, seed)
        return found
    from genalign.types import sample_seed

    return [sample_seed(seed, prompt.uid, k) for k in range(count)]


def is_model(name: str) -> bool:
    try:
        model_path(name, Path())
        return True
    except UsageError:
        return False
