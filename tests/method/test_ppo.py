"""PPO and RTO: GAE against closed forms and a float64 loop, the loss against TRL's, rewards of tokens that add up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from genalign.method import MethodSettings, build_method
from genalign.method.guide import Guide
from genalign.method.ppo import at_the_end, gae
from genalign.policy.language import LanguagePolicy
from genalign.policy.settings import Lora, PolicySettings
from genalign.types import Prompt, UsageError
from tests.helpers.learners import PROMPTS, backward, experience_of, mean, method, train
from tests.helpers.tiny_language import tiny_language
from tests.helpers.toy_policy import DIMS, ToyPolicy, ToyReward
from tests.helpers.trl_trainers import grpo_loss

MASK = torch.arange(5) < torch.tensor([[5], [2], [1], [4]])
TOOL = MASK & ~(torch.tensor([[0, 1, 1, 0, 0]]).bool() & (torch.arange(4) == 0)[:, None])  # of row 0: steps 0, 3, 4


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mask", [MASK, TOOL])
@pytest.mark.parametrize(("discount", "decay"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (1.0, 1.0)])
def test_gae_is_the_double_sum(mask: Tensor, discount: float, decay: float) -> None:
    """sum_k (discount decay)^k delta_k over a row's own steps, term by term."""
    rewards, values = numbers(4, 5), numbers(4, 5, seed=1)
    found = gae(rewards, values, mask, discount, decay)
    assert not found[~mask].any()
    for row in range(4):
        steps = mask[row].nonzero()[:, 0].tolist()
        r, v = ([float(x[row, s]) for s in steps] for x in (rewards, values))
        deltas = [r[k] + discount * (v[k + 1] if k + 1 < len(v) else 0.0) - v[k] for k in range(len(v))]
        for k, step in enumerate(steps):
            wanted = sum((discount * decay) ** j * delta for j, delta in enumerate(deltas[k:]))
            assert float(found[row, step]) == pytest.approx(wanted, abs=1e-5)


def test_at_lambda_1_it_is_what_is_earned_from_here_less_the_value_and_at_0_one_error() -> None:
    rewards, values = numbers(4, 5), numbers(4, 5, seed=1)
    later = torch.where(MASK, rewards, 0.0).flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(gae(rewards, values, MASK, 1.0, 1.0), torch.where(MASK, later - values, 0.0))
    following = torch.where(MASK, values, 0.0).roll(-1, 1)
    following[:, -1] = 0
    torch.testing.assert_close(
        gae(rewards, values, MASK, 0.9, 0.0), torch.where(MASK, rewards + 0.9 * following - values, 0.0)
    )


def test_the_reward_stands_at_the_last_step_of_a_row() -> None:
    found = at_the_end(torch.tensor([1.0, 2.0, 3.0, 4.0]), TOOL & (torch.arange(5) < 4))
    assert found.nonzero().tolist() == [[0, 3], [1, 1], [2, 0], [3, 3]]
    assert found.sum(1).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("token_like", [False, True])
def test_a_collected_step_is_the_papers_formulas_in_a_loop(token_like: bool) -> None:
    """Rewards with the KL charged a step, V the mean of the rewards until it has learnt, GAE, and one normalisation."""
    learner, policy = method("ppo", group=4, kl_beta=0.3, gae_lambda=0.9), ToyPolicy(token_like=token_like)
    with torch.no_grad():
        policy.delta += 0.1 * numbers(3, DIMS)
    experience = experience_of(learner, policy)
    reference = policy.replay(experience.trajectory, range(16), versus="reference").versus_score
    drift = (experience.trajectory.logp - reference).double()
    total = experience.scores.total.double()
    rows = []
    for row in range(16):
        values, behind, own = [float(total.mean())] * 3 + [0.0], 0.0, [0.0] * 3
        for step in (2, 1, 0):
            reward = -0.3 * float(drift[row, step]) + (float(total[row]) if step == 2 else 0.0)
            behind = reward + values[step + 1] - values[step] + 0.9 * behind
            own[step] = behind
        rows.append(own)
    wanted = torch.tensor(rows, dtype=torch.float64)
    wanted = (wanted - wanted.mean()) / wanted.std()
    torch.testing.assert_close(experience.advantage.double(), wanted, atol=1e-5, rtol=1e-5)
    assert experience.log["kl"] == pytest.approx(float(drift.mean()), rel=1e-4)
    gradient, losses = backward(learner, policy, experience)
    score = policy.replay(experience.trajectory, range(16)).score
    (expected,) = torch.autograd.grad(-(wanted.float() * score).mean(), policy.delta)
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)
    assert mean(losses, "ratio/mean") == 1.0


def test_off_the_old_policy_the_loss_is_trls_with_an_advantage_a_token() -> None:
    """TRL's clipped loss takes (B,S) advantages as well as (B,)."""
    learner, policy = method("ppo", group=4, clip_nats=(0.2231435513, 0.2623642645)), ToyPolicy(token_like=True)
    experience = experience_of(learner, policy)
    with torch.no_grad():
        policy.delta += 0.05 * numbers(3, DIMS)
    logp = policy.replay(experience.trajectory, range(16)).score.detach()
    everything = torch.ones(16, 3, dtype=torch.bool)
    theirs, _ = grpo_loss(logp, experience.trajectory.logp, logp, experience.advantage, everything, "bnpo")
    found = sum(float(loss.total) for loss in learner.losses(policy, experience))
    assert found == pytest.approx(float(theirs), rel=1e-5, abs=1e-7)


