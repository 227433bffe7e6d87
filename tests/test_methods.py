"""The two methods on a toy policy whose every number can be worked out by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch

from genalign.method import FAMILIES, PRESETS, MethodSettings, build_method
from genalign.method.common import packed, rollout_seed
from genalign.method.gradient import GradientSettings
from genalign.method.losses import advantages, dpo_loss
from genalign.method.preference import PreferenceSettings
from genalign.run.recipe import Recipe
from genalign.types import GenalignError, Method, Policy, Prompt, Reward, UsageError
from tests.toy_policy import DIMS, ToyPolicy, ToyReward, make_scores

PROMPTS = [Prompt(f"scene {i}", uid=i) for i in range(4)]
LOG2 = math.log(2)


def method(name: str, **keys) -> Method:
    return build_method(MethodSettings(name=name, **keys))


def experience_of(learner: Method, policy: Policy, reward: Reward | None = None, step: int = 0):
    return learner.collect(policy, PROMPTS, reward or ToyReward(), 11, step)


def backward(learner: Method, policy: ToyPolicy, experience) -> tuple[torch.Tensor, list]:
    """Sum of the micro-batches' gradients, and the losses."""
    policy.delta.grad = None
    losses = list(learner.losses(policy, experience))
    for loss in losses:
        loss.total.backward()
    return policy.delta.grad, losses


def mean(losses: list, name: str) -> float:
    total, count = (sum(loss.log[name][i] for loss in losses if loss.log) for i in (0, 1))
    return total / count


def train(learner: Method, policy: ToyPolicy, steps: int, lr: float = 0.05) -> list[float]:
    optimizer = torch.optim.Adam(policy.parameter_groups(), lr=lr)
    rewards = []
    for step in range(steps):
        experience = experience_of(learner, policy, step=step)
        rewards.append(float(ToyReward()(experience.trajectory.prompts, experience.trajectory.media).total.mean()))
        for loss in learner.losses(policy, experience):
            loss.total.backward()
            if loss.step:
                optimizer.step()
                optimizer.zero_grad()
                policy.step_ema(0.5)
    return rewards


@pytest.mark.parametrize("name", [*GradientSettings.presets, *PreferenceSettings.presets])
@pytest.mark.parametrize("token_like", [False, True])
def test_every_preset_of_recorded_steps_raises_the_reward(name, token_like):
    learner, policy = method(name, group=8), ToyPolicy(token_like=token_like)
    rewards = train(learner, policy, 30)
    assert isinstance(learner, Method)
    assert isinstance(policy, Policy)
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1


# ---- policy gradient ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddpo", "flow-grpo", "grpo", "rloo"])
def test_first_update_is_reinforce(name):
    """The accumulated gradient is that of -mean(A * logp), with the mean over steps (RLOO: over samples)."""
    learner, policy = method(name, group=4), ToyPolicy()
    experience = experience_of(learner, policy)
    gradient, losses = backward(learner, policy, experience)
    everything = policy.replay(experience.trajectory, range(16))
    divisor = 16 if name == "rloo" else 16 * policy.steps
    surrogate = -(everything.score * experience.advantage[:, None]).sum() / divisor
    (expected,) = torch.autograd.grad(surrogate, policy.delta)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)
    assert gradient.abs().max() > 1e-3
    assert mean(losses, "ratio/mean") == 1.0
    assert mean(losses, "clip_ratio/region_mean") == 0.0
    assert [loss.step for loss in losses] == [False] * (len(losses) - 1) + [True]


def test_clip_counts_and_stops_the_gradient():
    learner, policy = method("grpo", group=4, clip_nats=(1e-6, 1e-6)), ToyPolicy()
    experience = experience_of(learner, policy)
    with torch.no_grad():
        policy.delta += 0.3 * torch.randn(3, DIMS, generator=torch.Generator().manual_seed(0))
    gradient, losses = backward(learner, policy, experience)
    replayed = policy.replay(experience.trajectory, range(16))
    moved = replayed.score - experience.trajectory.logp
    outside = (moved * experience.advantage[:, None]) > 0
    surrogate = -(moved.exp() * experience.advantage[:, None] * ~outside).sum() / 48
    (expected,) = torch.autograd.grad(surrogate, policy.delta)
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)
    assert mean(losses, "clip_ratio/region_mean") == pytest.approx(float(outside.float().mean()))
    assert mean(losses, "ratio/mean") == pytest.approx(float(moved.detach().exp().mean()), rel=1e-5)


