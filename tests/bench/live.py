"""Bytes of the tensors that are alive, exactly: each storage from the operation that made it until it is freed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Follows what is made within the context; what was there before counts for nothing. now, peak: bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self._see(x.untyped_storage(), given)
        return out

    def _see(self, storage: Any, given: set[int]) -> None:
        key = id(storage)
        if key in given or key in self._known:  # a view, or written in place
            return
        size = storage.nbytes()

        def freed(_: Any) -> None:
            self.now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


def live(work: Callable[[], Any]) -> tuple[int, int]:
    """The peak of live bytes during work, and those that are held when it is done, of what it makes."""
    with Live() as seen:
        kept = work()
    held = seen.now
    del kept
    return seen.peak, held