def test_ppo_raises_the_reward_and_its_value_learns() -> None:
    rewards = train(method("ppo", group=8, kl_beta=0.0), ToyPolicy(token_like=True), 30)
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1
    errors = []
    learner, policy = method("ppo", group=16, value_steps=40, value_learning_rate=0.01), ToyPolicy(token_like=True)
    asked = [Prompt("bright one", uid=1), Prompt("dark other", uid=2)]
    for step in range(12):
        experience = learner.collect(policy, asked, ToyReward(dark=[2]), 11, step)
        errors.append(mean(list(learner.losses(policy, experience)), "value/error"))
    assert errors[-1] < 0.6 * errors[0]


def test_a_resumed_run_has_its_value() -> None:
    one, policy = method("ppo", group=4), ToyPolicy(token_like=True)
    list(one.losses(policy, experience_of(one, policy)))
    other = method("ppo", group=4)
    other.load_state_dict({name: tensor.clone() for name, tensor in one.state_dict().items()})
    found = [experience_of(learner, policy, step=1).advantage for learner in (one, other)]
    assert torch.equal(*found)


# ---- a guide --------------------------------------------------------------------------------------------------------


class Writer(ToyPolicy):
    """A toy whose adapter is a file."""

    def load_adapter(self, folder: Any) -> None:
        from safetensors.torch import load_file

        with torch.no_grad():
            self.delta.copy_(load_file(Path(folder) / "adapter_model.safetensors")["delta"])


def guided(folder: Path) -> Tensor:
    """What a guide's adapter in `folder` holds."""
    folder.mkdir()
    delta = 0.3 * numbers(3, DIMS, seed=4)
    save_file({"delta": delta}, folder / "adapter_model.safetensors")
    return delta


def test_a_guide_is_lent_and_leaves_everything_as_it_was(tmp_path: Path) -> None:
    delta, policy = guided(tmp_path / "adapter"), Writer(token_like=True)
    with torch.no_grad():
        policy.delta += 0.1
    before, place = policy.delta.detach().clone(), policy.delta.data_ptr()
    trajectory = policy.rollout(PROMPTS, 2, 3)
    found = Guide(tmp_path / "adapter").score(policy, trajectory, range(8), range(3))
    assert torch.equal(policy.delta, before)
    assert policy.delta.data_ptr() == place
    other = Writer(token_like=True)
    with torch.no_grad():
        other.delta.copy_(delta)
    torch.testing.assert_close(found, other.replay(trajectory, range(8)).score)


def test_rtos_token_rewards_add_up_to_what_the_guide_says_of_the_whole(tmp_path: Path) -> None:
    """With V at 0 and lambda 1 the first step's advantage is all that the row earns."""
    guided(tmp_path / "adapter")
    policy = Writer(token_like=True)
    keys = {"group": 4, "kl_beta": 0.0, "gae_lambda": 1.0, "value_steps": 0}
    rto = build_method(MethodSettings(name="rto", guide="adapter", guide_weight=0.5, **keys), tmp_path)
    experience = experience_of(rto, policy)
    score = Guide(tmp_path / "adapter").score(policy, experience.trajectory, range(16), range(3))
    base = policy.replay(experience.trajectory, range(16), versus="reference").versus_score
    total = experience.scores.total
    earned = total + 0.5 * (score - base).sum(1)
    first = experience.returns[:, 0]
    torch.testing.assert_close(first, earned, atol=1e-4, rtol=1e-4)
    plain = build_method(MethodSettings(name="ppo", **keys))
    alone = experience_of(plain, policy)
    torch.testing.assert_close(alone.returns[:, 0], total, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["rto", "tgdpo"])
def test_a_guide_and_its_weight_come_together(name: str) -> None:
    with pytest.raises(UsageError, match=r"where both are set: method\.guide"):
        method(name)
    with pytest.raises(UsageError, match=r"where both are set: method\.guide"):
        method("ppo" if name == "rto" else "dpo", guide="adapter")


def test_the_adapter_of_another_run_guides_a_language_model(tmp_path: Path) -> None:
    def tiny() -> LanguagePolicy:
        settings = PolicySettings(model="tiny", lora=Lora(rank=4), batch_size=4, max_new_tokens=5)
        return LanguagePolicy(*tiny_language(0), settings)

    other, policy = tiny(), tiny()
    with torch.no_grad():
        for k, parameter in enumerate(other.named_trainable().values()):
            parameter += 0.1 * numbers(*parameter.shape, seed=k)
    other.save_adapter(tmp_path / "adapter")
    trajectory = policy.rollout([Prompt("how many star", uid=0)], 4, 1)
    rows, steps = range(4), range(trajectory.logp.shape[1])
    found = Guide(tmp_path / "adapter").score(policy, trajectory, rows, steps)
    with torch.no_grad():
        torch.testing.assert_close(found, other.replay(trajectory, rows).score)
        again = policy.replay(trajectory, rows)
    assert torch.equal(again.score, trajectory.logp)
    assert again.features is not None
    assert again.features.shape == (4, len(steps), 32)
    learner = build_method(MethodSettings(name="rto", guide="adapter", group=4, value_steps=2), tmp_path)

    class Short(ToyReward):
        name, aspects = "short", ("short",)

        def __call__(self, prompts: Any, media: Any, group: Any = None) -> Any:
            from tests.helpers.toy_policy import make_scores

            return make_scores(torch.tensor([[-float(len(ids))] for ids in media["text"].ids]))

    experience = learner.collect(policy, [Prompt("how many star", uid=0)], Short(), 0, 0)
    assert experience.inputs.shape[-1] == 64 + 1 + 32
    losses = list(learner.losses(policy, experience))
    assert losses[-1].step
    assert replace(losses[-1]).total.requires_grad
