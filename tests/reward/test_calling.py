"""TRL's own reward functions, unchanged: the right values are those that they give in the form TRL calls them with."""

from __future__ import annotations

import asyncio
import functools
import math
from pathlib import Path
from typing import Any

import pytest

from genalign.reward import FunctionReward, Runner, build_reward
from genalign.reward.runtime.wire import pack_batch, unpack_batch
from genalign.types import Media, Prompt, Scores, Track

trl = pytest.importorskip("trl.rewards")

ANSWERS = [
    "<think>\nhalf of two\n</think>\nIt is \\boxed{1}",
    "<think> no end, \\boxed{1}",
    "It is \\boxed{2} \\boxed{2} \\boxed{2}",
]
SOLUTIONS = ["$1$", "$1$", "no formula"]
IDS = [[5, 6, 7, 8, 2], [5, 5, 5, 5, 5, 5, 5, 5], [1, 2]]
MESSAGES = [[{"role": "assistant", "content": text}] for text in ANSWERS]


def given(chat: bool) -> list[Prompt]:
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "how much?"}]
    more = {"messages": turns} if chat else {}
    return [Prompt("how much?", facts={"solution": s, **more}, uid=i) for i, s in enumerate(SOLUTIONS)]


def made() -> Media:
    return Media(text=Track(ANSWERS, ids=IDS))


def column(scores: Scores) -> list[float | None]:
    assert not scores.failed.any(), scores.info
    return [v if ok else None for v, ok in zip(scores.values[:, 0].tolist(), scores.valid[:, 0].tolist(), strict=True)]


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "think": (trl.think_format_reward, {}),
    "accuracy": (trl.accuracy_reward, {"solution": SOLUTIONS}),
    "reasoning": (trl.reasoning_accuracy_reward, {"solution": SOLUTIONS}),
    "cosine": (trl.get_cosine_scaled_reward(10), {"solution": SOLUTIONS, "completion_ids": IDS}),
    "repetition": (trl.get_repetition_penalty_reward(2, -1.0), {"completion_ids": IDS}),
    "overlong": (trl.get_soft_overlong_punishment(8, 4), {"completion_ids": IDS}),
}


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_functions_of_trl_run_unchanged(name: str, chat: bool) -> None:
    if name in ("accuracy", "reasoning", "cosine"):
        pytest.importorskip("math_verify")
    function, columns = CASES[name]
    expected = function(completions=MESSAGES, **columns)
    assert len({str(value) for value in expected}) > 1
    got = column(FunctionReward(function)(given(chat), made()))
    assert [v if v is None else round(v, 5) for v in got] == [v if v is None else round(v, 5) for v in expected]


def test_what_they_log_stands_beside_the_scores() -> None:
    pytest.importorskip("math_verify")
    logged: dict[str, list[Any]] = {}
    trl.accuracy_reward(MESSAGES, SOLUTIONS, log_extra=logged.__setitem__)
    assert set(logged) == {"solution", "gold_parsed", "answer_parsed"}
    assert dict(FunctionReward(trl.accuracy_reward)(given(True), made()).info) == logged


def test_a_file_imports_them_into_the_worker(tmp_path: Path) -> None:
    names = "get_soft_overlong_punishment, think_format_reward"
    (tmp_path / "rules.py").write_text(f"from trl.rewards import {names}\nlong = get_soft_overlong_punishment(8, 4)\n")
    think = build_reward({"use": "rules.py:think_format_reward"}, tmp_path)
    long = build_reward({"use": "rules.py:long"}, tmp_path)
    assert column(think(given(False), made())) == trl.think_format_reward(MESSAGES)
    assert column(long(given(False), made())) == trl.get_soft_overlong_punishment(8, 4)(completion_ids=IDS)
    assert think.needs == long.needs == {"text"}


def seen(function: Any, prompts: list[Prompt]) -> Any:
    held: dict[str, Any] = {}
    FunctionReward(function(held))(prompts, made())
    return held


def test_the_form_of_prompts_and_completions_is_trl_s() -> None:
    """Lists of messages for conversational prompts, texts for others; `text` and `prompt` are always texts."""

    def spy(held: dict[str, Any]) -> Any:
        def function(prompts, completions, text, prompt, **columns):
            held.update(locals())
            return [0.0] * len(prompts)

        return function

    chat, plain = seen(spy, given(True)), seen(spy, given(False))
    assert chat["completions"] == MESSAGES
    assert chat["prompts"] == [given(True)[0].facts["messages"]] * 3
    assert plain["completions"] == chat["text"] == ANSWERS
    assert plain["prompts"] == chat["prompt"] == ["how much?"] * 3
    assert chat["columns"]["completion_ids"] == IDS
    assert chat["columns"]["solution"] == SOLUTIONS
    assert callable(chat["columns"]["log_extra"])
    assert callable(chat["columns"]["log_metric"])