def test_kl_is_zero_at_first_and_pulls_back_later():
    learner, policy = method("flow-grpo", group=4, kl_beta=0.5), ToyPolicy()
    assert "reference" in learner.needs
    _, losses = backward(learner, policy, experience_of(learner, policy))
    assert mean(losses, "kl") == 0.0
    with torch.no_grad():
        policy.delta += 0.2
    experience = experience_of(learner, policy)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(policy.drift(experience.trajectory.prompts), policy.sigma),
        torch.distributions.Normal(0.0, policy.sigma),
    ).sum(-1)
    with_kl, losses = backward(learner, policy, experience)
    assert mean(losses, "kl") == pytest.approx(float(expected.detach().mean()), rel=1e-5)
    without, _ = backward(method("flow-grpo", group=4), policy, experience)
    (pull,) = torch.autograd.grad(0.5 * expected.mean(), policy.delta)
    torch.testing.assert_close(with_kl - without, pull, atol=1e-5, rtol=1e-4)


def test_k3_stands_in_where_there_is_no_closed_form():
    class NoClosedForm(ToyPolicy):
        def replay(self, *args, **kwargs):
            steps = super().replay(*args, **kwargs)
            return type(steps)(steps.score, steps.count, steps.mask, steps.versus_score)

    learner, policy = method("grpo", group=16, kl_beta=0.1), NoClosedForm(rows_together=64)
    with torch.no_grad():
        policy.delta += 0.05
    _, losses = backward(learner, policy, experience_of(learner, policy))
    exact = policy.drift(PROMPTS).square().sum(-1).mean() / (2 * policy.sigma**2)
    assert mean(losses, "kl") == pytest.approx(float(exact.detach()), rel=0.25)


def test_rows_that_do_not_count_weigh_nothing_and_cost_nothing():
    learner, policy = method("grpo", group=2), ToyPolicy()  # a micro-batch is a group
    experience = experience_of(learner, policy, ToyReward(dark=[1], broken=[3]))
    assert experience.counted.tolist() == [True] * 2 + [False] * 2 + [True] * 2 + [False] * 2
    assert experience.global_rows == 4
    assert experience.log["frac_reward_zero_std"] == 0.5
    gradient, _ = backward(learner, policy, experience)
    assert {row for rows, _ in policy.replays for row in rows} == {0, 1, 4, 5}
    clean = learner.collect(policy, [PROMPTS[0], PROMPTS[2]], ToyReward(), 11, 0)
    expected, _ = backward(learner, policy, clean)
    torch.testing.assert_close(gradient, expected)


def test_nothing_moves_without_spread():
    learner, policy = method("grpo", group=4), ToyPolicy()
    experience = experience_of(learner, policy, ToyReward(dark=range(4)))
    assert list(learner.losses(policy, experience)) == []
    assert experience.global_rows == 0


