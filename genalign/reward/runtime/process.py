"""Any reward in a process of its own, which is ended for sure when its time is over; or in a sandbox on top of that."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import weakref
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from genalign.reward.proxy import RemoteProxy
from genalign.reward.runtime.wire import pack_batch, unpack_scores
from genalign.reward.runtime.worker import BOOT, START_SECONDS, Worker
from genalign.types import Media, Prompt, Scores, UsageError

SANDBOX = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from genalign.reward.sandbox import serve; serve(float(sys.argv[2]))"
)
KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for worker in list(_workers):
        worker.close()


class ProcessReward(RemoteProxy):
    """The reward that `spec` describes (as in a reward file, relative to `folder`), in a process of its own.

    timeout: seconds that one call may take; loading is not part of it. When it is over the process and all that it
    started are killed, and the next call starts anew. Media cross as CPU tensors; without gradients.

    sandbox: for code that nobody has read, such as an LLM's (Text2Reward, ICPL): spec is then `file.py:function` (or a
    mapping with `use`), and see `genalign.reward.sandbox` for what the process may do. memory: GiB that it may take
    beyond what it has once torch is loaded.

    Raises:
        UsageError: a time or a size that is not above 0; and what building the reward raises, when it is first used.
    """

    def __init__(
        self,
        spec: str | Mapping[str, Any],
        folder: Path | None = None,
        *,
        timeout: float = 60.0,
        sandbox: bool = False,
        memory: float = 2.0,
        name: str | None = None,
    ) -> None:
        for what, number in (("timeout", timeout), ("memory", memory)):
            if isinstance(number, bool) or not isinstance(number, int | float) or number <= 0:
                raise UsageError(f"the {what} of a reward in a process is {number!r}; it must be a number above 0")
        used = spec if isinstance(spec, str) else spec.get("use")
        if sandbox and not (isinstance(used, str) and used.rpartition(":")[0].endswith(".py")):
            raise UsageError(f"a sandbox runs a function of a file; write use: file.py:function, not {used!r}")
        self._message = {"spec": spec, "folder": str((folder or Path()).resolve())}
        self.timeout, self._name = float(timeout), name
        self._worker = _sandboxed(memory) if sandbox else Worker(BOOT)
        self._ready: int | None = None  # the process that has loaded the reward
        _workers.add(self._worker)

    @cached_property
    def _about(self) -> dict[str, Any]:  # type: ignore[override]
        return self._describe()

    @property
    def name(self) -> str:  # type: ignore[override]
        return self._name or self._about["name"]

    @property
    def pid(self) -> int | None:
        """Its process, None while there is none."""
        return self._worker.pid

    def _describe(self) -> dict[str, Any]:
        description = self._worker.ask({"ask": "describe", **self._message}, START_SECONDS)
        self._ready = self._worker.pid
        return description

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        if self._ready is None or self._worker.pid != self._ready:  # loading is not part of the call's time-out
            self._describe()
        message = {"ask": "score", **self._message, "batch": pack_batch(prompts, media, group)}
        return unpack_scores(self._worker.ask(self._counted(message), self.timeout)["scores"])

    def close(self) -> None:
        """End the process now."""
        self._worker.close()


def _sandboxed(memory: float) -> Worker:
    environment = {key: os.environ[key] for key in KEPT if key in os.environ}  # no key, no token, no home
    return Worker(SANDBOX, json.dumps(memory), env=environment, stderr=subprocess.DEVNULL)
