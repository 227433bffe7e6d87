"""Where the data rooms are: in a checkout at the top level, in a wheel inside the package."""

from pathlib import Path

ROOMS = ("rewards", "pipelines", "assets")


def shipped(room: str, *parts: str) -> Path:
    """Path of `parts` inside a data room (`rewards`, `pipelines` or `assets`).

    Raises:
        FileNotFoundError: the room is in neither place (a broken installation).
    """
    package = Path(__file__).resolve().parent.parent
    for root in (package / "_shipped", package.parent):
        if (root / room).is_dir():
            return (root / room).joinpath(*parts)
    raise FileNotFoundError(
        f"genalign's data folder {room!r} is missing beside {package}; reinstall genalign "
        f"(the wheel carries it) or run from a full checkout"
    )