@pytest.mark.parametrize("name", ["grpo", "d3po"])
def test_micro_batches_do_not_matter(name):
    gradients = []
    for rows_together in (2, 4, 16):
        learner, policy = method(name, group=4), ToyPolicy(rows_together=rows_together)
        with torch.no_grad():
            policy.delta += 0.1
        gradients.append(backward(learner, policy, experience_of(learner, policy))[0])
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["grpo", "d3po"])
def test_updates_split_the_samples(name):
    learner, policy = method(name, group=4, updates_per_rollout=2), ToyPolicy()
    losses = list(learner.losses(policy, experience_of(learner, policy)))
    assert sum(loss.step for loss in losses) == 2
    assert losses[-1].step
    first = {row for rows, _ in policy.replays[: len(losses) // 2] for row in rows}
    second = {row for rows, _ in policy.replays[len(losses) // 2 :] for row in rows}
    assert first
    assert second
    assert not first & second
    greedy = method(name, group=4, updates_per_rollout=9)
    experience = experience_of(greedy, policy)
    with pytest.raises(UsageError, match="updates_per_rollout is 9"):
        list(greedy.losses(policy, experience))


def test_the_advantage_and_the_log_are_those_of_the_rule():
    learner, policy = method("flow-grpo", group=4, advantage_clip=0.5), ToyPolicy()
    experience = experience_of(learner, policy)
    expected, _, spread = advantages(experience.scores, experience.trajectory.group, std="batch")
    torch.testing.assert_close(experience.advantage, expected.clamp(-0.5, 0.5))
    assert experience.log["reward"] == pytest.approx(float(experience.scores.total.mean()))
    assert experience.log["rewards/a/mean"] == pytest.approx(float(experience.scores.values.mean()))
    assert experience.log["reward_std"] == spread["reward_std"]


def test_a_prompt_gets_new_samples_each_step_and_the_same_ones_in_a_rerun():
    learner, policy = method("grpo", group=2), ToyPolicy()
    first, again, later = (experience_of(learner, policy, step=step).trajectory.seeds for step in (0, 0, 1))
    assert first == again
    assert not set(first) & set(later)
    assert rollout_seed(11, 0) != rollout_seed(12, 0)


# ---- preferences ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token_like", [False, True])
def test_first_preference_loss_is_log_2(token_like):
    learner, policy = method("d3po", group=4), ToyPolicy(token_like=token_like)
    experience = experience_of(learner, policy)
    assert experience.global_rows == 4
    _, losses = backward(learner, policy, experience)
    assert sum(float(loss.total) for loss in losses) == pytest.approx(LOG2, rel=1e-6)
    assert mean(losses, "loss") == pytest.approx(LOG2, rel=1e-7)
    assert mean(losses, "rewards/chosen") == mean(losses, "rewards/rejected") == 0.0
    assert len(losses) == 4 * (1 if token_like else policy.steps)


@pytest.mark.parametrize("token_like", [False, True])
@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge", "simpo"])
def test_one_example_is_one_replay(token_like, loss):
    """A float64 loop over pairs and steps (or pairs, where one replay yields a whole sequence)."""
    learner = method("dpo", group=4, loss=loss, beta=0.3, gamma=0.2 if loss == "simpo" else 0.0)
    policy = ToyPolicy(token_like=token_like)
    with torch.no_grad():
        policy.delta += 0.1 * torch.randn(3, DIMS, generator=torch.Generator().manual_seed(1))
    experience = experience_of(learner, policy)
    gradient, losses = backward(learner, policy, experience)
    replayed = policy.replay(experience.trajectory, range(16), versus="reference")
    score = (replayed.score if loss == "simpo" else replayed.score - replayed.versus_score).double()
    score = score.sum(1, keepdim=True) if token_like else score
    if loss in ("ipo", "simpo"):
        score = score / (DIMS * (policy.steps if token_like else 1))
    values = []
    for win, lose in experience.pairs.tolist():
        for s in range(score.shape[1]):
            gap = score[win, s] - score[lose, s]
            values.append(
                {
                    "sigmoid": -torch.log(torch.sigmoid(0.3 * gap)),
                    "hinge": (1 - 0.3 * gap).clamp(min=0),
                    "ipo": (gap - 1 / 0.6) ** 2,
                    "simpo": -torch.log(torch.sigmoid(0.3 * gap - 0.2)),
                }[loss]
            )
    expected = torch.stack(values).mean()
    assert sum(float(x.total) for x in losses) == pytest.approx(float(expected), rel=1e-4)
    (reference,) = torch.autograd.grad(expected, policy.delta)
    torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-3)
    margins = [
        0.3 * float(score[win, s] - score[lose, s])
        for win, lose in experience.pairs.tolist()
        for s in range(score.shape[1])
    ]
    assert mean(losses, "rewards/margins") == pytest.approx(sum(margins) / len(margins), rel=1e-3, abs=1e-5)
    assert mean(losses, "rewards/accuracies") == pytest.approx(sum(m > 0 for m in margins) / len(margins))
    assert ("reference" in learner.needs) == (loss != "simpo")


def test_pairs_join_siblings_and_ties_are_dropped():
    learner, policy = method("d3po", group=4), ToyPolicy()
    experience = experience_of(learner, policy, ToyReward(dark=[2]))
    total, group = experience.scores.total, experience.trajectory.group
    assert {int(group[w]) for w, _ in experience.pairs.tolist()} == {0, 1, 3}
    for win, lose in experience.pairs.tolist():
        assert group[win] == group[lose]
        assert total[win] == total[group == group[win]].max()
        assert total[lose] == total[group == group[win]].min()
    every = experience_of(method("d3po", group=4, pair_rule="all"), policy)
    assert len(every.pairs) == 4 * 6


@pytest.mark.parametrize(("rows", "many"), [(4, 3), (8, 2), (9, 2), (12, 1), (1, 18), (2, 18), (3, 9)])
def test_a_micro_batch_of_pairs_has_as_many_samples_as_one_of_rows(rows, many):
    """Three groups of four, every two of each: 6 pairs of 4 samples a group."""
    pairs = torch.tensor([[4 * g + a, 4 * g + b] for g in range(3) for a in range(4) for b in range(a)])
    packs = packed(pairs, rows)
    assert torch.cat(packs).tolist() == list(range(len(pairs)))
    assert len(packs) == many
    assert max(len(torch.unique(pairs[pack])) for pack in packs) <= max(rows, 2)
    assert packed(pairs[:0], rows) == []


class Weighed(ToyReward):
    """How bright the image is, and how bright its first half: two objectives with weights."""

    aspects = ("a", "b")

    def __init__(self, *weights: float, shift: float = 0.0) -> None:
        super().__init__()
        self.own_weights, self.shift = weights, shift

    def __call__(self, prompts, media, group=None):
        bright = super().__call__(prompts, media).values
        half = media["image"].data.flatten(1)[:, :3].mean(1, keepdim=True)
        return make_scores(torch.cat([bright, half + self.shift], 1), weights=self.own_weights)


@pytest.mark.parametrize("token_like", [False, True])
def test_other_objectives_are_the_margin_of_modpo(token_like):
    """-log s((beta D log-ratio - w_b (b_w - b_l)) / w_a) in a float64 loop, for weights that add up to 1."""
    policy = ToyPolicy(token_like=token_like)
    with torch.no_grad():
        policy.delta += 0.1 * torch.randn(3, DIMS, generator=torch.Generator().manual_seed(1))
    learner = method("dpo", group=4, beta=0.3, objective="a")
    experience = experience_of(learner, policy, Weighed(3.0, 1.0))
    gradient, losses = backward(learner, policy, experience)
    replayed = policy.replay(experience.trajectory, range(16), versus="reference")
    score = (replayed.score - replayed.versus_score).double()
    score = score.sum(1, keepdim=True) if token_like else score
    a, b = experience.scores.values.double().T
    values = []
    for win, lose in experience.pairs.tolist():
        assert a[win] == a[experience.trajectory.group == experience.trajectory.group[win]].max()
        for s in range(score.shape[1]):
            z = 0.3 * (score[win, s] - score[lose, s]) - 0.25 * (b[win] - b[lose])
            values.append(-torch.log(torch.sigmoid(z / 0.75)))
    expected = torch.stack(values).mean()
    assert sum(float(x.total) for x in losses) == pytest.approx(float(expected), rel=1e-5)
    (reference,) = torch.autograd.grad(expected, policy.delta)
    torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-3)
    moved, _ = backward(learner, policy, experience_of(learner, policy, Weighed(3.0, 1.0, shift=5.0)))
    torch.testing.assert_close(moved, gradient, atol=1e-5, rtol=1e-4)  # what both members of a pair have is nothing


def test_one_objective_of_all_weight_is_dpo():
    policy = ToyPolicy()
    with torch.no_grad():
        policy.delta += 0.1
    alone, plain = method("dpo", group=4, objective="a"), method("dpo", group=4)
    one, _ = backward(alone, policy, experience_of(alone, policy, Weighed(2.0, 0.0)))
    other, _ = backward(plain, policy, experience_of(plain, policy))
    assert torch.equal(one, other)
    for weights, name in (((1.0, 1.0), "c"), ((1.0, 0.0), "b"), ((1.0, -1.0), "b")):
        with pytest.raises(UsageError, match=f"objective is '{name}', but the reward's weighted aspects are a"):
            experience_of(method("dpo", group=4, objective=name), policy, Weighed(*weights))


def test_a_tilt_is_learnt_that_suits_both_objectives():
    """MODPO's optimum for labels drawn by Bradley and Terry is exp((w_a a + w_b b) / beta): gradient 0 there."""
    a, b, w, beta = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.5, 0.0, 0.5]), (0.7, 0.3), 0.5
    tilt = (w[0] * a + w[1] * b) / beta
    logits = tilt.double().requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            win = torch.sigmoid(a[i] - a[j])
            shifted = logits - w[1] * b / beta
            loss = loss + win * dpo_loss("sigmoid", shifted[i], shifted[j], beta / w[0])
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.abs().max() < 1e-6


