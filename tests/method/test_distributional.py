"""DRAGON on a toy policy: the two sets, both losses against loops, and a set reward that is really approached."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from genalign.data.prompts import read_prompts
from genalign.media.image import save_png
from genalign.method import MethodSettings, build_method
from genalign.method.distributional import halves
from genalign.method.preference_losses import kto_loss
from genalign.reward import SetReward
from genalign.reward.sets.frechet import Frechet, Moments
from genalign.reward.sets.kernel import KernelDistance
from genalign.reward.sets.vendi import Vendi
from genalign.types import Media, Prompt, Reward, Track, UsageError
from tests.helpers.learners import LOG2, PROMPTS, asked, backward, disturbed, errors, mean
from tests.helpers.toy_policy import DIMS, ToyPolicy, ToyReward, make_scores

LOSSES = ["dpo", "kto"]


def dragon(**keys):
    return build_method(MethodSettings(name="dragon", **keys))


def collected(learner, policy: ToyPolicy, reward: Reward | None = None, step: int = 0):
    return learner.collect(policy, PROMPTS, reward or ToyReward(), 11, step)


class Pixels(SetReward):
    """A set reward whose features are the toy's latents."""

    basis = None

    def __init__(self, of, credit: str = "leave_one_out") -> None:
        self.of, self.credit, self.level, self.name, self.aspects = of, credit, "set", "set", ("set",)
        self.looks_at, self.differentiable = "batch", False

    @property
    def measure(self):
        return self.of

    @property
    def version(self) -> str:
        return "1"

    def features(self, media: Media) -> Tensor:
        return torch.stack([image.flatten() for image in media["image"].data]).logit().double()


# ---- the two sets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [2, 4, 5])
def test_every_sample_is_in_one_set_and_keeps_its_prompt(group: int):
    policy = ToyPolicy()
    experience = collected(dragon(group=group), policy)
    total, prompt = experience.scores.total, experience.trajectory.group
    used = experience.pairs.flatten().tolist()
    assert len(set(used)) == len(used) == 4 * 2 * (group // 2)
    for better, worse in experience.pairs.tolist():
        assert prompt[better] == prompt[worse]
        assert total[better] > total[worse]
    for name in range(4):
        positive = [row for row, _ in experience.pairs.tolist() if prompt[row] == name]
        negative = [row for _, row in experience.pairs.tolist() if prompt[row] == name]
        assert total[positive].min() > total[negative].max()


def test_ties_and_what_cannot_be_read_are_in_no_set():
    values = torch.tensor([[1.0], [1.0], [3.0], [2.0], [5.0], [4.0]])
    failed = torch.tensor([[False]] * 5 + [[True]])
    group = torch.tensor([0, 0, 1, 1, 2, 2])
    assert halves(make_scores(values, failed=failed), group).tolist() == [[2, 3]]


def test_unpaired_sets_are_the_same_sets_in_another_order():
    paired, unpaired = (collected(dragon(group=4, pairing=how), ToyPolicy()) for how in ("prompt", "none"))
    for side in (0, 1):
        assert Counter(paired.pairs[:, side].tolist()) == Counter(unpaired.pairs[:, side].tolist())
    prompt = unpaired.trajectory.group
    assert (prompt[unpaired.pairs[:, 0]] != prompt[unpaired.pairs[:, 1]]).any()


def test_a_positive_affine_change_of_the_reward_changes_nothing():
    class Louder(ToyReward):
        def __call__(self, prompts, media, group=None):
            return make_scores(3 * super().__call__(prompts, media, group).values - 7)

    one, other = (collected(dragon(group=4), ToyPolicy(), reward) for reward in (ToyReward(), Louder()))
    assert torch.equal(one.pairs, other.pairs)


def test_set_credit_chooses_a_better_set_than_either_draw():
    generator = torch.Generator().manual_seed(0)
    exemplars = 0.6 * torch.randn(300, DIMS, generator=generator).double() + 0.4
    prompts = [Prompt(f"scene {i}", uid=i) for i in range(24)]
    for of in (Frechet(Moments.of(exemplars)), KernelDistance(exemplars), Vendi(1)):
        for credit in ("swap", "leave_one_out"):
            reward = Pixels(of, credit)
            experience = dragon().collect(ToyPolicy(), prompts, reward, 0, 0)
            x = reward.features(experience.trajectory.media)
            positive, negative = (of.better * float(of.value(x[experience.pairs[:, side]])) for side in (0, 1))
            draws = [of.better * float(of.value(x[k::2])) for k in (0, 1)]
            assert positive > max(draws)
            assert negative < positive


# ---- the losses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "start"), [("dpo", LOG2), ("kto", 0.5)])
@pytest.mark.parametrize("pairing", ["prompt", "none"])
def test_the_first_loss_and_what_turns_its_gradient_around(loss: str, start: float, pairing: str):
    learner, policy = dragon(group=4, loss=loss, pairing=pairing), ToyPolicy()
    assert learner.needs == {"forward", "reference", "rollout", "reward"}
    experience = collected(learner, policy)
    gradient, losses = backward(learner, policy, experience)
    assert mean(losses, "loss") == pytest.approx(start, rel=1e-6)
    assert sum(one.total.item() for one in losses) == pytest.approx(start, rel=1e-6)
    turned, _ = backward(learner, policy, replace(experience, pairs=experience.pairs.flip(1)))
    torch.testing.assert_close(turned, -gradient)
    assert gradient.abs().max() > 1e-3
    if loss == "kto":
        assert mean(losses, "kto/z") == 0.0


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("sft_weight", [0.0, 0.3])
def test_the_kto_loss_is_the_loop(reduction: str, sft_weight: float):
    beta = 0.5 * (DIMS if reduction == "mean" else 1)
    learner = dragon(group=4, loss="kto", beta=beta, reduction=reduction, sft_weight=sft_weight)
    policy = disturbed()
    experience = collected(learner, policy)
    gradient, losses = backward(learner, policy, experience)
    pairs = experience.pairs.tolist()
    gains: dict[float, list[tuple[Tensor, Tensor, Tensor]]] = {}
    for (at, seeds), (positive, negative) in zip(
        asked(policy, 4 * len(pairs)), [pair for pair in pairs for _ in range(4)], strict=True
    ):
        told = []
        for row in (positive, negative):
            ours, theirs = (errors(policy, row, at, seeds[0], experience, w) for w in ("policy", "reference"))
            gain = theirs.square() - ours.square()
            told.append(gain.mean() if reduction == "mean" else gain.sum())
        own = errors(policy, positive, at, seeds[0], experience).square().mean()
        gains.setdefault(at, []).append((*told, own))
    values, shifts = [], []
    for of_time in gains.values():
        shift = max(0.0, float(sum(a.detach() + b.detach() for a, b, _ in of_time)) / (2 * len(of_time)))
        shifts.append(shift)
        for positive, negative, own in of_time:
            good, bad = 1 / (1 + torch.exp(beta * (positive - shift))), 1 / (1 + torch.exp(-beta * (negative - shift)))
            values.append((good + bad) / 2 + sft_weight * own)
    expected = torch.stack(values).mean()
    assert len(gains) == 4
    assert sum(loss.total.item() for loss in losses) == pytest.approx(expected.item(), rel=1e-5)
    (reference,) = torch.autograd.grad(expected, policy.delta)
    torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-3)
    assert mean(losses, "kto/z") == pytest.approx(beta * sum(shifts) / 4, rel=1e-4, abs=1e-7)


