"""The folder of a run, which one process holds."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from genalign.run.folder import run_folder, run_to_resume
from genalign.run.recipe import load_recipe
from genalign.types import UsageError
from tests.helpers.tiny_recipe import write_recipe

HOLDER = """
import sys
from contextlib import ExitStack
from pathlib import Path
from genalign.run.folder import run_folder
from genalign.run.recipe import load_recipe

with ExitStack() as held:
    run_folder(load_recipe(sys.argv[1], ["train.seed=1"]), Path(sys.argv[2]), None, held)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("resumed", [False, True])
def test_a_folder_in_which_another_process_trains_is_refused_until_that_ends(tmp_path: Path, resumed: bool) -> None:
    """Two runs in one folder would mix their logs and remove each other's checkpoints; a killed one leaves no lock."""
    file, run = write_recipe(tmp_path), tmp_path / "out"
    words = [sys.executable, "-c", HOLDER, str(file), str(run)]
    other = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        before = (run / "recipe.yaml").read_bytes()
        seed = 1 if resumed else 2
        recipe = load_recipe(str(file), [f"train.seed={seed}"])
        recipe.train.resume = str(run) if resumed else None
        with ExitStack() as held, pytest.raises(UsageError, match=r"another process trains in .*; wait for it"):
            run_folder(recipe, run, run_to_resume(recipe, run), held)
        assert (run / "recipe.yaml").read_bytes() == before
    finally:
        other.kill()
        other.communicate()
    with ExitStack() as held:
        assert run_folder(recipe, run, run_to_resume(recipe, run), held) == run


def test_a_dtype_that_is_left_to_the_machine_stays_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that begins where bfloat16 is fast, and goes on where it is not; one that names its dtype is refused."""
    file, run = write_recipe(tmp_path), tmp_path / "out"
    monkeypatch.setattr("genalign.precision.computes_bfloat16", lambda device: True)
    with ExitStack() as held:
        begun = load_recipe(str(file), ["policy.dtype=auto"])
        assert begun.policy.dtype == "bfloat16"
        assert begun.policy == load_recipe(str(file), ["policy.dtype=bfloat16"]).policy  # who chose makes no difference
        run_folder(begun, run, None, held)
    monkeypatch.setattr("genalign.precision.computes_bfloat16", lambda device: False)
    for chosen, goes_on in (("auto", True), ("float32", False)):
        recipe = load_recipe(str(file), [f"policy.dtype={chosen}"])
        assert recipe.policy.dtype == "float32"
        recipe.train.resume = str(run)
        found = run_to_resume(recipe, None)
        assert recipe.policy.dtype == ("bfloat16" if goes_on else "float32")
        if goes_on:
            with ExitStack() as held:
                assert run_folder(recipe, None, found, held) == run
        else:
            with ExitStack() as held, pytest.raises(UsageError, match=r"changed at policy\.dtype \(was 'bfloat16'"):
                run_folder(recipe, None, found, held)
