"""The failure contract of every reward, way by way: its rows alone are masked, and no sibling's advantage moves."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from genalign.method import MethodSettings, build_method
from genalign.method.losses import advantages
from genalign.reward import Cached, FileReward, FunctionReward, RemoteReward, Runner, ScoreJudge, YesNoJudge
from genalign.reward.runtime.serving import application
from genalign.types import GenalignError, Prompt, Reward, Scores
from tests.helpers.toy_judges import Scripted, likely, said, serving
from tests.helpers.toy_policy import ToyPolicy, ToyReward
from tests.helpers.toy_rewards import images, prompts

VALUES = [0.9, 0.1, 0.8, 0.7, 0.2, 0.3, 0.6, 0.1]
GROUP = torch.tensor([4, 4, 9, 4, 9, 9, 4, 9])
BAD = 3  # the row in trouble
ASKED_TOGETHER = [2, 3]  # by a batch_size of 2: what goes wrong with a whole call costs both

FILE = """
import time
def rated(row, value):
    if 3 in row: time.sleep(600)
    return value
"""


def function(goes_wrong: Callable[[list[float]], Any]) -> FunctionReward:
    def rated(row: list[int], value: list[float]) -> Any:
        return goes_wrong(value) if BAD in row else value

    return FunctionReward(rated)


def one(wrong: Any) -> FunctionReward:
    def rated(row: list[int], value: list[float]) -> Any:
        return [wrong if r == BAD else v for r, v in zip(row, value, strict=True)]

    return FunctionReward(rated)


def raises(value: list[float]) -> Any:
    raise RuntimeError("out of order")


def asked_of(endpoint: dict[str, Any]) -> int:
    found = re.search(r"number (\d)", str(endpoint["messages"]))
    assert found is not None
    return int(found[1])


SOUND = FunctionReward(lambda row, value: value, name="rated")
IN_PROCESS: dict[str, tuple[FunctionReward, list[int], str]] = {
    "wrong length": (function(lambda value: [*value, 0.5]), ASKED_TOGETHER, "3 scores for 2 rows"),
    "too short": (function(lambda value: value[:1]), ASKED_TOGETHER, "1 scores for 2 rows"),
    "wrong shape": (function(lambda value: torch.zeros(len(value), 2)), ASKED_TOGETHER, r"shape \(2, 2\)"),
    "no column": (function(lambda value: 0.5), ASKED_TOGETHER, "float where 2 scores"),
    "NaN": (one(math.nan), [BAD], "not finite"),
    "inf": (one(math.inf), [BAD], "not finite"),
    "-inf": (one(-math.inf), [BAD], "not finite"),
    "exception": (function(raises), [BAD], "RuntimeError: out of order"),  # asked again row by row
}


def ask(reward: Reward, rows: list[int], max_failure: float = 1.0) -> tuple[Runner, Scores]:
    asked = prompts(8, row=list(range(8)), value=VALUES)
    runner = Runner(reward, batch_size=2, max_failure=max_failure)
    return runner, runner([asked[row] for row in rows], images(8).select(rows), GROUP[rows])


def check_contract(broken: Reward, sound: Reward, bad: list[int], told: str) -> None:
    """Rows in trouble are masked, counted and told of; nobody else's advantage moves; too many stop the run."""
    runner, scores = ask(broken, list(range(8)))
    kept = [row for row in range(8) if row not in bad]
    assert scores.failed[:, 0].nonzero().flatten().tolist() == bad
    assert scores.total_valid.nonzero().flatten().tolist() == kept
    assert scores.values[bad].abs().sum() == scores.total[bad].abs().sum() == 0
    assert runner.log()[f"rewards/{broken.aspects[0]}/fail_rate"] == len(bad) / 8
    assert runner.log()[f"rewards/{broken.aspects[0]}/abstain_rate"] == 0
    assert all(re.search(told, scores.info["error"][row]) for row in bad)
    assert not any(scores.info["error"][row] for row in kept)
    for rule in ("sum_then_normalise", "normalise_then_sum"):
        for std in ("group", "none"):
            advantage, counted, _ = advantages(scores, GROUP, rule, std)  # type: ignore[arg-type]
            alone, _, _ = advantages(ask(sound, kept)[1], GROUP[kept], rule, std)  # type: ignore[arg-type]
            assert torch.equal(advantage[kept], alone)
            assert alone.abs().max() > 0
            assert not advantage[bad].any()
            assert not counted[bad].any()
    with pytest.raises(GenalignError, match=f"reward '{broken.name}' failed on .*max_failure=0 allows.*{told}"):
        ask(broken, list(range(8)), max_failure=0.0)


@pytest.mark.parametrize("how", IN_PROCESS)
def test_a_function_in_trouble_masks_its_rows_alone(how: str) -> None:
    """Invariants 15, 16."""
    broken, bad, told = IN_PROCESS[how]
    check_contract(broken, SOUND, bad, told)


def test_a_time_out_masks_its_rows_alone(tmp_path: Path) -> None:
    """Invariants 15, 16, 18: the process that hangs is killed, and the next one goes on."""
    (tmp_path / "slow.py").write_text(FILE)
    hangs = FileReward("slow.py:rated", tmp_path, timeout=0.5)
    check_contract(hangs, SOUND, ASKED_TOGETHER, "no answer within 0.5 s")


