"""A reward's work on the first rows of a rollout, done while further rows are sampled, for when all are scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from genalign.reward.base import Scope
from genalign.types import Media, Prompt

What = Literal["scores", "features"]
Key = tuple[What, int, int]
Work = Callable[[Sequence[Prompt], Media, Tensor | None], Any]


@dataclass(frozen=True)
class Prefetch:
    """Work that can be done in parts before a call on all rows, which then returns the same bits without doing it.

    owner: whose work it is, who asks `prefetched` for it. work: on some rows; join: the results of several parts, in
    their order, as one. rows: how many the owner computes at once: parts are multiples of that, or the last. scope:
    "group": parts are whole groups. elsewhere: it waits for another process or a server. sound: whether a result may be
    used; else the call does the work itself, on all rows. what: its Scores, or features that it makes them from.
    """

    owner: object
    work: Work
    join: Callable[[Sequence[Any]], Any]
    rows: int = 1
    scope: Scope = "sample"
    elsewhere: bool = False
    sound: Callable[[Any], bool] = lambda result: True
    what: What = "scores"

    def key(self, media: Media) -> Key:
        """By identity: only a call on exactly these media finds the work."""
        return self.what, id(self.owner), id(media)


_results: ContextVar[dict[Key, Any] | None] = ContextVar("results", default=None)


@contextmanager
def holding(results: Sequence[tuple[Prefetch, Any]], media: Media) -> Iterator[None]:
    """Within the context owners find their results, each once, when they are called on these media."""
    token = _results.set({done.key(media): result for done, result in results})
    try:
        yield
    finally:
        _results.reset(token)


def prefetched(owner: object, media: Media, what: What = "scores") -> Any:
    """What was done ahead of this call for `owner` on these media; None where nothing was, or it was given already.

    A second call is not answered from memory: a judge that samples its answers is asked again.
    """
    results = _results.get()
    return None if results is None else results.pop((what, id(owner), id(media)), None)