def write_pairs(path, policy: ToyPolicy, **change) -> None:
    rows = []
    for prompt in PROMPTS:
        seeds = list(range(100 + 10 * prompt.uid, 104 + 10 * prompt.uid))
        made = policy.rollout([prompt], 4, seeds)
        total = ToyReward()(made.prompts, made.media).total
        best, worst = seeds[int(total.argmax())], seeds[int(total.argmin())]
        row = {"prompt": prompt.text, "chosen_seed": best, "rejected_seed": worst, **policy.digest(), **change}
        rows.append(json.dumps(row))
    path.write_text("\n".join(rows) + "\n")


def test_labelled_pairs_are_drawn_again_and_teach(tmp_path):
    policy, file = ToyPolicy(), tmp_path / "pairs.jsonl"
    write_pairs(file, policy)
    learner = build_method(MethodSettings(name="d3po", pairs="pairs.jsonl"), tmp_path)
    assert learner.needs == {"rollout", "pairs", "reference"}
    original = learner.collect(policy, PROMPTS, None, 0, 0).trajectory
    optimizer = torch.optim.Adam(policy.parameter_groups(), lr=0.05)
    for step in range(20):
        experience = learner.collect(policy, PROMPTS, None, 0, step)
        for loss in learner.losses(policy, experience):
            loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(experience.trajectory.tape, original.tape)  # the tuned policy does not change what was labelled
    assert policy.adapters_on
    before, after = (
        ToyReward()(PROMPTS * 16, policy.generate(PROMPTS * 16, range(64))).total.mean()
        for policy in (ToyPolicy(), policy)
    )
    assert after > before + 0.05


