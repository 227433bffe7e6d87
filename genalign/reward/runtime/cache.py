"""A reward that remembers: what was scored once, bit for bit, is not scored again. Failures are never remembered."""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genalign.reward.base import Scope
from genalign.reward.guard import guarded
from genalign.reward.runtime.wire import pack_scores, receive, send, unpack_scores
from genalign.reward.scores import cat_scores
from genalign.reward.wrapper import Wrapper
from genalign.types import CoreReward, Media, Prompt, Scores, UsageError

ROWS = 65536  # that stay in memory


class Cached(Wrapper):
    """The reward it wraps, called once for each content: its version, prompt (text, facts, media), and media.

    file: an SQLite file that keeps rows from run to run, and may be shared by processes; None keeps the last ROWS in
    memory. Equal rows of one batch are scored once. What it wraps should score the same sample alike each time: of a
    judge that samples its answers, the first answer is returned from then on.

    Departs from common practice: the key is of everything a reward could read, not of its `needs` alone, which do not
    show what a function that takes whole `facts` or `media` reads.

    Without gradients, which a memory would cut.

    Raises:
        UsageError: the reward looks at siblings, or has a state; or the file is not a cache.
    """

    differentiable = False

    def __init__(self, reward: CoreReward, file: Path | None = None) -> None:
        super().__init__(reward)
        self.file = file
        self.hits, self.rows_seen = 0, 0
        self._rows: OrderedDict[str, Scores] = OrderedDict()
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None

    @property
    def looks_at(self) -> Scope:
        if self.reward.looks_at != "sample":
            raise UsageError(
                f"reward {self.name!r} looks at siblings, so no sample of it can be cached; cache its parts instead"
            )
        return "sample"

    @cached_property
    def version(self) -> str:  # of frozen weights, which take a while to hash
        if self.reward.state_dict():
            raise UsageError(f"reward {self.name!r} has a state that training moves, so it cannot be cached")
        return self.reward.version

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        assert self.looks_at == "sample"
        version = self.version
        keys = [content(version, prompt, media, row) for row, prompt in enumerate(prompts)]
        known: dict[str, Scores] = {}
        first: dict[str, int] = {}  # of each content that is not known, its first row
        for row, key in enumerate(keys):
            if key in known or key in first:
                continue
            if (found := self._get(key)) is not None:
                known[key] = found
            else:
                first[key] = row
        fresh = list(first.values())
        self.rows_seen, self.hits = self.rows_seen + len(keys), self.hits + len(keys) - len(fresh)
        if fresh:
            alone = None if group is None else group[fresh]
            scores = guarded(self.reward, [prompts[row] for row in fresh], media.select(fresh), alone)
            for at, row in enumerate(fresh):
                known[keys[row]] = scores.select([at])
                if not scores.failed[at].any():
                    self._put(keys[row], known[keys[row]])
        return cat_scores([known[key] for key in keys])

    def _get(self, key: str) -> Scores | None:
        with self._lock:
            if key in self._rows:
                self._rows.move_to_end(key)
                return self._rows[key]
            if self.file is None:
                return None
            found = self._open().execute("SELECT row FROM scores WHERE key = ?", (key,)).fetchone()
        if found is None:
            return None
        try:
            message = receive(io.BytesIO(found[0]))
        except (ValueError, KeyError):  # of another format of frames, or torn: as if it were absent
            message = None
        return None if message is None else unpack_scores(message)

    def _put(self, key: str, scores: Scores) -> None:
        with self._lock:
            if self.file is not None:
                frame = io.BytesIO()
                send(frame, pack_scores(scores))
                with self._open() as database:
                    database.execute("INSERT OR REPLACE INTO scores VALUES (?, ?)", (key, frame.getvalue()))
                return
            self._rows[key] = scores
            if len(self._rows) > ROWS:
                self._rows.popitem(last=False)

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            assert self.file is not None
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                database = sqlite3.connect(self.file, timeout=60.0, check_same_thread=False)
                database.execute("CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, row BLOB)")
                database.execute("SELECT key, row FROM scores LIMIT 1")
            except (OSError, sqlite3.Error) as error:
                raise UsageError(f"{self.file} cannot be used as a cache of scores: {error}") from error
            self._database = database
        return self._database


def content(version: str, prompt: Prompt, media: Media, row: int) -> str:
    """A hash of all that a reward could read of one row."""
    sha = hashlib.sha256(json.dumps([version, prompt.text, dict(prompt.facts)], sort_keys=True, default=str).encode())
    brought = [(name, track, at) for name, track in sorted((prompt.media or {}).items()) for at in range(len(track))]
    for name, track, at in [*brought, *((name, track, row) for name, track in sorted(media.items()))]:
        sha.update(json.dumps([name, track.rate_of(at)]).encode())
        _add(sha, track.held[at])
        if track.ids is not None:
            _add(sha, list(track.ids[at]))
    return sha.hexdigest()


def _add(sha: Any, value: Any) -> None:
    """Hash one row of a track: a tensor by its bits, dtype and shape, a text as JSON."""
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        sha.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
        sha.update(plain.reshape(-1).view(torch.uint8).numpy())
    else:
        sha.update(json.dumps(str(value)).encode())
