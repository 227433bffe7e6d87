"""What goes wrong, in one sentence each."""


class GenalignError(Exception):
    """A run error: one sentence that names the culprit and the cure. The CLI prints it and exits with 1."""


class UsageError(GenalignError):
    """A wrong recipe, argument or file: one sentence. The CLI prints it and exits with 2."""
