"""What comes with genalign, and where: in a checkout at the top level, in a wheel inside the package."""

from pathlib import Path

PIPELINE, CONFIG, OPEN_CLIP = "model_index.json", "config.json", "open_clip_config.json"
FIT = "fit.yaml"  # in the folder of a shipped reward: what it was fitted by
MODEL_MARKS = (PIPELINE, CONFIG, OPEN_CLIP)  # a folder with one of them is a model
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


def holds_model(folder: Path) -> bool:
    """Whether a folder has one of the files by which a model is known."""
    return any((folder / mark).is_file() for mark in MODEL_MARKS)


def shipped_models() -> list[str]:
    """Names of the models that come with genalign, as `genalign ls models` prints them."""
    return sorted(path.name for path in shipped("assets").iterdir() if holds_model(path))


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with genalign."""
    return sorted(path.stem for path in shipped("pipelines").glob("*.yaml"))
