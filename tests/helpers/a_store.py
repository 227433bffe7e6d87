"""A file system of fsspec that stands for an object store: in this process, under a scheme of its own."""

from __future__ import annotations

from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class Store(MemoryFileSystem):
    """store://bucket/name; its files are apart from those of memory://."""

    protocol = "store"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).removeprefix("store://"))


fsspec.register_implementation("store", Store, clobber=True)
