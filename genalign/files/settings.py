"""Reading files of settings: YAML, overrides, and the first fault in them as one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from genalign.files.places import portable, recipe_path
from genalign.files.text import read_text
from genalign.types import UsageError, nearest

M = TypeVar("M", bound=BaseModel)

# YAML 1.2, section 10.3.2: the core schema. A plain scalar that fits no line of it is text.
CORE_SCHEMA = (
    ("null", r"null|Null|NULL|~|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),  # not of the core schema, but recipes may share parts by it
)


class _Loader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, where `on`, `yes`, 010 and 12:30 are no text and 1e-4 is no number; here is YAML 1.2."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                continue
            value, line = self.construct_object(key), key.start_mark.line + 1
            if value in seen:
                problem = f"the key {value!r} stands in line {seen[value]} already; keep one of them"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen[value] = line
        return node


def _integer(loader: Any, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text if base == 10 else text[2:], base)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as something else."""


_Loader.yaml_implicit_resolvers = {}  # those of YAML 1.1 go
for _kind, _pattern, _first in CORE_SCHEMA:
    _tag, _regexp = f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z")
    _Loader.add_implicit_resolver(_tag, _regexp, ["" if first == "\0" else first for first in _first])
    _Dumper.add_implicit_resolver(_tag, _regexp, ["" if first == "\0" else first for first in _first])
_KINDS = ("null", "bool", "float", "str", "seq", "map")
_Loader.yaml_constructors = {
    None: yaml.SafeLoader.yaml_constructors[None],  # of a tag that nobody knows: refuses it
    **{f"tag:yaml.org,2002:{kind}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{kind}"] for kind in _KINDS},
    "tag:yaml.org,2002:int": _integer,
    "tag:yaml.org,2002:merge": yaml.SafeLoader.yaml_constructors["tag:yaml.org,2002:str"],  # as a value it is text
}


def parse_yaml(text: str, where: Path | str) -> Any:
    """Plain data from YAML 1.2, its core schema alone; `where` names the text in the sentence about a fault.

    Raises:
        UsageError: not YAML, a key that stands twice in one mapping (with the line), or an alias within what it names.
    """
    try:
        found = yaml.load(text, _Loader)
        json.dumps(found, default=str, skipkeys=True)  # raises ValueError where an alias makes something part of itself
        return found
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f", line {mark.line + 1}"
        reason = " ".join(filter(None, (error.context, error.problem)))
        raise UsageError(f"{where} is not YAML{line}: {' '.join(reason.split())}") from error
    except (yaml.YAMLError, ValueError, KeyError, RecursionError) as error:  # KeyError, ValueError: as of !!int x
        raise UsageError(f"{where} is not YAML: {' '.join(str(error).split())}") from error


def read_yaml(path: Path) -> Any:
    """The plain data of a YAML file: recipes, reward files, resolved recipes.

    Raises:
        UsageError: unreadable, or not YAML (with the line).
    """
    return parse_yaml(read_text(path), path)


def write_yaml(plain: Any) -> str:
    """YAML that `parse_yaml`, and every reader of YAML 1.1 or 1.2, reads as `plain` again."""
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_recipe(name: str, overrides: Sequence[str], model: type[M]) -> tuple[M, Path]:
    """A recipe, by its path or shipped name and with `a.b=value` overrides, as a `model`; and the file it stands in.

    Raises:
        UsageError: no such file, not YAML, an unknown key (the nearest is named) or a value that does not fit.
    """
    path = recipe_path(name)
    plain = read_yaml(path)
    if not isinstance(plain, dict):
        raise UsageError(f"{path} holds no recipe; its top-level keys are {', '.join(model.model_fields)}")
    for override in overrides:
        apply_override(plain, override)
    return settings_of(plain, model, f"recipe {path}"), path


def settings_of(plain: dict[str, Any], model: type[M], name: str) -> M:
    """Plain data as a `model`; `name` stands before the sentence about what does not fit.

    Raises:
        UsageError: an unknown key (the nearest is named) or a value that does not fit.
    """
    try:
        return model.model_validate(plain)
    except ValidationError as error:
        raise UsageError(f"{name}: {sentence(error, model)}") from error


def apply_override(plain: dict[str, Any], override: str) -> None:
    """Set `a.b=value`; files of the working directory, and its folders written with a slash, by full path."""
    key, equals, text = override.partition("=")
    *parents, last = key.split(".")
    if not equals or not all(key.split(".")):
        raise UsageError(f"{override!r} is not an override; write key.subkey=value, for example train.steps=20")
    try:
        value = parse_yaml(text, override)
    except UsageError as error:
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
    """The first fault that pydantic finds in a `model` as one sentence, an unknown key with the nearest known one."""
    first = error.errors()[0]
    *parents, last = first["loc"] or ("",)
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        known = list(_fields_at(model, [str(part) for part in parents]))
        return f"there is no key {where!r}{nearest(str(last), known)}"
    if first["type"] == "missing":
        return f"the key {where!r} is missing"
    if first["type"] == "value_error":  # in our own words: keys that do not go together, or a value that is none
        said = str(first["ctx"]["error"])
        return f"{where}: {said}" if where else said
    return f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}, not {first.get('input')!r}"


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
