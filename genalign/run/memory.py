"""`genalign train --plan`, its part about memory: bytes by phase, predicted from shapes; and what would fit a card."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from genalign.files.places import file_path, model_path
from genalign.files.settings import read_yaml
from genalign.method import build_method
from genalign.policy import modalities_of
from genalign.policy.bases import bases
from genalign.policy.footprint import Footprint
from genalign.policy.language.footprint import WriterFootprint
from genalign.policy.settings import PolicySettings, Vae
from genalign.reward.heads.published import CLIP_H, CLIP_L, PRESETS
from genalign.run.recipe import Recipe
from genalign.training.shares import Share, share
from genalign.types import GenalignError, UsageError

GB = 2**30  # a card of 24 GB has so many times this
MODELS = {CLIP_L: 1.7, CLIP_H: 3.9}  # gigabytes of networks that rewards name by themselves
RESERVED = 0.06  # part of a card that its driver, its context and fragments of freed memory take
LADDER: tuple[tuple[str, dict[str, Any]], ...] = (  # of levers, cheap ones first, and those that round last
    ("policy.gradient_checkpointing=true", {"gradient_checkpointing": True}),
    ("policy.vae.slicing=true", {"vae": Vae(slicing=True)}),
    ("policy.offload=phases", {"offload": "phases"}),
    ("policy.batch_size=1", {"batch_size": 1}),
    ("policy.quantization=torchao-int8", {"quantization": "torchao-int8"}),
    ("policy.quantization=bitsandbytes-nf4", {"quantization": "bitsandbytes-nf4"}),
    ("policy.offload=blocks", {"offload": "blocks"}),
    ("policy.vae.tiling=true", {"vae": Vae(slicing=True, tiling=True)}),
)
STRONGER: dict[str, tuple[Any, ...]] = {
    "offload": (None, "phases", "blocks"),
    "quantization": (None, "torchao-float8", "torchao-int8", "bitsandbytes-int8", "torchao-int4", "bitsandbytes-nf4"),
}


@dataclass(frozen=True)
class Phase:
    """Bytes on the device at its peak. activations: None where they are not known."""

    name: str
    weights: int
    trained: int
    activations: int | None

    @property
    def total(self) -> int:
        return self.weights + self.trained + (self.activations or 0)


class Memory:
    """What a recipe's run takes on each of several ranks, phase by phase, under its own settings or others."""

    def __init__(self, recipe: Recipe, ranks: int = 1) -> None:
        self.recipe, self.settings, self.ranks = recipe, recipe.policy, ranks
        model = model_path(recipe.policy.model, recipe.folder)
        self.writer = WriterFootprint(recipe.policy, model) if _writes(model) else None
        if self.writer is None:
            self.footprint = Footprint(recipe.policy, model)
        self.climbs = "reward_grad" in build_method(recipe.method, recipe.folder).needs
        self.rewards = round(1e9 * sum(sizes_of_rewards(recipe).values()))

    @cached_property
    def shares(self) -> dict[str, Share]:
        """Of the networks that are split over the ranks, by name."""
        if self.recipe.train.backend != "fsdp2" or self.ranks == 1:
            return {}
        if self.writer is not None:
            return {"model": share(self.writer.adapted(), self.ranks)}
        return {name: share(self.footprint.adapted(name), self.ranks) for name in self.footprint.denoisers}

    @property
    def ladder(self) -> list[tuple[str, dict[str, Any]]]:
        """The levers that can be set: neither offload nor quantization where weights are split, and none of an
        autoencoder where there is none."""
        refused = (STRONGER.keys() if self.shares else set()) | ({"vae"} if self.writer is not None else set())
        return [(words, changed) for words, changed in LADDER if not changed.keys() & refused]

    def phases(self, settings: PolicySettings) -> list[Phase]:
        return self._drawing(settings) if self.writer is None else self._writing(self.writer, settings)

    def _writing(self, f: WriterFootprint, settings: PolicySettings) -> list[Phase]:
        """Of a language model: one network, which waits while rewards score."""
        away = settings.offload is not None
        beside, split = 0 if away else self.rewards, self.shares.get("model")
        here, gathered = (f.resident(settings), 0) if split is None else (split.held, split.beside)
        moving, learning = round(4 * f.trained * self._copies()), f.learning(settings)
        update = None if learning is None else max(0, learning - 4 * f.trained)  # counted with the adapter
        return [
            Phase("sample", beside + here + gathered, moving, f.sampling(settings)),
            Phase("score", self.rewards + (0 if away else here), moving, None),
            Phase("update", beside + here + gathered, moving, update),
        ]

    def _drawing(self, settings: PolicySettings) -> list[Phase]:
        f, rewards = self.footprint, self.rewards
        networks = {name: f.resident(name, settings) for name in f.parts}
        networks |= {name: of.held for name, of in self.shares.items()}
        gathered = max((of.beside for of in self.shares.values()), default=0)
        texts = sum(size for name, size in networks.items() if name not in f.denoisers and name != f.autoencoder)
        denoisers = [networks[name] for name in f.denoisers]
        autoencoder = networks[f.autoencoder] if f.autoencoder else 0
        together = texts + sum(denoisers) + autoencoder
        away = settings.offload is not None
        beside = 0 if away else rewards  # else they come to score, and with them whatever a gradient goes through
        here = rewards if self.climbs else beside
        moving = round(4 * f.trained * self._copies())
        denoiser = max(denoisers) if away else together
        learning, there = f.learning(settings), denoiser
        if self.climbs:  # through what was decoded, so that a graph holds both networks
            if settings.offload == "blocks" and not settings.gradient_checkpointing:  # a step computed again keeps all
                denoiser = max(f.weights(name, settings) for name in f.denoisers)
            learning, there = self._climbing(settings), denoiser + (autoencoder if away else 0)
        # In which gradients are counted, as they are with the adapter.
        update = None if learning is None else max(0, learning - 4 * f.trained)
        return [
            Phase("encode", beside + (self._largest_text(networks) if away else together), moving, 0),
            Phase("sample", beside + denoiser + gathered, moving, f.sampling(settings)),
            Phase("decode", beside + (autoencoder if away else together), moving, f.decoding(settings)),
            Phase("score", rewards + (0 if away else together), moving, None),
            Phase("update", here + there + gathered, moving, update),
        ]

    def _climbing(self, settings: PolicySettings) -> int | None:
        """Of a method that follows the reward's gradient: steps that are computed again keep no graph."""
        method: Any = self.recipe.method
        rows = min(settings.batch_size, getattr(method, "micro_batch", settings.batch_size))
        steps = 1 if getattr(method, "checkpoint", True) else settings.sampler.steps
        return self.footprint.climbing(settings, rows, steps)

    def _largest_text(self, networks: Mapping[str, int]) -> int:
        known = [*self.footprint.denoisers, self.footprint.autoencoder]
        return max((size for name, size in networks.items() if name not in known), default=0)

    def _copies(self) -> float:
        """Of the adapter: its value, its gradient, its average, and what the optimizer keeps."""
        return 3 + {"adamw-8bit": 0.5, "muon": 1, "prodigy": 4}.get(self.recipe.train.optimizer, 2)

    def peak(self, settings: PolicySettings) -> int:
        return max(phase.total for phase in self.phases(settings))

    def levers(self) -> Iterator[tuple[str, int]]:
        """Each lever that is not set, and the bytes by which it alone would lower the peak."""
        before = self.peak(self.settings)
        for words, changed in self.ladder:
            if self._is_new(self.settings, changed):
                yield words, before - self.peak(_changed(self.settings, changed))

    def fitting(self, card: int) -> tuple[list[str], int] | None:
        """The overrides under which it fits a card of so many bytes, the first of the ladder; None: none of them."""
        room, settings, words = card * (1 - RESERVED), self.settings, dict[str, str]()
        if self.peak(settings) <= room:
            return [], self.peak(settings)
        for override, changed in self.ladder:
            if not self._is_new(settings, changed):
                continue
            settings = _changed(settings, changed)
            words[override.partition("=")[0]] = override
            if self.peak(settings) <= room:
                return list(words.values()), self.peak(settings)
        return None

    def smallest(self) -> int:
        settings = self.settings
        for _, changed in self.ladder:
            settings = _changed(settings, changed)
        return self.peak(settings)

    def _is_new(self, settings: PolicySettings, changed: Mapping[str, Any]) -> bool:
        """Whether it would save more than what is set already."""
        for key, value in changed.items():
            held = getattr(settings, key)
            if key in STRONGER and held in STRONGER[key] and value in STRONGER[key]:
                return STRONGER[key].index(value) > STRONGER[key].index(held)
            if key in STRONGER or held == value:
                return False
        return True


