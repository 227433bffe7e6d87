"""Calling a reward safely: a failure is a mask and a count, never a number and never the end of the run."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from functools import partial

import torch
from torch import Tensor

from genalign.media import MEDIA
from genalign.reward.base import CUT, METRIC
from genalign.reward.guard import guarded, prefetches_of
from genalign.reward.prefetch import Prefetch, prefetched
from genalign.reward.runtime.beside import Scoring
from genalign.reward.runtime.cache import Cached
from genalign.reward.scores import cat_scores
from genalign.reward.wrapper import Wrapper
from genalign.types import CoreReward, GenalignError, Media, Prompt, Reward, Scores


class Runner(Wrapper):
    """A reward, called in batches, with its failures masked and counted; a reward itself.

    batch_size: rows a call (None: all); siblings stay together where the reward looks at them. max_failure: more than
    this share of the last `window` rows failed, and more than one, ends the run; 0 ends it at the first. overlaps: may
    rows of a rollout be scored while the rest is sampled (see `begin`)? True: all that it does, in a thread. False:
    nothing. None: what waits for a server or a process, and what is the same to the bit in parts (`prefetches`).

    Raises (when called):
        GenalignError: too many failures, or media outside the range of its modality.
    """

    def __init__(
        self,
        reward: CoreReward,
        batch_size: int | None = None,
        max_failure: float = 0.05,
        window: int = 1000,
        overlaps: bool | None = None,
    ) -> None:
        super().__init__(reward)
        self.batch_size, self.max_failure = batch_size, max_failure
        self.overlaps = overlaps
        # Held by whoever scores, here and elsewhere: a step may be scored in threads while this one looks at others.
        self.busy = {elsewhere: threading.Lock() for elsewhere in (False, True)}
        self.seconds = 0.0
        self.last_error = "no message"
        self._recent: deque[tuple[list[bool], list[bool]]] = deque(maxlen=window)  # rows: failed (K,), abstained (K,)
        self._cut: dict[str, deque[bool]] = defaultdict(
            partial(deque, maxlen=window)
        )  # head -> rows whose text was cut
        self._metrics: dict[str, deque[float]] = defaultdict(partial(deque, maxlen=window))  # of functions' log_metric

    def apart(self) -> Runner:
        """The same reward, whose failures, abstentions and seconds are counted apart from this one's."""
        other = Runner(self.reward, self.batch_size, self.max_failure, overlaps=self.overlaps)
        other.busy = self.busy
        return other

    @property
    def waits(self) -> bool:  # type: ignore[override]
        return self.reward.waits if self.overlaps is None else self.overlaps

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        begun = time.perf_counter()
        with self.busy[False], self.busy[True]:
            scores = self._score(prompts, media, group)
        self.seconds += time.perf_counter() - begun
        self._count(scores)
        return scores

    def begin(self, rows: Counter[int]) -> Scoring:
        """Scores of one rollout, given part by part while sampling goes on, and waited for late.

        rows: how many rows of each group there will be. To be left as a context, whatever happens within.
        """
        return Scoring(self, rows)

    def prefetches(self, modalities: AbstractSet[str]) -> tuple[Prefetch, ...]:
        if self.overlaps is False:
            return ()
        if self.batch_size is None and self.overlaps is None:
            return prefetches_of(self.reward, modalities)
        if self.looks_at == "batch" or not self.waits:
            return ()
        rows, elsewhere = self.batch_size or 1, self.reward.waits
        return (Prefetch(self, self._score, cat_scores, rows, self.looks_at, elsewhere),)

    def _score(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None) -> Scores:
        if len(prompts) != media.rows:
            raise GenalignError(f"reward {self.name!r} was given {len(prompts)} prompts but {media.rows} rows of media")
        _check_range(self.name, media)
        made: Scores | None = prefetched(self, media)
        if made is not None:
            return made
        chunks = self._chunks(len(prompts), group)
        parts = []
        order: list[int] = []  # of the rows, as they lie in the chunks
        for rows in chunks:
            chosen = media if len(chunks) == 1 else media.select(rows)
            siblings = None if group is None else group[rows]
            parts.append(guarded(self.reward, [prompts[i] for i in rows], chosen, siblings))
            order += rows
        joined = parts[0] if len(parts) == 1 else cat_scores(parts)
        return joined if order == sorted(order) else joined.select([order.index(i) for i in range(len(order))])

    def _chunks(self, rows: int, group: Tensor | None) -> list[list[int]]:
        """Rows in calls of at most `batch_size`, which only a group that is larger exceeds: siblings stay together."""
        if self.batch_size is None or self.looks_at == "batch" or rows <= self.batch_size:
            return [list(range(rows))]
        together: dict[int, list[int]] = {}
        for row in range(rows):
            together.setdefault(row if self.looks_at == "sample" or group is None else int(group[row]), []).append(row)
        chunks: list[list[int]] = []
        for siblings in together.values():
            if chunks and len(chunks[-1]) + len(siblings) <= self.batch_size:
                chunks[-1].extend(siblings)
            else:
                chunks.append(list(siblings))
        return chunks

    def _count(self, scores: Scores) -> None:
        abstained = ~(scores.valid | scores.failed)
        self._recent.extend(zip(scores.failed.tolist(), abstained.tolist(), strict=True))
        for key, rows in scores.info.items():
            if key.startswith(CUT):
                self._cut[key.removeprefix(CUT)].extend(cut for cut in rows if cut is not None)
            elif key.startswith(METRIC):
                self._metrics[key.removeprefix(METRIC)].extend(number for number in rows if number is not None)
        errors = [error for error in scores.info.get("error", []) if error]
        self.last_error = errors[-1] if errors else self.last_error
        failed, seen = sum(any(row) for row, _ in self._recent), len(self._recent)
        # One failed row never ends a run, however short the window still is, unless max_failure is 0.
        if scores.failed.any() and failed > (max(1.0, self.max_failure * seen) if self.max_failure else 0):
            culprits = [name for name, bad in zip(scores.names, scores.failed.any(0).tolist(), strict=True) if bad]
            raise GenalignError(
                f"reward {self.name!r} failed on {failed} of the last {seen} samples ({', '.join(culprits)}), "
                f"more than max_failure={self.max_failure:g} allows; the last error: {self.last_error}; "
                f"mend the cause and resume the run, or start a new run if the reward itself changes"
            )

    def log(self) -> dict[str, float]:
        """Shares of the last `window` rows, failed and abstained counted apart: `rewards/<aspect>/fail_rate` and
        `.../abstain_rate`; `rewards/<head>/truncated`, of which a head that reads texts saw only the beginning;
        `time/reward`, the seconds of scoring since the last log; `cache/hit_rate` since the start, where anything is
        cached."""
        rows = len(self._recent)
        rates: dict[str, float] = {}
        for k, aspect in enumerate(self.aspects):
            rates[f"rewards/{aspect}/fail_rate"] = sum(failed[k] for failed, _ in self._recent) / max(rows, 1)
            rates[f"rewards/{aspect}/abstain_rate"] = sum(abstained[k] for _, abstained in self._recent) / max(rows, 1)
        rates |= {f"rewards/{head}/truncated": sum(cut) / max(len(cut), 1) for head, cut in self._cut.items()}
        rates |= {f"rewards/{name}": sum(held) / len(held) for name, held in self._metrics.items() if held}
        rates["time/reward"], self.seconds = self.seconds, 0.0
        caches = _caches(self.reward)
        if caches:
            hits, seen = sum(cache.hits for cache in caches), sum(cache.rows_seen for cache in caches)
            rates["cache/hit_rate"] = hits / max(seen, 1)
        return rates


