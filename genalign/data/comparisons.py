"""Judged samples, as public preference sets write them (see forms.py): who was compared with whom, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from genalign.data.forms import FORMS, Form, form_of
from genalign.data.judged import Comparisons, Kind
from genalign.data.tables import Table, read_table
from genalign.media.files import MEDIUM_OF
from genalign.types import UsageError

LONGEST_NAME = 500  # characters; a longer value is not the name of a file


def read_comparisons(path: Path | str | Table, kind: str | None = None) -> Comparisons:
    """What a file, a folder or a dataset of the hub (or a table of one) of one of the known forms holds.

    kind: what plain rows compare, where that is known (by the reward or the model that will read them); None: what
    every value of the columns is named like, else texts.

    Raises:
        UsageError: missing, unreadable, of no known form, or a row that does not fit its form (named by its number).
    """
    table = path if isinstance(path, Table) else read_table(path)
    form = form_of(table.rows[0]) if table.rows else None
    if form is None:
        columns = ", ".join(table.rows[0]) if table.rows else ""
        holds = f"has the columns {columns}" if columns else "has nothing in it"
        known = ", ".join(one.name for one in FORMS)
        raise UsageError(f"{table.source} {holds}, of no form that genalign knows; known: {known}")
    found = Comparisons(table.source, form.name, table.root, table.digest)
    found.plain_kind = cast(Kind, kind) if kind in get_args(Kind) else _kind_of_columns(table.rows, form)
    rows = form.gather(table) if form.gather else zip(table.places, table.rows, strict=True)
    for place, row in rows:
        found.place = place
        try:
            form.read(found, row)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            fault = {KeyError: f"lacks {error}", ValueError: str(error)}.get(type(error), f"does not fit it ({error})")
            unit = place.partition(" ")[0]  # line, or row
            raise UsageError(f"{place} {fault}; mend or drop the {unit} (its form is {form.name!r})") from error
    kinds = {item.kind for item in found.items}
    if len(kinds) > 1:
        raise UsageError(f"{table.source} compares {' and '.join(sorted(kinds))}; keep one kind of media a file")
    if not found.items:
        raise UsageError(f"{table.source} prefers nothing: none of its {len(table.rows)} rows has a verdict; add some")
    return found


def _kind_of_columns(rows: Sequence[Mapping[str, Any]], form: Form) -> Kind:
    """What the samples of plain rows are: of all values together, never of one."""
    values: list[Any] = []
    for row in rows:
        values += (row[name] for name in form.samples if row.get(name) is not None)
    if any(not isinstance(value, str) for value in values):
        return "image"  # bytes, or a picture of the datasets library
    named = {MEDIUM_OF.get(Path(value).suffix.lower(), "") if len(value) < LONGEST_NAME else "" for value in values}
    alone = named.pop() if len(named) == 1 else ""
    return cast(Kind, alone or "text")
