"""What README.md says is true: its Python runs, its commands run, its tree is the tree."""

import contextlib
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import torch

from genalign.cli.main import _parser, main
from genalign.method import FAMILIES, PRESETS, MethodSettings
from genalign.reward import PRESETS as REWARDS
from genalign.reward.build import HEADS, KINDS
from genalign.reward.fit.train import Fit
from genalign.types import Media, Prompt, Track

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BUDGET = (  # behind the README's own overrides, so that these win
    *("train.steps=1", "data.prompts_per_step=2", "method.group=2"),
    *("eval.count=2", "eval.steps=2", "eval.guidance=[1.0]"),
)


SMALL_FIT = ("method.fit.prompts=4", "method.fit.per_prompt=2", "method.fit.steps=2")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


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
    commands = [shlex.split(line, comments=True) for line in blocks("bash")[0].splitlines()]
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
    shown = {line.split()[1] for line in blocks("bash")[0].splitlines()}
    assert verbs - shown <= {"lab", "serve-reward"}  # a server does not end


def test_tree_names_every_file():
    tree = README.split("## The tree")[1].split("```")[1]
    shown = re.findall(r"^ *([\w./-]+)", tree, re.MULTILINE)
    files = [path for path in (ROOT / "genalign").rglob("*.py") if path.name not in ("__init__.py", "__main__.py")]
    for path in files:
        assert shown.count(path.name) == len([p for p in files if p.name == path.name]), path.name
    for name in shown:
        found = (ROOT / name).exists() or list((ROOT / "genalign").rglob(name.rstrip("/")))
        assert found, name


def test_method_table_is_complete():
    table = README.split("## What there is")[1].split("\n\n")[1]
    assert set(re.findall(r"^\| `([\w-]+)`", table, re.MULTILINE)) == set(PRESETS)


HERE = (
    *("G-RA", "Constrained RLHF", "Dynamic Reward Weighting", "Skywork-Reward-V2", "RewardAnything"),
    *("Reward Model Ensembles", "Reward-Robust RLHF", "STARC", "RewardBench 2", "PAR", "ToolRL", "Secrets of RLHF II"),
    *("DPA", "MODPO", "MiCRo", "VPL", "PAL"),
)
ABSENT = ("URPO", "Cooper", "Meta Policy Optimization", "POLAR", "Themis", "Value Augmented Sampling", "FSPO")


def is_there(span):
    """Whether what the README names exists: a key or a name of reward files, a setting, a function, a verb."""
    if span.startswith("genalign "):
        return span.removeprefix("genalign ") in next(a for a in _parser()._actions if a.choices).choices
    if span.startswith("use: "):
        return span.removeprefix("use: ") in {*HEADS, *REWARDS}
    place, _, value = span.partition(": ")
    section, _, key = place.partition(".")
    if section == "method":
        known = any(key in family.model_fields for family in FAMILIES)
        return known and (not value or bool(MethodSettings(name="grpo", **{key: value})))
    if section in Fit.model_fields:
        return bool(Fit.model_validate({section: {key: value}}))
    return callable(getattr(import_module(f"genalign.reward.{section}"), key)) if key else span in KINDS


def test_papers_are_a_component_or_deliberately_absent():
    """Each paper of the two groups is in one of the two lists, and each component that the README names exists."""
    table = README.split("| paper | component |\n|---|---|\n")[1].split("\n\n")[0].splitlines()
    papers, components = zip(*(row.strip("| ").split(" | ") for row in table), strict=True)
    assert [paper.split(",")[0] for paper in papers] == list(HERE)
    for component in components:
        spans = re.findall(r"`([^`]+)`", component)
        assert spans
        assert all(is_there(span) for span in spans), component
    for wrong in ("gaet", "use: skywrk", "votes.how: flap", "head.kind: poll", "measures.stark", "method.objectiv"):
        with contextlib.suppress(AttributeError, ValueError):
            assert not is_there(wrong), wrong
    absent = README.split("## Deliberately absent")[1].split("## ")[0]
    assert all(name in absent for name in ABSENT)
    assert not any(re.search(rf"\b{re.escape(name)}\b", absent) for name in HERE)


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link


def test_blue_reward_is_what_its_comment_says():
    """The README's `blue`: blue minus red, (B,)."""
    space = {}
    exec(blocks("python")[0].split("built =")[0], space)
    image = torch.zeros(2, 3, 4, 4)
    image[0, 2], image[1, 0] = 1.0, 0.5
    scores = space["blue"]([Prompt("a"), Prompt("b")], Media(image=Track(image)))
    assert scores.total.tolist() == [1.0, -0.5]
