"""The trackers that a recipe names (train.report_to): numbers of each step, and the samples drawn on the way."""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from genalign.files.settings import write_yaml
from genalign.media.sheet import read_pairs
from genalign.run.recipe import Recipe
from genalign.types import UsageError

SHEET, MOVING = "samples", "samples/moving"  # what a tracker calls the picture of base beside tuned, and its animation
PICTURES: dict[str, dict[str, Any]] = {"tensorboard": {"dataformats": "NHWC"}, "wandb": {}}  # who takes arrays, and how


def start_trackers(names: list[str], run: Path, recipe: Recipe) -> Any:
    """accelerate's Accelerator with these trackers begun; None where the recipe names none.

    Raises:
        UsageError: a tracker that accelerate does not know, or that is not installed.
    """
    if not names:
        return None
    from accelerate import Accelerator

    try:
        tracker = Accelerator(log_with=names, project_dir=run)
    except ValueError as error:  # a name that accelerate does not know; it says which it does
        raise UsageError(f"train.report_to: {error}") from error
    missing = set(names) - {str(getattr(name, "value", name)) for name in tracker.log_with}
    if missing:
        raise UsageError(f"tracker {missing.pop()!r} is not installed; install it or drop it from train.report_to")
    tracker.init_trackers("genalign", config={"recipe": write_yaml(recipe.resolved())})
    return tracker


def log_step(tracker: Any, log: Mapping[str, float]) -> None:
    """The numbers of one step."""
    tracker.log({name: value for name, value in log.items() if name != "step"}, step=int(log["step"]))


def log_samples(tracker: Any, sheet: Path | None, step: int) -> None:
    """What `sample_grid` wrote: the picture of base beside tuned, to TensorBoard and W&B. Of clips also the moving one,
    to TensorBoard; to W&B the clips and sounds themselves, as players with their prompts."""
    if sheet is None:
        return
    for one in tracker.trackers:
        if sheet.suffix == ".png" and one.name in PICTURES:
            one.log_images({SHEET: _pixels(sheet)}, step=step, **PICTURES[one.name])
        if one.name == "wandb":
            one.log(_players(sheet), step=step)
        moving = sheet.with_suffix(".webp")
        if one.name == "tensorboard" and moving.is_file() and find_spec("tensorboard"):  # tensorboardX has none
            _add_animation(one.writer, moving, step)


def _pixels(sheet: Path) -> Any:
    """(1,H,W,3) uint8, as TensorBoard and W&B both take it."""
    import numpy as np
    import PIL.Image

    with PIL.Image.open(sheet) as picture:
        return np.asarray(picture.convert("RGB"))[None]


def _add_animation(writer: Any, moving: Path, step: int) -> None:
    """An animated WebP as the GIF that TensorBoard plays among its images; the writer's own add_video needs a version
    of moviepy that is no longer published."""
    import PIL.Image
    from PIL.ImageSequence import Iterator
    from tensorboard.compat.proto.summary_pb2 import Summary

    frames, lengths = [], []
    with PIL.Image.open(moving) as animation:
        for frame in Iterator(animation):
            frames.append(frame.convert("RGB"))
            lengths.append(round(animation.info["duration"]))
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=lengths, loop=0)
    width, height = frames[0].size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=file.getvalue())
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=MOVING, image=image)]), step)


def _players(sheet: Path) -> dict[str, Any]:
    """`samples/base-0` and so on: a player of each file that the sheet lists; texts as a table."""
    import wandb

    listed = sheet.with_suffix(".jsonl")
    rows = read_pairs(listed) if listed.is_file() else []
    written = [row for row in rows if not row["is_file"]]
    players: dict[str, Any] = {}
    if written:
        columns = ["prompt", "base", "tuned"]
        players[SHEET] = wandb.Table(columns=columns, data=[[row[key] for key in columns] for row in written])
    for number, row in enumerate(row for row in rows if row["is_file"]):
        for which in ("base", "tuned"):
            file, caption = str(sheet.parent / row[which]), str(row["prompt"])
            moving = Path(file).suffix in (".mp4", ".webm")
            player = wandb.Video(file, caption=caption) if moving else wandb.Audio(file, caption=caption)
            players[f"{SHEET}/{which}-{number}"] = player
    return players
