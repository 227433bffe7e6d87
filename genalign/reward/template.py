"""The one language of templates, of judges and of fitted rewards: {name} is filled in, every other brace stays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from genalign.types import UsageError, nearest

Piece = str | Tensor  # text, or a picture (3,H,W) in [0,1]
NAME = r"[A-Za-z_]\w*(?:\.\w+)?"
# Doubled braces around a name are how str.format writes the braces themselves; around anything else they stay.
PLACE = re.compile(rf"\{{\{{(?P<literal>{NAME})\}}\}}|\{{(?P<name>{NAME})\}}")
DRESSED = re.compile(r"\{\s*([A-Za-z_]\w*)\s*(?:[.\[!:][^{}]*)?\}")  # {name!r}, {name:>9}, { name }
FACT = "facts."


def fill(template: str, values: Mapping[str, Piece | Sequence[Piece]]) -> tuple[Piece, ...]:
    """A template with its {names} replaced, once, by texts and pictures; {{name}} is {name}; other braces stay.

    Departs from str.format: JSON and LaTeX need no doubled braces, and a value's attributes and formats are not read.
    """
    pieces: list[Piece] = []
    end = 0
    for place in PLACE.finditer(template):
        name, literal = place["name"], place["literal"]
        _add(pieces, template[end : place.start()])
        value = f"{{{literal}}}" if literal else values.get(name, place[0])
        for piece in [value] if isinstance(value, str | Tensor) else value:
            _add(pieces, piece)
        end = place.end()
    _add(pieces, template[end:])
    return tuple(pieces)


def fill_text(template: str, **values: str) -> str:
    """The same, where all values are texts."""
    return "".join(str(piece) for piece in fill(template, values))


def _add(pieces: list[Piece], piece: Piece) -> None:
    if isinstance(piece, str) and pieces and isinstance(pieces[-1], str):
        pieces[-1] += piece
    elif not (isinstance(piece, str) and not piece):
        pieces.append(piece)


def places(template: str) -> set[str]:
    """The {names} of a template."""
    return {place["name"] for place in PLACE.finditer(template) if place["name"]}


def check_template(template: str, known: Iterable[str], where: str, some: bool = False) -> None:
    """Refuse a template with a {name} that nothing fills, or with a known one in a form that is not filled.

    known: the names; "facts." among them allows every fact. some: whether one at least must be named.

    Raises:
        UsageError: beginning with `where`, and naming the nearest that is filled.
    """
    names = list(known)
    fixed = [name for name in names if name != FACT]
    for place in PLACE.finditer(template):
        name, literal = place["name"], place["literal"]
        if literal in fixed or (literal and FACT in names and literal.startswith(FACT)):
            raise UsageError(f"{where} has {{{{{literal}}}}} in its template; single braces are filled: {{{literal}}}")
        if name and name not in fixed and not (FACT in names and name.startswith(FACT)):
            raise UsageError(
                f"{where} has {{{name}}} in its template, which nothing fills (for the braces themselves write "
                f"{{{{{name}}}}}){nearest(name, fixed)}"
            )
    for dressed in DRESSED.finditer(template):
        if dressed[1] in fixed and dressed[0] != f"{{{dressed[1]}}}":
            raise UsageError(f"{where} has {dressed[0]} in its template; only {{{dressed[1]}}} can stand there, alone")
    if some and not places(template):
        raise UsageError(f"{where} has a template that names nothing; write one of {{{'}, {'.join(fixed)}}}")
