"""A run without anything to learn from says so: a warning on the way, and its last line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from genalign.cli.main import main
from genalign.training.signal import lack_of_signal, warn_without_signal
from tests.helpers.tiny_recipe import write_recipe

FLAT = """
from genalign.reward import reward

@reward
def flat(images):
    return [0.5 for _ in images]

@reward
def missing(images):
    return [None for _ in images]
"""


def train(folder: Path, reward: str, method: dict[str, object], steps: int, capsys: pytest.CaptureFixture[str]):
    recipe = write_recipe(
        folder,
        reward=reward,
        method=method,
        train={"steps": steps, "checkpoint_every": steps, "sample_every": 99, "ema": None},
        policy={"sampler": {"kernel": "ddim", "noise": 1.0, "steps": 2, "guidance": 1.0}},
        eval=None,
    )
    (folder / "flat.py").write_text(FLAT)
    capsys.readouterr()
    assert main(["train", str(recipe), "--out", str(folder / "run")]) == 0
    out, err = capsys.readouterr()
    adapter = load_file(folder / "run" / f"checkpoint-{steps}" / "adapter.safetensors")
    moved = max(tensor.abs().max().item() for name, tensor in adapter.items() if "lora_B" in name) > 0
    return out.splitlines()[-1], [line for line in err.splitlines() if line.startswith("no signal")], moved


@pytest.mark.parametrize("reward", ["flat.py:flat", "flat.py:missing"])
@pytest.mark.parametrize("method", [{"name": "flow-grpo", "group": 2}, {"name": "d3po", "group": 2}])
def test_rewards_that_never_differ_are_reported(
    reward: str, method: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last, warnings, moved = train(tmp_path, reward, method, 6, capsys)
    assert not moved
    assert len(warnings) == 1
    assert warnings[0].startswith("no signal in the last 5 steps: the rewards of all samples of a prompt were equal or")
    assert "are written, but none of its 6 steps had a signal and the adapter is untrained" in last


def test_a_run_that_learns_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last, warnings, moved = train(tmp_path, "rules.py:bright", {"name": "flow-grpo", "group": 2}, 2, capsys)
    assert moved
    assert not warnings
    assert last.endswith("are written")


def follow(run: Path, norms: list[float | None], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """How often a run with these gradient norms (None: no update) warns, and what it says in the end."""

    def logs():
        for step, norm in enumerate(norms, 1):
            log = {"step": step, **({} if norm is None else {"grad_norm": norm})}
            with (run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(log) + "\n")
            yield log

    (run / "metrics.jsonl").write_text("")
    assert len(list(warn_without_signal(logs(), run))) == len(norms)
    return capsys.readouterr().err.count("no signal"), lack_of_signal(run)


@pytest.mark.parametrize(
    ("norms", "warnings", "end"),
    [
        ([1.0] * 8, 0, ""),
        ([1.0, None, 0.0, 1.0, None, None, 1.0], 0, ""),
        ([None] * 4 + [1.0], 0, ""),
        ([None, 0.0, None, 0.0, None, 1.0], 1, "5 of its 6 steps had no signal: "),
        (([None] * 7 + [1.0]) * 2, 1, "14 of its 16 steps had no signal: "),
        ([None] * 3, 0, "none of its 3 steps had a signal"),
        ([], 0, ""),
    ],
)
def test_the_first_streak_of_five_is_warned_of(
    norms: list[float | None], warnings: int, end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count, clause = follow(tmp_path, norms, capsys)
    assert count == warnings
    assert clause.startswith(end)
    assert bool(clause) == bool(end)
