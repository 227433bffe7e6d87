"""A recipe as a form: the fields that a page may change, and the changes that a form which was filled in asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from genalign.run.recipe import Recipe

SECTIONS = ("train", "method", "data", "policy", "eval")  # of a recipe, as the form shows them
Value = str | bool


@dataclass(frozen=True)
class Field:
    """A key of a recipe that takes a number, true, false, null or one of some words.

    value: what it is, as the form shows it. choices: the words, where these are all that it takes. about: its meaning.
    """

    key: str
    value: Value
    choices: tuple[str, ...] = ()
    about: str = ""

    def change(self, value: Value | None) -> str:
        """The override `key=value` that a filled-in field asks for, "" where it stands as it was."""
        given = "null" if value in (None, "") else value
        if given == self.value:
            return ""
        return f"{self.key}={str(given).lower() if isinstance(given, bool) else given}"


def fields_of(recipe: Recipe) -> dict[str, list[Field]]:
    """The fields of each section; what names files, code or addresses, and lists, are no fields."""
    found = {}
    for section in SECTIONS:
        settings = getattr(recipe, section)
        if settings is not None:
            found[section] = list(_walk(settings, section))
    return found


def changes_of(fields: Sequence[Field], values: Sequence[Value | None]) -> str:
    """The changes of a form, one a line."""
    return "\n".join(filter(None, (field.change(value) for field, value in zip(fields, values, strict=True))))


def _walk(settings: BaseModel, above: str) -> Iterator[Field]:
    for name, info in type(settings).model_fields.items():
        key, value = f"{above}.{name}", getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from _walk(value, key)
        elif isinstance(value, Mapping) and all(isinstance(one, int | float) for one in value.values()):
            yield from (Field(f"{key}.{part}", _shown(one)) for part, one in value.items())
        elif (choices := _choices(info.annotation)) is not None:
            yield Field(key, _shown(value), choices, _first_sentence(info.description or ""))


def _shown(value: Any) -> Value:
    return value if isinstance(value, bool) else "null" if value is None else str(value)


def _choices(annotation: Any) -> tuple[str, ...] | None:
    """The words that a field takes, () of numbers; None: it takes something else as well."""
    union = get_origin(annotation) in (Union, UnionType)
    words: list[str] = []
    for kind in get_args(annotation) if union else (annotation,):
        if get_origin(kind) is Literal:
            words += [str(word).lower() if isinstance(word, bool) else str(word) for word in get_args(kind)]
        elif kind is NoneType:
            words.append("null")
        elif kind not in (bool, int, float):
            return None
    numbers = {bool, int, float} & {annotation, *get_args(annotation)}
    return () if numbers else tuple(words)


def _first_sentence(text: str) -> str:
    return " ".join(text.split()).partition(". ")[0].removesuffix(".")
