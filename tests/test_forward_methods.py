"""Methods on the forward process, and DPOK, on a toy policy whose every number can be worked out by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from genalign.method import MethodSettings, build_method
from genalign.method.forward import noise_seeds, stratified_times
from genalign.method.losses import advantages, regression_weights
from genalign.method.value import Value
from genalign.training.checkpoint import load_checkpoint
from genalign.training.loop import TrainSettings, restore, start
from genalign.training.loop import train as run_loop
from genalign.types import ForwardProcess, GenalignError, Media, Method, Prompt, Track, UsageError
from tests.test_methods import LOG2, PROMPTS, backward, experience_of, mean, method, train
from tests.toy_policy import DIMS, ToyPolicy, ToyReward

PAIRED = ["diffusion-dpo", "flow-dpo"]
ROWS = ["flow-rwr", "sft", "nft", "awm"]


def disturbed(**keys) -> ToyPolicy:
    policy, generator = ToyPolicy(**keys), torch.Generator().manual_seed(3)
    with torch.no_grad():
        policy.delta += 0.2 * torch.randn(3, DIMS, generator=generator)
        policy.average += 0.2 * torch.randn(3, DIMS, generator=generator)
    return policy


def errors(policy: ToyPolicy, row: int, at: float, seed: int, experience, weights="policy") -> torch.Tensor:
    """target - out (D,) in float64 of one sample, with grad where the policy has it."""
    prompt, clean = experience.trajectory.prompts[row], experience.clean[row].double()
    noise = torch.randn(DIMS, generator=torch.Generator().manual_seed(seed)).double()
    x = at * clean + (1 - at) * noise
    with policy.weights(weights):
        return noise - clean - x / 2 + policy.drift([prompt])[0].double()


def asked(policy: ToyPolicy, count: int) -> list[tuple[float, list[int]]]:
    """(at, noise seeds) of the last `count` calls of fit."""
    return [(at, seeds) for _, at, seeds, *_ in policy.fits[-count:]]


@pytest.mark.parametrize("name", [*PAIRED, *ROWS, "dpok"])
def test_every_preset_raises_the_reward(name):
    learner, policy = method(name, group=8), ToyPolicy()
    rewards = train(learner, policy, 30)
    assert isinstance(learner, Method)
    assert isinstance(policy, ForwardProcess)
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1
    assert ("forward" in learner.needs) == (name != "dpok")


def test_dpok_learns_on_tokens_as_well():
    rewards = train(method("dpok", group=8), ToyPolicy(token_like=True), 30)
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1


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


def test_a_time_dependent_beta_is_refused_where_its_weight_is_nothing():
    assert method("flow-dpo", beta_schedule="time", times=(0.0, 0.5)).settings.times == (0.0, 0.5)
    with pytest.raises(UsageError, match="gives pure noise no weight"):
        method("flow-dpo", beta_schedule="time", times=(0.0, 0.02))


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
        assert experience.global_rows == 0


@pytest.mark.parametrize("name", ROWS)
def test_rows_that_do_not_count_cost_nothing(name):
    alone = {"std": "group"} if name in ("nft", "awm") else {}  # else a group without spread lowers that of the batch
    learner, policy = method(name, group=4, **alone), ToyPolicy()
    experience = experience_of(learner, policy, ToyReward(dark=[1], broken=[3]))
    gradient, _ = backward(learner, policy, experience)
    assert {uid for uids, *_ in policy.fits for uid in uids} == {0, 2}
    clean = learner.collect(policy, [PROMPTS[0], PROMPTS[2]], ToyReward(), 11, 0)
    torch.testing.assert_close(gradient, backward(learner, policy, clean)[0])


# ---- pairs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRED)
def test_first_preference_loss_is_log_2(name):
    learner, policy = method(name, group=4), ToyPolicy()
    experience = experience_of(learner, policy)
    _, losses = backward(learner, policy, experience)
    assert len(losses) == 4 * 4  # pairs, each a micro-batch, at four draws
    assert mean(losses, "loss") == pytest.approx(LOG2, rel=1e-7)
    assert mean(losses, "rewards/chosen") == mean(losses, "rewards/rejected") == 0.0
    assert mean(losses, "rewards/accuracies") == 0.5
    assert sum(loss.total.item() for loss in losses) == pytest.approx(LOG2, rel=1e-6)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("schedule", ["constant", "time"])
@pytest.mark.parametrize("sft_weight", [0.0, 0.3])
def test_the_preference_loss_is_the_loop(reduction, schedule, sft_weight):
    """In float64 over pairs and draws; the time-dependent beta weighs errors as those of the noise they imply."""
    beta = 3.0 * (DIMS if reduction == "mean" else 1)
    learner = method("flow-dpo", group=4, beta=beta, reduction=reduction, beta_schedule=schedule, sft_weight=sft_weight)
    policy = disturbed()
    experience = experience_of(learner, policy)
    gradient, losses = backward(learner, policy, experience)
    values, margins = [], []
    for (at, seeds), (winner, loser) in zip(
        asked(policy, 16), [pair for pair in experience.pairs.tolist() for _ in range(4)], strict=True
    ):
        assert seeds[0] == seeds[1]
        gains = []
        for row in (winner, loser):
            ours, theirs = (errors(policy, row, at, seeds[0], experience, w) for w in ("policy", "reference"))
            if schedule == "time":
                ours, theirs = at * ours, at * theirs  # eps - eps_hat = (1 - t) (v - v_hat), with t = 1 - at here
            gain = theirs.square() - ours.square()
            gains.append(gain.mean() if reduction == "mean" else gain.sum())
        margins.append(beta / 2 * (gains[0] - gains[1]))
        own = errors(policy, winner, at, seeds[0], experience).square().mean()
        values.append(-torch.log(torch.sigmoid(margins[-1])) + sft_weight * own)
    expected = torch.stack(values).mean()
    assert sum(loss.total.item() for loss in losses) == pytest.approx(expected.item(), rel=1e-5)
    (reference,) = torch.autograd.grad(expected, policy.delta)
    torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-3)
    assert mean(losses, "rewards/margins") == pytest.approx(torch.stack(margins).mean().item(), rel=1e-3)
    assert mean(losses, "rewards/accuracies") == pytest.approx(sum(m.item() > 0 for m in margins) / len(margins))


@pytest.mark.parametrize("of_eps", [1.0, 0.04])
def test_the_time_dependent_beta_is_exact_where_the_policy_tells_what_an_error_of_its_output_is_worth(of_eps):
    """1 for a network that predicts the noise: nothing changes; a^2 for one that predicts v."""

    class Telling(ToyPolicy):
        def fit(self, prompts, clean, at, seeds, versus=None):
            return replace(super().fit(prompts, clean, at, seeds, versus), shares=(7.0, of_eps))

    told = {}
    for schedule in ("constant", "time"):
        learner, policy = method("flow-dpo", group=4, beta_schedule=schedule), Telling()
        with torch.no_grad():
            policy.delta += disturbed().delta
        told[schedule] = mean(backward(learner, policy, experience_of(learner, policy))[1], "rewards/margins")
    assert told["constant"] != 0
    assert told["time"] == pytest.approx(of_eps * told["constant"], rel=1e-5)


def test_swapping_a_pair_turns_its_margin_around():
    learner, policy = method("flow-dpo", group=4), disturbed()
    experience = experience_of(learner, policy)
    swapped = replace(experience, pairs=experience.pairs.flip(1))
    one, other = (mean(backward(learner, policy, x)[1], "rewards/margins") for x in (experience, swapped))
    assert one == pytest.approx(-other, rel=1e-5)
    assert one != 0


def test_pairs_follow_the_rule():
    policy = ToyPolicy()
    few = experience_of(method("flow-dpo", group=4), policy, ToyReward(dark=[2]))
    group, total = few.trajectory.group, few.scores.total
    assert {int(group[w]) for w, _ in few.pairs.tolist()} == {0, 1, 3}
    for winner, loser in few.pairs.tolist():
        assert total[winner] == total[group == group[winner]].max()
        assert total[loser] == total[group == group[winner]].min()
    assert len(few.noise) == few.global_rows == 3
    every = experience_of(method("flow-dpo", group=4, pair_rule="all"), policy)
    assert len(every.pairs) == len(every.noise) == 4 * 6
    assert len(set(every.noise.tolist())) == 4  # siblings share their noise, so each of them is asked about once
    asked, place = every.noised_rows(torch.arange(24))
    assert len(asked) == 16
    assert torch.equal(asked[place][..., 0], every.pairs)


class Pictures:
    """Six pairs of pictures; those of pair 4 are equal."""

    rows_together = 4

    def __init__(self) -> None:
        image = torch.rand(12, 3, 1, 2, generator=torch.Generator().manual_seed(5)).clamp(0.1, 0.9)
        image[9] = image[8]
        self.image = image.sort(0, descending=True).values.unflatten(0, (2, 6)).transpose(0, 1)  # winners are brighter
        self.image[4, 1] = self.image[4, 0]
        self.loaded: list[int] = []

    def load(self, pairs):
        self.loaded += pairs
        return Media(image=Track(self.image[list(pairs)].flatten(0, 1)))


GIVEN = [Prompt(f"scene {i}", uid=i) for i in range(6)]


def test_given_pictures_teach_without_a_reward_or_a_rollout():
    pictures, policy = Pictures(), ToyPolicy()
    learner = MethodSettings(name="flow-dpo").build_on(pictures)
    assert learner.needs == {"forward", "reference", "pairs"}
    optimizer = torch.optim.Adam(policy.parameter_groups(), lr=0.05)
    for step in range(20):
        experience = learner.collect(policy, GIVEN, None, 7, step)
        losses = list(learner.losses(policy, experience))
        if step == 0:
            assert mean(losses, "loss") == pytest.approx(LOG2, rel=1e-7)
        for loss in losses:
            loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert mean(losses, "rewards/accuracies") > 0.9
    assert mean(losses, "loss") < 0.5 * LOG2
    assert pictures.loaded == list(range(6))  # each is encoded once
    assert experience.pairs.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [10, 11]]
    assert experience.log == {"pairs/equal": 1.0}
    assert experience.global_rows == 5


def test_the_loss_of_given_pictures_is_that_of_the_same_samples():
    """A pair's noise hangs on its uid and the step, whatever it is drawn together with."""
    pictures, policy = Pictures(), disturbed()
    learner = MethodSettings(name="flow-dpo", beta=1.0).build_on(pictures)
    whole = [learner.collect(policy, GIVEN[:4], None, 7, 3)]
    parts = [learner.collect(policy, [prompt], None, 7, 3) for prompt in GIVEN[:4]]
    assert whole[0].noise.tolist() == [part.noise.item() for part in parts]
    assert len({part.times for part in parts}) == 1
    together, apart = (
        sum(backward(learner, policy, experience)[0] for experience in group) / len(group) for group in (whole, parts)
    )
    torch.testing.assert_close(together, apart, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(whole[0].clean.sigmoid(), pictures.image[:4].reshape(8, DIMS))


def test_a_cycle_repeats_its_draws_and_asks_the_reference_once():
    pictures, policy = Pictures(), disturbed()
    learner = MethodSettings(name="flow-dpo", cycle=2).build_on(pictures)
    fresh = MethodSettings(name="flow-dpo").build_on(pictures)
    seen = [learner.collect(policy, GIVEN, None, 7, step) for step in range(4)]
    assert seen[0].times == seen[2].times != seen[1].times == seen[3].times
    assert seen[0].noise.tolist() == seen[2].noise.tolist() != seen[1].noise.tolist()
    asked_reference, gradients = [], []
    for experience in seen:
        policy.fits.clear()
        gradients.append(backward(learner, policy, experience)[0].clone())
        asked_reference.append([versus for *_, versus in policy.fits])
    assert asked_reference[0] == asked_reference[1] == ["reference"] * 12
    assert asked_reference[2] == asked_reference[3] == [None] * 12
    torch.testing.assert_close(gradients[2], gradients[0])
    torch.testing.assert_close(gradients[2], backward(fresh, policy, replace(seen[2], keys=None))[0])


# ---- weighted regression --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "keys"), [("flow-rwr", {"temperature": 0.05}), ("sft", {"keep": 2, "temperature": 0.2})]
)
def test_the_weighted_loss_is_the_loop(name, keys):
    learner, policy = method(name, group=4, **keys), disturbed(rows_together=16)
    experience = experience_of(learner, policy)
    gradient, losses = backward(learner, policy, experience)
    total, group, values = experience.scores.total.double(), experience.trajectory.group, []
    rows = experience.counted.nonzero().flatten().tolist()
    for at, seeds in asked(policy, 4):
        for row, seed in zip(rows, seeds, strict=True):
            best = sorted(total[group == group[row]].tolist(), reverse=True)[: keys.get("keep")]
            share = math.exp(total[row] / keys["temperature"]) / sum(math.exp(t / keys["temperature"]) for t in best)
            values.append(share * len(best) * errors(policy, row, at, seed, experience).square().mean())
    expected = torch.stack(values).mean()
    assert len(values) == 4 * (16 if name == "flow-rwr" else 8)
    assert sum(loss.total.item() for loss in losses) == pytest.approx(expected.item(), rel=1e-5)
    (reference,) = torch.autograd.grad(expected, policy.delta)
    torch.testing.assert_close(gradient, reference, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["flow-rwr", "sft"])
