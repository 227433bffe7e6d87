"""Where a reward runs: from a cache, in a process that ends, in a sandbox that holds, and beside sampling."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from genalign.method.common import sample_and_score
from genalign.reward import FileReward, FunctionReward, Hybrid, Runner, Sharpness, Sum, build_reward
from genalign.reward.runtime import worker
from genalign.reward.runtime.cache import Cached
from genalign.reward.runtime.process import ProcessReward
from genalign.types import GenalignError, Media, Prompt, Reward, Scores, Track, Trajectory, UsageError
from tests.test_diffusion_policy import policy as diffusion_policy
from tests.toy_policy import ToyPolicy
from tests.toy_rewards import images, prompts, says, texts

RULES = """
import os, socket, subprocess, threading, time
from pathlib import Path
from genalign.reward import reward

@reward(aspects={"mean": 1.0, "number": 0.5})
def rules(image, number):
    return {"mean": image.mean((1, 2, 3)), "number": [None if n is None else (n, 0.25) for n in number]}

def hangs(prompt):
    while True: time.sleep(1)

def breaks(number):
    if number[0] == 1: held = bytearray(8 << 30)
    if number[0] == 2: raise KeyError("nothing of that name")
    return [0.5] * len(number)

def attempt(what):
    try:
        what()
        return "done"
    except BaseException as error:
        return type(error).__name__

@reward
def tries(image, folder):
    me, place = Path(__file__), Path(folder[0])
    told = {
        "socket": attempt(lambda: socket.create_connection(("127.0.0.1", 9), 1)),
        "name": attempt(lambda: socket.getaddrinfo("example.org", 80)),
        "local socket": attempt(lambda: socket.socket(socket.AF_UNIX)),
        "spawn": attempt(lambda: subprocess.run(["true"])),
        "fork": attempt(lambda: os.fork() or os._exit(0)),
        "signal": attempt(lambda: os.kill(os.getppid(), 0)),
        "leave": attempt(os.setsid),
        "write": attempt(lambda: (place / "new").write_text("x")),
        "append": attempt(lambda: me.open("a")),
        "remove": attempt(me.unlink),
        "folder": attempt(lambda: (place / "sub").mkdir()),
        "unlimit": attempt(lambda: __import__("resource").setrlimit(9, (1 << 40, 1 << 40))),
        "secret": attempt(lambda: os.environ["JUDGE_KEY"]),
        "read": attempt(me.read_text),
        "thread": attempt(lambda: threading.Thread(target=int).start()),
        "compute": attempt(lambda: (image.flatten(1) @ image.flatten(1).T).sum().item()),
    }
    return [1.0] * len(image), {"told": [told] * len(image)}
"""
ALLOWED = {"read", "thread", "compute"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rules")
    (folder / "rules.py").write_text(RULES)
    return folder


def same(one: Scores, other: Scores) -> None:
    for field in ("values", "valid", "failed", "total", "total_valid", "weights"):
        assert torch.equal(getattr(one, field), getattr(other, field)), field
    assert (one.confidence is None) == (other.confidence is None)
    if one.confidence is not None and other.confidence is not None:
        assert torch.equal(one.confidence, other.confidence)


# ---- cache ----------------------------------------------------------------------------------------------------------


class Spy:
    """A function that scores a text's length, abstains on "?", breaks on "!", and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, text: list[str]) -> list[float | None]:
        self.asked += text
        return [None if t == "?" else float("nan") if t == "!" else float(len(t)) for t in text]


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_was_scored_is_not_scored_again_and_a_failure_is(tmp_path: Path, on_disk: bool) -> None:
    """Invariant 17."""
    spy = Spy()
    inner = FunctionReward(spy, name="length")
    cached = Cached(inner, tmp_path / "deep" / "scores.sqlite" if on_disk else None)
    given = texts("a", "bb", "a", "?", "!")
    first = cached(prompts(5), given)
    assert spy.asked == ["a", "bb", "a", "?", "!"]  # "prompt number 0" and "prompt number 2" differ
    second = cached(prompts(5), given)
    assert spy.asked[5:] == ["!"]
    same(first, second)
    same(first, inner(prompts(5), given))
    assert (cached.rows_seen, cached.hits) == (10, 4)
    again = Cached(inner, cached.file)
    again([Prompt("x"), Prompt("x")], texts("ccc", "ccc"))
    assert spy.asked.count("ccc") == 1  # equal rows of one batch are asked once
    again(prompts(5), given)
    assert spy.asked.count("bb") == (2 if on_disk else 3)  # the spy itself was called once, `same` once


