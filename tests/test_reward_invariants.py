"""What must hold of every reward, by number. Tests all over this folder say which of these they hold; the rest is here.

Preprocessing: 1 the tensor path is the PIL path; 2 each model has its own published transform; 3 another range of
values is refused, and half precision is widened before anything is resized; 4 no lossy file on the way to a server;
5 a video's axes, rate and frames; 6 audio's rate, channels and crop; 7 texts beyond the context are told of.
Numerics: 8 order, batch size and padding change nothing; 9 repeated prompts score as the diagonal of all pairs;
10 cosines and heads in fp32; 11 weights are frozen and gradients right; 12 a constant group gives exactly 0; 13 groups
survive shuffling and ranks; 14 a common factor of the weights changes no advantage.
Failures: 15 the failing rows alone are masked, counted and told of, and too many stop the run; 16 siblings keep their
advantages and backward stays finite; 17 a failure is never a number, never remembered, never counted twice; 18 a
time-out ends the work; 19 what the data lacks is refused before the first step.
Algebra: 20 preferences are symmetric; 21 ensembles; 22 gates; 23 shapes and means; 24 hybrids; 25 fronts and
hypervolumes; 26 multipliers; 27 win rates and credit of sets; 28 STARC; 29 only update moves a state; 30 files and
Python build equal rewards.
Judges and data: 31 yes and no; 32 order bias; 33 which end of a ranking is the best; 34 no prompt on both sides of an
exam; 35 symptoms of hacking; 36 nothing unpickles, foreign code is locked up; 37 licences are told.
"""

from __future__ import annotations

import logging
import math
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from genalign.losses import advantages
from genalign.method import MethodSettings, build_method, common
from genalign.reward import (
    Cached,
    ClipReward,
    FileReward,
    FunctionReward,
    HeadReward,
    RemoteReward,
    Runner,
    ScoreJudge,
    Sum,
    YesNoJudge,
    build_reward,
    sets,
)
from genalign.reward.serving import application
from genalign.types import GenalignError, Media, Prompt, Reward, Scores, Track, UsageError
from tests.tiny_heads import tiny_transformers_clip
from tests.toy_judges import Scripted, likely, said, serving
from tests.toy_policy import ToyPolicy, ToyReward
from tests.toy_rewards import images, prompts, says, table, texts, tiny_clip, tiny_text_head


def test_every_number_is_claimed_by_a_test() -> None:
    written = "".join(file.read_text() for file in Path(__file__).parent.glob("*.py"))
    claimed = re.findall(r"[Ii]nvariants? ([\d, ]+)", written)
    numbers = {int(number) for claim in claimed for number in re.findall(r"\d+", claim)}
    assert numbers == set(range(1, 38))


# ---- preprocessing --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("models") / "clip")


def test_half_precision_is_widened_before_it_is_resized_and_autocast_stays_out(clip_folder: Path) -> None:
    """Invariants 3, 10: what is not in fp32 at .28 has steps of .002, a tenth of what tells siblings apart."""
    clip, asked, given = ClipReward(clip_folder), prompts(4), images(4, size=50)
    half = given["image"].data.bfloat16()  # type: ignore[union-attr]
    narrow, wide = (clip(asked, Media(image=Track(pixels))).total for pixels in (half, half.float()))
    assert torch.equal(narrow, wide)
    assert narrow.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ClipReward(clip_folder)(asked, Media(image=Track(half))).total, wide)
    assert not torch.equal(wide.bfloat16().float(), wide)


def test_weights_stored_in_half_precision_are_computed_with_in_fp32(clip_folder: Path, tmp_path: Path) -> None:
    """Invariant 10."""
    folders = [tiny_clip(tmp_path / name) for name in ("half", "widened")]
    state = {key: value.half() for key, value in load_file(clip_folder / "open_clip_model.safetensors").items()}
    save_file(state, folders[0] / "open_clip_model.safetensors")
    save_file({key: value.float() for key, value in state.items()}, folders[1] / "open_clip_model.safetensors")
    one, two = (ClipReward(folder)(prompts(4), images(4)).total for folder in folders)
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("kind", "shape", "told"),
    [
        ("video", (2, 3, 5, 8, 8), r"video has shape \(3, 5, 8, 8\), not \(F,3,H,W\)"),
        ("video", (5, 3, 8, 8), r"video has shape \(3, 8, 8\)"),
        ("image", (2, 8, 8, 3), r"image has shape \(8, 8, 3\), not \(3,H,W\)"),
        ("image", (2, 8, 8), "image has shape"),
        ("audio", (2, 800), r"audio has shape \(800,\), not \(C,N\)"),
    ],
)
def test_axes_in_another_order_are_refused(kind: str, shape: tuple[int, ...], told: str) -> None:
    """Invariant 5: the order of axes is part of the type, where the sizes tell."""
    for data in (torch.zeros(shape), list(torch.zeros(shape))):
        with pytest.raises(UsageError, match=told):
            Media(**{kind: Track(data, 2.0)})
    assert Media(video=Track(torch.zeros(2, 5, 3, 8, 8), 2.0)).rows == 2


@pytest.mark.parametrize("kind", ["open_clip", "transformers"])
def test_prompts_that_are_cut_are_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    """Invariant 7."""
    folder = str(tiny_clip(tmp_path / "c") if kind == "open_clip" else tiny_transformers_clip(tmp_path / "c"))
    reward = build_reward({"use": "clip" if kind == "open_clip" else "clipscore", "model": folder}, Path())
    short, long = Prompt("a cat"), Prompt("a cat and the star " * 30)
    with caplog.at_level(logging.WARNING, "genalign"):
        caplog.clear()
        reward([short], images(1))
        assert caplog.messages == []
        scores = reward([short, long, Prompt(f"{long.text} and more")], images(3))
        reward([Prompt(f"{long.text} again")], images(1))
    assert len(caplog.messages) == 1
    assert re.search(r"2 of 2 texts fill its \d+ tokens; what stands beyond is not read", caplog.messages[0])
    same = reward([long, Prompt(f"{long.text} and more")], images(1).select([0, 0])).total
    assert same[0] == same[1]  # it is true
    assert scores.valid.all()