def test_the_base_draws_where_it_is_asked_to(name):
    learner, policy = method(name, group=4, drawn_by="reference"), disturbed()
    experience = experience_of(learner, policy)
    with policy.weights("reference"):
        expected = policy.clean(policy.rollout(PROMPTS, 4, experience.trajectory.seeds))
    torch.testing.assert_close(experience.clean, expected)
    assert (experience_of(method(name, group=4), policy).clean - expected).abs().max() > 0.1
    assert policy.which == "policy"


def test_temperatures_lead_from_plain_fitting_to_the_best_sample():
    policy = disturbed()

    def gradient(name: str, **keys) -> torch.Tensor:
        learner = method(name, group=4, **keys)
        return backward(learner, policy, experience_of(learner, policy))[0].clone()

    hot, cold, best = gradient("flow-rwr", temperature=1e6), gradient("flow-rwr", temperature=1e-6), gradient("sft")
    torch.testing.assert_close(cold, best, atol=1e-6, rtol=1e-4)
    plain = gradient("sft", keep=4, temperature=1e9)
    torch.testing.assert_close(hot, plain, atol=1e-6, rtol=1e-4)
    assert (hot - cold).abs().max() > 1e-3


# ---- DiffusionNFT and AWM -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_the_nft_loss_is_the_loop(beta):
    """In float64, from the outputs themselves, as the paper writes it."""
    learner, policy = method("nft", group=4, beta=beta, advantage_clip=1.5), disturbed(rows_together=16)
    experience = experience_of(learner, policy)
    gradient, losses = backward(learner, policy, experience)
    advantage, counted, _ = advantages(experience.scores, experience.trajectory.group, std="batch")
    assert counted.all()
    values = []
    for at, seeds in asked(policy, 4):
        for row, seed in enumerate(seeds):
            new, old = (errors(policy, row, at, seed, experience, w) for w in ("policy", "ema"))  # target - out
            good = 0.5 + 0.5 * max(-1.0, min(1.0, advantage[row].item() / 1.5))
            for share, sign in ((good, 1), (1 - good, -1)):
                x0_error = (1 - at) * ((1 - sign * beta) * old + sign * beta * new)
                size = x0_error.detach().square().mean().sqrt()
                values.append(1.5 * share / beta * x0_error.square().mean() / size)
    expected = 2 * torch.stack(values).mean()
    assert sum(loss.total.item() for loss in losses) == pytest.approx(expected.item(), rel=1e-5)
    (reference,) = torch.autograd.grad(expected, policy.delta)
    torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-3)
    gap = (policy.delta - policy.average).detach()
    features = torch.tensor([[1.0, p.uid % 3, (p.uid * 7 % 5) / 5] for p in experience.trajectory.prompts])
    assert mean(losses, "gap") == pytest.approx((features @ gap).square().mean().item(), rel=1e-4)