def _caches(reward: Reward) -> list[Cached]:
    """The caches in a reward; what lies behind a cache is not searched."""
    if isinstance(reward, Cached):
        return [reward]
    found: list[Cached] = []
    for part in reward.parts:
        found += _caches(part)
    return found


def _check_range(name: str, media: Media) -> None:
    for modality, track in media.items():
        span, held = MEDIA[modality].RANGE, track.held
        if span is None:
            continue
        low, high = span
        for tensor in [held] if isinstance(held, Tensor) else held:
            if isinstance(tensor, Tensor) and tensor.dtype == torch.uint8:
                continue  # levels cannot lie outside
            least, most = _span(tensor)
            if least < low or most > high:
                raise GenalignError(
                    f"reward {name!r} was given {modality} values in [{least:.3g}, {most:.3g}], outside "
                    f"[{round(low):d}, {round(high):d}]; convert them before scoring"
                )


def _span(tensor: Tensor) -> tuple[float, float]:
    """The least and the greatest finite value; (0, 0) of none. Rows that hold others are masked by `guarded`."""
    values = tensor.detach()
    if values.numel():
        least, most = (float(edge) for edge in torch.aminmax(values))
        if math.isfinite(least) and math.isfinite(most):
            return least, most
    values = values[torch.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.numel() else (0.0, 0.0)
