"""What goes wrong, as one sentence, and how such a sentence about an unknown name ends.

`nearest` stands here because every room refuses unknown names and no room may import upwards.
"""

import difflib
from collections.abc import Iterable, Set


class GenalignError(Exception):
    """A run error: one sentence that names the culprit and the cure. The CLI prints it and exits with `code`."""

    code = 1


class UsageError(GenalignError):
    """A wrong recipe, argument or file: one sentence. The CLI prints it and exits with 2."""

    code = 2


class EndedError(GenalignError):
    """A run that was asked to end (SIGTERM), after its checkpoint is written. The CLI prints it and exits with 143."""

    code = 143


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown `name`: the known one nearest to it, else all of them, in their order."""
    names = sorted(known) if isinstance(known, Set) else list(dict.fromkeys(known))
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(names)}" if names else ""
