"""Scoring beside sampling: in however many parts a rollout comes, its scores are those of one call, bit for bit."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genalign.reward import FunctionReward, Runner, build_reward
from genalign.types import GenalignError, Media, Prompt, Scores, Track, UsageError
from tests.helpers.feature_sets import exemplar_room, on_two_ranks
from tests.helpers.scoring import same, sampled_and_scored
from tests.helpers.toy_policy import ToyPolicy
from tests.helpers.toy_rewards import images, prompts

ROWS, GROUP = 20, 4
RULES = """
def bright(image):
    return [float(x) for x in image.mean((1, 2, 3))]

def wary(image, row):
    spread = [(float(x), 0.25) for x in image.std((1, 2, 3))]
    return [None if r % 5 == 1 else float("nan") if r % 7 == 3 else x for r, x in zip(row, spread)]

def raises(image, row):
    if 9 in row:
        raise ValueError("nine is too many")
    return [float(r) for r in row]

def rank(image, group):
    own = image.mean((1, 2, 3))
    return [float((own[[h == g for h in group]] < x).sum()) for g, x in zip(group, own)]
"""
CLIP = {"use": "clip", "model": "clip", "batch_size": 8}
SET = {"use": "set", "model": "clip", "batch_size": 8}
REWARDS: dict[str, Any] = {
    "a head": CLIP,
    "a rule in a process": {"use": "rules.py:wary"},
    "rule and head": {"hybrid": {"rule": {"use": "rules.py:wary"}, "model": CLIP}},
    "ranked within the group": {"hybrid": {"rule": {"use": "rules.py:bright"}, "model": CLIP, "mode": "stratified"}},
    "a group in a process": {"sum": [{"use": "rules.py:rank"}, CLIP]},
    "the mean of siblings in the place of who abstains": {"sum": [{"use": "rules.py:wary"}, {"use": "sharpness"}]},
    "one after the other": {"gate": {"high": {"use": "rules.py:bright"}, "low": CLIP, "at": 0.5}},
    "a front of the batch": {"pareto": [CLIP, {"use": "rules.py:bright"}], "within": "batch"},
    "a win rate": {"winrate": CLIP},
    "a set, by leaving out": {**SET, "measure": "frechet", "exemplars": "shown", "components": 2},
    "a set, by exchange": {**SET, "measure": "kernel", "exemplars": "shown", "credit": "swap"},
    "diversity beside a rule": {"sum": [{**SET, "measure": "vendi"}, {"use": "rules.py:wary"}]},
    "a running mean and std": {"shape": {"sum": [CLIP, {"use": "rules.py:wary"}]}, "against": "running"},
    "a multiplier": {"constraint": {"use": "rules.py:bright"}, "at_least": 0.4, "rate": 0.5},
    "two who fail": {"sum": [{"use": "rules.py:raises"}, {"use": "rules.py:wary"}, CLIP], "missing": "renormalise"},
    "a judge in this process": {
        "use": "judge-yes-no",
        "model": "tiny-vlm-judge",
        "question": "Does this picture show {prompt}?",
        "batch_size": 8,
    },
    "in a thread": {**CLIP, "run": {"on": "thread", "batch_size": 8}},
    "in batches": {"use": "rules.py:rank", "run": {"batch_size": 8}},
    "remembered": {"use": "rules.py:bright", "run": {"cache": True}},
}


@pytest.fixture(scope="module")
def room(tmp_path_factory: Any) -> Path:
    folder = exemplar_room(tmp_path_factory.mktemp("room"))
    (folder / "rules.py").write_text(RULES)
    return folder


def runner(room: Path, spec: Any) -> Runner:
    built = build_reward(spec, room)
    reward = built if isinstance(built, Runner) else Runner(built)
    reward.max_failure = 1.0
    return reward


def rollout(seed: int = 0) -> tuple[list[Prompt], Media, Tensor]:
    """Five prompts of four siblings each, adjacent; a row's number is a fact."""
    asked = [prompt for prompt in prompts(ROWS // GROUP) for _ in range(GROUP)]
    rows = [Prompt(prompt.text, facts={"row": row}, uid=prompt.uid) for row, prompt in enumerate(asked)]
    return rows, images(ROWS, seed=seed), torch.tensor([prompt.uid for prompt in rows])


def in_parts(reward: Runner, size: int, asked: Sequence[Prompt], media: Media, group: Tensor) -> Scores:
    with reward.begin(Counter(group.tolist())) as scoring:
        for at in range(0, len(asked), size):
            rows = range(at, min(at + size, len(asked)))
            scoring.give(asked[at : at + size], media.select(rows), group[rows.start : rows.stop])
        return scoring.result(asked, media, group)


def untimed(log: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in log.items() if not name.startswith("time/")}


@pytest.mark.parametrize("size", [3, 8, ROWS])
@pytest.mark.parametrize("kind", REWARDS)
def test_scores_are_those_of_one_call(room: Path, kind: str, size: int) -> None:
    """Twice, with what the first rollout taught the reward between them."""
    parts, whole = runner(room, REWARDS[kind]), runner(room, REWARDS[kind])
    for step in range(2):
        rows = rollout(seed=step)
        mine, theirs = in_parts(parts, size, *rows), whole(*rows)
        same(mine, theirs)
        assert (mine.info.get("error"), set(mine.info)) == (theirs.info.get("error"), set(theirs.info))
        assert untimed(parts.log()) == untimed(whole.log())
        parts.update(mine, step)
        whole.update(theirs, step)
    assert mine.valid.any()


@pytest.mark.parametrize("kind", ["a head", "a set, by exchange", "rule and head"])
def test_a_head_computes_the_batches_of_one_call_before_all_is_sampled(room: Path, kind: str, monkeypatch: Any) -> None:
    reward, sizes = runner(room, REWARDS[kind]), list[int]()
    clip = getattr(reward.reward, "encoder", reward.reward.parts[-1] if reward.reward.parts else reward.reward)
    net = clip._loaded[0]
    plain, eight = net.encode_image, threading.Event()

    def encode(pixels: Tensor) -> Tensor:
        sizes.append(len(pixels))
        eight.set()
        return plain(pixels)

    asked, media, group = rollout()
    reward(asked, media, group)  # which sees the exemplars, once
    monkeypatch.setattr(net, "encode_image", encode)
    with reward.begin(Counter(group.tolist())) as scoring:
        for at in range(0, ROWS, 5):
            assert at < 10 or eight.wait(60)  # of the first ten rows eight are a batch
            scoring.give(asked[at : at + 5], media.select(range(at, at + 5)), group[at : at + 5])
        scoring.result(asked, media, group)
    assert sizes == [8, 8, 4]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_picture_that_is_not_finite_fails_alone_as_ever(room: Path, broken: float) -> None:
    asked, media, group = rollout()
    pixels = media["image"].data.clone()  # type: ignore[union-attr]
    pixels[6, 0, 0, 0] = broken
    spoilt = Media(image=Track(pixels))
    for kind in ("a head", "a rule in a process", "rule and head", "diversity beside a rule", "a running mean and std"):
        scores = in_parts(runner(room, REWARDS[kind]), 3, asked, spoilt, group)
        same(scores, runner(room, REWARDS[kind])(asked, spoilt, group))
        assert scores.failed[6].any()


def test_pictures_of_several_sizes_are_computed_as_in_one_call(room: Path) -> None:
    """One by one, since not all of them stack; whatever those of one part would do."""
    asked, media, group = rollout()
    rows: list[Tensor] = [*media["image"].data[:16], *images(4, size=30)["image"].data]  # type: ignore[index, list-item]
    several = Media(image=Track(rows))
    reward = runner(room, CLIP)
    with reward.begin(Counter(group.tolist())) as scoring:
        scoring.give(asked[:16], Media(image=Track(torch.stack(rows[:16]))), group[:16])
        scoring.give(asked[16:], Media(image=Track(torch.stack(rows[16:]))), group[16:])
        scores = scoring.result(asked, several, group)
    same(scores, runner(room, CLIP)(asked, several, group))


@pytest.mark.parametrize("credit", ["leave_one_out", "swap"])
def test_two_ranks_measure_one_set(room: Path, monkeypatch: Any, credit: str) -> None:
    """Each rank's rows come in parts; the set is that of both, and is gathered once all are sampled."""
    spec = {**SET, "measure": "kernel", "exemplars": "shown", "credit": credit}
    asked, media, group = rollout()
    split = [list(range(12)), list(range(12, ROWS))]
    rewards = [runner(room, spec) for _ in split]

    def score(rank: int, size: int) -> Scores:
        mine = split[rank]
        return in_parts(rewards[rank], size, [asked[i] for i in mine], media.select(mine), group[mine])

    parts = on_two_ranks(monkeypatch, "genalign.reward.sets.reward", lambda rank: score(rank, 3))
    whole = on_two_ranks(monkeypatch, "genalign.reward.sets.reward", lambda rank: score(rank, ROWS))
    for mine, theirs in zip(parts, whole, strict=True):
        same(mine, theirs)
    monkeypatch.undo()
    together = torch.cat([part.total for part in parts])
    torch.testing.assert_close(together, runner(room, spec)(asked, media, group).total)


def test_a_reward_in_this_process_that_names_no_parts_is_called_once_after_all(room: Path) -> None:
    calls = list[int]()

    def count(image: Any) -> Any:
        calls.append(len(image))
        return torch.rand(len(image))  # from torch's own generator: it must not run while a policy samples

    in_parts(Runner(FunctionReward(count)), 3, *rollout())
    in_parts(runner(room, {**CLIP, "run": {"on": "inline"}}), 3, *rollout())
    assert calls == [ROWS]


def test_an_error_beside_sampling_is_the_one_of_a_call(room: Path, monkeypatch: Any) -> None:
    rows = rollout()
    gone = runner(room, CLIP)

    def see(media: Media) -> Tensor:
        raise UsageError("the model is gone; fetch it again")

    monkeypatch.setattr(gone.reward, "see", see)
    with pytest.raises(UsageError, match="the model is gone; fetch it again"):
        in_parts(gone, 3, *rows)
    absent = runner(room, {"use": "rules.py:no_such"})
    absent.reward._about = {**runner(room, {"use": "rules.py:bright"}).reward._about, "name": "no_such"}  # type: ignore[attr-defined]
    with pytest.raises(UsageError) as told:
        absent(*rows)
    with pytest.raises(UsageError) as beside:
        in_parts(absent, 3, *rows)
    assert str(told.value) == str(beside.value)
    strict = runner(room, REWARDS["two who fail"])
    strict.max_failure = 0.05
    with pytest.raises(GenalignError, match=r"failed on \d+ of the last 20 samples"):
        in_parts(strict, 3, *rows)


def test_an_interrupted_rollout_drops_what_is_not_begun() -> None:
    calls, go_on = list[int](), threading.Event()

    def slow(image: Any) -> Any:
        calls.append(len(image))
        go_on.wait(60)
        return image.mean((1, 2, 3))

    class Interrupted(ToyPolicy):
        def rolling(self, asked: Any, per_prompt: int, seed: int) -> Iterator[Any]:
            whole = self.rollout(asked, per_prompt, seed)
            for at in range(0, 6, 2):
                rows = [at, at + 1]
                yield [whole.prompts[row] for row in rows], whole.media.select(rows), whole.group[rows]
            raise KeyboardInterrupt

    reward = Runner(FunctionReward(slow), overlaps=True)
    with pytest.raises(KeyboardInterrupt):
        sampled_and_scored(Interrupted(), [Prompt(str(uid), uid=uid) for uid in range(5)], reward, 2, 0, "test")
    go_on.set()
    for thread in threading.enumerate():
        if thread.name.startswith("genalign-reward"):
            thread.join(60)
    assert calls in ([2], [])  # the call under way, if there was one by then
