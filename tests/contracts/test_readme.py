"""What README.md says is true: its Python and its commands run, its methods and folders are all there."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from genalign.cli.main import _parser, main
from genalign.method import PRESETS
from genalign.types import Media, Prompt, Track

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BUDGET = (  # behind the README's own overrides, so that these win
    *("train.steps=1", "data.prompts_per_step=2", "method.group=2"),
    *("eval.count=2", "eval.steps=2", "eval.guidance=[1.0]"),
)


SMALL_FIT = ("method.fit.prompts=4", "method.fit.per_prompt=2", "method.fit.steps=2")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def command_line():
    return next(block for block in blocks("bash") if block.startswith("genalign"))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_ten_lines_of_python_train(elsewhere, capsys):
    code = blocks("python")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 14
    (elsewhere / "ten_lines.py").write_text(code)
    exec(compile(code, "ten_lines.py", "exec"), {"__name__": "ten_lines"})
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [int(step) for step, _ in said] == [1, 2]
    assert (elsewhere / "runs/blue/adapter/adapter_model.safetensors").is_file()


def test_reward_example_scores_and_abstains():
    space = {}
    exec(blocks("python")[1], space)
    prompts = [Prompt("why?"), Prompt("go on")]
    scores = space["short"](prompts, Media(text=Track(["two words", "and more"])))
    assert scores.valid.flatten().tolist() == [True, False]
    assert scores.values[0].item() == -2.0


def test_commands_run_in_their_order(elsewhere, capsys):
    commands = [shlex.split(line, comments=True) for line in command_line().splitlines()]
    assert len(commands) >= 10
    for words in commands:
        assert words[0] == "genalign"
        extra = {"train": BUDGET, "fit-reward": SMALL_FIT}.get(words[1], ())
        assert main([*words[1:], *extra]) == 0, (words, capsys.readouterr().err)
    for name in ("recipe.yaml", "metrics.jsonl", "eval.json", "report.html", "README.md", "adapter", "checkpoint-1"):
        assert (elsewhere / "runs/mine" / name).exists(), name
    assert (elsewhere / "mine.safetensors").is_file()
    assert len(list((elsewhere / "apples").glob("*.png"))) == 4


def test_every_verb_is_shown():
    verbs = set(next(action for action in _parser()._actions if action.choices).choices)
    shown = {line.split()[1] for line in command_line().splitlines()}
    assert verbs - shown <= {"lab", "serve-reward", "demo"}  # a server does not end


def test_it_can_be_read_in_one_go():
    assert len(README.splitlines()) <= 180


def test_every_folder_of_the_package_is_shown():
    tree = README.split("## Folders")[1].split("```")[1]
    shown = {name for line in tree.splitlines() for name in re.findall(r"([\w]+)/(?=\s)", line)}
    rooms = {path.parent.name for path in (ROOT / "genalign").glob("*/__init__.py")}
    assert rooms <= shown
    assert {"pipelines", "rewards", "assets", "docs", "tests"} <= shown
    there = {path.name for path in [*ROOT.iterdir(), *(ROOT / "genalign").rglob("*")] if path.is_dir()}
    assert shown <= there


def test_method_table_is_complete():
    table = README.split("## Methods")[1].split("\n\n")[1]
    names = [name for row in table.splitlines()[2:] for name in re.findall(r"`([\w+-]+)`", row.split("|")[1])]
    assert sorted(names) == sorted(PRESETS)


def test_blue_reward_is_what_its_comment_says():
    """The README's `blue`: blue minus red, (B,)."""
    space = {}
    exec(blocks("python")[0].split("built =")[0], space)
    image = torch.zeros(2, 3, 4, 4)
    image[0, 2], image[1, 0] = 1.0, 0.5
    scores = space["blue"]([Prompt("a"), Prompt("b")], Media(image=Track(image)))
    assert scores.total.tolist() == [1.0, -0.5]
