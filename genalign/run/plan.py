"""`genalign train --plan`: what a run would do and what it would cost, from one step that is really run and timed."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Sequence

import torch

from genalign.files.settings import write_yaml
from genalign.ranks import all_sum, rank, world
from genalign.run.build import Built
from genalign.run.memory import Memory, lines
from genalign.run.recipe import Recipe
from genalign.training.loop import update
from genalign.training.progress import start
from genalign.training.sharded import Sharded
from genalign.types import SavesMemory, UsageError


def print_plan(built: Built) -> None:
    """Print the resolved recipe, counts, memory and an ETA; nothing is written.

    A rollout of one sample goes first and untimed: a policy learns at its first one how its pipeline guides.
    """
    recipe, policy, method = built.recipe, built.policy, built.method
    settings = recipe.train
    progress = start(policy, built.reward, settings)
    prompts = built.data.draw(0, recipe.data.prompts_per_step, settings.seed)[rank() :: world()]
    policy.rollout(prompts[:1], 1, settings.seed)
    split = progress.backend if isinstance(progress.backend, Sharded) else None
    sent = split.received() if split else 0
    begun, before = time.perf_counter(), policy.calls()
    experience = method.collect(policy, prompts, built.reward, settings.seed, 0)
    update(progress, method, experience)
    seconds = time.perf_counter() - begun
    sent = split.received() - sent if split else 0
    spent = all_sum(torch.tensor([len(experience.trajectory.prompts), policy.calls() - before]))
    if rank() != 0:
        return
    samples, calls = spent.tolist()
    trained = sum(p.numel() * p.element_size() for p in policy.named_trainable().values())
    layers = sorted({name.rpartition(".lora_")[0] for name in policy.named_trainable()})
    copies = 4 if settings.ema is None else 5  # value, gradient, two moments, average
    minutes, rest = divmod(round(seconds * settings.steps), 60)
    print(write_yaml(recipe.resolved()))
    for what, is_so in (
        ("samples", f"{samples} a step, of {recipe.data.prompts_per_step} prompts, on {world()} rank(s)"),
        ("optimizer steps", f"{settings.steps * recipe.method.updates_per_rollout} in {settings.steps} steps"),
        ("model calls", f"{calls} a step, {calls * settings.steps} in all, counted in samples"),
        ("memory", f"{_peak_bytes() / 2**20:.0f} MiB at the peak of a step"),
        ("  of it trained", f"{copies * trained / 2**20:.1f} MiB: {copies} times the adapter's {trained / 2**20:.1f}"),
        ("  in", f"{len(layers)} layers: {', '.join(layers[:3])}{', ...' if len(layers) > 3 else ''}"),
        *(_over_ranks(split, sent, trained) if world() > 1 else ()),
        ("time", f"{seconds:.2f} s a step, {minutes}:{rest:02d} min in all, before the evaluation"),
    ):
        print(f"{what:<17} {is_so}")
    if settings.staleness:
        what = "1: a step is scored while the next one is sampled, before its update"
        print(f"{'staleness':<17} {what}; the time above is of a step that waits for its scores")
    if isinstance(policy, SavesMemory):
        _print_memory(recipe, policy.saving())


def _over_ranks(split: Sharded | None, sent: int, trained: int) -> Iterator[tuple[str, str]]:
    """What a rank holds and is sent. split: the back end that splits weights, if any; sent: their bytes in the step."""
    if split is None:
        yield "each rank", "holds the whole model"
    else:
        held, whole = split.held()
        yield "each rank", f"holds {held / 2**20:.3f} of the {whole / 2**20:.3f} MiB of frozen weights that are split"
        yield "  is sent", f"{sent / 2**20:.3f} MiB of weights in the step, which was counted"
    yield "  sums", f"{trained / 2**20:.3f} MiB of gradients with the others in an update"


def _print_memory(recipe: Recipe, saving: Sequence[str]) -> None:
    if saving:
        without = " and ".join(saving)
        print(f"{'gradients':<17} the first row's are compared with those without {without} before the first update")
    try:
        found = list(lines(Memory(recipe, world()), None, None))
    except UsageError:  # of a class that is not known by its shapes: it was measured above
        return
    for line in found:
        print(line)


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
