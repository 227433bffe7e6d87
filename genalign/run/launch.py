"""`genalign train`, from the launcher's environment to the report: what a run does, in its order."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from genalign.files.atomic import replace_file
from genalign.files.settings import changed_key, write_yaml
from genalign.method.search.base import Searching
from genalign.method.search.nrg import Guidance
from genalign.ranks import all_sum, gather, rank, world
from genalign.run.build import Built, build, check_prompts
from genalign.run.copies import Copy, fetched, is_url
from genalign.run.finish import finish, measure_search, tuned
from genalign.run.launcher import check_launcher, join_ranks, ranks_promised
from genalign.run.recipe import RECIPE, Recipe, load_recipe, may_change
from genalign.run.trackers import log_samples, log_step, start_trackers
from genalign.training.checkpoint import load_checkpoint, newest_checkpoint
from genalign.training.loop import Progress, restore, save_unsaved, start, train
from genalign.training.metrics import METRICS, read_rows
from genalign.training.monitor import ALARM
from genalign.training.signal import warn_without_signal
from genalign.training.stopping import until_no_better, watched
from genalign.types import EndedError, GenalignError, UsageError

GRID_PROMPTS = 8


def train_recipe(
    name: str,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    resume: str | None = None,
    plan: bool = False,
    card: str | None = None,
) -> Path | None:
    """Run a recipe; returns the run folder (None for a plan, which leaves nothing behind).

    card: the memory of a card, as 24GB; the plan is then of memory alone, predicted without loading or downloading.
    """
    check_launcher(os.environ)
    recipe = load_recipe(name, overrides)
    if card is not None:
        from genalign.run.memory import print_memory

        if not plan:
            raise UsageError("--card belongs to --plan; give both")
        one, ranks = ranks_promised(os.environ)
        if one == 0:
            print_memory(recipe, card, ranks)
        return None
    if resume is not None:
        recipe.train.resume = resume
    copy = Copy(recipe.train.copy_to) if recipe.train.copy_to is not None and not plan else None
    device = join_ranks()
    check_launcher(os.environ, world())
    if recipe.data.prompts_per_step < world():
        raise UsageError(
            f"data.prompts_per_step is {recipe.data.prompts_per_step}, fewer than the {world()} ranks; raise it"
        )
    if rank() != 0:
        copy = None
    elif copy is not None:
        copy.claim(recipe)
    built = build(recipe, device)
    if built.monitor is not None and len(built.monitor.chosen) < world():
        raise UsageError(
            f"train.monitor follows {len(built.monitor.chosen)} prompts, fewer than the {world()} ranks; name more"
        )
    if plan:
        from genalign.run.plan import print_plan

        check_prompts(built)
        print_plan(built)
        return None
    if isinstance(built.method, Guidance):
        built.method.reward()  # before anything is drawn that it would guide
    with ExitStack() as held:
        run, resumed = run_folder(recipe, out, held)
        if copy is not None:
            copy.check_apart(run)
        check_prompts(built)
        if isinstance(built.method, Searching):
            measure_search(built, built.method, run)
            if copy is not None:
                copy.update(run)
            return run
        # The policy first: it seeds the global generators, from which the loading of a reward may draw.
        policy, digests = built.policy, {"data.prompts": built.data.digest}
        if built.reward is not None:
            digests["reward"] = built.reward.version
        progress = start(policy, built.reward, recipe.train, digests)
        if resumed:
            resume_from(progress, run)
        run_steps(built, progress, run, copy)
        finish(built, run)
        if copy is not None:
            copy.update(run)
    return run


def run_folder(recipe: Recipe, out: Path | None, held: ExitStack) -> tuple[Path, bool]:
    """Make the run's folder and write recipe.yaml into it, or find the one to resume; (folder, whether it is resumed).

    held: keeps the folder for this process until it is closed.

    Raises:
        UsageError: it cannot be written, holds another run, another process trains there, or (on resuming) it is
            another recipe's.
    """
    resolved = recipe.resolved()
    if recipe.train.resume is not None:
        run = _run_to_resume(recipe, out)
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
    return run, recipe.train.resume is not None


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


def _run_to_resume(recipe: Recipe, out: Path | None) -> Path:
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
    if not (run / RECIPE).is_file():
        raise UsageError(f"{run} is not a run folder (it has no {RECIPE}); give the folder that genalign train wrote")
    return run


def resume_from(progress: Progress, run: Path) -> None:
    folder, refused = newest_checkpoint(run)
    if rank() == 0:
        for sentence in refused:
            print(sentence, file=sys.stderr)
        print(f"resuming from {folder or 'the start: no whole checkpoint'}", file=sys.stderr)
    if folder is not None:
        restore(progress, load_checkpoint(folder))


def run_steps(built: Built, progress: Progress, run: Path, copy: Copy | None = None) -> None:
    """Train with a progress bar, one line a step, grids of samples, a copy, and the trackers that the recipe names."""
    from tqdm import tqdm

    from genalign.evaluation.report import Smoothed, log_line

    settings = built.recipe.train
    seed, count = settings.seed, built.recipe.data.prompts_per_step
    tracker = start_trackers(settings.report_to, run, built.recipe)
    first, begun = progress.step, time.perf_counter()
    smoothed = Smoothed(row["reward"] for row in read_rows(run / METRICS) if "reward" in row and row["step"] <= first)
    held_out = [reward.name for reward in built.monitor.held_out] if built.monitor is not None else []
    with (
        until_sigterm() as ended,
        tqdm(total=settings.steps, initial=first, unit="step", disable=rank() != 0 or None) as bar,
    ):
        logs = train(progress, built.method, lambda step: built.data.draw(step, count, seed), run)
        log: dict[str, float] = {}
        logs = until_no_better(progress, warn_without_signal(logs, run), run)
        for log in watched(progress, logs, run, built.monitor):
            step = int(log["step"])
            bar.update()
            if rank() == 0:
                left = round((time.perf_counter() - begun) / (step - first) * (settings.steps - step))
                line = log_line(step, settings.steps, smoothed.shown(log), held_out)
                bar.write(f"{line}  eta {left // 60}:{left % 60:02d}", file=sys.stdout)
                sys.stdout.flush()
                if tracker is not None:
                    log_step(tracker, log)
            if ended():
                save_unsaved(progress, run)
                if copy is not None:
                    copy.try_update(run)
                raise EndedError(
                    f"SIGTERM ended the run after step {step} of {settings.steps}; go on with it by --resume {run}"
                )
            if step % settings.sample_every == 0 or step == settings.steps:
                sheet = _draw_grid(built, run, step)
                if tracker is not None and rank() == 0:
                    log_samples(tracker, sheet, step)
            if copy is not None and progress.saved == step:
                copy.try_update(run)
    if progress.step < settings.steps:
        _say_where_it_ended(built, progress.step, log)
        _redraw(built, run, progress.step)
    if tracker is not None:
        tracker.end_training()


@contextmanager
def until_sigterm() -> Iterator[Callable[[], bool]]:
    """Within the context SIGTERM does not end this process; the function that is given says whether one came, to any
    rank: all ranks ask at once. One that came after the last question ends the process at the end of the context. In a
    thread, where signals cannot be met, nothing changes."""
    came: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number)) if main else None
    try:
        yield lambda: bool(all_sum(torch.tensor([float(len(came))])).item())
    finally:
        if main:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    if came:
        signal.raise_signal(signal.SIGTERM)


def _say_where_it_ended(built: Built, step: int, last: Mapping[str, float]) -> None:
    """One line about weights that were put back; last: the log of the last step, empty where none was taken."""
    stop = built.monitor.settings.stop if built.monitor is not None else False
    why, best = "the reward no longer grew", ", the best checkpoint"
    if stop == "peak" and built.monitor is not None:
        why = f"the held-out {built.monitor.held_out[0].name} was best at step {step}"
    elif stop and ALARM in last:
        why, best = "the reward was hacked", ""
    if rank() == 0:
        print(f"{why}: the weights are those of step {step}{best}")


def _redraw(built: Built, run: Path, step: int) -> None:
    """The grid of weights that were put back is the run's last: those of later ones go."""
    if rank() == 0:
        for grid in run.glob("samples/step-*"):
            if int(grid.name.removeprefix("step-")) > step:
                shutil.rmtree(grid)
    _draw_grid(built, run, step)


def _draw_grid(built: Built, run: Path, step: int) -> Path | None:
    """The sheet that rank 0 wrote; None elsewhere, or where nothing could be shown."""
    if rank() != 0:
        return None
    from genalign.media.sheet import sample_grid

    prompts, settings = list(built.eval_prompts or built.prompts_to_sample)[:GRID_PROMPTS], built.recipe.eval
    # as many denoising steps as the evaluation takes, not as training does
    steps = settings.steps if settings and built.policy.guided else None
    path = run / "samples" / f"step-{step}" / "grid.png"
    return sample_grid(built.policy, prompts, [0], path, steps=steps, tuned=tuned(built.recipe))


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
    if not (run / RECIPE).is_file():
        raise UsageError(f"{run} is not a run folder (it has no {RECIPE}); give the folder that genalign train wrote")
    if not (run / "adapter").is_dir():
        raise GenalignError(f"{run} has no adapter yet; finish it by genalign train {run / RECIPE} --resume {run}")
    return load_recipe(run / RECIPE)
