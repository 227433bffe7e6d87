"""One template language for judges and fitted rewards; str.format is the oracle where both speak of the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from genalign.reward import build_reward
from genalign.reward.fit.backbones import BackboneSettings, build_backbone
from genalign.reward.template import FACT, check_template, fill, fill_text, places
from genalign.types import Media, Prompt, Track, UsageError

VALUES = {"prompt": "a {text} in {{braces}}", "text": "{prompt}"}


@pytest.mark.parametrize("template", ["{prompt}: {text}", "", "no place", "{text}{text}", "{{answer}} {prompt}"])
def test_it_fills_as_format_does(template: str) -> None:
    assert fill_text(template, **VALUES) == template.format(**VALUES)


@pytest.mark.parametrize(
    "other",
    [
        '{"score": N}',
        '{"a": {"b": 1}}',
        "{}",
        "{0}",
        r"\d{3}",
        r"\frac{1}{2}",
        "{",
        "}",
        "{{",
        "}}",
        "{% if x %}",
        "{a b}",
    ],
)
def test_other_braces_stay(other: str) -> None:
    check_template(f"{other} {{prompt}}", ["prompt"], "x")
    assert fill_text(f"{other} {{prompt}} {other}", prompt="cat") == f"{other} cat {other}"


def test_a_picture_stands_in_its_place() -> None:
    picture = torch.rand(3, 2, 2)
    assert fill("a {sample} b", {"sample": [picture]})[1] is picture
    assert places("{sample} {{answer}} {facts.count} {KEY: 1}") == {"sample", "facts.count"}


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{promt}", r"{promt} in its template, which nothing fills .*did you mean 'prompt'"),
        ("{KEY}", "{KEY}"),
        (r"\boxed{answer}", "themselves write {{answer}}"),
        ("{prompt.__class__}", "__class__"),
        ("{prompt:>99999999}", "{prompt} can stand there, alone"),
        ("{prompt!r}", "alone"),
        ("{prompt[0]}", "alone"),
        ("{ prompt }", "alone"),
        ("{{prompt}}", "single braces"),
        ("{{ prompt }}", "alone"),
        ("{facts.count}", "facts.count"),
    ],
)
def test_what_nothing_fills_is_refused(template: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        check_template(template, ["prompt", "text"], "the recipe")


def test_facts_are_allowed_where_they_are_filled() -> None:
    check_template("{prompt} {facts.count}", ["prompt", FACT], "x")


@pytest.mark.parametrize(
    "spec",
    [
        {"use": "judge-yes-no", "question": "Is it {promt}?"},
        {"use": "judge-yes-no", "criteria": {"a": "fine?", "b": "Is it {Prompt}?"}},
        {"use": "judge-compare", "reference": "prompt", "tasks": {"t": {"a": "{smaple}?"}}},
        {"use": "judge-score", "question": "ok", "template": "{sample} {questoin}"},
        {"use": "judge-rank", "principle": "ok", "template": "{samples} {key}"},
    ],
)
def test_a_judge_refuses_it_when_its_file_is_read(spec: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="in its template"):
        build_reward({**spec, "endpoint": {"url": "http://127.0.0.1:9/v1", "model": "m"}}, Path())


def test_a_backbone_reads_the_same_language(tmp_path: Path) -> None:
    template = '{"prompt": "{prompt}", "answer": "{text}"} {}'
    backbone: Any = build_backbone(
        BackboneSettings(kind="text", model="tiny-text-head", template=template), "text", tmp_path
    )
    written = backbone.written([Prompt("{text} {x}")], Media(text=Track(["{prompt}"])))
    assert written == ['{"prompt": "{text} {x}", "answer": "{prompt}"} {}']
    assert backbone.needs == {"text", "prompt"}
    with pytest.raises(UsageError, match="did you mean 'prompt'"):
        build_backbone(BackboneSettings(kind="text", model="tiny-text-head", template="{promt}"), "text", tmp_path)
