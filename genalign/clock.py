"""What the seconds of a training step are spent on. Each second belongs to one part, so that they add up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Part = Literal["sample", "decode", "score", "learn", "wait"]
PARTS: tuple[Part, ...] = get_args(Part)


class _Watch(threading.local):
    """One a thread: what goes on beside the loop, in a thread of its own, costs the step no second."""

    def __init__(self) -> None:
        self.seconds: dict[Part, float] = dict.fromkeys(PARTS, 0.0)
        self.part: Part | None = None
        self.since = 0.0


_watch = _Watch()


def switch(part: Part | None) -> Part | None:
    """From now on seconds belong to `part` (None: to nothing), within the innermost `spent`. Returns the former one."""
    now = time.perf_counter()
    if _watch.part is not None:
        _watch.seconds[_watch.part] += now - _watch.since
    former, _watch.part, _watch.since = _watch.part, part, now
    return former


@contextmanager
def spent(part: Part) -> Iterator[None]:
    """Within the context seconds belong to `part`, and not to the one around it."""
    around = switch(part)
    try:
        yield
    finally:
        switch(around)


def taken() -> dict[Part, float]:
    """The seconds of each part since this was last asked."""
    switch(_watch.part)
    seconds, _watch.seconds = _watch.seconds, dict.fromkeys(PARTS, 0.0)
    return seconds
