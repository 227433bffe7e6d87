"""The folder of a run, which one process holds."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from genalign.run.folder import run_folder
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
    run_folder(load_recipe(sys.argv[1], ["train.seed=1"]), Path(sys.argv[2]), held)
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
            run_folder(recipe, run, held)
        assert (run / "recipe.yaml").read_bytes() == before
    finally:
        other.kill()
        other.communicate()
    with ExitStack() as held:
        assert run_folder(recipe, run, held) == (run, resumed)