def test_kto_is_trls():
    """TRL's KTO losses with unit weights are 1 - sigmoid(beta (ratio - kl)) and 1 - sigmoid(beta (kl - ratio))."""
    gained, shift = torch.linspace(-3, 3, 7), 0.4
    torch.testing.assert_close(kto_loss(gained, shift, 2.0, True), 1 - torch.sigmoid(2.0 * (gained - shift)))
    torch.testing.assert_close(kto_loss(gained, shift, 2.0, False), 1 - torch.sigmoid(2.0 * (shift - gained)))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("pairing", ["prompt", "none"])
def test_micro_batches_do_not_matter(loss: str, pairing: str):
    gradients = []
    for rows_together in (2, 4, 16):
        policy = disturbed(rows_together=rows_together)
        learner = dragon(group=4, loss=loss, pairing=pairing, beta=5.0)
        gradients.append(backward(learner, policy, collected(learner, policy))[0])
    assert gradients[0].abs().max() > 1e-5
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], atol=1e-6, rtol=1e-4)


def test_kto_asks_the_reference_once():
    learner, policy = dragon(group=4, loss="kto"), ToyPolicy()
    experience = collected(learner, policy)
    before = len(policy.fits)
    list(learner.losses(policy, experience))
    versus = [call[-1] for call in policy.fits[before:]]
    assert versus.count("reference") == versus.count(None) == len(versus) / 2


# ---- what is learnt -------------------------------------------------------------------------------------------------


def train(learner, policy: ToyPolicy, reward: Reward, prompts, steps: int, lr: float = 0.03) -> None:
    optimizer = torch.optim.Adam(policy.parameter_groups(), lr=lr)
    for step in range(steps):
        for loss in learner.losses(policy, learner.collect(policy, prompts, reward, 5, step)):
            loss.total.backward()
            if loss.step:
                optimizer.step()
                optimizer.zero_grad()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("pairing", ["prompt", "none"])
