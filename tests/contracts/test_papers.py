"""docs/papers.md: every paper of two groups stands there or is deliberately absent; its components and tests exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from genalign.cli.main import _parser
from genalign.method import FAMILIES, PRESETS, MethodSettings
from genalign.reward import PRESETS as REWARDS
from genalign.reward.build import HEADS, KINDS
from genalign.reward.fit.train import Fit
from genalign.run.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "papers.md").read_text()
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ") and "`tests/" in line]
MULTIMODAL = (
    *("HARMO", "LaV-CoT", "RewardDance", "InternLM-XComposer2.5-Reward", "EditScore", "lambda-Harmonic", "SPARK"),
    *("OneReward", "Vision-R1", "BaseReward", "CRAFT-GUI"),
)
POLICIES = (
    *("Multi-objective GRPO", "SimPO", "Direct Nash", "SELM", "COPO", "RPO", "MultiRole-R1", "TGDPO", "DR-IRL"),
    *("SPO, self-play", "DPO", "HBPO", "General preference model", "P3O", "VPO", "RTO", "MAPL"),
    "Over-optimisation of direct alignment",
)
ABSENT = ("MAH-DPO", "Self-supervised Preference Optimization", "SPARK", "URPO", "Cooper", "Meta Policy Optimization")


def is_there(span: str) -> bool:
    """A key or name of reward files, a key of recipes with its value, a verb, a file."""
    if span.startswith("genalign/"):
        return (ROOT / span).is_file()
    if span.startswith("genalign "):
        verbs = next(action for action in _parser()._actions if action.choices).choices or {}
        return span.removeprefix("genalign ") in verbs
    place, _, value = span.partition(": ")
    section, _, key = place.partition(".")
    if span.startswith("use: "):
        return value in {*HEADS, *REWARDS}
    if place == "method.name":
        return value in PRESETS
    if section == "method":
        readers = [name for family in FAMILIES if key in family.model_fields for name in family.presets]
        return bool(readers) and (not value or bool(MethodSettings(name=readers[0], **{key: value})))
    if section in Fit.model_fields:
        return bool(Fit.model_validate({section: {key: value}}))
    if section in Recipe.model_fields and key:
        kind = Recipe.model_fields[section].annotation
        assert isinstance(kind, type)
        assert issubclass(kind, BaseModel)
        kind.__pydantic_validator__.validate_assignment(kind.model_construct(), key, value)
        return True
    return span in {*KINDS, "normalise_then_sum"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].split(",")[0])
def test_what_a_row_names_exists(row: list[str]) -> None:
    _, component, test = row
    spans = re.findall(r"`([^`]+)`", component)
    assert spans
    assert all(is_there(span) for span in spans if span != "rejected_prompt"), component
    file, _, name = test.strip("`").partition("::")
    functions = {node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)}
    assert name in functions, test


@pytest.mark.parametrize("wrong", ["use: rank", "winrat", "method.name: rtp", "method.guid", "method.difficulty: hrd"])
def test_a_name_that_is_none_is_found_out(wrong: str) -> None:
    try:
        assert not is_there(wrong)
    except ValueError:
        return  # pydantic's, of the value


def test_every_paper_is_here_or_deliberately_absent() -> None:
    here, absent = [row[0] for row in ROWS], (ROOT / "docs" / "absent.md").read_text()
    for paper in (*MULTIMODAL, *POLICIES):
        assert any(title.startswith(paper) for title in here), paper
    for paper in ABSENT:
        assert paper in absent, paper
