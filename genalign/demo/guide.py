"""Flow-NRG in the tab Draw: samples guided by a fitted reward, with a weight for each of its objectives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from genalign.demo import markup
from genalign.demo.cards import Drawn, cards, score
from genalign.demo.draw import MOST, checked_seed, checked_whole
from genalign.demo.models import BASE, Models
from genalign.demo.works import Work
from genalign.files.places import model_path, shipped_recipes
from genalign.method.search.nrg import Guidance, GuidanceSettings
from genalign.reward.function import FunctionReward
from genalign.run.build import method_of
from genalign.run.recipe import Recipe, load_recipe
from genalign.types import GenalignError, UsageError, nearest

MOST_STRENGTH, MOST_WEIGHT = 10.0, 3.0
PLAIN, GUIDED = "plain", "guided"


@dataclass(frozen=True)
class Guide:
    """A method whose fitted reward is loaded, and how much each objective counts unless one says otherwise."""

    method: Guidance
    weights: Mapping[str, float]

    @property
    def strength(self) -> float:
        return float(self.method.settings.strength)


def guide_of(models: Models) -> Guide | None:
    """By the page's recipe, or a shipped one for the same model, whose method is nrg; None: no reward was fitted."""
    shipped = [load_recipe(name) for name in shipped_recipes() if name.endswith("-nrg")]
    for recipe in (models.recipe, *shipped):
        try:
            if _model(recipe) == _model(models.recipe) and isinstance(recipe.method, GuidanceSettings):
                return _fitted(recipe)
        except GenalignError:  # the model or the reward is not shipped, and nobody has made it here
            continue
    return None


def _model(recipe: Recipe) -> Path | str:
    return model_path(recipe.policy.model, recipe.folder)


def _fitted(recipe: Recipe) -> Guide:
    method = method_of(recipe.method, recipe.folder)
    assert isinstance(method, Guidance)
    reward, weights = method.reward(), method.settings.weights
    return Guide(method, weights or dict(zip(reward.aspects, reward.weights, strict=True)))


def guiding(
    models: Models,
    guide: Guide,
    work: Work,
    name: str,
    text: str,
    seed: float,
    count: float,
    strength: float,
    weights: Mapping[str, float],
) -> Iterator[str]:
    """HTML that grows: plain samples of a base or run beside guided ones from the same seeds, then their scores.

    weights: objective -> what it counts.

    Raises:
        GenalignError: a number that is out of range, an objective that there is none. CancelledError: by the page.
    """
    first, count = checked_seed(seed), checked_whole(count, MOST, "samples are wanted")
    method, prompt, found = _weighed(guide, strength, weights), models.prompt(text), list[Drawn]()
    with models.drawing(name) as source:
        policy = source.policy
        for k in range(count):
            one = Drawn(first + k)
            work.check()
            with work.networks(), policy.weights("reference" if name == BASE else "policy"):
                one.samples[PLAIN] = policy.generate([prompt], [first + k])
                one.samples[GUIDED] = method.find(policy, [prompt], [first + k], UNREAD).media
            found.append(one)
            done = (k + 1) / count
            said = f"{k + 1} of {count}{markup.seconds_left(done, work.spent)}"
            yield markup.progress(done, said) + cards(found, prompt)
    notes = score(models, work, prompt, found)
    yield cards(found, prompt) + "".join(map(markup.note, notes))


def _weighed(guide: Guide, strength: float, weights: Mapping[str, float]) -> Guidance:
    if not 0 <= strength <= MOST_STRENGTH:
        raise UsageError(f"the strength is {strength:g}; it must lie in 0..{MOST_STRENGTH:g}")
    for name, weight in weights.items():
        if name not in guide.weights:
            raise UsageError(f"there is no objective {name!r}{nearest(name, guide.weights)}")
        if not 0 <= weight <= MOST_WEIGHT:
            raise UsageError(f"{name} counts {weight:g}; it must lie in 0..{MOST_WEIGHT:g}")
    settings = guide.method.settings.model_copy(update={"strength": strength, "weights": dict(weights)})
    return Guidance(settings, guide.method.latent)


def _nothing(prompt: list[str]) -> list[None]:
    """Guidance compares nothing: what is drawn is shown, whatever a reward says of it."""
    return [None] * len(prompt)


UNREAD = FunctionReward(_nothing, name="unread")
