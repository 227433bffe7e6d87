"""What `make table` trains: recipes of shipped models, their seeds and variants, and when a finished cell is stale."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from genalign.files.settings import read_yaml
from genalign.files.shipped import holds_model, shipped
from genalign.run.build import build
from genalign.run.recipe import Recipe, load_recipe

TRAINING_PROMPTS = 512  # those that the reward is also read on: what is learnt, whether or not it carries over


@dataclass(frozen=True)
class Medium:
    """What recipes of one medium are measured by: the headline of their held-out judge, which is never a reward, and a
    reward file beside what they train on, of which `aspects` are shown."""

    name: str
    judge: str
    besides: str
    aspects: tuple[str, ...]

    @property
    def prefix(self) -> str:
        return f"{self.name}-"


IMAGE = Medium("image", "judge/all_facts", "image-vendi.yaml", ("vendi",))
ASPECTS = ("tiny-video-reward/VQ", "tiny-video-reward/MQ", "tiny-video-reward/TA")
VIDEO = Medium("video", "moves-judge/all_facts", "video-reward.yaml", ASPECTS)
MUSIC = Medium("music", "music-judge/all_facts", "music-per-song.yaml", ("frechet-per-song",))
MEDIA = (IMAGE, VIDEO, MUSIC)


@dataclass(frozen=True)
class Variant:
    """What a recipe is trained as besides, in a row of its own: the row's name, and what it changes."""

    name: str
    row: str
    changes: tuple[str, ...]


RULE, CLIP = (Variant(name, f"{name} only", (f"reward=image-{name}.yaml",)) for name in ("rule", "clip"))
WHOLE = ("method.times=[0, 1]", "train.steps=28")  # a step costs more where siblings are not one call
VARIANTS = {
    "image-d3po": (RULE, CLIP),
    "image-flow-grpo": (RULE, CLIP),
    "video-flow-dpo": (
        Variant("time", "time-dependent beta", ("method.beta_schedule=time", *WHOLE)),
        Variant("whole", "constant beta, whole path", WHOLE),
        Variant("fitted", "tiny-video-reward only", ("reward=video-reward.yaml",)),
    ),
    "video-nrg": tuple(
        Variant(f"ta-{weight}", f"TA alone, weight {weight}", (f"method.weights={{TA: {weight}}}",))
        for weight in (1, 2, 4)
    ),
}
SEEDS = dict.fromkeys(
    (
        *("image-d3po", "image-flow-grpo", "image-flow-dpo", "image-nft", "image-dragon-frechet"),
        *("video-sft", "video-flow-rwr", "video-flow-dpo", "video-flow-dpo-time"),
    ),
    3,
)  # of all others 1


@dataclass(frozen=True)
class Cell:
    """One training run: a recipe, a seed, and a variant of it."""

    recipe: str
    seed: int = 0
    variant: Variant | None = None

    @property
    def medium(self) -> Medium:
        return next(medium for medium in MEDIA if self.recipe.startswith(medium.prefix))

    @property
    def kind(self) -> str:
        """The name without its seed."""
        return self.recipe if self.variant is None else f"{self.recipe}-{self.variant.name}"

    @property
    def row(self) -> str:
        """What the cell's seeds are one row of."""
        return self.recipe if self.variant is None else f"{self.recipe}, {self.variant.row}"

    @property
    def name(self) -> str:
        return f"{self.kind}-seed-{self.seed}"

    def overrides(self, work: Path) -> list[str]:
        recipe, besides = self._recipe(), self.medium.besides
        assert recipe.eval is not None
        own = f"{recipe.policy.model}-{Path(str(recipe.reward)).stem}-{recipe.eval.count}-{recipe.policy.dtype}"
        more = [spec for spec in recipe.eval.rewards if spec != besides]
        words = [f"train.seed={self.seed}", f"eval.base_cache={work / f'base-{own}.safetensors'}"]
        words.append(f"eval.training_prompts={TRAINING_PROMPTS}")
        if recipe.reward != besides:
            words.append(f"eval.rewards={json.dumps([*more, besides])}")
        return words + self._changes

    def digest(self) -> str:
        """Of all that the result depends on: recipe, prompts, rewards, judge, and the model's weights."""
        recipe = self._recipe(f"train.seed={self.seed}")
        built = build(recipe)
        files = [built.data, built.eval_prompts]
        rewards = [built.reward, *built.held_out, *built.eval_rewards]
        told = read_yaml(shipped("pipelines", f"{self.recipe}.yaml"))
        if told["policy"].get("dtype") == "auto":  # the same on every machine; rows were drawn in bfloat16 at first
            told["policy"]["dtype"] = "bfloat16"
        hashed = [self.name, json.dumps(told, sort_keys=True)]
        hashed += [prompts.digest for prompts in files if prompts] + [reward.version for reward in rewards if reward]
        hashed += [file_digest(path) for path in sorted(shipped("assets", recipe.policy.model).glob("*/*.safetensors"))]
        more = (recipe.policy.writer, *recipe.policy.adapters_merged, getattr(recipe.method, "noisy", None))
        for model in more:  # of Parrot, of ReNO, of Flow-NRG
            weights = sorted(shipped("assets", model).glob("*.safetensors")) if model else []
            hashed += [file_digest(path) for path in weights]
        return hashlib.sha256(json.dumps(hashed + self._changes).encode()).hexdigest()[:16]

    @property
    def _changes(self) -> list[str]:
        return [] if self.variant is None else list(self.variant.changes)

    def _recipe(self, *words: str) -> Recipe:
        return load_recipe(self.recipe, [*words, *self._changes])


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def recipes_of(medium: Medium) -> list[str]:
    """The recipes of a medium whose model is shipped; those of models on the hub are measured by whoever has them."""
    names = sorted(path.stem for path in shipped("pipelines").glob(f"{medium.prefix}*.yaml"))
    models = {name: read_yaml(shipped("pipelines", f"{name}.yaml"))["policy"]["model"] for name in names}
    return [name for name in names if holds_model(shipped("assets", models[name]))]


def cells() -> list[Cell]:
    """Medium by medium, the runs with several seeds first, seed by seed, so that an early stop leaves one of everything
    that matters; then variants; then what has one seed."""
    found = []
    for medium in MEDIA:
        plain = [Cell(name) for name in recipes_of(medium)]
        varied = [Cell(cell.recipe, 0, variant) for cell in plain for variant in VARIANTS.get(cell.recipe, ())]
        several = sorted((cell for cell in [*plain, *varied] if cell.kind in SEEDS), key=lambda cell: cell.kind)
        for seed in range(max(SEEDS.values())):
            found += [replace(cell, seed=seed) for cell in several if seed < SEEDS[cell.kind]]
        found += [cell for cell in [*varied, *plain] if cell.kind not in SEEDS]
    return found
