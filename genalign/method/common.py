"""What all methods share: samples and their scores, over ranks, and what of an update is logged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from genalign.clock import spent
from genalign.method.surrogates import k3
from genalign.ranks import gather, gather_scores, rank
from genalign.types import (
    Experience,
    Media,
    Policy,
    Prompt,
    Reward,
    Scores,
    Scoring,
    Steps,
    Trajectory,
    UsageError,
    Weights,
    sample_seed,
)

Result = TypeVar("Result")


@runtime_checkable
class Rolling(Protocol):
    """A policy that hands a rollout out in parts, (prompts, media, group) of each, and then the whole trajectory."""

    def rolling(
        self, prompts: Sequence[Prompt], per_prompt: int, seed: int | Sequence[int]
    ) -> Iterator[tuple[list[Prompt], Media, Tensor] | Trajectory]: ...


@runtime_checkable
class Overlapping(Protocol):
    """A reward that may be given a rollout in parts, and whose scores are waited for late."""

    def begin(self, rows: Counter[int]) -> Scoring: ...


def rollout_seed(seed: int, step: int) -> int:
    """The rollout seed of one training step: the same prompt gets new samples each time it is drawn."""
    return sample_seed(seed, step, -1)


class Collecting:
    """What methods share that sample, score, and go by nothing but what was recorded then (`types.Pausing`)."""

    def collecting(
        self, policy: Policy, prompts: Sequence[Prompt], reward: Reward | None, seed: int, step: int
    ) -> Generator[Scoring, None, Experience]:
        raise NotImplementedError

    def collect(
        self, policy: Policy, prompts: Sequence[Prompt], reward: Reward | None, seed: int, step: int
    ) -> Experience:
        return without_pauses(self.collecting(policy, prompts, reward, seed, step))


def without_pauses(work: Generator[Any, None, Result]) -> Result:
    """What a generator returns, run to its end."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def sample_and_score(
    policy: Policy,
    prompts: Sequence[Prompt],
    reward: Reward | None,
    group: int,
    seed: int,
    method: str,
    shown: Sequence[Prompt] | None = None,
    weights: Weights = "policy",
) -> Generator[Scoring, None, tuple[Trajectory, Scores]]:
    """Roll out `group` rows a prompt and score them; scores come back on the CPU, detached.

    shown: what the reward sees in the place of the prompts. weights: which draw. Where the policy rolls, what the
    reward can do in parts is done while further rows are sampled; the scores are those of a call on all rows. Pauses
    before the first row and after the last, where the reward can score beside what goes on meanwhile.
    """
    if reward is None:
        raise UsageError(f"method {method} needs a reward; add the key 'reward' to the recipe")
    asked = None if shown is None else [prompt for prompt in shown for _ in range(group)]
    if not isinstance(reward, Overlapping):
        with policy.weights(weights):
            trajectory = policy.rollout(prompts, group, seed)
        with spent("score"), torch.no_grad():
            return trajectory, to_cpu(reward(asked or trajectory.prompts, trajectory.media, trajectory.group))
    with reward.begin(Counter(prompt.uid for prompt in prompts for _ in range(group))) as scoring:
        yield scoring
        rows = 0
        with policy.weights(weights):
            for part in _parts(policy, prompts, group, seed):
                if isinstance(part, Trajectory):
                    trajectory = part
                    continue
                own, media, siblings = part
                scoring.give(own if asked is None else asked[rows : rows + len(own)], media, siblings)
                rows += len(own)
        yield scoring
        scores = scoring.result(asked or trajectory.prompts, trajectory.media, trajectory.group)
    return trajectory, to_cpu(scores)


def _parts(
    policy: Policy, prompts: Sequence[Prompt], group: int, seed: int
) -> Iterator[tuple[list[Prompt], Media, Tensor] | Trajectory]:
    """A rollout as it comes about; of a policy that does not roll, in one part."""
    if isinstance(policy, Rolling):
        yield from policy.rolling(prompts, group, seed)
        return
    whole = policy.rollout(prompts, group, seed)
    yield list(whole.prompts), whole.media, whole.group
    yield whole


def check_noise(trajectory: Trajectory, method: str) -> None:
    """Refuse a rollout none of whose steps added noise: none has a density that could be learnt from.

    Raises:
        UsageError: saying so.
    """
    if trajectory.logp.shape[1] == 0:
        raise UsageError(
            f"method {method} learns from the noise that sampling steps add, but none of this sampler's steps adds "
            f"any; raise policy.sampler.steps or noise, or take a method that reads no steps, such as nft or draft"
        )


def over_ranks(scores: Scores, group: Tensor) -> tuple[Scores, Tensor, slice]:
    """Scores and group of all ranks' rows, and where this rank's rows are among them; what no method reads (`info`,
    `confidence`, `std`) stays behind."""
    with spent("wait"):  # for ranks that are not as far
        lengths = gather(torch.tensor([len(group)]))
    start = int(lengths[: rank()].sum())
    everyone = gather_scores(replace(scores, confidence=None, std=None, info={}))
    return everyone, gather(group.cpu()), slice(start, start + len(group))


def reward_log(scores: Scores) -> dict[str, float]:
    """TRL's `reward` and `rewards/<aspect>/mean`, each over the rows where it can be read; left out where none can."""
    columns = {"reward": (scores.total, scores.total_valid)}
    for k, name in enumerate(scores.names):
        columns[f"rewards/{name}/mean"] = (scores.values[:, k], scores.valid[:, k])
    return {name: float(value[valid].double().mean()) for name, (value, valid) in columns.items() if valid.any()}


def sums(quantities: dict[str, Tensor], counts: Tensor) -> dict[str, tuple[float, float]]:
    """Loss.log of some quantities shaped like `counts` (bool): their sums where it is True, and the number of those."""
    stacked = torch.stack([torch.where(counts, q.detach().float(), 0.0).sum() for q in (*quantities.values(), counts)])
    *totals, number = stacked.tolist()
    return {name: (total, number) for name, total in zip(quantities, totals, strict=True)}


def kl_of(replayed: Steps) -> Tensor:
    """KL to the weights it was replayed versus, (R,S) in nats: the closed form where there is one, else k3."""
    if replayed.kl is not None:
        return replayed.kl
    assert replayed.versus_score is not None
    return k3(replayed.score, replayed.versus_score)


def to_cpu(scores: Scores) -> Scores:
    """Scores detached, on the CPU."""
    return replace(
        scores,
        **{
            name: getattr(scores, name).detach().cpu()
            for name in ("values", "valid", "failed", "total", "total_valid", "weights")
        },
    )
