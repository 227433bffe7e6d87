"""Rewards from a user's file, in one process of their own that can be killed; this side of its pipes.

A thread cannot be stopped from outside; only a process can be ended for sure. The worker is child.py, started
afresh by the interpreter (nothing is forked, `__main__` is not run again), and talks in frames over its pipes.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from genalign.files.places import file_path
from genalign.reward.base import ScoringError
from genalign.reward.proxy import RemoteProxy
from genalign.reward.runtime.wire import pack_batch, receive, send, unpack_scores
from genalign.types import Media, Prompt, Scores, UsageError

START_SECONDS = 300.0  # to start an interpreter and import the user's file; not part of a call's time-out
BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from genalign.reward.child import serve; serve()"


class Worker:
    """The process and its pipes. It starts with the first request, and again with the first after it died.

    boot: the Python code that it runs, with sys.path as its first argument and `arguments` behind. popen: as Popen's.
    """

    def __init__(self, boot: str = BOOT, *arguments: str, **popen: Any) -> None:
        self._boot, self._arguments, self._popen = boot, arguments, popen
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Process id, None while there is no process."""
        return None if self._process is None else self._process.pid

    def ask(self, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Send one frame and wait for the answer, at most `timeout` seconds.

        Raises:
            UsageError: the worker's own: no such file or function, a setting that does not fit.
            ScoringError: the time ran out (the process, and all it started, has been killed), the process died, or the
                user's code raised.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                command = [sys.executable, "-c", self._boot, json.dumps(sys.path), *self._arguments]
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, **self._popen
                )
                self._exchange({"ask": "hello"}, START_SECONDS)
            reply = self._exchange(message, timeout)
        if "error" in reply:
            raise (UsageError if reply["usage"] else ScoringError)(reply["error"])
        return reply

    def _exchange(self, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            _kill(process)

        timer = threading.Timer(timeout, end)
        timer.start()
        try:
            send(process.stdin, message)
            reply = receive(process.stdout)
        except BrokenPipeError:
            reply = None
        finally:
            timer.cancel()
        if reply is None and not late.is_set():
            # Its pipe has closed; wait for its exit code, which a busy machine may take seconds to come to.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
        # A reply that came as the timer fired is kept, but its process is being killed: the next call starts another.
        if reply is None or late.is_set():
            self.close()
        if reply is not None:
            return reply
        if late.is_set():
            raise ScoringError(f"no answer within {timeout:g} s; its process was killed")
        raise ScoringError(f"its process died with exit code {process.returncode}")

    def close(self) -> None:
        """End the process now."""
        if self._process is not None:
            _kill(self._process)
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(BrokenPipeError):  # unsent bytes of a dead process
                    pipe.close()  # type: ignore[union-attr]
        self._process = None


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


WORKER = Worker()  # one for all rewards from files
atexit.register(WORKER.close)
Transport = Callable[[Mapping[str, Any], float], dict[str, Any]]
_transport: Transport | None = None  # None: by the pipes of WORKER


def carry_by(transport: Transport) -> None:
    """Have all frames for user files answered by `transport` from now on.

    The worker itself does so: files that its files name are answered in the same process, so that to end it ends them.
    """
    global _transport
    _transport = transport


def ask(message: Mapping[str, Any], timeout: float = START_SECONDS) -> dict[str, Any]:
    """The worker's answer to one frame; see `Worker.ask`."""
    return (_transport or WORKER.ask)(message, timeout)


class FileReward(RemoteProxy):
    """`file.py:name`, a function or a reward in a user's file, scored in the worker.

    target: the path is relative to `folder` (None: the current one), then to the shipped rewards. timeout: seconds that
    one call may take. settings: values of the function's optional parameters.

    Raises:
        UsageError: no such file or name, the file cannot be imported, an unknown setting.
    """

    def __init__(
        self,
        target: str,
        folder: Path | None = None,
        *,
        name: str | None = None,
        timeout: float = 60.0,
        **settings: Any,
    ) -> None:
        path, _, function = target.rpartition(":")
        if not path.endswith(".py") or not function:
            raise UsageError(f"{target!r} does not name a reward; write file and function as 'file.py:function'")
        self._address = {
            "path": str(file_path(path, folder or Path())),
            "function": function,
            "name": name,
            "settings": settings,
        }
        if not isinstance(timeout, int | float) or timeout <= 0:
            raise UsageError(f"the timeout of reward {function!r} is {timeout!r}; it must be a number of seconds")
        self.timeout = timeout
        self.name = name or function

    @cached_property
    def _about(self) -> dict[str, Any]:  # type: ignore[override]
        return ask({"ask": "describe", **self._address})

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        message = {"ask": "score", **self._address, "batch": pack_batch(prompts, media, group)}
        return unpack_scores(ask(self._counted(message), self.timeout)["scores"])