def test_none_for_all_rows_of_a_call_is_an_opinion_and_no_failure() -> None:
    """Invariant 15: abstaining is counted apart, and masks the same rows."""
    silent = function(lambda value: [None] * len(value))
    runner, scores = ask(silent, list(range(8)), max_failure=0.0)
    assert not scores.failed.any()
    assert scores.total_valid.tolist() == [row not in ASKED_TOGETHER for row in range(8)]
    log = runner.log()
    assert (log["rewards/rated/fail_rate"], log["rewards/rated/abstain_rate"]) == (0, 2 / 8)
    kept = [row for row in range(8) if row not in ASKED_TOGETHER]
    alone, _, _ = advantages(ask(silent, kept)[1], GROUP[kept])
    assert torch.equal(advantages(scores, GROUP)[0][kept], alone)


@pytest.mark.parametrize(
    ("kind", "answer", "told"),
    [
        ("yes-no", lambda: {"choices": []}, "not a chat completion"),
        ("score", lambda: said("Score: 4", "length"), "cut off"),
        ("score", lambda: said("Score: 40"), "score"),
        ("score", lambda: said("I would rather not say."), "score"),
    ],
)
def test_a_judge_in_trouble_masks_its_rows_alone(kind: str, answer: Callable[[], Any], told: str) -> None:
    """Invariants 15, 16: a cut text, nonsense, and a number off the scale."""

    def mind(body: dict[str, Any], number: int) -> Any:
        row = asked_of(body)
        if row == BAD:
            return answer()
        score = 1 + 4 * VALUES[row]
        return likely(yes=-score, no=-1.5) if kind == "yes-no" else said(f"Score: {score:.2f}")

    with serving(Scripted(mind).app) as url:
        endpoint = {"url": f"{url}/v1", "model": "scripted", "pause": 0.01, "retries": 0}
        judge: Any = YesNoJudge if kind == "yes-no" else ScoreJudge
        asking = judge(endpoint=endpoint, question="{prompt}?")
        check_contract(asking, asking, [BAD], told)


def test_a_server_that_answers_500_masks_what_it_was_asked_alone() -> None:
    """Invariants 15, 16."""
    inner = application(SOUND)

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await inner(scope, receive, send)
        message = await receive()
        while message.get("more_body"):
            further = await receive()
            message = {**message, "body": message["body"] + further["body"], "more_body": further.get("more_body")}
        if b'"row": 3' in message["body"]:
            await send({"type": "http.response.start", "status": 500, "headers": []})
            return await send({"type": "http.response.body", "body": b"out of memory"})

        async def again() -> Any:
            return message

        return await inner(scope, again, send)

    with serving(broken) as url:
        remote = RemoteReward(url, retries=0)
        check_contract(remote, SOUND, ASKED_TOGETHER, "answered 500")


def test_a_second_try_is_one_score_and_a_failure_is_not_remembered() -> None:
    """Invariant 17."""
    calls: list[int] = []

    def mind(body: dict[str, Any], number: int) -> Any:
        calls.append(asked_of(body))
        down = calls.count(BAD) in (1, 2)  # a try, and the one after it
        if calls[-1] == BAD and down:
            from fastapi.responses import JSONResponse

            return JSONResponse({"error": "busy"}, 503)
        return likely(yes=-1.0 - VALUES[calls[-1]], no=-1.5)

    with serving(Scripted(mind).app) as url:
        endpoint = {"url": f"{url}/v1", "model": "scripted", "pause": 0.01, "retries": 1, "at_once": 1}
        cached = Cached(YesNoJudge(endpoint=endpoint, question="{prompt}?"))
        runner, first = ask(cached, list(range(8)))
        assert first.failed[:, 0].tolist() == [row == BAD for row in range(8)]
        assert (cached.rows_seen, cached.hits) == (8, 0)
        second = runner(prompts(8, row=list(range(8)), value=VALUES), images(8), GROUP)
        assert (cached.rows_seen, cached.hits) == (16, 7)  # the failed one was asked again, and no other
    assert second.valid.all()
    assert torch.equal(second.total[:3], first.total[:3])
    assert calls.count(BAD) == 3
    assert all(calls.count(row) == 1 for row in range(8) if row != BAD)
    log = runner.log()
    assert log["rewards/yes-no/fail_rate"] == 1 / 16  # rows, not tries
    assert log["cache/hit_rate"] == 7 / 16


LEARNERS = ("ddpo", "flow-grpo", "grpo", "rloo", "d3po", "dpo", "dpok", "flow-dpo", "flow-rwr", "sft", "nft", "awm")


@pytest.mark.parametrize("name", LEARNERS)
def test_where_nothing_can_be_read_nothing_moves(name: str) -> None:
    """Invariant 16: a batch without one score has advantages 0, no NaN, and no gradient."""
    learner, policy = build_method(MethodSettings(name=name, group=4)), ToyPolicy()
    asked = [Prompt(f"scene {i}", uid=i) for i in range(4)]
    experience = learner.collect(policy, asked, ToyReward(broken=range(4)), 11, 0)
    assert experience.counted is None or not experience.counted.any()
    assert experience.pairs is None or not len(experience.pairs)
    assert experience.advantage is None or not experience.advantage.any()
    for loss in learner.losses(policy, experience):
        loss.total.backward()
        assert torch.isfinite(loss.total)
    assert policy.delta.grad is None or not policy.delta.grad.any()
