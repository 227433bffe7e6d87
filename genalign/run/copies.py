"""A run folder's copy at a URL that fsspec knows (s3://, gs://, hf://, sftp://, file://), and a run out of such a copy.

The run itself is on a local disk. Its copy is brought up to date after each checkpoint and at the end, in an order in
which a reader meets no checkpoint before its files: the manifest, without which a checkpoint does not count, is written
last and deleted first. (A rename of a whole folder, as the local disk has it, is no operation of an object store.)
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from genalign.files.atomic import replacing
from genalign.files.settings import changed_key
from genalign.run.recipe import RECIPE, Recipe, load_recipe, may_change
from genalign.training.checkpoint import MANIFEST, PREFIX
from genalign.types import GenalignError, UsageError

log = logging.getLogger("genalign")
PROBE = ".writable"


def is_url(text: str) -> bool:
    return "://" in text


class Copy:
    """The copy of a run at a URL.

    Raises:
        UsageError: the text is no URL of a place that can be reached from here; nothing was asked of the place yet.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        scheme, _, place = url.rstrip("/").partition("://")
        self.url = f"{scheme}://{place}"
        if not place or "::" in url or (scheme in ("file", "local") and not place.startswith("/")):
            # without a place fsspec takes what is left for a path, and one without its slash from the working directory
            raise UsageError(f"{url} is not the URL of one folder; write it as s3://bucket/folder or file:///folder")
        if scheme == "memory":
            raise UsageError(f"{url} is the memory of this process, which ends with it; name a place that stays")
        if urlsplit(url).password is not None:
            raise UsageError(
                "a URL with a password in it would be kept in recipe.yaml; leave it out, and give it as fsspec's "
                "file system reads it from the environment or its own configuration"
            )
        try:
            self._fs, root = url_to_fs(self.url)
        except Exception as error:  # a package that is missing, a scheme that nobody knows or that is not for folders
            raise UsageError(f"{self.url} cannot be reached from here: {_why(error)}") from error
        self._root = root.rstrip("/")
        self._sent: dict[str, tuple[int, int]] = {}  # name -> size and time of what was sent last

    def claim(self, recipe: Recipe) -> None:
        """See that a run of the recipe can be copied there: to an empty place, or, resumed, to its own copy.

        Raises:
            UsageError: it cannot be written, or holds another run.
        """
        with tempfile.TemporaryDirectory() as folder:
            probe, there = Path(folder) / PROBE, Path(folder) / RECIPE
            with self._reached("written"):
                probe.touch()
                self._put(probe, PROBE)
                self._fs.rm_file(self._path(PROBE))
                if RECIPE not in self.names():
                    return
                self._fs.get_file(self._path(RECIPE), str(there))
            if recipe.train.resume is None:
                raise UsageError(
                    f"{self.url} already holds a run; choose another train.copy_to, or go on with it by "
                    f"--resume {self.url}"
                )
            changed = changed_key(load_recipe(there).resolved(), recipe.resolved(), may_change(recipe))
        if changed is not None:
            raise UsageError(
                f"{self.url} holds another run, whose recipe differs at {changed}; choose another train.copy_to, or "
                "restore that key"
            )

    @contextlib.contextmanager
    def held(self, recipe: Recipe, run: Path) -> Iterator[None]:
        """Within the context the place is the run's, whose recipe.yaml stands there from the beginning: a run that
        begins before the first checkpoint of this one is refused. One that ends without any leaves the place free.

        Raises:
            UsageError: another run has taken the place since `claim`, or it cannot be written any more.
        """
        self.claim(recipe)
        with self._reached("written"):
            free = RECIPE not in self.names()
            if free:
                self._put(run / RECIPE, RECIPE)
        try:
            yield
        finally:
            if free and not self._sent:
                with contextlib.suppress(Exception):  # what ended the run is said, and may be that the place is gone
                    self._fs.rm_file(self._path(RECIPE))

    def check_apart(self, run: Path) -> None:
        """See that neither folder is within the other: each copy would then be part of the next one.

        Raises:
            UsageError: one is.
        """
        from fsspec.implementations.local import LocalFileSystem

        here, there = run.resolve(), Path(self._root).resolve()
        if isinstance(self._fs, LocalFileSystem) and (here.is_relative_to(there) or there.is_relative_to(here)):
            raise UsageError(
                f"train.copy_to {self.url} and the run folder {run} are within one another; name a folder elsewhere"
            )

    def update(self, run: Path) -> None:
        """Send what has changed in the folder, then delete checkpoints that it no longer holds.

        Raises:
            UsageError: the place cannot be written any more.
        """
        here = dict(_files(run))
        with self._reached("written"):
            for name in sorted(here, key=lambda name: (_speaks(name), name)):
                if self._sent.get(name) != here[name]:
                    self._put(run / name, name)
                    self._sent[name] = here[name]
            for name in sorted(self.names(), key=lambda name: (not _speaks(name), name)):
                if name.startswith(PREFIX) and not (run / name).parent.is_dir():
                    self._fs.rm_file(self._path(name))

    def try_update(self, run: Path) -> None:
        """The same while training goes on: a copy that fails is made up for after the next checkpoint."""
        try:
            self.update(run)
        except UsageError as error:
            log.warning("%s; %s stays as it is until the next checkpoint", error, self.url)

    def names(self) -> list[str]:
        """Of the files there, relative to the folder; drafts and the like left out."""
        self._fs.invalidate_cache()
        found = [path.removeprefix(self._root).lstrip("/") for path in self._fs.find(self._root)]
        return [name for name in found if not any(part.startswith(".") and part != ".." for part in name.split("/"))]

    def fetch(self, run: Path) -> None:
        """Make the folder `run` of the copy, whole or not at all.

        Raises:
            UsageError: it is no copy of a run, or cannot be read. GenalignError: a file of it would lie elsewhere.
        """
        draft = run.with_name(f".{run.name}.tmp")
        shutil.rmtree(draft, ignore_errors=True)
        with self._reached("read"):
            names = self.names()
        if RECIPE not in names:
            raise UsageError(f"{self.url} holds no copy of a run (no {RECIPE}); give what train.copy_to was")
        for name in names:
            if ".." in PurePosixPath(name).parts or "\\" in name or "\0" in name:
                raise GenalignError(f"{self.url} holds a file named {name!r}, which is none of a run; delete it there")
        for name in names:
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            with self._reached("read"):
                self._fs.get_file(self._path(name), str(draft / name))
        os.replace(draft, run)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _put(self, file: Path, name: str) -> None:
        from fsspec.implementations.local import LocalFileSystem

        if not isinstance(self._fs, LocalFileSystem):
            self._fs.put_file(str(file), self._path(name))
            return
        target = Path(self._path(name))  # a disk, where a file that is written is there before it is whole
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as draft:
            shutil.copyfile(file, draft)

    @contextlib.contextmanager
    def _reached(self, how: str) -> Iterator[None]:
        """Each store has errors of its own; whichever it is ends in a sentence."""
        try:
            yield
        except Exception as error:
            raise UsageError(
                f"{self.url} cannot be {how} ({_why(error)}); check address, rights and network"
            ) from error


def fetched(url: str, out: Path | None) -> Path:
    """The local folder of the run whose copy is at the URL, fetched: `out`, or one of its name in runs/.

    Raises:
        UsageError: there is a folder already, or no copy.
    """
    copy = Copy(url)
    run = out or Path("runs") / copy.url.rpartition("/")[2]
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UsageError(f"{run} is here already; go on with it by --resume {run}, or name another --out for {url}")
    run.parent.mkdir(parents=True, exist_ok=True)
    copy.fetch(run)
    return run


def _why(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _files(run: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name, size and time of each file of a run's folder. Links are not followed: what they lead to is none of it."""
    for folder, folders, names in os.walk(run):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder) / name
            if not name.startswith(".") and not path.is_symlink():
                known: Any = path.stat()
                yield path.relative_to(run).as_posix(), (known.st_size, known.st_mtime_ns)


def _speaks(name: str) -> bool:
    """Whether it says that the files beside it are whole."""
    return PurePosixPath(name).name == MANIFEST
