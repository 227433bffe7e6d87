"""Scoring beside sampling: what a reward can do in parts is done while the rest of a rollout is drawn."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genalign.clock import spent
from genalign.reward.prefetch import Prefetch, holding
from genalign.types import GenalignError, Media, Prompt, Scores

if TYPE_CHECKING:
    from genalign.reward.runtime.runner import Runner


@dataclass
class _Task:
    """A prefetch under way: `done` rows were handed over, and these are the results to come."""

    prefetch: Prefetch
    done: int = 0
    results: list[Future[tuple[Any, float]]] = field(default_factory=list)


class Scoring:
    """The scores of one rollout whose rows are given as they are sampled; see `Runner.begin`.

    What is done ahead are the prefetches of the reward; the reward itself is called once, on all rows, and finds them
    done: it sees the groups and sets that it always sees. Prefetches run in one thread, those that wait for another
    process in a second one, each in the order of rows, without gradients.
    """

    def __init__(self, runner: Runner, rows: Counter[int]) -> None:
        self._runner, self._rows = runner, rows
        self._given: list[tuple[list[Prompt], Media, Tensor]] = []
        self._held: list[tuple[Sequence[Prompt], Media, Tensor]] | None = None
        self._tasks: list[_Task] | None = None
        # A thread begins with torch's default number of threads, and sums may round otherwise with another number.
        threads = (torch.get_num_threads(),)
        self._pools = {
            elsewhere: ThreadPoolExecutor(1, "genalign-reward", torch.set_num_threads, threads)
            for elsewhere in (False, True)
        }

    def __enter__(self) -> Scoring:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """What has not begun is dropped, so that a run that fails or is interrupted waits for one call at most."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

    def hold(self) -> None:
        """From now on rows that are given wait for `release`: the reward is still busy, or about to change."""
        self._held = []

    def release(self) -> None:
        """Begin on what waits, in the parts in which it was given."""
        held, self._held = self._held, None
        for part in held or ():
            self.give(*part)

    def give(self, prompts: Sequence[Prompt], media: Media, group: Tensor) -> None:
        """Further rows of the rollout, group (R,)."""
        if self._held is not None:
            self._held.append((prompts, media, group))
            return
        self._given.append((list(prompts), media, group))
        if self._tasks is None:
            found = {each.key(media): each for each in self._runner.prefetches(frozenset(media))}
            self._tasks = [_Task(each) for each in found.values()]  # a reward that stands in two places does it once
        for task in self._tasks:
            self._hand_over(task, self._ready(task.prefetch))

    def result(self, prompts: Sequence[Prompt], media: Media, group: Tensor) -> Scores:
        """Scores of all rows, which are those that were given, in their order.

        Raises:
            GenalignError: as the runner does.
        """
        tasks = self._tasks or []
        for task in tasks:
            self._hand_over(task, len(prompts))
        made: list[tuple[Prefetch, Any]] = []
        for task in sorted(tasks, key=lambda task: task.prefetch.elsewhere):
            with spent("wait" if task.prefetch.elsewhere else "score"):
                value = self._value(task, media)
            if value is not None:
                made.append((task.prefetch, value))
        with spent("score"), torch.no_grad(), holding(made, media):
            return self._runner(prompts, media, group)

    def _ready(self, prefetch: Prefetch) -> int:
        """How many of the rows given so far may be handed over: whole batches, or whole groups."""
        given = sum(len(part[0]) for part in self._given)
        if prefetch.scope == "sample":
            return given - given % prefetch.rows
        seen, incomplete, ready = Counter[int](), set[int](), 0
        for at, name in enumerate(torch.cat([part[2] for part in self._given]).tolist(), start=1):
            seen[name] += 1
            (incomplete.add if seen[name] < self._rows[name] else incomplete.discard)(name)
            ready = ready if incomplete else at
        return ready

    def _hand_over(self, task: _Task, until: int) -> None:
        if until <= task.done:
            return
        pool = self._pools[task.prefetch.elsewhere]
        task.results.append(pool.submit(_timed, task.prefetch, *self._between(task.done, until)))
        task.done = until

    def _between(self, first: int, end: int) -> tuple[list[Prompt], Media, Tensor]:
        """The given rows from `first` to before `end`."""
        prompts: list[Prompt] = []
        media, group, at = [], [], 0
        for part_prompts, part_media, part_group in self._given:
            chosen = range(max(first - at, 0), min(end - at, len(part_prompts)))
            at += len(part_prompts)
            if len(chosen):
                prompts += part_prompts[chosen.start : chosen.stop]
                media.append(part_media if len(chosen) == len(part_prompts) else part_media.select(chosen))
                group.append(part_group[chosen.start : chosen.stop])
        return prompts, media[0] if len(media) == 1 else Media.cat(media), torch.cat(group)

    def _value(self, task: _Task, media: Media) -> Any:
        """The result on all rows; None where the reward had better do the work itself, and meet any error there.

        (A measure of the set must be called on every rank, or the others wait for it.)
        """
        results = [result.exception() or result.result() for result in task.results]
        for result in results:
            if isinstance(result, GenalignError) and task.prefetch.elsewhere:
                raise result
        if any(isinstance(result, BaseException) for result in results):
            return None
        parts, seconds = zip(*results, strict=True)
        self._runner.seconds += sum(seconds)
        # Rows whose shapes differ are computed one by one: also those that were of one shape in their part.
        listed = any(not isinstance(track.held, Tensor) for track in media.values())
        whole = task.prefetch.join(parts)
        if not task.prefetch.elsewhere and ((listed and len(parts) > 1) or not task.prefetch.sound(whole)):
            return None
        return whole


@torch.no_grad()
def _timed(prefetch: Prefetch, prompts: Sequence[Prompt], media: Media, group: Tensor) -> tuple[Any, float]:
    begun = time.perf_counter()
    return prefetch.work(prompts, media, group), time.perf_counter() - begun
