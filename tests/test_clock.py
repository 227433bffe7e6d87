"""What a step's seconds are spent on, by a clock that only moves when the test moves it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from genalign import clock
from genalign.clock import PARTS, spent, switch, taken
from genalign.method import MethodSettings, build_method
from genalign.reward import FunctionReward, Runner
from genalign.training.loop import train
from genalign.training.progress import start
from genalign.training.settings import TrainSettings
from genalign.types import Media, Prompt, Scores, Trajectory
from tests.helpers.diffusion import policy as diffusion_policy
from tests.helpers.toy_policy import ToyPolicy


class Hands:
    """The time, in seconds; `turn` moves it."""

    now = 100.0

    def turn(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def hands(monkeypatch: Any) -> Hands:
    taken()
    made = Hands()
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: made.now))
    return made


def test_a_second_belongs_to_the_innermost_part(hands: Hands) -> None:
    hands.turn(50)  # of no part
    with spent("sample"):
        hands.turn(1)
        with spent("score"):
            hands.turn(2)
            with spent("wait"):
                hands.turn(4)
            hands.turn(8)
        switch("decode")
        hands.turn(16)
    hands.turn(32)
    assert taken() == {"sample": 1, "decode": 16, "score": 10, "learn": 0, "wait": 4}
    assert set(taken().values()) == {0.0}


def test_an_error_gives_the_seconds_back_to_the_part_around(hands: Hands) -> None:
    def fail() -> None:
        with spent("wait"):
            hands.turn(1)
            raise ValueError("x")

    with spent("learn"):
        with pytest.raises(ValueError, match="x"):
            fail()
        hands.turn(2)
    assert taken() == {"sample": 0, "decode": 0, "score": 0, "learn": 2, "wait": 1}


def test_what_goes_on_beside_costs_nothing(hands: Hands) -> None:
    def beside() -> None:
        with spent("score"):
            hands.turn(5)

    with spent("sample"):
        thread = threading.Thread(target=beside)
        thread.start()
        thread.join()
    assert taken() == {"sample": 5, "decode": 0, "score": 0, "learn": 0, "wait": 0}


class Rolling(ToyPolicy):
    """Three seconds a micro-batch, of which there are two; nine a replay."""

    hands: Hands
    waited_for: threading.Event

    def rolling(self, asked: Sequence[Prompt], per_prompt: int, seed: int) -> Iterator[Any]:
        self.waited_for.clear()
        whole = self.rollout(asked, per_prompt, seed)
        for at in range(0, len(whole.prompts), per_prompt):
            self.hands.turn(3)
            rows = list(range(at, at + per_prompt))
            yield [whole.prompts[row] for row in rows], whole.media.select(rows), whole.group[rows]
        yield whole

    def replay(self, *given: Any, **more: Any) -> Any:
        self.hands.turn(9)
        return super().replay(*given, **more)


def test_the_seconds_of_a_step(hands: Hands, tmp_path: Path, monkeypatch: Any) -> None:
    """Six of sampling; five in which the loop waits for a process, and two in which it computes scores; the replays."""
    waited_for = threading.Event()

    class Process(FunctionReward):
        """Answers about the second prompt only once the loop waits, five seconds later."""

        waits = True

        def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
            if prompts[0].uid == 1:
                assert waited_for.wait(60)
                hands.turn(5)
            return super().__call__(prompts, media, group)

    plain = clock.switch

    def switched(part: Any) -> Any:
        former = plain(part)
        if part == "wait":
            waited_for.set()
        return former

    monkeypatch.setattr(clock, "switch", switched)
    reward = Runner(Process(lambda image: image.mean((1, 2, 3)), name="bright"))
    count = reward._count
    monkeypatch.setattr(reward, "_count", lambda scores: (hands.turn(2), count(scores)))
    policy = Rolling(rows_together=4)
    policy.hands, policy.waited_for = hands, waited_for
    settings = TrainSettings(steps=2, checkpoint_every=10, learning_rate=0.01)
    asked = [Prompt("a", uid=0), Prompt("b", uid=1)]
    method = build_method(MethodSettings(name="grpo", group=4))
    for log in train(start(policy, reward, settings), method, lambda step: asked, tmp_path):
        assert [log[f"time/{part}"] for part in PARTS] == [6, 0, 2, 9 * 2 * policy.steps, 5]
        assert log["step_time"] == 6 + 2 + 9 * 2 * policy.steps + 5


def test_what_follows_the_last_step_of_a_pipeline_is_decoding(hands: Hands, monkeypatch: Any) -> None:
    made = diffusion_policy()
    made.rollout([Prompt("a", uid=1)], 1, 0)
    taken()
    count, decode = made._stage.denoisers.count, made.pipeline.vae.decode

    def counted(*given: Any, **more: Any) -> Any:
        hands.turn(1)
        return count(*given, **more)

    def decoded(*given: Any, **more: Any) -> Any:
        hands.turn(100)
        return decode(*given, **more)

    monkeypatch.setattr(made._stage.denoisers, "count", counted)
    monkeypatch.setattr(made.pipeline.vae, "decode", decoded)
    calls = made.calls()
    whole: Trajectory = made.rollout([Prompt("a", uid=1), Prompt("b", uid=2)], 2, 0)
    seconds = taken()
    rows = made.calls() - calls
    assert len(whole.prompts) == 4
    assert seconds["decode"] == 100
    assert seconds["sample"] * 4 == rows  # one call a branch and step
