"""A run's folder: made, or found to be resumed; held by one process while it trains; and read once it is finished."""

from __future__ import annotations

import fcntl
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from genalign.files.atomic import replace_file
from genalign.files.settings import changed_key, write_yaml
from genalign.ranks import gather, rank
from genalign.run.build import Built, build
from genalign.run.copies import fetched, is_url
from genalign.run.recipe import RECIPE, Recipe, load_recipe, may_change
from genalign.training.metrics import METRICS
from genalign.types import GenalignError, UsageError


def run_folder(recipe: Recipe, out: Path | None, begun: Path | None, held: ExitStack) -> Path:
    """Make the run's folder and write recipe.yaml into it; the one to resume, `begun`, must be this recipe's.

    held: keeps the folder for this process until it is closed.

    Raises:
        UsageError: it cannot be written, holds another run, another process trains there, or (on resuming) it is
            another recipe's.
    """
    resolved = recipe.resolved()
    if begun is not None:
        run = begun
        # Both as this version resolves them: older ones wrote shipped models by their full path.
        changed = changed_key(load_recipe(run / RECIPE).resolved(), resolved, may_change(recipe))
        if changed is not None:
            raise UsageError(f"cannot resume {run}: the recipe changed at {changed}; restore it or start a new run")
    else:
        stamp = _from_rank_0(time.strftime("%Y%m%d-%H%M%S"))
        made = _new_folder(Path("runs") / f"{recipe.name}-{stamp}") if out is None and rank() == 0 else Path()
        run = out or Path(_from_rank_0(str(made)))
        if (run / METRICS).exists():
            raise UsageError(f"{run} already holds a run; choose another --out, or go on with it by --resume {run}")
    _from_rank_0("")  # a barrier: all ranks have looked before rank 0 writes
    try:
        run.mkdir(parents=True, exist_ok=True)
        probe = run / f".writable-{rank()}"
        probe.write_text("")
        probe.unlink()
        if rank() == 0:
            held.enter_context(_alone_in(run))  # before recipe.yaml: it is the other run's, where there is one
            replace_file(run / RECIPE, write_yaml(resolved), sync=True)
    except OSError as error:
        raise UsageError(f"cannot write the run folder {run} ({error.strerror}); choose another with --out") from error
    return run


@contextmanager
def _alone_in(run: Path) -> Iterator[None]:
    """Hold the lock of the folder `run`. The system frees it when the process ends, however it ends.

    Raises:
        UsageError: another process holds it.
    """
    folder = os.open(run, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(folder)
        raise UsageError(f"another process trains in {run}; wait for it, or choose another --out") from error
    except OSError:  # a file system without locks
        os.close(folder)
        yield
        return
    try:
        yield
    finally:
        fcntl.flock(folder, fcntl.LOCK_UN)  # a forked child may still have it open
        os.close(folder)


def _new_folder(wanted: Path) -> Path:
    """A folder that nobody else made, called as wanted or with a number behind."""
    for number in itertools.count(1):
        place = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            place.mkdir(parents=True)
            return place
        except FileExistsError:
            continue
    raise AssertionError("unreachable")


def run_to_resume(recipe: Recipe, out: Path | None) -> Path | None:
    """The folder to go on with, if any. Where the recipe leaves its dtype to the machine, the run's own is taken, which
    another machine may have chosen.

    Raises:
        UsageError: there is none, or it is no run folder.
    """
    if recipe.train.resume is None:
        return None
    run = _named_run(recipe, out)
    if recipe.policy.dtype_is_open:
        recipe.policy.dtype = load_recipe(run / RECIPE).policy.dtype
    return run


def _named_run(recipe: Recipe, out: Path | None) -> Path:
    wanted = recipe.train.resume
    if is_url(str(wanted)):
        run = Path(_from_rank_0(str(fetched(str(wanted), out)) if rank() == 0 else ""))
    elif wanted != "latest":
        run = Path(str(wanted))
    elif out is not None:
        run = out
    else:
        runs = sorted(path.parent for path in Path("runs").glob(f"{recipe.name}-*/{RECIPE}"))
        if not runs:
            raise UsageError(f"{Path('runs').resolve()} holds no run of {recipe.name} to resume; start one first")
        run = runs[-1]
    _check_is_run(run)
    return run


def _from_rank_0(text: str) -> str:
    """The text of rank 0, on every rank; also a barrier."""
    mine = text.encode() if rank() == 0 else b""
    return bytes(gather(torch.tensor(list(mine), dtype=torch.uint8)).tolist()).decode()


def load_run(run: Path, device: str = "cpu", more_rewards: Sequence[str] = ()) -> Built:
    """A finished run: its recipe built (with further rewards to evaluate by), its adapter in the policy.

    Raises:
        UsageError: not a run folder. GenalignError: no adapter in it yet, or a damaged one.
    """
    recipe = run_recipe(run)
    if recipe.eval is not None:
        recipe.eval.rewards += more_rewards
    built = build(recipe, device)
    built.policy.load_adapter(run / "adapter")
    return built


def run_recipe(run: Path) -> Recipe:
    """The recipe of a finished run.

    Raises:
        UsageError: not a run folder. GenalignError: no adapter in it yet.
    """
    _check_is_run(run)
    if not (run / "adapter").is_dir():
        raise GenalignError(f"{run} has no adapter yet; finish it by genalign train {run / RECIPE} --resume {run}")
    return load_recipe(run / RECIPE)


def _check_is_run(folder: Path) -> None:
    if not (folder / RECIPE).is_file():
        raise UsageError(
            f"{folder} is not a run folder (it has no {RECIPE}); give the folder that genalign train wrote"
        )