# ---- numerics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_the_side_of_padding_does_not_matter(tmp_path: Path, pool: str) -> None:
    """Invariant 8."""
    from transformers import AutoTokenizer

    said_texts = texts("a cat", "two cats and the star", "a")
    totals = []
    for side in ("left", "right"):
        folder = tiny_text_head(tmp_path / side, pool=pool)
        AutoTokenizer.from_pretrained(folder, padding_side=side).save_pretrained(folder)
        totals.append(HeadReward(folder)(prompts(3), said_texts).total)
    assert torch.equal(*totals)
    assert totals[0].std() > 1e-3


def test_repeated_prompts_score_as_the_diagonal_of_all_pairs(clip_folder: Path) -> None:
    """Invariant 9."""
    names, given = ["a cat", "two stars", "a cat", "the dog", "two stars"], images(5)
    seen = torch.nn.functional.normalize(ClipReward(clip_folder).see(given), dim=1)
    read = torch.nn.functional.normalize(ClipReward(clip_folder).read(names), dim=1)
    every = read @ seen.T  # (prompts, images)
    clip = ClipReward(clip_folder, batch_size=2)
    for _ in range(2):  # the second time from the features it remembers
        torch.testing.assert_close(clip([Prompt(name) for name in names], given).total, every.diagonal())
    assert every.std() > 1e-3


@pytest.mark.parametrize("rule", ["sum_then_normalise", "normalise_then_sum"])
def test_a_group_split_over_ranks_is_one_group(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 13: two threads whose gather meets at a barrier, as two processes would."""
    a, b = table(8, 2).T.tolist()
    group = torch.tensor([4, 4, 9, 4, 9, 9, 4, 9])
    scores = Sum([says(*a, name="a"), says(*b, name="b")])(prompts(8, row=range(8)), texts(*["x"] * 8), group)
    expected, _, _ = advantages(scores, group, rule)
    split, local, mail = [[0, 1, 2], [3, 4, 5, 6, 7]], threading.local(), {}
    barrier, found = threading.Barrier(2, timeout=60), {}

    def gather(tensor: torch.Tensor) -> torch.Tensor:
        mail[local.rank] = tensor
        barrier.wait()
        both = torch.cat([mail[0], mail[1]])
        barrier.wait()
        return both

    def work(rank: int) -> None:
        local.rank = rank
        everyone, whole, here = common.over_ranks(scores.select(split[rank]), group[split[rank]])
        found[rank] = advantages(everyone, whole, rule)[0][here]

    monkeypatch.setattr(common, "gather", gather)
    monkeypatch.setattr(common, "rank", lambda: local.rank)
    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(torch.cat([found[0], found[1]]), expected)
    alone = advantages(scores.select(split[0]), group[split[0]], rule)[0]
    assert not torch.allclose(found[0], alone)


@pytest.mark.parametrize("rule", ["sum_then_normalise", "normalise_then_sum"])
@pytest.mark.parametrize("factor", [1e-3, 7.0, 1e5])
def test_a_common_factor_of_the_weights_changes_no_advantage(rule: Any, factor: float) -> None:
    """Invariant 14."""
    a, b = table(8, 2, seed=3).T.tolist()
    group = torch.tensor([4, 4, 9, 4, 9, 9, 4, 9])

    def told(scale: float) -> torch.Tensor:
        both = Sum([(says(*a, name="a"), scale), (says(*b, name="b"), -0.3 * scale)])
        return advantages(Runner(both)(prompts(8, row=range(8)), texts(*["x"] * 8), group), group, rule)[0]

    torch.testing.assert_close(told(factor), told(1.0), atol=1e-5, rtol=1e-5)
    assert told(1.0).abs().max() > 0.5


# ---- failures -------------------------------------------------------------------------------------------------------


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
        ("yes-no", lambda: {"choices": []}, "no chat completion"),
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
        assert (cached.asked, cached.hits) == (8, 0)
        second = runner(prompts(8, row=list(range(8)), value=VALUES), images(8), GROUP)
        assert (cached.asked, cached.hits) == (16, 7)  # the failed one was asked again, and no other
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
    assert experience.global_rows == 0
    assert experience.advantage is None or not experience.advantage.any()
    for loss in learner.losses(policy, experience):
        loss.total.backward()
        assert torch.isfinite(loss.total)
    assert policy.delta.grad is None or not policy.delta.grad.any()


# ---- algebra --------------------------------------------------------------------------------------------------------


def test_leave_one_out_of_an_additive_measure_gives_back_its_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 27: where the measure is a mean of terms, each row's score is its own."""

    class Mean:
        better = 1.0

        def value(self, rows: torch.Tensor) -> torch.Tensor:
            return rows[:, 0].mean()

        def leave_one_out(self, rows: torch.Tensor) -> torch.Tensor:
            return torch.stack([self.value(torch.cat([rows[:i], rows[i + 1 :]])) for i in range(len(rows))])

    terms = torch.rand(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one = sets.SetReward.__new__(sets.SetReward)
    one.level, one.credit, one.aspects, one.measure = "set", "leave_one_out", ("mean",), Mean()  # type: ignore[misc, assignment]
    monkeypatch.setattr(one, "features", lambda media: terms)
    torch.testing.assert_close(one(prompts(7), images(7)).total, terms[:, 0].float())