@pytest.mark.parametrize("change", ["text", "facts", "media", "edit source", "version", "rate"])
def test_whatever_a_reward_could_read_is_part_of_the_key(change: str) -> None:
    calls: list[int] = []

    def count(media: Media, facts: list[Any], offset: float = 0.0) -> list[float]:
        calls.append(media.rows)
        return [1.0] * media.rows

    reward = FunctionReward(count)
    prompt, media = Prompt("a", images(1), {"k": 1}), images(1)
    cached = Cached(reward)
    cached([prompt], media)
    if change == "text":
        prompt = replace(prompt, text="b")
    elif change == "facts":
        prompt = replace(prompt, facts={"k": 2})
    elif change == "edit source":
        prompt = replace(prompt, media=images(1, seed=1))
    elif change == "media":
        media = images(1, seed=1)
    elif change == "rate":
        media = Media(image=Track(media["image"].data, 2.0))
    else:
        other = Cached(reward.with_settings({"offset": 1.0}))
        other._rows, cached = cached._rows, other
    cached([prompt], media)
    assert len(calls) == 2
    cached([replace(prompt, uid=7)], media)
    assert len(calls) == 2  # which row of which file it is changes nothing


def test_what_cannot_be_cached_is_refused(tmp_path: Path) -> None:
    def siblings(text: list[str], group: list[int]) -> list[float]:
        return [1.0] * len(text)

    with pytest.raises(UsageError, match="looks at siblings, so no sample of it can be cached"):
        Cached(FunctionReward(siblings)).looks_at  # noqa: B018
    (tmp_path / "other").write_text("this is no database, however long one makes it. " * 50)
    with pytest.raises(UsageError, match="cannot be used as a cache"):
        Cached(Sharpness(), tmp_path / "other")(prompts(1), images(1))
    assert not Cached(Sharpness()).differentiable

    class Stateful(Sharpness):
        def state_dict(self) -> dict[str, torch.Tensor]:
            return {"multiplier": torch.ones(1)}

    with pytest.raises(UsageError, match="state that training moves"):
        Cached(Stateful())(prompts(1), images(1))


def test_a_torn_row_of_the_file_is_scored_anew(tmp_path: Path) -> None:
    cached = Cached(Sharpness(), tmp_path / "scores.sqlite")
    whole = cached(prompts(1), images(1))
    with sqlite3.connect(tmp_path / "scores.sqlite") as database:
        database.execute("UPDATE scores SET row = substr(row, 1, 40)")
    same(Cached(Sharpness(), tmp_path / "scores.sqlite")(prompts(1), images(1)), whole)


# ---- process and sandbox --------------------------------------------------------------------------------------------


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_any_reward_runs_in_a_process_as_it_runs_here(folder: Path) -> None:
    spec = {
        "hybrid": {"rule": {"use": "rules.py:rules"}, "model": {"use": "sharpness", "half": 0.1}},
        "name": "both",
    }
    here, there = build_reward(spec, folder), ProcessReward(spec, folder)
    assert isinstance(there, Reward)
    for attribute in ("name", "needs", "aspects", "weights", "looks_at", "version"):
        assert getattr(here, attribute) == getattr(there, attribute), attribute
    asked, given = prompts(3, number=[1.0, None, 0.5]), images(3)
    same(here(asked, given), there(asked, given))
    pid = there.pid
    assert pid is not None
    assert pid != os.getpid()
    there.close()
    assert gone(pid)


@pytest.mark.parametrize("on", ["process", "sandbox"])
def test_a_time_out_ends_the_process(folder: Path, on: str) -> None:
    """Invariant 18."""
    runner = build_reward({"use": "rules.py:hangs", "run": {"on": on, "timeout": 0.5, "max_failure": 1.0}}, folder)
    assert isinstance(runner, Runner)
    inner = runner.reward
    assert isinstance(inner, ProcessReward)
    assert runner.name == "hangs"
    pid = inner.pid
    assert pid is not None
    scores = runner(prompts(2), images(2))
    assert scores.failed.all()
    assert "no answer within 0.5 s; its process was killed" in scores.info["error"][0]
    assert gone(pid)


