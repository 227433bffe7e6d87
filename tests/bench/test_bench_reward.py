"""What asking a reward costs beside scoring, and what is left of its time beside sampling.

`python -m tests.bench.test_bench_reward` prints the table.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from genalign import build, load_recipe
from genalign.method import MethodSettings, build_method
from genalign.reward import FunctionReward, RemoteReward, Runner, Sharpness
from genalign.reward.runtime.serving import application
from genalign.training.loop import train
from genalign.training.progress import start
from genalign.training.settings import TrainSettings
from genalign.types import Prompt
from tests.helpers.averaged import Averaged
from tests.helpers.scoring import sampled_and_scored
from tests.helpers.toy_judges import serving
from tests.helpers.toy_policy import ToyPolicy
from tests.helpers.toy_rewards import images, prompts

PARTS = 24  # micro-batches of a rollout, each one prompt's siblings


class Sampler(ToyPolicy):
    """A rollout whose every part takes `seconds`, as a device does that works while the CPU waits."""

    seconds = 0.0

    def rolling(self, asked: Any, per_prompt: int, seed: int) -> Iterator[Any]:
        whole = self.rollout(asked, per_prompt, seed)
        for at in range(0, len(whole.prompts), per_prompt):
            time.sleep(self.seconds)
            rows = list(range(at, at + per_prompt))
            yield [whole.prompts[row] for row in rows], whole.media.select(rows), whole.group[rows]
        yield whole


def wall(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def hidden(sampling: float = 0.06, scoring: float = 0.05) -> dict[str, float]:
    """Seconds of sampling alone, of scoring alone, and of both."""

    def slow(image: Any) -> Any:
        time.sleep(scoring)
        return image.mean((1, 2, 3))

    asked = [Prompt(str(uid), uid=uid) for uid in range(PARTS)]
    policy, bare = Sampler(), Sampler()
    policy.seconds = sampling
    with serving(application(FunctionReward(slow))) as url:
        served = Runner(RemoteReward(url))
        sampled_and_scored(bare, asked[:1], served, 4, 0, "warm")
        return {
            "sampling": wall(lambda: list(policy.rolling(asked, 4, 0))),
            "scoring": wall(lambda: sampled_and_scored(bare, asked, served, 4, 0, "alone")),
            "both": wall(lambda: sampled_and_scored(policy, asked, served, 4, 0, "both")),
        }


class Slow(Averaged):
    """A rollout that comes as a whole, after `seconds`."""

    seconds = 0.0

    def rollout(self, *given: Any) -> Any:
        time.sleep(self.seconds)
        return super().rollout(*given)


def ahead(seconds: float = 0.5, steps: int = 12) -> dict[str, float]:
    """Samples a second of a whole training, where scoring (served) takes as long as sampling, by train.staleness."""

    def slow(image: Any) -> Any:
        time.sleep(seconds)
        return image.mean((1, 2, 3))

    asked, method = [Prompt(str(uid), uid=uid) for uid in range(3)], MethodSettings(name="grpo", group=4)
    rates = {}
    with serving(application(FunctionReward(slow))) as url, tempfile.TemporaryDirectory() as folder:
        for staleness in (0, 1):
            policy, run = Slow(), Path(folder) / str(staleness)
            policy.seconds = seconds
            run.mkdir()
            settings = TrainSettings(steps=steps, staleness=staleness, checkpoint_every=steps)
            progress = start(policy, Runner(RemoteReward(url)), settings)
            spent = wall(lambda p=progress, r=run: list(train(p, build_method(method), lambda _: asked, r)))  # type: ignore[misc]
            rates[f"staleness {staleness}"] = steps * len(asked) * 4 / spent
    return rates


def overhead(rows: int = 256, size: int = 128, repeats: int = 9) -> dict[str, float]:
    """CPU seconds of a reward asked bare, and of what its Runner adds."""
    reward, asked, given = Sharpness(), prompts(rows), images(rows, size)
    runner, group = Runner(reward), torch.arange(rows) // 8
    best = {"bare": float("inf"), "runner": float("inf")}
    for _ in range(repeats):  # in turns, so that a busy machine slows both
        for name, ask in (("bare", reward), ("runner", runner)):
            begun = time.process_time()
            ask(asked, given, group)
            best[name] = min(best[name], time.process_time() - begun)
    return best


def beside(rounds: int = 5, prompts_a_step: int = 16) -> dict[str, dict[str, float]]:
    """Median seconds of a rollout of image-nft with its scores: on the wall, and of this process's CPU (without that of
    the rule's process). In turns A B A B; the two draw and score the same samples."""
    built = build(load_recipe("image-nft", []))
    asked = built.data.draw(0, prompts_a_step, 0)
    assert isinstance(built.reward, Runner)
    rewards = {
        "alone": Runner(built.reward.reward, overlaps=False, max_failure=1.0),
        "beside": Runner(built.reward.reward, max_failure=1.0),
    }
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in rewards}
    for turn in range(rounds + 1):
        for name, reward in rewards.items():
            cpu, begun = time.process_time(), time.perf_counter()
            sampled_and_scored(built.policy, asked, reward, 8, turn, "bench")
            spent[name].append((time.perf_counter() - begun, time.process_time() - cpu))
    measured = {name: list(zip(*each[1:], strict=True)) for name, each in spent.items()}  # the first turn loads models
    return {name: {"wall": median(wall), "cpu": median(cpu)} for name, (wall, cpu) in measured.items()}


def test_a_served_reward_is_asked_once_a_part() -> None:
    calls: list[int] = []

    def count(image: Any) -> Any:
        calls.append(len(image))
        return image.mean((1, 2, 3))

    asked = [Prompt(str(uid), uid=uid) for uid in range(PARTS)]
    with serving(application(FunctionReward(count))) as url:
        sampled_and_scored(Sampler(), asked, Runner(RemoteReward(url)), 4, 0, "test")
    assert calls == [4] * PARTS


def main() -> None:
    told = hidden()
    longer = max(told["sampling"], told["scoring"])
    print({name: round(value, 3) for name, value in told.items()}, f"both / longer = {told['both'] / longer:.3f}")
    rates = ahead()
    print(
        {name: f"{rate:.1f} samples/s" for name, rate in rates.items()},
        f"ahead / in turns = {rates['staleness 1'] / rates['staleness 0']:.2f}",
    )
    for name, seconds in beside().items():
        print(f"image-nft, 128 samples, scored {name}:", {kind: f"{value:.2f} s" for kind, value in seconds.items()})
    cost = overhead()
    added = cost["runner"] / cost["bare"] - 1
    print({name: f"{1000 * value:.2f} ms" for name, value in cost.items()}, f"the Runner adds {100 * added:.1f}%")


if __name__ == "__main__":
    main()