def test_the_old_model_draws_for_nft():
    learner, policy = method("nft", group=4), disturbed()
    assert "ema" in learner.needs
    with policy.weights("ema"):
        expected = policy.clean(policy.rollout(PROMPTS, 4, experience_of(learner, policy).trajectory.seeds))
    torch.testing.assert_close(experience_of(learner, policy).clean, expected)
    own = experience_of(method("awm", group=4), policy).clean
    assert (own - expected).abs().max() > 0.1
    assert policy.which == "policy"


def test_at_first_nft_pulls_as_hard_to_the_good_as_away_from_the_bad():
    """Where old and new agree and the weighting is even, its gradient is that of advantage x error."""
    learner, policy = method("nft", group=4), ToyPolicy(rows_together=16)
    experience = experience_of(learner, policy)
    gradient, _ = backward(learner, policy, experience)
    values = []
    for at, seeds in asked(policy, 4):
        for row, seed in enumerate(seeds):
            error = (1 - at) * errors(policy, row, at, seed, experience)
            values.append(experience.advantage[row] * error.square().mean() / error.detach().square().mean().sqrt())
    (expected,) = torch.autograd.grad(torch.stack(values).mean(), policy.delta)
    torch.testing.assert_close(gradient, expected.float(), atol=1e-6, rtol=1e-4)


