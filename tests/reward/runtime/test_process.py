"""A reward in a process of its own that ends, and in a sandbox that holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from genalign.reward import FileReward, Runner, build_reward
from genalign.reward.runtime import worker
from genalign.reward.runtime.process import ProcessReward
from genalign.types import Reward, UsageError
from tests.helpers.scoring import same
from tests.helpers.toy_rewards import images, prompts

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
