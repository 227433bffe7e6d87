"""Rewards from a user's file, in one process of their own that can be killed.

A thread that is told to stop goes on working; only a process can be ended for sure. The worker is this module, started
afresh by the interpreter (nothing is forked, `__main__` is not run again), and talks in frames over its pipes.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from genalign.reward.base import ScoringError, StandIn, about, nearest
from genalign.reward.function import FunctionReward, describe
from genalign.reward.wire import pack_batch, pack_scores, receive, send, unpack_batch, unpack_scores
from genalign.shipped import shipped
from genalign.types import Media, Prompt, Reward, Scores, UsageError

START_SECONDS = 300.0  # to start an interpreter and import the user's file; not part of a call's time-out
BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from genalign.reward.worker import serve; serve()"


class Worker:
    """The process and its pipes. It starts when first asked, and again when asked after it died.

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
            UsageError: the worker says that it was asked for something that is not there.
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
            with contextlib.suppress(subprocess.TimeoutExpired):  # its pipe has closed; let it tell its exit code
                process.wait(5)
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
_inside = False  # this process is a worker: its files' rewards run right here, so that to end it ends them
_loaded: dict[str, Reward] = {}


def _asked(message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    return answer(message) if _inside else WORKER.ask(message, timeout)


class FileReward(StandIn):
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
            raise UsageError(f"{target!r} names no reward; write the file and the function as 'file.py:function'")
        self._address = {"path": str(find_file(path, folder)), "function": function, "name": name, "settings": settings}
        if not isinstance(timeout, int | float) or timeout <= 0:
            raise UsageError(f"the timeout of reward {function!r} is {timeout!r}; it must be a number of seconds")
        self.timeout = timeout
        self.name = name or function

    @cached_property
    def _about(self) -> dict[str, Any]:  # type: ignore[override]
        return _asked({"ask": "describe", **self._address}, START_SECONDS)

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        message = {"ask": "score", **self._address, "batch": pack_batch(prompts, media, group)}
        return unpack_scores(_asked(message, self.timeout)["scores"])


def find_file(path: str, folder: Path | None) -> Path:
    """A reward's file, relative to `folder`, then to the shipped rewards.

    Raises:
        UsageError: in neither place.
    """
    places = [folder or Path(), shipped("rewards")]
    for place in places:
        if (found := place / Path(path).expanduser()).is_file():
            return found.resolve()
    known = [file.name for place in places for file in place.glob(f"*{Path(path).suffix}")]
    raise UsageError(
        f"no reward file {path!r} in {places[0].resolve()} or among the shipped rewards{nearest(path, known)}"
    )


# ---- the other side of the pipes ------------------------------------------------------------------------------------


def serve(lock: Callable[[], None] | None = None) -> None:
    """Answer frames until the pipe closes. What user code prints goes to stderr, so that it cannot garble a frame.

    lock: what must have been done before any user code is loaded; where it fails, that is the answer to all frames.
    """
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    global _inside
    _inside, locked = True, lock is None
    while (message := receive(source)) is not None:
        try:
            if not locked and lock is not None:
                lock()
                locked = True
            reply = answer(message)
        except Exception as error:
            usage = isinstance(error, UsageError)
            reply = {"error": str(error) if usage else describe(error), "usage": usage}
        with contextlib.suppress(BrokenPipeError):  # the asker is gone, and so is the next frame
            send(sink, reply)


def answer(message: Mapping[str, Any]) -> dict[str, Any]:
    """One frame answered here: by a function of a file, or by the reward that a `spec` describes."""
    if message["ask"] == "hello":
        return {}
    address = {key: value for key, value in message.items() if key not in ("ask", "batch")}
    key = json.dumps(address, sort_keys=True)
    if key not in _loaded:
        _loaded[key] = _load(address)
    if message["ask"] == "score":
        return {"scores": pack_scores(_loaded[key](*unpack_batch(message["batch"])))}
    return about(_loaded[key])


def _load(address: Mapping[str, Any]) -> Reward:
    if "spec" not in address:
        return load_function(**address)
    from genalign.reward.build import build_reward

    return build_reward(address["spec"], Path(address["folder"]))


def load_function(
    path: str, function: str, name: str | None = None, settings: Mapping[str, Any] | None = None
) -> FunctionReward:
    """Import a user's file under a name nothing else has, and take the function from it as a reward.

    Raises:
        UsageError: the file cannot be imported, or has no such function.
    """
    module = import_file(Path(path))
    found = getattr(module, function, None)
    if not callable(found):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"{path} has no function {function!r}{nearest(function, own)}")
    reward = found if isinstance(found, FunctionReward) else FunctionReward(found, name=function)
    return reward.with_settings(settings or {}, name)


def import_file(path: Path) -> ModuleType:
    """A user's file as a module, under a name nothing else has.

    Raises:
        UsageError: it cannot be imported.
    """
    unique = f"genalign_reward_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if unique in sys.modules:
        return sys.modules[unique]
    spec = importlib.util.spec_from_file_location(unique, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # so that the file may import its neighbours
    sys.modules[unique] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[unique]
        raise UsageError(f"reward file {path} cannot be imported: {describe(error)}") from error
    return module