def test_first_awm_update_is_advantage_times_error():
    learner, policy = method("awm", group=4), disturbed(rows_together=16)
    experience = experience_of(learner, policy)
    gradient, losses = backward(learner, policy, experience)
    values = [
        experience.advantage[row] * errors(policy, row, at, seed, experience).square().mean()
        for at, seeds in asked(policy, 4)
        for row, seed in enumerate(seeds)
    ]
    (expected,) = torch.autograd.grad(torch.stack(values).mean(), policy.delta)
    torch.testing.assert_close(gradient, expected.float(), atol=1e-6, rtol=1e-4)
    assert mean(losses, "ratio/mean") == 1.0
    assert mean(losses, "clip_ratio/region_mean") == 0.0


def test_later_awm_updates_are_clipped_against_the_likelihood_that_drew():
    clip = 0.05
    learner, policy = method("awm", group=4, updates_per_rollout=2, clip_nats=(clip, clip)), disturbed(rows_together=8)
    experience = experience_of(learner, policy)
    before = policy.delta.detach().clone()
    logs, totals, second = [], [], []
    for loss in learner.losses(policy, experience):
        logs.append(loss.log)
        totals.append(loss.total.item())
        if loss.step and not second:
            second.append(len(totals))
            with torch.no_grad():
                policy.delta += 0.3
    old_policy = disturbed()
    assert torch.equal(old_policy.delta, before)
    values = []
    for k, (at, seeds) in enumerate(asked(policy, 4)):
        rows = range(8, 16)
        for row, seed in zip(rows, seeds, strict=True):
            new, old = (errors(p, row, at, seed, experience).square().mean().item() for p in (policy, old_policy))
            ratio, advantage = math.exp(old - new), experience.advantage[row].item()
            values.append(-min(ratio * advantage, max(math.exp(-clip), min(math.exp(clip), ratio)) * advantage))
        assert totals[second[0] + k] == pytest.approx(sum(values[-8:]) / 32, rel=1e-4)
    assert sum(log["clip_ratio/region_mean"][0] for log in logs[second[0] :]) > 0
    assert all(log["ratio/mean"][0] == log["ratio/mean"][1] for log in logs[: second[0]])


