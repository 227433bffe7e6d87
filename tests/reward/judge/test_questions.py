"""Questions that prompts bring along: p(answer) against the softmax written out, and GenEval 2's means by scipy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import gmean

from genalign.media.image import to_pil
from genalign.reward import QuestionsJudge, build_reward
from genalign.reward.base import ScoringError
from genalign.reward.judge.asking import p_says, spellings
from genalign.types import Prompt, UsageError
from tests.helpers.toy_judges import Scripted, likely, pieces, said, serving, tiny_vlm
from tests.helpers.toy_rewards import images

ASKED = [
    [{"question": "How many cat ?", "answer": "two", "kind": "count"}, {"question": "is it a dog ?", "answer": "Yes"}],
    [{"question": "is this good ?", "answer": "no", "kind": "object"}],
    [],
]


def prompts_with(*questions: Any) -> list[Prompt]:
    return [Prompt("a cat", facts={"questions": asked}, uid=uid) for uid, asked in enumerate(questions)]


def test_a_score_is_the_mean_of_what_the_softmax_gives_the_answers(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder, given = tiny_vlm(tmp_path / "vlm"), images(3)
    net, processor = AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    expected: list[list[float]] = []
    for row, asked in enumerate(ASKED):
        expected.append([])
        for one in asked:
            written = f"user <image>{one['question']} Answer in one word. "
            picture = to_pil(given["image"].data[row])  # type: ignore[arg-type]
            inputs = processor(text=written, images=picture, return_tensors="pt", add_special_tokens=False)
            with torch.no_grad():
                p = net(**inputs).logits[0, -1].double().softmax(0)
            spelled = {"two": ["two", "Two"], "Yes": ["yes", "Yes"], "no": ["no"]}[one["answer"]]
            expected[-1].append(float(p[processor.tokenizer.convert_tokens_to_ids(spelled)].sum()))
    for mean, of in (("geometric", gmean), ("arithmetic", lambda values: sum(values) / len(values))):
        judge = QuestionsJudge(model=folder, mean=mean, kinds=["count", "object"], batch_size=2)  # type: ignore[arg-type]
        scores = judge(prompts_with(*ASKED), given)
        assert scores.names == ("questions", "count", "object")
        assert scores.total[:2].tolist() == pytest.approx([of(expected[0]), of(expected[1])], rel=1e-4)
        assert scores.values[0, 1].item() == pytest.approx(expected[0][0], rel=1e-4)
        assert scores.values[1, 2].item() == pytest.approx(expected[1][0], rel=1e-4)
        assert scores.valid.tolist() == [[True, True, False], [True, False, True], [False] * 3]
        assert not scores.failed.any()
    assert judge.needs == {"image", "facts.questions"}


def test_behind_an_endpoint_the_listed_tokens_count_once_each() -> None:
    def answer(body: dict[str, Any], number: int) -> Any:
        text = " ".join(piece for piece in pieces(body) if isinstance(piece, str))
        if "How many" in text:
            return likely(**{"_3": math.log(0.5), "Three": math.log(0.25), "four": math.log(0.2)})
        return likely(Yes=math.log(0.9), no=math.log(0.05))

    asked = [{"question": "How many?", "answer": "three"}, {"question": "Is it?"}, {"question": "Not?", "answer": "no"}]
    with serving(Scripted(answer).app) as url:
        judge = QuestionsJudge(endpoint={"url": f"{url}/v1", "model": "m"})
        scores = judge(prompts_with(asked), images(1))
    assert scores.total.item() == pytest.approx((0.75 * 0.9 * 0.05) ** (1 / 3), rel=1e-5)


def test_without_probabilities_the_written_word_is_read() -> None:
    asked = [{"question": "How many?", "answer": "3"}, {"question": "Is it?"}]
    with serving(Scripted(lambda body, number: said("Three.")).app) as url:
        judge = QuestionsJudge(endpoint={"url": f"{url}/v1", "model": "m", "logprobs": False}, mean="arithmetic")
        assert judge(prompts_with(asked), images(1)).total.item() == 0.5


def test_what_cannot_be_answered_fails_its_row_alone(tmp_path: Path) -> None:
    rows = prompts_with(ASKED[1], "why?", [{"answer": "yes"}], [{"question": "is it ?", "answer": "unheard"}])
    scores = QuestionsJudge(model=tiny_vlm(tmp_path / "vlm"), kinds=["object"])(rows, images(4))
    assert scores.failed[:, 0].tolist() == [False, True, True, True]
    assert scores.total_valid.tolist() == [True, False, False, False]
    said_of = scores.info["error"]
    assert "is not a list" in said_of[1]
    assert "'kind': 'count'" in said_of[2] or '"kind": "count"' in said_of[2]
    assert "no token for 'unheard'" in said_of[3]


def test_spellings_and_unlisted_answers() -> None:
    assert spellings(" Three.") == spellings("3") == {"three", "3"}
    assert spellings("11") == {"11"}
    assert p_says([("two", math.log(0.9)), ("2", math.log(0.05))], "three") == 0.0
    with pytest.raises(ScoringError, match="raise top_logprobs"):
        p_says([("two", math.log(0.5)), ("2", math.log(0.3))], "three")
    with pytest.raises(ScoringError, match="thinks first"):
        p_says([("<think>", -0.1), ("yes", -5.0)], "yes")


@pytest.mark.parametrize(
    ("settings", "told"), [({"mean": "harmonic"}, "no mean 'harmonic'"), ({"kinds": ["a", "a"]}, "have 'a' twice")]
)
def test_wrong_settings_are_one_sentence(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        build_reward({"use": "judge-questions", "model": "tiny-vlm-judge", **settings}, Path())
