"""Work that a page started and may end: one piece a page, which looks up whether it is still wanted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from genalign.reward.wrapper import Wrapper
from genalign.types import Media, Prompt, Reward, Scores

GLANCE = 0.1  # seconds between two looks at a work in another thread


class CancelledError(Exception):
    """The page no longer wants the work."""


class Work:
    """One piece of work. It calls `check` where it can be ended, and every network inside `networks` does."""

    def __init__(self) -> None:
        self._unwanted = threading.Event()
        self.begun = time.monotonic()
        self.shown, self.ended = "", False  # on the page, so far; and whether nothing follows

    def cancel(self) -> None:
        self._unwanted.set()

    def check(self) -> None:
        """Raises CancelledError once the page has cancelled."""
        if self._unwanted.is_set():
            raise CancelledError

    @contextmanager
    def networks(self) -> Iterator[None]:
        """Inside, the next pass of any part of any network in this thread is where the work can be ended."""
        own = threading.get_ident()

        def look(*_: Any) -> None:
            if threading.get_ident() == own:  # the hook is one of all modules, which other threads use as well
                self.check()

        hook = register_module_forward_pre_hook(look)
        try:
            yield
        finally:
            hook.remove()

    @property
    def spent(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.begun


class Works:
    """The work of every page, by its session: a new one ends the one before."""

    def __init__(self) -> None:
        self._works: dict[str, Work] = {}
        self._lock = threading.Lock()

    def start(self, session: str) -> Work:
        with self._lock:
            if session in self._works:
                self._works[session].cancel()
            self._works[session] = Work()
            return self._works[session]

    def cancel(self, session: str) -> Work | None:
        """End what the page is waiting for, and return it; None where that has not begun. Also when it is closed."""
        with self._lock:
            work = self._works.pop(session, None)
        if work is not None:
            work.cancel()
        return work


def watched(work: Work, run: Callable[[], Any]) -> Iterator[bool]:
    """Run in a thread, and yield False every GLANCE seconds until it has ended; then True, or its exception.

    Whoever stops asking cancels the work.
    """
    failure: list[BaseException] = []

    def body() -> None:
        try:
            with work.networks():
                run()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(GLANCE)
            if thread.is_alive():
                yield False
    finally:
        if thread.is_alive():
            work.cancel()
        thread.join()
    if failure:
        raise failure[0]
    yield True


class Followed(Wrapper):
    """A reward that a search calls: each call is seen by the page, and is where the search can be ended."""

    def __init__(self, reward: Reward, work: Work, seen: Callable[[Sequence[Prompt], Media, Scores], None]) -> None:
        super().__init__(reward)
        self._work, self._seen = work, seen

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        self._work.check()
        scores = self.reward(prompts, media, group)
        self._seen(prompts, media, scores)
        return scores
