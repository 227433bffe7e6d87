"""Published bases that recipes name: licence, bytes of a download, and sizes, from assets/bases.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from genalign.files.settings import read_yaml
from genalign.files.shipped import shipped


@dataclass(frozen=True)
class Part:
    """A network of a pipeline: its class and configuration; or, without one, how many weights it has."""

    kind: str
    config: Mapping[str, Any] | None = None
    count: int = 0
    library: str = "diffusers"


@dataclass(frozen=True)
class Base:
    """licence: its name. download: bytes that `genalign train` fetches."""

    licence: str
    download: int
    parts: Mapping[str, Part]


@cache
def bases() -> Mapping[str, Base]:
    """By hub id."""
    found = {}
    for name, base in read_yaml(shipped("assets", "bases.yaml")).items():
        parts = {
            component: Part(part.get("class", ""), part.get("config"), part.get("weights", 0))
            for component, part in base["parts"].items()
        }
        found[name] = Base(base["licence"], base["download"], parts)
    return found