def _writes(model: Path | str) -> bool:
    """Whether it is a language model; one of which nothing is known counts as one that draws."""
    try:
        return model not in bases() and modalities_of(model) == {"text"}
    except GenalignError:
        return False


def _changed(settings: PolicySettings, changed: Mapping[str, Any]) -> PolicySettings:
    """With the lever that a lever needs."""
    after = settings.model_copy(update=dict(changed))
    if after.offload == "blocks" and after.quantization is not None:
        return after.model_copy(update={"gradient_checkpointing": True})
    return after


def sizes_of_rewards(recipe: Recipe) -> dict[str, float]:
    """Gigabytes of the published checkpoints that rewards of the training and of its evaluation name, each once."""
    found: dict[str, float] = {}

    def walk(value: Any, folder: Path) -> None:
        if isinstance(value, list):
            for item in value:
                walk(item, folder)
        elif isinstance(value, str):
            walk({"use": value}, folder)
        elif isinstance(value, Mapping):
            name, model = value.get("use"), value.get("model")
            if isinstance(name, str) and name.endswith((".yaml", ".yml")):
                file = file_path(name, folder)
                walk(read_yaml(file), file.parent)
            elif isinstance(model, str) and model in MODELS:
                found[model] = MODELS[model]
            elif name in PRESETS:
                found[name] = PRESETS[name].gigabytes
            for item in value.values():
                if isinstance(item, Mapping | list):
                    walk(item, folder)

    for spec in (recipe.reward, *(recipe.eval.rewards if recipe.eval else ())):
        if spec is not None:
            walk(spec, recipe.folder)
    return found


