"""The training loop: draw prompts, collect experience, compute losses, update, log, save; objects by protocol only.

sample, score, advantage           method.collect
loss                               method.losses
gradient, reduce and clip, step    training/backend.py
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from genalign.clock import spent
from genalign.ranks import gather_scores, rank, world
from genalign.training.ahead import Ahead, lent, trained_weights
from genalign.training.backend import Backend
from genalign.training.metrics import METRICS, Clock, append_metrics, mean_over_ranks, truncate_metrics
from genalign.training.optimizers import share_of_rate
from genalign.training.progress import Progress, Stateful, save
from genalign.training.selfcheck import check_gradients, check_replay
from genalign.types import Experience, GenalignError, Loss, Method, Pausing, Prompt, UsageError

notes = logging.getLogger("genalign")


@runtime_checkable
class Counting(Protocol):
    """A reward that counts what goes wrong with it (a Runner), on this rank."""

    def log(self) -> Mapping[str, float]: ...


def train(
    progress: Progress, method: Method, draw: Callable[[int], list[Prompt]], run: Path
) -> Iterator[dict[str, float]]:
    """Train to `settings.steps`, yielding each step's log after it is written to `run`/metrics.jsonl.

    `draw(step)` names the prompts of a step over all ranks; rank r of W takes every W-th from r on. A checkpoint is
    written every `checkpoint_every` steps and at the end.

    Raises:
        GenalignError: the self-check of the first step fails, or gradients are not finite time after time.
    """
    policy, settings, reward = progress.policy, progress.settings, progress.reward
    first = progress.step
    progress.method = method if isinstance(method, Stateful) else None
    if progress.method is not None and progress.method_state:
        progress.method.load_state_dict(progress.method_state)
    if rank() == 0:
        truncate_metrics(run / METRICS, first)
    with collecting(progress, method, draw) as (collect, ahead):
        while progress.step < settings.steps:
            step, clock = progress.step, Clock(policy)

            # Sample, score, and turn scores into advantages (or pairs), without gradients.
            with spent("sample"):
                experience = collect(step)
            clock.lap()

            # Before the first update of this process: does replay repeat what was sampled, and do the ranks agree?
            if step == first:
                progress.backend.check("adapters")
                with lent(policy, progress.earlier) if progress.earlier else nullcontext():
                    check_replay(policy, experience, fresh=step == 0)
                unknown = check_gradients(policy, experience)
                if unknown is not None:
                    notes.warning(unknown)
                clock.skip()

            # The reward's own state moves, by the scores of all ranks; then losses, gradients, optimizer steps.
            with spent("learn"):
                if reward is not None and experience.scores is not None:
                    reward.update(gather_scores(experience.scores), step)
                if ahead is not None:
                    ahead.score()
                    progress.earlier = trained_weights(policy, settings.ema is not None)
                log = update(progress, method, experience, check=step == first)
            progress.step += 1
            clock.lap()

            # One line of metrics, and now and then a checkpoint.
            counters: Mapping[str, float] = reward.log() if isinstance(reward, Counting) else {}
            stale = {} if ahead is None else {"staleness": float(step > 0)}
            log = {"step": progress.step, **log, **stale, **counters, **clock.log(len(experience.trajectory.prompts))}
            if rank() == 0:
                append_metrics(run / METRICS, log)
            if progress.step % settings.checkpoint_every == 0 or progress.step == settings.steps:
                save(progress, run)
                progress.saved = progress.step
            yield log


@contextmanager
def collecting(
    progress: Progress, method: Method, draw: Callable[[int], list[Prompt]]
) -> Iterator[tuple[Callable[[int], Experience], Ahead | None]]:
    """What gives a step's experience: by the present weights, or by those of before the last update, a step ahead."""
    policy, reward, settings = progress.policy, progress.reward, progress.settings

    def mine(step: int) -> list[Prompt]:
        return draw(step)[rank() :: world()]

    if settings.staleness == 0:
        yield lambda step: method.collect(policy, mine(step), reward, settings.seed, step), None
        return
    if not isinstance(method, Pausing):
        raise UsageError(f"method {method.name} cannot learn from a step ago; set train.staleness=0")
    pausing = method
    ahead = Ahead(lambda s: pausing.collecting(policy, mine(s), reward, settings.seed, s), settings.steps - 1)
    try:
        if progress.earlier:  # resumed: these samples had been drawn before the last update
            with lent(policy, progress.earlier):
                ahead.draw(progress.step)
        yield ahead.collect, ahead
    finally:
        ahead.close()


def update(progress: Progress, method: Method, experience: Experience, check: bool = False) -> dict[str, float]:
    """One rollout's optimizer updates, each over the micro-batch losses up to a `Loss.step`; the log of their means.

    check: that the ranks agree on the first update's gradients.
    """
    policy, settings, backend = progress.policy, progress.settings, progress.backend
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    own: list[Mapping[str, tuple[float, float]]] = []  # of the update that is computed
    skipped = 0
    for loss in _backwards(backend, method.losses(policy, experience)):
        if loss.anew:
            own = []
        own.append(loss.log)
        if not loss.step:
            continue

        # The gradient of the whole update: summed over ranks, and left out where it would spoil the weights.
        norm = backend.reduce_and_clip(settings.max_grad_norm)
        if check:
            backend.check("gradients")
            check = False
        if not math.isfinite(norm):
            _skip(progress, norm)
            own = []
            skipped += 1
            continue
        progress.skipped = 0

        # Move the weights, and their average after them.
        backend.step(share_of_rate(settings, progress.step))
        if settings.ema is not None:
            policy.step_ema(settings.ema)
        for log in (*own, {"grad_norm": (norm, 1.0)}):
            _add(sums, log)
        own = []
    counted = {"skipped_updates": float(skipped)} if skipped else {}
    return {**experience.log, **mean_over_ranks(sums), **counted}


def _backwards(backend: Backend, losses: Iterable[Loss]) -> Iterator[Loss]:
    """The losses, each with its gradient added at once, so that only one graph is held.

    Where memory is not enough for a backward pass, the method hears of it, and may begin the update anew (`Loss.anew`).
    """
    each = iter(losses)
    loss = next(each, None)
    while loss is not None:
        if loss.anew:
            backend.forget()
        enough = True
        try:
            backend.backward(loss.total, last=loss.step)
        except torch.OutOfMemoryError:
            if not isinstance(each, Generator):  # which cannot be told
                raise
            enough = False  # told outside of the handler, which holds on to what was computed
        if enough:
            yield replace(loss, total=loss.total.detach())
            loss = next(each, None)
        else:
            backend.forget()
            loss = None
            assert isinstance(each, Generator)
            loss = each.throw(torch.OutOfMemoryError("backward"))


def _skip(progress: Progress, norm: float) -> None:
    """Leave an update out. All ranks do so alike, since they have one norm.

    Raises:
        GenalignError: it is one too many in a row.
    """
    progress.backend.forget()
    progress.skipped += 1
    most = progress.settings.skip_not_finite
    what = f"the gradient of step {progress.step} is not finite ({norm})"
    if progress.skipped > most:
        raise GenalignError(
            f"{what}{f', and {most} updates before it were left out for that' if most else ''}; lower "
            f"train.learning_rate, or set policy.dtype to float32"
        )
    if rank() == 0:
        notes.warning("%s: its update is left out (%d of %d in a row)", what, progress.skipped, most)


def _add(sums: dict[str, list[float]], log: Mapping[str, tuple[float, float]]) -> None:
    for name, (total, count) in log.items():
        sums[name][0] += total
        sums[name][1] += count
