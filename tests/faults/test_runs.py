"""Faults of a whole run, through the command line: what it says, what it leaves, and that resuming it loses nothing."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from genalign.cli.main import main
from genalign.reward import Runner
from genalign.training import checkpoint, loop
from genalign.training.backend import Replicated
from tests.helpers.tiny_recipe import write_recipe

STEPS, AT = 4, 2  # of a run; the step in which it is met
TRAIN = {"steps": STEPS, "checkpoint_every": 1, "keep_checkpoints": 9, "sample_every": 99, "ema": 0.9}


class KilledError(BaseException):
    """In the place of SIGKILL: nothing that the program does comes after it but what Python itself clears up."""


def kill() -> None:
    raise KilledError


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt() -> None:
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        signal.raise_signal(signal.SIGINT)  # in this thread, and so before anything else is done
    finally:
        signal.signal(signal.SIGINT, heard)


def fill_the_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@dataclass(frozen=True)
class Fault:
    """owner.name: what is called when the fault comes, the `call`-th time. code: what the run ends with, and None where
    the process is gone. left: the newest checkpoint. said: a part of the last sentence."""

    owner: Any
    name: str
    call: int
    happens: Callable[[], None]
    code: int | None
    left: int
    said: str = ""


FAULTS = {
    "killed while sampling": Fault(Runner, "begin", AT, kill, None, AT - 1),
    "killed while scoring": Fault(Runner, "__call__", AT, kill, None, AT - 1),
    "killed while learning": Fault(Replicated, "reduce_and_clip", AT, kill, None, AT - 1),
    "killed before its metrics": Fault(loop, "append_metrics", AT, kill, None, AT - 1),
    "killed in a checkpoint": Fault(checkpoint, "save_file", 5 * (AT - 1) + 2, kill, None, AT - 1),
    "killed before a checkpoint has its name": Fault(checkpoint.os, "replace", AT + 1, kill, None, AT - 1),
    "SIGTERM": Fault(Replicated, "reduce_and_clip", AT, terminate, 143, AT, f"after step {AT} of {STEPS}"),
    "SIGINT": Fault(Replicated, "reduce_and_clip", AT, interrupt, 130, AT - 1, "--resume goes on"),
    "disk full in a checkpoint": Fault(
        checkpoint, "save_file", 5 * (AT - 1) + 2, fill_the_disk, 1, AT - 1, f"checkpoint-{AT}: [Errno 28]"
    ),
    "disk full in the metrics": Fault(loop, "append_metrics", AT, fill_the_disk, 1, AT - 1),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    recipe = write_recipe(folder, train=TRAIN, eval=None)
    assert main(["train", str(recipe), "--out", str(folder / "run")]) == 0
    return folder


def weights(run: Path) -> dict[str, bytes]:
    """All parts of the last checkpoint, to the bit."""
    last = run / f"checkpoint-{STEPS}"
    return {path.name: path.read_bytes() for path in last.glob("*.safetensors")}


def resumed(recipe: Path, run: Path) -> None:
    assert main(["train", str(recipe), "--resume", str(run)]) == 0


def check_nothing_is_lost(run: Path, undisturbed: Path) -> None:
    assert weights(run) == weights(undisturbed / "run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(1, STEPS + 1)]


@pytest.mark.parametrize("name", FAULTS)
def test_a_run_that_is_met_by_a_fault_goes_on_as_if_it_had_not_been(
    name: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fault, recipe, run = FAULTS[name], undisturbed / "recipe.yaml", tmp_path / "run"
    real, calls = getattr(fault.owner, fault.name), [0]

    def met(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == fault.call:
            fault.happens()
        return real(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(fault.owner, fault.name, met)
        words = ["train", str(recipe), "--out", str(run)]
        if fault.code is None:
            with pytest.raises(KilledError):
                main(words)
        else:
            assert main(words) == fault.code
            assert fault.said in capsys.readouterr().err
    assert calls[0] >= fault.call
    kept = [int(path.name.partition("-")[2]) for path in run.glob("checkpoint-*")]
    assert max(kept) == fault.left
    resumed(recipe, run)
    check_nothing_is_lost(run, undisturbed)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize(("part", "spoil"), [("adapter.safetensors", cut), ("optimizer.safetensors", flip)])
def test_of_a_newest_checkpoint_that_is_corrupt_the_one_before_is_taken(
    part: str, spoil: Callable[[Path], None], undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = undisturbed / "recipe.yaml", tmp_path / "run"
    assert main(["train", str(recipe), "train.steps=3", "--out", str(run)]) == 0
    spoil(run / "checkpoint-3" / part)
    capsys.readouterr()
    resumed(recipe, run)
    said = capsys.readouterr().err
    assert f"passing over {run / 'checkpoint-3'}: {part} is not what was written" in said
    assert f"resuming from {run / 'checkpoint-2'}" in said
    check_nothing_is_lost(run, undisturbed)


@pytest.mark.parametrize("jump", [-86400.0 * 365, 86400.0 * 365], ids=["back", "ahead"])
def test_a_clock_that_jumps_changes_nothing(
    jump: float, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = time.time, [0]

    def jumping() -> float:
        asked[0] += 1
        return real() + (jump if asked[0] % 2 else 0.0)

    monkeypatch.setattr(time, "time", jumping)
    run = tmp_path / "run"
    assert main(["train", str(undisturbed / "recipe.yaml"), "--out", str(run)]) == 0
    check_nothing_is_lost(run, undisturbed)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["step_time"] < 600 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_real_signal_to_a_real_process(number: signal.Signals, undisturbed: Path, tmp_path: Path) -> None:
    recipe, run = undisturbed / "recipe.yaml", tmp_path / "run"
    words = [sys.executable, "-m", "genalign", "train", str(recipe), "train.steps=400", "train.keep_checkpoints=400"]
    words += ["--out", str(run)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (run / "checkpoint-2").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number], said
    last = max(int(path.name.partition("-")[2]) for path in run.glob("checkpoint-*"))
    assert main(["train", str(recipe), f"train.steps={last + 1}", "--resume", str(run)]) == 0
    for path in (run / f"checkpoint-{min(last, STEPS)}").glob("*.safetensors"):
        same = undisturbed / "run" / f"checkpoint-{min(last, STEPS)}" / path.name
        assert path.read_bytes() == same.read_bytes()
