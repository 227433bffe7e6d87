"""Given samples of what a model makes, one a prompt, to be learnt from as supervised fine-tuning does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from genalign.data.judged import Comparisons, Kind
from genalign.media.form import ClipForm
from genalign.types import Media


@dataclass(frozen=True)
class Samples:
    """Some items of a file; the number of a sample is its place in `numbers`, and the uid of its prompt.

    rows_together: samples in one forward pass. form: that clips are given; None: they stay as they are.
    """

    found: Comparisons
    numbers: tuple[int, ...]
    rows_together: int = 1
    form: ClipForm | None = None

    @property
    def kind(self) -> Kind:
        """What they are: "image", "video" or "audio"."""
        return self.found.kind

    def load(self, numbers: Sequence[int]) -> Media:
        """One row a sample, images whose sizes may differ among them; see `Comparisons.load`.

        Raises:
            UsageError: a file is missing or damaged, or a clip is too short.
        """
        return self.found.media([self.numbers[number] for number in numbers], self.form)

    def check(self) -> None:
        """Refuse files that are missing, and clips that cannot be given the form, by their headers alone.

        Raises:
            UsageError: naming the first.
        """
        self.found.check(self.numbers, self.form)
