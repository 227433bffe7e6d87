"""Rewards from files run in one process that really ends; whatever they do, the caller goes on."""

import contextlib
import os
import re
import time
from pathlib import Path

import psutil
import pytest
import torch

from genalign.reward import FileReward, Runner
from genalign.reward.runtime.user_file import load_function
from genalign.reward.runtime.worker import WORKER
from genalign.types import GenalignError, Prompt, UsageError
from tests.helpers.toy_rewards import images, prompts, texts

RULES = """
import os, time
import helper
from genalign.reward import reward

def bright(image, offset=0.0):
    print("this goes to stderr and not into the pipe")
    return image.mean((1, 2, 3)) + offset

@reward(aspects={"a": 1.0, "b": 0.0})
def two(number):
    return {"a": [(n, 0.5) for n in number], "b": [None if n is None else helper.double(n) for n in number]}

def hangs(prompt): time.sleep(600)
def spawns(prompt):
    if os.fork() == 0: time.sleep(600)
    time.sleep(600)
def dies(prompt): os._exit(3)
def exits(prompt): raise SystemExit(4)
def raises(prompt): raise KeyError("no such thing")
def longer(prompt): return [0.0] * (len(prompt) + 1)
def nothing(prompt): return [None] * len(prompt)
def infinite(prompt): return [float("inf")] + [1.0] * (len(prompt) - 1)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rules")
    (folder / "rules.py").write_text(RULES)
    (folder / "helper.py").write_text("def double(n): return 2 * n")
    (folder / "broken.py").write_text("import nothing_of_that_name")
    return folder


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_scores_cross_the_pipe_unchanged(folder: Path) -> None:
    file = FileReward("rules.py:bright", folder, offset=0.25)
    given = images(3)
    scores = file(prompts(3), given)
    assert torch.equal(scores.total, given["image"].data.mean((1, 2, 3)) + 0.25)  # type: ignore[union-attr]
    assert file.needs == {"image"}
    assert file.aspects == ("bright",)
    here = load_function(str(folder / "rules.py"), "bright", settings={"offset": 0.25})
    assert file.version == here.version
    assert file.version != FileReward("rules.py:bright", folder).version


def test_aspects_confidence_and_abstaining_cross_the_pipe(folder: Path) -> None:
    file = FileReward("rules.py:two", folder)
    scores = file(prompts(2, number=[3.0, None]), texts("a", "b"))
    assert file.weights == (1.0, 0.0)
    assert scores.values.tolist() == [[3, 6], [0, 0]]
    assert scores.valid.tolist() == [[True, True], [False, False]]
    assert scores.confidence is not None
    assert scores.confidence[0].tolist() == [0.5, 1]


def living(group: int) -> list[int]:
    """Processes of the group that still run; a killed orphan stays a zombie until init collects it."""
    found = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


@pytest.mark.parametrize("function", ["hangs", "spawns"])
def test_time_out_ends_the_process_and_all_it_started(folder: Path, function: str) -> None:
    """Invariant 18."""
    FileReward("rules.py:bright", folder)(prompts(1), images(1))
    before = WORKER.pid
    assert before is not None
    runner = Runner(FileReward(f"rules.py:{function}", folder, timeout=0.3), max_failure=1.0)
    started = time.monotonic()
    scores = runner(prompts(2), images(2))
    assert time.monotonic() - started < 60
    assert scores.failed.all()
    assert "no answer within 0.3 s" in scores.info["error"][0]
    assert gone(before)
    assert not living(before)
    assert FileReward("rules.py:bright", folder)(prompts(1), images(1)).valid.all()
    assert WORKER.pid != before


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("dies", "died with exit code 3"),
        ("exits", "died with exit code 4"),
        ("raises", r"KeyError.*no such thing.*rules\.py"),
        ("longer", "4 scores for 3 rows"),
    ],
)
def test_failures_mask_every_row(folder: Path, function: str, told: str) -> None:
    scores = Runner(FileReward(f"rules.py:{function}", folder), max_failure=1.0)(prompts(3), images(3))
    assert scores.failed.all()
    assert not scores.total_valid.any()
    assert re.search(told, scores.info["error"][0])


def test_too_many_failures_end_the_run_with_the_last_error(folder: Path) -> None:
    with pytest.raises(GenalignError, match=r"reward 'raises' failed on 3 of the last 3 samples.*no such thing"):
        Runner(FileReward("rules.py:raises", folder))(prompts(3), images(3))


def test_infinite_masks_its_row_and_none_is_no_failure(folder: Path) -> None:
    scores = Runner(FileReward("rules.py:infinite", folder))(prompts(3), images(3))
    assert scores.failed[:, 0].tolist() == [True, False, False]
    assert scores.total_valid.tolist() == [False, True, True]
    quiet = Runner(FileReward("rules.py:nothing", folder))
    assert not quiet(prompts(3), images(3)).failed.any()
    log = quiet.log()
    assert log.pop("time/reward") > 0
    assert log == {"rewards/nothing/fail_rate": 0.0, "rewards/nothing/abstain_rate": 1.0}


@pytest.mark.parametrize(
    ("target", "settings", "told"),
    [
        ("rule.py:bright", {}, "no reward file 'rule.py'.*did you mean 'rules.py'"),
        ("rules.py:brigth", {}, "no function 'brigth'; did you mean 'bright'"),
        ("rules.py:bright", {"ofset": 1}, "no setting 'ofset'; did you mean 'offset'"),
        ("rules.py:bright", {"timeout": "long"}, "timeout of reward 'bright' is 'long'"),
        ("broken.py:bright", {}, "broken.py cannot be imported.*nothing_of_that_name"),
        ("rules.py", {}, "file.py:function"),
    ],
)
def test_wrong_names_are_refused_in_one_sentence(folder: Path, target: str, settings: dict, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        FileReward(target, folder, **settings).needs  # noqa: B018


def test_a_fact_that_is_no_plain_data_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="plain data"):
        FileReward("rules.py:bright", folder)([Prompt("x", facts={"odd": object()})], images(1))
