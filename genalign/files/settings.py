"""Reading files of settings: YAML, overrides, and the first complaint about them as one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from genalign.files.places import nearest, portable
from genalign.types import UsageError


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-4 as text; here it is a number, as everybody who writes a learning rate expects."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$|[-+]?\.\d+[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> Any:
    """Parse a YAML file.

    Raises:
        UsageError: unreadable, or not YAML (with the line).
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def apply_override(plain: dict[str, Any], override: str) -> None:
    """Set what `a.b=value` says; files of the working directory, and its folders written with a slash, by full path."""
    key, equals, text = override.partition("=")
    *parents, last = key.split(".")
    if not equals or not all(key.split(".")):
        raise UsageError(f"{override!r} is no override; write key.subkey=value, for example train.steps=20")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UsageError(f"the value of override {override!r} is not YAML; quote it for the shell") from error
    place: Any = plain
    for depth, parent in enumerate(parents):
        if place.get(parent) is None:
            place[parent] = {}
        place = place[parent]
        if not isinstance(place, dict):
            raise UsageError(f"override {override!r} reaches into {'.'.join(parents[: depth + 1])}, which has no keys")
    place[last] = portable(value, Path(), folders=True)


def sentence(error: ValidationError, model: type[BaseModel]) -> str:
    """The first complaint of pydantic about a `model` as one sentence, an unknown key with the nearest known one."""
    first = error.errors()[0]
    *parents, last = first["loc"] or ("",)
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        known = list(_fields_at(model, [str(part) for part in parents]))
        return f"there is no key {where!r}{nearest(str(last), known)}"
    if first["type"] == "missing":
        return f"the key {where!r} is missing"
    if first["type"] == "value_error" and not where:  # two keys that do not go together
        return str(first["ctx"]["error"])
    given = first.get("input")
    return f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}, not {given!r}"


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> Iterator[str]:
    for name in path:
        kind: Any = model.model_fields[name].annotation if name in model.model_fields else None
        options = [kind, *get_args(kind)]
        found = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if not found:
            return
        model = found[0]
    yield from model.model_fields


def changed_key(old: Mapping[str, Any], new: Mapping[str, Any], free: Sequence[str] = (), at: str = "") -> str | None:
    """The first dotted key whose value differs, apart from those under `free`; None if the two are equal."""
    for key in sorted({*old, *new}):
        name = f"{at}{key}"
        if name in free:
            continue
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            deeper = changed_key(before, after, free, f"{name}.")
            if deeper:
                return deeper
        elif json.dumps(before, sort_keys=True) != json.dumps(after, sort_keys=True):
            return f"{name} (was {before!r}, is {after!r})"
    return None
