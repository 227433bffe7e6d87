"""What all methods share: scores over ranks, and the dealing of micro-batches to optimizer updates."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Protocol, TypeVar, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from genalign.clock import spent
from genalign.method.surrogates import k3
from genalign.ranks import all_sum, gather, gather_scores, rank
from genalign.types import (
    Experience,
    GenalignError,
    Loss,
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

Block = TypeVar("Block")
Result = TypeVar("Result")
log = logging.getLogger("genalign")


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


def packed(pairs: Tensor, rows: int) -> list[Tensor]:
    """Micro-batches of pairs: which of pairs (P,2), in their order, as many as have at most `rows` samples, or one."""
    begun, held = [0], set[int]()
    for k, pair in enumerate(pairs.tolist()):
        if k > begun[-1] and len(held.union(pair)) > rows:
            begun.append(k)
            held.clear()
        held.update(pair)
    return [*torch.arange(len(pairs)).tensor_split(begun[1:])] if len(pairs) else []


def deal(
    blocks: Sequence[Block], counts: Sequence[float], updates: int, trajectory: Trajectory
) -> list[tuple[list[Block], float]]:
    """Deal micro-batches out to optimizer updates: for each, this rank's blocks that count, and the global count.

    Blocks go round in turns, so that ranks with equally many blocks (a multiple of `updates`) make the same updates as
    one rank with all of them. An update in which nothing counts on any rank is left out: its gradient would be zero.
    (Ties may leave fewer blocks than updates, or none; what must suffice is the rollout that they came from.)

    Raises:
        UsageError: there are fewer micro-batches than updates (on all ranks alike).
    """
    rolled = -(-len(trajectory.prompts) // trajectory.rows_together)
    local = [[float(rolled > k), float(sum(counts[k::updates]))] for k in range(updates)]
    everyone = all_sum(torch.tensor(local, dtype=torch.float64)).tolist()
    enough = sum(ranks > 0 for ranks, _ in everyone)
    if enough < updates:
        raise UsageError(
            f"method.updates_per_rollout is {updates}, but a rollout has only {enough} micro-batches a rank; "
            f"lower it or policy.batch_size"
        )
    dealt = []
    for k, (_, total) in enumerate(everyone):
        here = zip(blocks[k::updates], counts[k::updates], strict=True)
        if total:
            dealt.append(([block for block, count in here if count], total))
    return dealt


def row_units(
    experience: Experience, per_row: bool = False
) -> tuple[list[list[tuple[list[int], list[int]]]], list[float]]:
    """A rollout's micro-batches, each as the (rows, steps) units in which anything counts, and how much counts in each.

    What is counted are recorded steps of counted rows, or (`per_row`) counted rows.
    """
    trajectory = experience.trajectory
    assert experience.counted is not None
    steps = trajectory.mask.cpu() & experience.counted[:, None]  # (B,S)
    weight = steps.any(1, keepdim=True) if per_row else steps
    rows = range(len(trajectory.prompts))
    blocks = [list(rows[i : i + trajectory.rows_together]) for i in rows[:: trajectory.rows_together]]
    units = [[unit for unit in trajectory.units(block) if steps[unit[0]][:, unit[1]].any()] for block in blocks]
    return units, [float(weight[block].sum()) for block in blocks]


def emit(policy: Policy, units: Sequence[Block], loss: Callable[[Block], Loss]) -> Iterator[Loss]:
    """The losses of one optimizer update; the last has step=True, which a rank without rows owes as well.

    A unit is rows (or pairs), alone or as the first of a tuple. Where memory is not enough for a unit, forward here or
    backward in the loop (which throws the error in), the update begins anew with units half as large, and later ones
    have that size from the start. Ranks do so each for itself.

    Raises:
        GenalignError: memory is not enough for a unit of one row.
    """
    cut, done, anew = _of_size(units, _ENOUGH.get(policy)), 0, False
    while done < len(cut):
        enough = True
        try:
            yield replace(loss(cut[done]), step=done == len(cut) - 1, anew=anew)
        except torch.OutOfMemoryError:
            enough = False  # and on, outside of the handler, which holds on to what was computed
        if enough:
            done, anew = done + 1, False
        else:
            _ENOUGH[policy] = _half(cut)
            cut, done, anew = _of_size(units, _ENOUGH[policy]), 0, True
    if not units:
        parameters = [p for group in policy.parameter_groups() for p in group["params"]]
        yield Loss(torch.stack([(p * 0.0).sum() for p in parameters]).sum(), step=True)


_ENOUGH: WeakKeyDictionary[Policy, int] = WeakKeyDictionary()  # rows for which memory was enough, where it once was not


def _half(units: Sequence[Any]) -> int:
    most = max(len(_rows(unit)) for unit in units)
    if most == 1:
        raise GenalignError(
            "memory is not enough for the update of a single row; what saves some is named by genalign train RECIPE "
            "--plan --card"
        )
    half = -(-most // 2)
    log.warning("memory is not enough for updates of %d rows at a time, so they go on with %d", most, half)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return half


def _of_size(units: Sequence[Block], most: int | None) -> list[Block]:
    """Units of at most `most` rows each; those that follow each other on the same rows still do."""
    if most is None:
        return list(units)
    cut: list[Any] = []
    for _, same in groupby(units, key=lambda unit: torch.as_tensor(_rows(unit)).tolist()):
        alike = list(same)
        for i in range(0, len(_rows(alike[0])), most):
            parts = [_rows(unit)[i : i + most] for unit in alike]
            cut += [
                (part, *unit[1:]) if isinstance(unit, tuple) else part for part, unit in zip(parts, alike, strict=True)
            ]
    return cut


def _rows(unit: Any) -> Any:
    return unit[0] if isinstance(unit, tuple) else unit


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
