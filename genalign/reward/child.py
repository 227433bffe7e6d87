"""The worker's process: it answers frames by functions of user files, and by rewards that a spec describes."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from genalign.allocator import keep_freed_memory
from genalign.reward.base import StepCounting
from genalign.reward.build import build_reward
from genalign.reward.heads.exemplars import made_by
from genalign.reward.proxy import about
from genalign.reward.returned import describe
from genalign.reward.runtime.user_file import load_function
from genalign.reward.runtime.wire import pack_scores, receive, send, unpack_batch
from genalign.reward.runtime.worker import carry_by
from genalign.types import Reward, UsageError

_loaded: dict[str, Reward] = {}


def serve(lock: Callable[[], None] | None = None) -> None:
    """Answer frames until the pipe closes. What user code prints goes to stderr, so that it cannot garble a frame.

    lock: called before any user code is loaded; where it raises, its message is the answer to every frame.
    """
    keep_freed_memory()
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    threading.Thread(target=_end_with_asker, args=[source.fileno()], daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    carry_by(lambda message, _: answer(message))  # a time-out ends this process whole
    locked = lock is None
    while (message := receive(source)) is not None:
        try:
            if not locked and lock is not None:
                lock()
                locked = True
            reply = answer(message)
        except Exception as error:
            usage = isinstance(error, UsageError)
            reply = {"error": str(error) if usage else describe(error), "usage": usage}
        with contextlib.suppress(BrokenPipeError):  # the other side is gone, and so is the next frame
            send(sink, reply)


def _end_with_asker(pipe: int) -> None:
    """Wait until nobody holds the other end of the pipe, then end this process and all that it started."""
    waiting = select.poll()
    waiting.register(pipe, 0)  # a hang-up is always reported
    waiting.poll()
    os.killpg(0, signal.SIGKILL)


def answer(message: Mapping[str, Any]) -> dict[str, Any]:
    """One frame answered here: by a function of a file, or by the reward that a `spec` describes."""
    if message["ask"] == "hello":
        return {}
    if message["ask"] == "exemplars":
        return made_by(message["path"], message["function"])
    if message["ask"] == "converse":
        return {"answers": load_function(message["path"], message["function"]).answers(*unpack_batch(message["batch"]))}
    # All but the verb, the batch and the step names the reward: the same address is the reward that is loaded already.
    address = {key: value for key, value in message.items() if key not in ("ask", "batch", "step")}
    key = json.dumps(address, sort_keys=True)
    if key not in _loaded:
        _loaded[key] = _load(address)
    reward = _loaded[key]
    if message["ask"] == "score":
        if "step" in message and isinstance(reward, StepCounting):
            reward.step = message["step"]
        return {"scores": pack_scores(reward(*unpack_batch(message["batch"])))}
    return about(reward)


def _load(address: Mapping[str, Any]) -> Reward:
    if "spec" not in address:
        return load_function(**address)
    return build_reward(address["spec"], Path(address["folder"]))