def card_bytes(text: str) -> int:
    """The bytes of a card as people name it: 24GB, 24, 16GiB.

    Raises:
        UsageError: it is not written so.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:GB|GiB|G)?", text.strip(), re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise UsageError(f"--card {text}: write the card's memory as 24GB")
    return round(float(found[1]) * GB)


def print_memory(recipe: Recipe, card: str | None, ranks: int = 1) -> None:
    """Print bytes by phase, what each lever saves, and, of a card, what makes it fit. Nothing is downloaded."""
    room = None if card is None else card_bytes(card)
    memory = Memory(recipe, ranks)
    base = bases().get(recipe.policy.model)
    if base is not None:
        print(f"{'model':<17} {recipe.policy.model}: {base.licence}; {base.download / 1e9:.1f} GB are downloaded once")
    for line in lines(memory, room, card):
        print(line)


def _over_ranks(memory: Memory, unit: int, name: str) -> Iterator[str]:
    """What each of several ranks holds and is sent."""
    if memory.ranks == 1:
        return
    sums = f"an update sums {4 * (memory.writer or memory.footprint).trained / unit:.3f} {name} of gradients over them"
    if not memory.shares:
        yield f"{'ranks':<17} {memory.ranks}, and each holds all that is above; {sums}"
        return
    yield f"{'ranks':<17} {memory.ranks}, each of them as above; {sums}"
    for network, of in memory.shares.items():
        held, whole, sent, beside = (bytes / unit for bytes in (of.held, of.whole, of.received, of.beside))
        yield (
            f"  {network:<15} a rank holds {held:.3f} of {whole:.3f} {name}, is sent {sent:.3f} in each forward and "
            f"each backward pass, and has at most {beside:.3f} gathered at a time"
        )


def lines(memory: Memory, room: int | None, card: str | None) -> Iterator[str]:
    phases = memory.phases(memory.settings)
    unit, name = (GB, "GiB") if max(phase.total for phase in phases) >= GB else (2**20, "MiB")
    head = f"{'weights':>9} {'adapter':>9} {'activations':>12} {'in all':>9}"
    yield f"{'memory by phase':<17} {head}   {name}, predicted from shapes"
    for phase in phases:
        known = "?" if phase.activations is None else f"{phase.activations / unit:.2f}"
        row = f"{phase.weights / unit:>9.2f} {phase.trained / unit:>9.2f} {known:>12} {phase.total / unit:>9.2f}"
        yield f"  {phase.name:<15} {row}"
    yield "  rewards are counted as large as their downloads, and what they compute is not known"
    yield from _over_ranks(memory, unit, name)
    for words, saved in memory.levers():
        yield f"  {words:<40} {f'saves {saved / unit:.2f} {name}' if saved > 0 else 'alone saves nothing'}"
    if room is None:
        return
    found = memory.fitting(room)
    if found is None:
        yield (
            f"{'card':<17} no lever makes it fit {card}: the least is {memory.smallest() / GB:.1f} GiB; take a smaller"
            f" model, smaller sides, or a larger card"
        )
        return
    overrides, peak = found
    how = f"with {' '.join(overrides)}" if overrides else "as it is"
    yield f"{'card':<17} fits {card} {how}: {peak / GB:.1f} GiB at the peak, and {RESERVED:.0%} of a card left free"