@pytest.mark.parametrize("key", ["model", "sampler"])
def test_pairs_of_another_model_or_sampler_are_refused(tmp_path, key):
    write_pairs(tmp_path / "pairs.jsonl", ToyPolicy(), **{key: "something else"})
    learner = build_method(MethodSettings(name="d3po", pairs="pairs.jsonl"), tmp_path)
    with pytest.raises(UsageError, match=rf"drawn with {key} something el.* set policy\.{key}"):
        learner.collect(ToyPolicy(), PROMPTS, None, 0, 0)


def test_pairs_of_other_prompts_are_refused(tmp_path):
    write_pairs(tmp_path / "pairs.jsonl", ToyPolicy())
    learner = build_method(MethodSettings(name="d3po", pairs="pairs.jsonl"), tmp_path)
    with pytest.raises(UsageError, match=r"no prompt of step 0 has a labelled pair .* data\.prompts"):
        learner.collect(ToyPolicy(), [Prompt("nobody labelled this")], None, 0, 0)


GOOD = '{"prompt": "a", "chosen_seed": 1, "rejected_seed": 2, "model": "m", "sampler": "s"}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the labelled pairs"),
        ("\n", "holds no labelled pairs"),
        (GOOD + "\n{not json", "line 2 of .* is not JSON"),
        ("[1]", "line 1 of .* has no str under 'prompt'"),
        (GOOD.replace("1", '"1"'), "line 1 of .* has no int under 'chosen_seed'"),
        (GOOD.replace("1", "true"), "line 1 of .* has no int under 'chosen_seed'"),
        (GOOD.replace("2", "1"), "prefers seed 1 to itself"),
    ],
)
def test_a_bad_pairs_file_is_one_sentence(tmp_path, content, message):
    if content is not None:
        (tmp_path / "pairs.jsonl").write_text(content)
    with pytest.raises(UsageError, match=message):
        build_method(MethodSettings(name="dpo", pairs="pairs.jsonl"), tmp_path)


