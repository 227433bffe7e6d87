"""What frozen networks answered, on the disk: embeddings of prompts, and clean latents of given samples.

A file is named by the content of the question: the answering weights, versions of the libraries, kind of device, and
every argument. So it is never stale, runs and ranks may share a folder, and a resumed run finds the bits that it had.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from genalign.files.atomic import replace_file
from genalign.types import Media, UsageError

log = logging.getLogger(__name__)
SUFFIX, TREE = ".safetensors", "tree"
PLAIN = (str, int, float, bool, type(None))


class Stored:
    """Answers by their questions, in at most `size` bytes, of which those that were asked for longest ago make room.

    about: what decides an answer beside its question; asked for once, at the first question. Raises UsageError where
    the folder cannot be made.
    """

    def __init__(self, folder: Path, size: int, about: Callable[[], Any]) -> None:
        self.folder, self.size = folder, size
        self._ask, self._about = about, ""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"policy.cache.folder {folder} cannot be made ({error.strerror}); name another") from error
        self._held = sum(path.stat().st_size for path in folder.glob(f"*{SUFFIX}"))
        self._failed = False

    def answer(self, question: Any, make: Callable[[], Any]) -> Any:
        """make(), or what it once gave to this question: tensors, on the CPU, in tuples and lists."""
        path = self._path(question)
        found = self._read(path)
        if found is not None:
            return found[0]
        made = make()
        self._write(path, made)
        return made

    def _path(self, question: Any) -> Path:
        self._about = self._about or repr(self._ask())
        return self.folder / (hashlib.sha256(repr((self._about, question)).encode()).hexdigest()[:40] + SUFFIX)

    def _read(self, path: Path) -> tuple[Any] | None:
        try:
            with safe_open(str(path), framework="pt") as file:
                tree = json.loads(file.metadata()[TREE])
                found = _filled(tree, file.get_tensor)
            os.utime(path)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):  # absent, or cut short by another program
            return None
        return (found,)

    def _write(self, path: Path, made: Any) -> None:
        held: dict[str, Tensor] = {}
        try:
            tree = json.dumps(_hollow(made, held))
        except TypeError:  # something else than tensors is in it
            return
        blob = save(held or {"0": torch.zeros(0)}, metadata={TREE: tree})
        own = path.with_suffix(f".{os.getpid()}")  # of several ranks each writes its own, and the last one stays
        try:
            replace_file(own, blob)
            os.replace(own, path)
        except OSError as error:
            if not self._failed:
                log.warning("policy.cache: %s cannot be written (%s); the run goes on without", path, error.strerror)
            self._failed = True
            return
        self._held += len(blob)
        if self._held > self.size:
            self._make_room()

    def _make_room(self) -> None:
        """Delete what was asked for longest ago, to nine tenths of the bound, so that this is seldom."""
        files = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            try:
                files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
            except OSError:  # another process was faster
                continue
        self._held = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if self._held <= 0.9 * self.size:
                return
            path.unlink(missing_ok=True)
            self._held -= size


def _hollow(tree: Any, held: dict[str, Tensor]) -> Any:
    """The tree with a number in the place of each tensor, as JSON holds it. Raises TypeError at anything else."""
    if type(tree) is Tensor:
        held[str(len(held))] = tree.detach().cpu().contiguous()
        return {"tensor": len(held) - 1}
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [_hollow(item, held) for item in tree]}
    if isinstance(tree, PLAIN):
        return {"plain": tree}
    raise TypeError(type(tree).__name__)


def _filled(tree: Any, tensor: Callable[[str], Tensor]) -> Any:
    ((kind, value),) = tree.items()
    if kind == "tensor":
        return tensor(str(value))
    if kind == "plain":
        return value
    items = [_filled(item, tensor) for item in value]
    return tuple(items) if kind == "tuple" else items


def media_key(media: Media) -> Any:
    """What stands for the samples of media: a digest of their values, with shapes and rates."""
    found: list[Any] = []
    for name, track in sorted(media.items()):
        for row in range(media.rows):
            data = track.row(row)
            if not isinstance(data, Tensor):
                found.append((name, repr(data), track.rate))
                continue
            values = data.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            digest = hashlib.sha256(values).hexdigest()
            found.append((name, tuple(data.shape), str(data.dtype), track.rate, digest))
    return tuple(found)