def test_awm_is_drawn_to_the_reference():
    learner, policy = method("awm", group=4, kl_beta=0.5), disturbed()
    assert "reference" in learner.needs
    experience = experience_of(learner, policy)
    with_kl, losses = backward(learner, policy, experience)
    distance = policy.drift(experience.trajectory.prompts).square().mean()
    assert mean(losses, "gap") == pytest.approx(distance.item(), rel=1e-5)
    (pull,) = torch.autograd.grad(0.5 * distance, policy.delta)
    without = backward(method("awm", group=4), policy, experience)[0]
    torch.testing.assert_close(with_kl - without, pull, atol=1e-5, rtol=1e-4)


# ---- DPOK -----------------------------------------------------------------------------------------------------------


class Seeing(ToyPolicy):
    """Its replay also tells x_t."""

    def replay(self, trajectory, rows, steps=None, versus=None):
        found = super().replay(trajectory, rows, steps, versus)
        columns = list(range(self.steps)) if steps is None else list(steps)
        return replace(found, features=trajectory.tape[list(rows)][:, columns])


def test_dpok_is_reward_above_value_and_kl():
    """Before V has learnt it is the mean of the rewards."""
    learner, policy = method("dpok", group=4, reward_weight=3.0, kl_beta=0.2), disturbed()
    experience = experience_of(learner, policy)
    gradient, losses = backward(learner, policy, experience)
    everything = policy.replay(experience.trajectory, range(16), versus="reference")
    advantage = experience.scores.total - experience.scores.total.mean()
    drift = policy.drift(experience.trajectory.prompts)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(drift, policy.sigma), torch.distributions.Normal(0.0, policy.sigma)
    ).sum(1)
    surrogate = -(3.0 * everything.score * advantage[:, None]).mean() + 0.2 * kl.mean()
    (expected,) = torch.autograd.grad(surrogate, policy.delta)
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)
    assert mean(losses, "kl") == pytest.approx(kl.mean().item(), rel=1e-5)
    assert mean(losses, "kl/path") == pytest.approx(3 * kl.mean().item(), rel=1e-5)
    assert mean(losses, "value/error") == pytest.approx(advantage.square().mean().item(), rel=1e-4)
    assert mean(losses, "ratio/mean") == 1.0


