"""Pairs of which one is preferred, to be trained on: the untied ones of judged samples (see comparisons.py).

Ties give no pair; of more than two ranked samples every untied two are one. A picture is a path (in the file's folder
or below), or in a table of the datasets library its bytes or such a path.
"""

from __future__ import annotations

import filecmp
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from genalign.data.comparisons import read_comparisons
from genalign.data.forms import form_of
from genalign.data.judged import Comparison, Comparisons, Kind
from genalign.data.samples import Samples
from genalign.data.suites import is_suite
from genalign.data.tables import FILES, is_captions, read_table
from genalign.files.text import read_lines
from genalign.media import MEDIA
from genalign.media.form import ClipForm
from genalign.types import Media, Prompt, UsageError

UNPAIRED = "ratings"  # the form that compares nothing


@dataclass(frozen=True)
class Pairs:
    """The untied pairs of judged samples; a pair's number is its place in `pairs`, and the uid of its prompt.

    ties: how many were left out because they prefer neither. rows_together: samples in one forward pass. form: that
    clips are given; None: they stay as they are.
    """

    found: Comparisons
    pairs: tuple[Comparison, ...]
    ties: int = 0
    rows_together: int = 2
    form: ClipForm | None = None

    @property
    def kind(self) -> Kind:
        """What is compared: "image", "video" or "text"."""
        return self.found.kind

    @property
    def digest(self) -> str:
        return self.found.digest

    def prompts(self) -> tuple[Prompt, ...]:
        """The prompt of each pair; longer conversations stand in the fact `messages`, and in `rejected_prompt` what the
        rejected answer answers, where that is another prompt."""
        return tuple(self._asking(uid, pair) for uid, pair in enumerate(self.pairs))

    def _asking(self, uid: int, pair: Comparison) -> Prompt:
        item, other = self.found.items[pair.a], self.found.items[pair.b].prompt
        prompt = item.asking(uid, self.found.root)
        more = {} if other == item.prompt else {"rejected_prompt": other}
        return replace(prompt, facts={**prompt.facts, **more}) if more else prompt

    def place(self, number: int) -> str:
        """Where a pair stands, for a sentence about it."""
        return self.pairs[number].place

    def load(self, pairs: Sequence[int]) -> Media:
        """Two rows a pair, the preferred one first: images in [0,1], whose sizes may differ, videos, or texts.

        Raises:
            UsageError: a picture is missing or is not one.
        """
        rows = []
        for pair in (self.pairs[number] for number in pairs):
            rows += [pair.a, pair.b] if pair.p > 0.5 else [pair.b, pair.a]
        return self.found.media(rows, self.form)

    def check(self) -> None:
        """Refuse clips that cannot be given the form, by their headers alone.

        Raises:
            UsageError: naming the first.
        """
        self.found.check((number for pair in self.pairs for number in (pair.a, pair.b)), self.form)

    @property
    def preferred(self) -> Samples:
        """The better sample of each pair, numbered as the pairs."""
        return Samples(self.found, tuple(pair.a if pair.p > 0.5 else pair.b for pair in self.pairs))


def find_pairs(path: Path | str, kind: str | None = None) -> Pairs | None:
    """The pairs of a file, a folder, or a dataset of the hub (`owner/name`); None where a file has prompts only.

    kind: of plain rows, what they compare; see `read_comparisons`.

    Raises:
        UsageError: a row that does not fit its form, a missing picture, two equal ones, no untied pair at all, or the
            library that would read it is missing. GenalignError: the hub cannot be reached.
    """
    if isinstance(path, Path) and path.is_file() and not _has_pairs(path):
        return None
    if isinstance(path, Path) and not path.exists():
        return None  # whoever reads it as prompts names it
    table = read_table(path)
    if is_captions(table.rows[:1]) or is_suite(table.rows[:1]):
        return None
    found = read_comparisons(table, kind)
    pairs, ties = [], found.undecided
    for pair in found.pairs:
        if pair.p == 0.5:
            ties += 1
        else:
            _check_files(found, pair)
            pairs.append(pair)
    if not pairs:
        rows = len(found.pairs) + found.undecided
        raise UsageError(f"{found.source} prefers nothing: {ties} of its {rows} rows are ties; add pairs that are not")
    return Pairs(found, tuple(pairs), ties)


def _has_pairs(path: Path) -> bool:
    """Whether the first row of a file is one of a form that compares."""
    if path.suffix != ".jsonl":
        return path.suffix in FILES
    lines = read_lines(path)
    try:
        row = json.loads(lines[0].text) if lines else None
    except ValueError:
        return False  # whoever reads it as prompts names the line
    form = form_of(row) if isinstance(row, dict) else None
    return form is not None and form.name != UNPAIRED


def _check_files(found: Comparisons, pair: Comparison) -> None:
    """Refuse paths that lead nowhere, and two that lead to equal files."""
    files = [file for number in (pair.a, pair.b) for file in found.files(found.items[number])]
    if len(files) == 2 and filecmp.cmp(files[0], files[1], shallow=False):
        best = files[0] if pair.p > 0.5 else files[1]
        raise UsageError(
            f"{pair.place} prefers a {MEDIA[found.kind].NOUN} to an equal one ({best.name}); drop the line"
        )
