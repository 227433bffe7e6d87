"""A user's function that answers a language model's turns, as a tool does, in the worker."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from genalign.files.places import file_path
from genalign.reward.base import ScoringError
from genalign.reward.runtime.wire import pack_batch
from genalign.reward.runtime.worker import ask
from genalign.types import GenalignError, Media, Prompt, Track, UsageError


class FileEnvironment:
    """`file.py:function`, called with the lists that its parameters name, as rewards are: `text` is each row's last
    turn, `turns` all since the prompt ({"role", "content"}), anything else a fact. It returns a text or None for each.

    target: the path is relative to `folder`, then to the shipped rewards. timeout: seconds that one call may take.

    Raises:
        UsageError: no such file; GenalignError (when called): it raised, took too long, or returned something else.
    """

    def __init__(self, target: str, folder: Path, timeout: float = 60.0) -> None:
        path, _, function = target.rpartition(":")
        if not path.endswith(".py") or not function:
            raise UsageError(f"{target!r} does not name an environment; write file and function as 'file.py:function'")
        self.path, self.function, self.timeout = file_path(path, folder), function, timeout

    @cached_property
    def version(self) -> str:
        """A hash of the file and the function's name."""
        return hashlib.sha256(self.path.read_bytes() + self.function.encode()).hexdigest()[:16]

    def __call__(self, prompts: Sequence[Prompt], turns: Sequence[Sequence[dict[str, str]]]) -> list[str | None]:
        rows = [
            replace(prompt, media=None, facts={**prompt.facts, "turns": [dict(turn) for turn in own]})
            for prompt, own in zip(prompts, turns, strict=True)
        ]
        batch = pack_batch(rows, Media(text=Track([own[-1]["content"] for own in turns])), None)
        message = {"ask": "converse", "path": str(self.path), "function": self.function, "batch": batch}
        assert self.needs  # the file is imported, which takes its own time
        try:
            answers: list[str | None] = ask(message, self.timeout)["answers"]
        except ScoringError as error:
            raise GenalignError(f"environment {self.function} of {self.path} failed: {error}") from error
        return answers

    @cached_property
    def needs(self) -> frozenset[str]:
        """What it reads, as `Reward.needs`; of the facts only what a prompt must bring."""
        address: dict[str, Any] = {"path": str(self.path), "function": self.function, "name": None, "settings": {}}
        return frozenset({"text", *ask({"ask": "describe", **address})["needs"]} - {"facts.turns"})