def test_the_path_of_kls_bounds_the_kl_of_what_is_drawn():
    """The random walk ends at N(x + S drift, S sigma^2 I) from each x, so the KL of its end is known."""
    policy = disturbed()
    learner = method("dpok", group=1)
    losses = backward(learner, policy, experience_of(learner, policy))[1]
    drift, steps = policy.drift(PROMPTS).detach(), policy.steps
    end = (steps * drift).square().sum(1) / (2 * steps * policy.sigma**2)
    assert mean(losses, "kl/path") >= end.mean().item() * (1 - 1e-5)
    with_start = (steps * drift).square().sum(1) / (2 * (1 + steps * policy.sigma**2))  # x itself is N(0, I)
    assert mean(losses, "kl/path") > 1.5 * with_start.mean().item()


def test_a_heavy_kl_holds_the_policy_where_it_was():
    free, held = ToyPolicy(), ToyPolicy()
    train(method("dpok", group=8, kl_beta=0.0), free, 20)
    train(method("dpok", group=8, kl_beta=1e4), held, 20)
    assert held.delta.abs().max() < 0.3 * free.delta.abs().max()
    assert "reference" not in method("dpok", kl_beta=0.0).needs


def test_the_value_learns_what_a_path_will_be_worth():
    """Given x_t it explains more of the reward than the prompt alone, which explains more than the mean."""
    left = {}
    for name, policy, steps in (("mean", ToyPolicy(), 0), ("prompt", ToyPolicy(), 40), ("state", Seeing(), 40)):
        learner = method("dpok", group=16, value_steps=steps, value_learning_rate=0.01)
        bright = [Prompt("bright one", uid=1), Prompt("dark other", uid=2)]
        for step in range(25):
            experience = learner.collect(policy, bright, ToyReward(dark=[2]), 11, step)
            losses = list(learner.losses(policy, experience))
        left[name] = mean(losses, "value/error")
    assert left["prompt"] < 0.7 * left["mean"]
    assert left["state"] < 0.8 * left["prompt"]


def test_a_learnt_baseline_leaves_the_expected_gradient_and_lowers_its_variance():
    gradients = {}
    for name, steps in (("mean", 0), ("value", 60)):
        learner, policy = method("dpok", group=32, value_steps=steps, value_learning_rate=0.01, kl_beta=0.0), Seeing()
        learnt = []
        for step in range(60):
            gradient, _ = backward(learner, policy, learner.collect(policy, PROMPTS[:1], ToyReward(), 11, step))
            learnt.append(gradient[0].clone())  # of the policy as it was: nothing is updated
        gradients[name] = torch.stack(learnt[20:])  # (40,D)
    error = (gradients["mean"] - gradients["value"]).std(0) / math.sqrt(40)
    assert ((gradients["mean"].mean(0) - gradients["value"].mean(0)).abs() < 4 * error).all()
    assert (gradients["mean"].mean(0) < -0.1).all()
    assert gradients["value"].var(0).sum() < 0.8 * gradients["mean"].var(0).sum()


def test_a_resumed_value_goes_on_as_if_it_had_never_stopped():
    torch.manual_seed(1)
    x, rewards = torch.randn(40, 7), torch.randn(40)
    one, other = Value(0.01), Value(0.01)
    for value in (one, other):
        value.count(rewards)
        value.learn(x, rewards, 5)
    resumed = Value(0.01)
    resumed.load_state_dict({name: tensor.clone() for name, tensor in other.state_dict().items()})
    for value in (one, resumed):
        value.count(rewards)
        value.learn(x, rewards, 5)
    assert torch.equal(one(x), resumed(x))
    fresh = Value(0.01)
    fresh.load_state_dict(Value(0.01).state_dict())  # before it ever learnt
    assert not fresh(x).any()


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


def test_dpok_compares_nothing_with_siblings():
    learner, policy = method("dpok", group=1), ToyPolicy()
    experience = experience_of(learner, policy, ToyReward(broken=[3]))
    assert experience.counted.tolist() == [True, True, True, False]
    backward(learner, policy, experience)
    assert regression_weights(experience.scores, experience.trajectory.group, 1.0)[1].sum() == 0


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