def test_a_sandbox_computes_and_does_nothing_else(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 36."""
    monkeypatch.setenv("JUDGE_KEY", "secret")
    sandbox = build_reward({"use": "rules.py:tries", "run": {"on": "sandbox"}}, folder)
    where = folder / "place"
    where.mkdir()
    asked = prompts(2, folder=[str(where)] * 2)
    told = eval(Runner(sandbox)(asked, images(2)).info["told"][0])
    assert {what for what, came in told.items() if came == "done"} == ALLOWED
    assert set(told.values()) <= {"done", "PermissionError", "gaierror", "KeyError", "ValueError"}
    assert not list(where.iterdir())
    assert (folder / "rules.py").read_text() == RULES
    (folder / "mine.py").write_text(RULES)  # the same code is refused nothing outside, so the test can fail
    monkeypatch.setattr(worker, "WORKER", worker.Worker())  # started now, with the secret in its environment
    free = eval(FileReward("mine.py:tries", folder)(asked, images(2)).info["told"][0])
    worker.WORKER.close()
    assert {what for what, came in free.items() if came == "done"} >= {"thread", "write", "remove", "spawn", "secret"}


def test_a_sandbox_bounds_memory_and_tells_what_went_wrong(folder: Path) -> None:
    sandbox = ProcessReward("rules.py:breaks", folder, sandbox=True, memory=1.0)
    runner = Runner(sandbox, batch_size=1, max_failure=1.0)
    scores = runner(prompts(3, number=[1, 2, 3]), images(3))
    assert scores.failed[:, 0].tolist() == [True, True, False]
    assert "MemoryError" in scores.info["error"][0]
    assert "nothing of that name" in scores.info["error"][1]
    sandbox.close()


def test_where_nothing_can_be_locked_up_nothing_is_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genalign.reward import sandbox

    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(UsageError, match="needs Linux on x86-64 or aarch64, not darwin"):
        sandbox.lock()


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"use": "sharpness", "run": {"onn": "thread"}}, "no setting 'onn'; did you mean 'on'"),
        ({"use": "sharpness", "run": {"on": "proces"}}, "cannot run on 'proces'; did you mean 'process'"),
        ({"use": "sharpness", "run": {"timeout": 3}}, "timeout can only be kept by a process"),
        ({"use": "sharpness", "run": {"on": "sandbox"}}, "a sandbox runs a function of a file"),
        ({"use": "rules.py:rules", "run": {"on": "process", "timeout": 0}}, "timeout of a reward in a process is 0"),
        ({"use": "sharpness", "run": {"batch_size": 0}}, "batch_size is 0"),
        ({"use": "sharpness", "run": {"cache": 3}}, "run.cache is 3"),
        ({"use": "sharpness", "run": "thread"}, "'run' takes a mapping"),
        ({"use": "sharpnes", "run": {}}, "did you mean 'sharpness'"),
    ],
)
def test_wrong_ways_to_run_are_refused_in_one_sentence(folder: Path, spec: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        build_reward(spec, folder)


def test_each_part_of_a_sum_runs_in_its_own_way(folder: Path) -> None:
    plain = {"sum": [{"use": "rules.py:rules", "weight": 2.0}, {"use": "sharpness"}]}
    parts = [
        {"use": "rules.py:rules", "weight": 2.0, "run": {"on": "process", "batch_size": 2}},
        {"use": "sharpness", "run": {"cache": True, "batch_size": 1}},
    ]
    asked, given, group = prompts(4, number=[1.0, None, 3.0, 4.0]), images(4), torch.tensor([0, 0, 1, 1])
    runner = Runner(build_reward({"sum": parts}, folder))
    expected = build_reward(plain, folder)(asked, given, group)
    same(runner(asked, given, group), expected)
    same(runner(asked, given, group), expected)
    log = runner.log()
    assert log["cache/hit_rate"] == 0.5
    assert log["time/reward"] > 0
    assert runner.log()["time/reward"] == 0


# ---- beside sampling ------------------------------------------------------------------------------------------------


class Rolling(ToyPolicy):
    """Hands its rollout out two rows at a time; `between` is called before each further part."""

    between: Any = staticmethod(lambda: None)

    def rolling(self, asked: Any, per_prompt: int, seed: int) -> Iterator[Any]:
        whole = self.rollout(asked, per_prompt, seed)
        for at in range(0, len(whole.prompts), 2):
            rows = list(range(at, min(at + 2, len(whole.prompts))))
            yield [whole.prompts[row] for row in rows], whole.media.select(rows), whole.group[rows]
            self.between()
        yield whole


def test_scoring_goes_on_while_the_rest_is_sampled() -> None:
    """The policy will not sample on before its first part has been scored: without overlap this would not end."""
    scored = threading.Event()

    def bright(image: Any) -> Any:
        scored.set()
        return image.mean((1, 2, 3))

    policy, overlapped = Rolling(), Runner(FunctionReward(bright), overlaps=True)
    waited: list[bool] = []
    policy.between = lambda: waited.append(scored.wait(30))
    asked = [Prompt(str(uid), uid=uid) for uid in range(3)]
    trajectory, scores = sample_and_score(policy, asked, overlapped, 2, 0, "test")
    assert waited == [True] * 3
    plain = Runner(FunctionReward(bright))(trajectory.prompts, trajectory.media, trajectory.group)
    same(scores, plain)
    assert overlapped.log()["rewards/bright/fail_rate"] == 0


@pytest.mark.parametrize("per_prompt", [1, 2, 3, 5])
def test_siblings_stay_together_however_the_rollout_is_cut(per_prompt: int) -> None:
    calls: list[list[int]] = []

    def spread(image: Any, group: list[int]) -> Any:
        calls.append(group)
        own = image.mean((1, 2, 3))
        return [float(own[i] - own[[g == group[i] for g in group]].mean()) for i in range(len(group))]

    asked = [Prompt(str(uid), uid=uid) for uid in (4, 2, 7)]
    _, scores = sample_and_score(Rolling(), asked, Runner(FunctionReward(spread), overlaps=True), per_prompt, 0, "test")
    assert all(uid not in later for i, call in enumerate(calls) for uid in call for later in calls[i + 1 :])
    assert len(calls) > 1
    same(scores, sample_and_score(Rolling(), asked, Runner(FunctionReward(spread)), per_prompt, 0, "test")[1])


def test_a_prompt_drawn_twice_is_scored_as_one_group() -> None:
    calls: list[list[int]] = []

    def spy(image: Any, group: list[int]) -> list[float]:
        calls.append(group)
        return [1.0] * len(group)

    asked = [Prompt("a", uid=1), Prompt("b", uid=2), Prompt("a", uid=1)]
    sample_and_score(Rolling(), asked, Runner(FunctionReward(spy), overlaps=True), 2, 0, "test")
    assert calls == [[1, 1, 2, 2, 1, 1]]


def test_a_reward_that_fails_beside_sampling_stops_the_run_as_ever() -> None:
    def broken(image: Any) -> Any:
        raise RuntimeError("no memory")

    broken_beside = Runner(FunctionReward(broken), overlaps=True)
    with pytest.raises(GenalignError, match=r"'broken' failed on 6 of the last 6 samples.*no memory"):
        sample_and_score(Rolling(), [Prompt(str(uid), uid=uid) for uid in range(3)], broken_beside, 2, 0, "test")


def test_a_pipeline_rolls_out_the_same_in_parts() -> None:
    made = diffusion_policy()
    asked = [Prompt("a b", uid=1), Prompt("c d e", uid=2), Prompt("x", uid=5)]
    *parts, trajectory = made.rolling(asked, 3, 0)
    whole = made.rollout(asked, 3, 0)
    assert isinstance(trajectory, Trajectory)
    assert torch.equal(trajectory.logp, whole.logp)
    assert [len(part[0]) for part in parts] == [4, 4, 1]  # type: ignore[index, arg-type]
    given = Media.cat([part[1] for part in parts])  # type: ignore[index, misc]
    assert torch.equal(given["image"].data, whole.media["image"].data)  # type: ignore[arg-type]
    assert torch.cat([part[2] for part in parts]).tolist() == whole.group.tolist()  # type: ignore[index]
    overlapped = Runner(Hybrid(says(*[(0.5, 0.5)] * 9, name="rule"), Sharpness(), mode="stratified"), overlaps=True)
    asked = [replace(prompt, facts={"row": k}) for k, prompt in enumerate(asked)]
    _, beside = sample_and_score(made, asked, overlapped, 3, 0, "test")
    _, after = sample_and_score(made, asked, Sum([overlapped.reward]), 3, 0, "test")
    assert torch.equal(beside.total, after.total)
