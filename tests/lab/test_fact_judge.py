"""The judge that asks about facts one by one, on rendered scenes whose truth is known, and on questions by hand."""

import numpy as np
import pytest
import torch

from genalign import build_reward
from genalign.files.shipped import shipped
from genalign.lab.fact_judge import FactJudge, _questions
from genalign.lab.world import change_one_fact, place, render, sample_facts
from genalign.types import Media, Prompt, Track, UsageError

PAIR = {"objects": [{"name": "bus", "count": 1}, {"name": "rocket", "count": 1}], "background": None}


def test_what_is_asked_contradicts_one_fact_at_a_time() -> None:
    flowers = {"objects": [{"name": "sunflower", "count": 2}], "relation": None, "background": "green"}
    asked = [(question.aspect, question.true) for question in _questions(0, flowers)]
    assert asked == [
        ("all_facts", True),
        *[("count", k == 0) for k in range(4)],
        *[("background", k == 0) for k in range(6)],
    ]
    count = [question.text for question in _questions(0, flowers) if question.aspect == "count"]
    assert len(set(count)) == 4
    assert not any("green" in text for text in count)
    related = {**PAIR, "relation": ["bus", "left of", "rocket"]}
    first, second = (question.text for question in _questions(0, related) if question.aspect == "relation")
    assert first.index("bus") < first.index("rocket") or "right of" in first
    assert second == first.replace("bus", "x").replace("rocket", "bus").replace("x", "rocket")
    assert [question.aspect for question in _questions(0, {**PAIR, "relation": None})] == ["all_facts"]


def test_it_tells_true_scenes_from_those_with_one_fact_changed() -> None:
    rng = np.random.default_rng(3)
    facts = [sample_facts(rng) for _ in range(16)]
    pictures = torch.from_numpy(np.stack([render(place(each, rng), rng) for each in facts])).permute(0, 3, 1, 2)
    media, judge = Media(image=Track(pictures)), build_reward("emojiworld-facts", shipped("rewards"))
    true = judge([Prompt("x", facts=each, uid=k) for k, each in enumerate(facts)], media)
    wrong = [change_one_fact(each, rng) for each in facts]
    false = judge([Prompt("x", facts=each, uid=k) for k, each in enumerate(wrong)], media)
    assert judge.aspects == true.names
    assert true.values[:, 0].mean() > 0.6
    assert false.values[:, 0].mean() < 0.25
    background = true.names.index("background")
    assert true.values[:, background].mean() == 1.0
    changed = [a["background"] != b["background"] for a, b in zip(facts, wrong, strict=True)]
    assert any(changed)
    assert not false.values[changed, background].any()
    lone = torch.tensor([len(each["objects"]) == 1 for each in facts])
    assert torch.equal(true.valid[:, true.names.index("count")], lone)
    assert torch.equal(true.total, true.values[:, 0])


def test_without_facts_or_model_one_sentence_says_so(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"needs prompts with EmojiWorld facts"):
        FactJudge()([Prompt("a cat")], Media(image=Track(torch.zeros(1, 3, 64, 64))))
    with pytest.raises(UsageError, match="genalign lab build vlm-judge"):
        FactJudge(tmp_path / "none")