# ---- settings -------------------------------------------------------------------------------------------------------


def test_a_preset_fills_in_and_a_recipe_overrides():
    plain, own = MethodSettings(name="flow-grpo"), MethodSettings(name="flow-grpo", group=24, std="group")
    assert (plain.group, plain.std, plain.clip_nats) == (16, "batch", (1.0, 1.0))
    assert (own.group, own.std, own.clip_nats) == (24, "group", (1.0, 1.0))
    assert MethodSettings.model_validate(own.model_dump(mode="json")) == own


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "grop"}, "did you mean 'grpo'"),
        ({"name": "sac"}, "known are ddpo"),
        (
            {"name": "d3po", "kl_beta": 0.1},
            r"method d3po does not read method\.kl_beta; .* ddpo, flow-grpo, grpo, rloo",
        ),
        ({"name": "grpo", "beta": 0.2}, r"does not read method\.beta; .* d3po, dpo"),
        ({"name": "grpo", "group": 1}, "compares siblings"),
        ({"name": "d3po", "group": 1}, "compares siblings"),
        ({"name": "dpo", "objective": "a", "loss": "ipo"}, r"method\.objective is a margin of loss sigmoid"),
        ({"name": "dpo", "objective": "a", "pairs": "p.jsonl"}, r"method\.objective is a margin of loss sigmoid"),
        ({"name": "d3po", "beeta": 1.0}, r"there is no key 'method\.beeta'; did you mean 'beta'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(keys, message):
    with pytest.raises(UsageError, match=message):
        MethodSettings(**keys)


@pytest.mark.parametrize("name", PRESETS)
def test_a_family_reads_all_its_keys_and_a_recipe_writes_them_out(name):
    """Whatever validates: by name, from plain data, or inside a recipe, whose resolved form repeats it."""
    settings = MethodSettings(name=name)
    (kind,) = (family for family in FAMILIES if name in family.presets)
    assert type(settings) is kind is type(MethodSettings.model_validate({"name": name}))
    assert set(kind.presets[name]) <= set(kind.model_fields)
    recipe = Recipe(policy={"model": "x"}, data={"prompts": "x.txt"}, method={"name": name})
    plain = recipe.resolved()["method"]
    assert set(plain) == set(kind.model_fields)
    assert MethodSettings(**plain) == settings == recipe.method


def test_names_are_given_once():
    assert len(PRESETS) == sum(len(family.presets) for family in FAMILIES)


def test_settings_of_another_family_are_refused():
    with pytest.raises(UsageError, match="method d3po is one of PreferenceSettings, not of GradientSettings"):
        GradientSettings(name="d3po")


def test_a_reward_is_asked_for():
    with pytest.raises(GenalignError, match="grpo needs a reward"):
        method("grpo").collect(ToyPolicy(), PROMPTS, None, 0, 0)
