"""What makes a function the one that it is, for a reward's version: its text, and the values that it carries."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def held_values(function: Callable[..., Any]) -> Any:
    """The values that a function carries besides its text: those of a partial, of a callable object, of a closure."""
    if isinstance(function, functools.partial):
        given = {str(place): value for place, value in enumerate(function.args)} | function.keywords
        return [_plain_values(given), held_values(function.func)]
    plain = inspect.unwrap(function)
    if not hasattr(plain, "__code__"):
        return _plain_values(getattr(plain, "__dict__", {}))
    values: dict[str, Any] = {}
    for name, cell in zip(plain.__code__.co_freevars, getattr(plain, "__closure__", None) or (), strict=True):
        try:
            values[name] = cell.cell_contents
        except ValueError:  # not set yet
            continue
    return _plain_values(values)


def _plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are numbers, texts, or lists and mappings of such; others have no text that stays the same."""
    kept = {}
    for name, value in values.items():
        try:
            kept[name] = json.loads(json.dumps(value))  # a copy
        except (TypeError, ValueError, RecursionError):
            continue
    return kept


def source(function: Callable[..., Any]) -> str:
    """The text of the file a function stands in (its helpers count too), else its byte code."""
    if isinstance(function, functools.partial):
        return source(function.func)
    plain = inspect.unwrap(function)
    try:
        path = inspect.getsourcefile(plain if hasattr(plain, "__code__") else type(plain))
        return f"{getattr(plain, '__qualname__', '')} {Path(str(path)).read_text(encoding='utf-8', errors='replace')}"
    except (TypeError, OSError):
        return str(getattr(plain, "__code__", plain))
