"""What all methods on the forward process share, on a toy policy: times, noise, micro-batches, resuming."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from genalign.method import MethodSettings, build_method
from genalign.method.forward import noise_seeds, stratified_times
from genalign.training.checkpoint import load_checkpoint
from genalign.training.loop import train as run_loop
from genalign.training.progress import restore, start
from genalign.training.settings import TrainSettings
from genalign.types import ForwardProcess, GenalignError, Method, UsageError
from tests.helpers.learners import (
    PAIRED,
    PROMPTS,
    ROWS,
    Pictures,
    Seeing,
    asked,
    backward,
    disturbed,
    experience_of,
    method,
    train,
)
from tests.helpers.toy_policy import ToyPolicy, ToyReward


@pytest.mark.parametrize("name", [*PAIRED, *ROWS, "dpok"])
def test_every_preset_raises_the_reward(name):
    learner, policy = method(name, group=8), ToyPolicy(rows_together=32)
    rewards = train(learner, policy, 30)
    assert isinstance(learner, Method)
    assert isinstance(policy, ForwardProcess)
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1
    assert ("forward" in learner.needs) == (name != "dpok")


@pytest.mark.parametrize("name", [*PAIRED, *ROWS, "dpok"])
def test_micro_batches_do_not_matter(name):
    gradients = []
    for rows_together in (2, 4, 16):
        policy = disturbed(rows_together=rows_together)
        gradients.append(backward(method(name, group=4), policy, experience_of(method(name, group=4), policy))[0])
    assert gradients[0].abs().max() > 1e-5
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", [*PAIRED, *ROWS])
def test_updates_split_the_samples(name):
    learner, policy = method(name, group=4, updates_per_rollout=2, draws=3), disturbed()
    losses = list(learner.losses(policy, experience_of(learner, policy)))
    assert sum(loss.step for loss in losses) == 2
    assert losses[-1].step
    half = len(losses) // 2
    assert half % 3 == 0
    halves = policy.fits[-2 * half : -half], policy.fits[-half:]
    first, second = ({row for *_, clean, _ in part for row in clean} for part in halves)
    assert first
    assert second
    assert not first & second


@pytest.mark.parametrize("name", [*PAIRED, *ROWS])
def test_steps_of_the_sampler_are_not_looked_at(name):
    """An ODE records no step: nothing but the clean latents may be read."""
    learner, policy = method(name, group=4), ToyPolicy()
    experience = experience_of(learner, policy)
    assert experience.trajectory.logp.shape == (16, 0)
    assert experience.trajectory.units() == []
    assert experience.trajectory.tape is None
    backward(learner, policy, experience)
    assert policy.replays == []


@pytest.mark.parametrize("name", [*PAIRED, *ROWS])
def test_times_are_stratified_and_noise_is_shared_by_what_is_compared(name):
    learner, policy = method(name, group=4, draws=5), ToyPolicy()
    experience = experience_of(learner, policy)
    assert experience.times == stratified_times_by_hand(experience.times)
    assert experience.times != experience_of(learner, policy, step=1).times
    backward(learner, policy, experience)
    calls = asked(policy, len(policy.fits))
    assert {at for at, _ in calls} == set(experience.times)
    seeds = [seed for _, row in calls for seed in row]
    share = 2 if name in PAIRED else 4 if name in ("nft", "awm") else 1
    assert all(seeds.count(seed) == share for seed in seeds)


def stratified_times_by_hand(times: tuple[float, ...]) -> tuple[float, ...]:
    for k, at in enumerate(times):
        assert k / len(times) <= at < (k + 1) / len(times)
    return times


@pytest.mark.parametrize("name", [*PAIRED, *ROWS])
def test_times_come_from_the_part_that_was_asked_for(name):
    learner, policy = method(name, group=4, draws=2, times=(0.5, 0.6)), ToyPolicy()
    first, second = experience_of(learner, policy).times
    assert 0.5 <= first < 0.55 <= second < 0.6
    with pytest.raises(UsageError, match=r"method.times is \[0.6, 0.5\]; give a part of the path"):
        method(name, group=4, times=(0.6, 0.5))


@pytest.mark.parametrize("name", ["nft", "awm"])
def test_siblings_that_share_their_noise_give_less_noisy_gradients(name, monkeypatch):
    """The variance over draws of one rollout's gradient, against noise of each sample's own."""

    def spread() -> float:
        learner, policy = method(name, group=4, draws=1, times=(0.0, 0.1)), ToyPolicy()
        experience = experience_of(learner, policy)
        seeds = [tuple(range(k, 16 + k)) for k in range(0, 640, 16)]
        drawn = [replace(experience, trajectory=replace(experience.trajectory, seeds=row)) for row in seeds]
        return torch.stack([backward(learner, policy, each)[0] for each in drawn]).var(0).sum().item()

    shared = spread()
    monkeypatch.setattr("genalign.method.matching.sibling_seeds", noise_seeds)
    assert shared < 0.5 * spread()


def test_times_are_uniform():
    drawn = torch.tensor([stratified_times(seed, 2) for seed in range(4000)])
    assert drawn.mean(0).tolist() == pytest.approx([0.25, 0.75], abs=0.01)
    assert drawn.std(0).tolist() == pytest.approx([0.5 / math.sqrt(12)] * 2, abs=0.01)


@pytest.mark.parametrize("name", [*PAIRED, *ROWS])
def test_a_policy_without_a_forward_process_is_refused(name):
    class Words: ...

    with pytest.raises(UsageError, match=rf"{name} needs the forward process of a diffusion model, which Words lacks"):
        method(name, group=4).collect(Words(), PROMPTS, ToyReward(), 0, 0)


def test_nothing_moves_without_spread():
    for name in (*PAIRED, *ROWS):
        learner, policy = method(name, group=4), ToyPolicy()
        experience = experience_of(learner, policy, ToyReward(dark=range(4)))
        assert list(learner.losses(policy, experience)) == []


@pytest.mark.parametrize("name", ROWS)
def test_rows_that_do_not_count_cost_nothing(name):
    alone = {"std": "group"} if name in ("nft", "awm") else {}  # else a group without spread lowers that of the batch
    learner, policy = method(name, group=4, **alone), ToyPolicy()
    experience = experience_of(learner, policy, ToyReward(dark=[1], broken=[3]))
    gradient, _ = backward(learner, policy, experience)
    assert {uid for uids, *_ in policy.fits for uid in uids} == {0, 2}
    clean = learner.collect(policy, [PROMPTS[0], PROMPTS[2]], ToyReward(), 11, 0)
    torch.testing.assert_close(gradient, backward(learner, policy, clean)[0])


# ---- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "flow-rwr", "group": 1}, "compares siblings"),
        ({"name": "nft", "group": 1}, "compares siblings"),
        ({"name": "flow-dpo", "group": 1}, "compares siblings"),
        ({"name": "sft", "group": 4, "keep": 5}, "keep is 5, but a prompt has only 4"),
        ({"name": "flow-dpo", "cycle": 3}, "cycle is for given pictures"),
        ({"name": "flow-dpo", "reduction": "median"}, "reduction"),
        ({"name": "nft", "kl_beta": 0.1}, r"nft does not read method\.kl_beta; drop it or take one of ddpo"),
        ({"name": "dpok", "advantage": "normalise_then_sum"}, r"dpok does not read method\.advantage"),
        ({"name": "flow-rwr", "beta": 1.0}, r"flow-rwr does not read method\.beta"),
    ],
)
def test_settings_that_make_no_sense_are_refused(keys, message):
    with pytest.raises((UsageError, ValueError), match=message):
        build_method(MethodSettings(**keys))


@pytest.mark.parametrize("name", [*ROWS, "dpok", "grpo", "d3po"])
def test_who_needs_own_samples_refuses_pictures(name):
    with pytest.raises(UsageError, match=rf"{name} does not learn from given pictures; .*diffusion-dpo, flow-dpo"):
        MethodSettings(name=name).build_on(Pictures())


# ---- inside the training loop ---------------------------------------------------------------------------------------


def run(folder, name: str, steps: int, saved=None, policy: ToyPolicy | None = None, **keys) -> ToyPolicy:
    """`steps` steps of the real loop, from a checkpoint if one is given."""
    policy = policy or Seeing()
    settings = TrainSettings(steps=steps, learning_rate=0.05, checkpoint_every=1)
    progress = start(policy, ToyReward(), settings)
    if saved is not None:
        restore(progress, load_checkpoint(saved))
    folder.mkdir(exist_ok=True)
    for _ in run_loop(progress, method(name, group=4, **keys), lambda step: PROMPTS, folder):
        pass
    return policy


@pytest.mark.parametrize("name", ["dpok", "flow-dpo", "awm"])
def test_a_resumed_run_is_the_run_that_was_never_stopped(name, tmp_path):
    whole = run(tmp_path / "whole", name, 4)
    run(tmp_path / "parts", name, 2)
    again = run(tmp_path / "parts", name, 4, saved=tmp_path / "parts" / "checkpoint-2")
    assert torch.equal(again.delta, whole.delta)
    assert whole.delta.abs().max() > 0.05
    assert (tmp_path / "whole" / "checkpoint-4" / "method.safetensors").is_file() == (name == "dpok")
    rows = [(tmp_path / part / "metrics.jsonl").read_text().splitlines() for part in ("whole", "parts")]
    for one, other in zip(*rows, strict=True):
        assert json.loads(one)["loss"] == json.loads(other)["loss"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("reference", "the reference's error against that of adapters off is .* squared error instead of exactly 0"),
        ("start", "the distance to the reference before the first update"),
    ],
)
def test_the_self_check_looks_at_the_forward_process(fault, message, tmp_path):
    class Faulty(ToyPolicy):
        def fit(self, prompts, clean, at, seeds, versus=None):
            found = super().fit(prompts, clean, at, seeds, versus)
            if fault == "start":
                return found if versus is None else replace(found, gap=found.gap + 1e-6)
            return found if versus is None else replace(found, versus_score=found.versus_score + 1e-3)

    with pytest.raises(GenalignError, match=message):
        run(tmp_path / "run", "flow-dpo", 1, policy=Faulty())