@pytest.mark.parametrize("credit", ["swap", "leave_one_out"])
def test_dragon_comes_closer_to_the_exemplars(loss: str, pairing: str, credit: str):
    """On fresh samples, by a distance and a kernel that it was not trained on."""
    generator = torch.Generator().manual_seed(0)
    wanted = torch.tensor([1.0, -1.0, 0.5, 0.0, 0.0, -0.5]).double()
    exemplars = 1.3 * torch.randn(400, DIMS, generator=generator).double() + wanted
    prompts = [Prompt(f"scene {i}", uid=i) for i in range(16)]
    reward, policy = Pixels(Frechet(Moments.of(exemplars)), credit), ToyPolicy(rows_together=32)

    def apart() -> tuple[float, float]:
        fresh = reward.features(policy.rollout(prompts, 16, seed=99).media)
        return float(Frechet(Moments.of(exemplars)).value(fresh)), float(KernelDistance(exemplars).value(fresh))

    before = apart()
    train(dragon(loss=loss, pairing=pairing, beta=5.0, group=4), policy, reward, prompts, 30, lr=0.01)
    after = apart()
    assert after[0] < 0.6 * before[0]
    assert after[1] < 0.6 * before[1]


# ---- given pictures -------------------------------------------------------------------------------------------------


def shown(level: float = 0.8) -> list[Prompt]:
    picture = Media(image=Track(torch.full((1, 3, 1, 2), level)))
    return [replace(prompt, media=picture) for prompt in PROMPTS]


def test_given_pictures_are_moved_towards_and_samples_away_from():
    learner, policy = dragon(positives="pictures", group=3), ToyPolicy()
    experience = learner.collect(policy, shown(), ToyReward(), 0, 0)
    assert all(prompt.media is None for prompt in experience.trajectory.prompts)
    assert experience.pairs.tolist() == [[12 + row // 3, row] for row in range(12)]
    assert experience.scores.values.shape == (12, 1)
    picture = torch.tensor(0.8).logit().expand(DIMS)
    torch.testing.assert_close(experience.clean[12:], picture.expand(4, DIMS))
    assert experience.log["reward/pictures"] == pytest.approx(0.8)
    assert [p.uid for p in experience.trajectory.prompts[12:]] == [0, 1, 2, 3]
    reward = ToyReward()
    start = float(reward(PROMPTS * 16, policy.generate(PROMPTS * 16, range(64))).total.mean())
    train(dragon(positives="pictures", group=2, beta=20.0, sft_weight=1.0), policy, reward, shown(), 40)
    end = float(reward(PROMPTS * 16, policy.generate(PROMPTS * 16, range(64))).total.mean())
    assert end > start + 0.1


def test_a_prompt_without_a_picture_is_one_sentence():
    with pytest.raises(UsageError, match=r"prompt 'scene 0' brings no picture to move towards"):
        dragon(positives="pictures").collect(ToyPolicy(), PROMPTS, ToyReward(), 0, 0)


def test_labels_are_drawn_as_bradley_and_terry_do():
    prompts = [Prompt(f"scene {i}", uid=i) for i in range(400)]
    plain = dragon().collect(ToyPolicy(), prompts, ToyReward(), 0, 0)
    temperature = 0.2
    drawn = dragon(label_temperature=temperature).collect(ToyPolicy(), prompts, ToyReward(), 0, 0)
    again = dragon(label_temperature=temperature).collect(ToyPolicy(), prompts, ToyReward(), 0, 0)
    assert torch.equal(drawn.pairs, again.pairs)
    assert torch.equal(drawn.noise, plain.noise)
    kept = drawn.pairs[:, 0] == plain.pairs[:, 0]
    assert torch.equal(torch.where(kept[:, None], drawn.pairs, drawn.pairs.flip(1)), plain.pairs)
    total = plain.scores.total.double()
    expected = torch.sigmoid((total[plain.pairs[:, 0]] - total[plain.pairs[:, 1]]) / temperature)
    error = math.sqrt(float((expected * (1 - expected)).sum()))
    assert abs(float(kept.sum()) - float(expected.sum())) < 4 * error
    sharp = dragon(label_temperature=1e-6).collect(ToyPolicy(), prompts, ToyReward(), 0, 0)
    assert torch.equal(sharp.pairs, plain.pairs)


def test_a_row_of_prompts_may_bring_its_picture(tmp_path):
    save_png(torch.full((3, 4, 4), 0.4), tmp_path / "shown.png")
    rows = [{"prompt": "with", "image": "shown.png"}, {"prompt": "without"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read_prompts(tmp_path / "rows.jsonl")
    assert first.media["image"].data.shape == (1, 3, 4, 4)
    assert float(first.media["image"].data.mean()) == pytest.approx(0.4)
    assert second.media is None
    for wrong, message in (("nowhere.png", "cannot be read as a picture"), (7, "'image' in line 1")):
        (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "x", "image": wrong}))
        with pytest.raises(UsageError, match=message):
            read_prompts(tmp_path / "rows.jsonl")


# ---- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"group": 1}, "splits siblings into two sets"),
        ({"pairing": "none", "label_temperature": 0.1}, r"set method\.pairing=prompt"),
        ({"pair_rule": "all"}, r"method dragon does not read method\.pair_rule"),
    ],
)
def test_settings_that_make_no_sense_are_refused(keys: dict, message: str):
    with pytest.raises(UsageError, match=message):
        dragon(**keys)
    dragon(positives="pictures", group=1)