def test_a_function_without_annotations_that_indexes_messages_gets_them() -> None:
    def length(completions, **kwargs):
        return [float(len(completion[0]["content"])) for completion in completions]

    reward = FunctionReward(length)
    for chat in (True, False, False):
        assert column(reward(given(chat), made())) == [float(len(text)) for text in ANSWERS]


def test_annotated_texts_stay_texts_in_a_conversation() -> None:
    def length(completions: list[str]):
        return [float(len(completion)) for completion in completions]

    assert column(FunctionReward(length)(given(True), made())) == [float(len(text)) for text in ANSWERS]


class Slow:
    async def __call__(self, completions, **kwargs):
        async def one(text: str) -> float | None:
            await asyncio.sleep(0)
            return None if "boxed{2}" in text else float(len(text))

        return list(await asyncio.gather(*(one(text) for text in completions)))


async def slow(completions, **kwargs):
    return await Slow()(completions)


@pytest.mark.parametrize("function", [slow, Slow(), functools.partial(slow, unused=1)])
def test_an_async_function_is_waited_for(function: Any) -> None:
    expected = [float(len(ANSWERS[0])), float(len(ANSWERS[1])), None]
    reward = FunctionReward(function)
    assert column(reward(given(False), made())) == expected

    async def within_a_loop() -> Scores:
        return reward(given(False), made())

    assert column(asyncio.run(within_a_loop())) == expected


def test_an_async_row_that_raises_is_masked_alone() -> None:
    async def shaky(completions):
        return [1 / completions[k].count("t") if completions[k] else 0 for k in range(len(completions))]

    media = Media(text=Track(["t", "no", "tt"]))
    scores = FunctionReward(shaky)([Prompt("x", uid=i) for i in range(3)], media)
    assert scores.failed[:, 0].tolist() == [False, True, False]
    assert scores.total[[0, 2]].tolist() == [1.0, 0.5]


def warming(completions, trainer_state):
    return [float(trainer_state.global_step)] * len(completions)


@pytest.mark.parametrize("where", ["here", "worker", "process"])
def test_trainer_state_counts_the_updates_and_resumes(where: str, tmp_path: Path) -> None:
    """TRL's global_step is 0 while the first step is scored, and k after k updates."""
    (tmp_path / "rules.py").write_text(
        "def warming(completions, trainer_state):\n    return [float(trainer_state.global_step)] * len(completions)\n"
    )

    def built() -> Any:
        spec: dict[str, Any] = {"use": "rules.py:warming"}
        spec |= {"run": {"on": "process"}} if where == "process" else {}
        return FunctionReward(warming) if where == "here" else build_reward(spec, tmp_path)

    reward = Runner(built())
    for step in range(3):
        scores = reward(given(False), made())
        assert column(scores) == [float(step)] * 3
        reward.update(scores, step)
    again = Runner(built())
    again.load_state_dict(reward.state_dict())
    assert column(again(given(False), made())) == [3.0] * 3


def test_a_metric_is_logged_as_its_mean() -> None:
    def counting(completions, log_metric):
        log_metric("boxes", sum(text.count("boxed") for text in completions) / len(completions))
        return [0.0] * len(completions)

    runner = Runner(FunctionReward(counting))
    runner(given(False), made())
    assert runner.log()["rewards/boxes"] == pytest.approx(5 / 3)


def test_tokens_that_nobody_knows_are_said() -> None:
    reward = Runner(FunctionReward(trl.get_soft_overlong_punishment(8, 4)), max_failure=1.0)
    scores = reward(given(False), Media(text=Track(ANSWERS)))
    assert scores.failed.all()
    assert "completion_ids" in scores.info["error"][0]


def test_tokens_cross_selection_joining_and_the_wire() -> None:
    halves = [made().select([2, 0]), made().select([1])]
    assert [list(ids) for ids in Media.cat(halves)["text"].ids or ()] == [IDS[2], IDS[0], IDS[1]]
    _, media, _ = unpack_batch(pack_batch(given(False), made(), None))
    assert media["text"].ids == IDS
    assert Media.cat([made(), Media(text=Track(["x"]))])["text"].ids is None


def test_a_version_holds_what_a_callable_carries() -> None:
    make = trl.get_soft_overlong_punishment

    def closed(limit: float) -> Any:
        return lambda completions: [min(len(text), limit) for text in completions]

    for of in (lambda k: make(k, 4), closed, lambda k: functools.partial(warming, trainer_state=k)):
        versions = [FunctionReward(of(k), name="r").version for k in (8, 8, 9)]
        assert versions[0] == versions[1] != versions[2]
    assert math.isfinite(column(FunctionReward(closed(3))(given(False), made()))[0] or 0.0)
