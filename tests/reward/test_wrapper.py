"""A class of a user's that has only the core members is used like any reward; what it leaves out has its default."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genalign.reward import BothOrders, Cached, Difference, FunctionReward, Runner, Sum, WinRate, check_needs
from genalign.reward.base import aspect_weights
from genalign.reward.guard import guarded
from genalign.reward.heads.aesthetic import FILE, Aesthetic
from genalign.reward.proxy import about
from genalign.reward.wrapper import with_defaults
from genalign.types import CoreReward, Media, Prompt, Reward, Scores, Track, UsageError


class Plain:
    """Two numbers a text: its length, and twice that."""

    name, version, differentiable = "plain", "1", False
    needs, aspects, looks_at = frozenset({"text"}), ("short", "long"), "sample"

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        length = torch.tensor([float(len(str(text))) for text in media["text"].data])
        values, valid = torch.stack([length, 2 * length], 1), torch.ones(len(prompts), 2, dtype=torch.bool)
        return Scores(self.aspects, values, valid, ~valid, values.sum(1), valid[:, 0], torch.ones(2))

    def update(self, scores: Scores, step: int) -> None: ...

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class Weighted(Plain):
    weights, waits, users = (1.0, 0.0), True, ("ann",)

    def lacks(self, offered: set[str]) -> frozenset[str]:
        return frozenset()


class Broken(Plain):
    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        raise RuntimeError("broken")


PROMPTS = [Prompt("p", uid=row) for row in range(3)]
TEXTS = Media(text=Track(["a", "bb", "cccc"]))


def test_what_a_class_leaves_out_has_the_documented_default() -> None:
    assert isinstance(Plain(), CoreReward)
    assert not isinstance(Plain(), Reward)
    whole = with_defaults(Plain())
    assert isinstance(whole, Reward)
    assert (whole.weights, whole.waits, whole.users, whole.pairwise, whole.parts) == ((), False, (), False, ())
    assert whole.lacks({"image"}) == {"text"}
    assert not whole.lacks({"text", "prompt"})
    assert aspect_weights(whole).tolist() == [1.0, 1.0]


def test_what_a_class_has_is_its_own() -> None:
    whole = with_defaults(Weighted())
    assert (whole.weights, whole.waits, whole.users, whole.pairwise) == ((1.0, 0.0), True, ("ann",), False)
    assert not whole.lacks({"image"})
    assert Runner(Weighted()).waits
    assert not Runner(Plain()).waits


def test_a_reward_of_ours_stays_the_object_that_it_is() -> None:
    ours = FunctionReward(lambda text: [1.0] * len(text), name="ours")
    assert with_defaults(ours) is ours
    assert with_defaults(with_defaults(Plain())).aspects == ("short", "long")


@pytest.mark.parametrize("wrap", [Runner, Cached, lambda reward: Sum([reward]), lambda reward: Sum([(reward, 1.0)])])
def test_it_scores_behind_every_door(wrap) -> None:
    assert wrap(Plain())(PROMPTS, TEXTS).total.tolist() == [3.0, 6.0, 12.0]
    check_needs(wrap(Plain()), {"text"})
    with pytest.raises(UsageError, match="needs 'text'"):
        check_needs(wrap(Plain()), {"image"})


def test_it_is_described_compared_and_masked_like_any_other() -> None:
    assert about(Plain())["weights"] == [1.0, 1.0]
    assert about(Plain())["lacks"]["image"] == ["text"]
    with pytest.raises(UsageError, match="needs 'text'"):
        check_needs(Plain(), {"image"})
    group = torch.zeros(3, dtype=torch.long)
    wins = WinRate(BothOrders(Difference(Plain())))
    assert wins.lacks({"image"}) == {"text"}
    assert wins(PROMPTS, TEXTS, group).total.argsort().tolist() == [0, 1, 2]
    failed = guarded(Broken(), PROMPTS, TEXTS, None)
    assert failed.failed.all()
    assert failed.weights.tolist() == [1.0, 1.0]


def test_caches_are_found_through_parts() -> None:
    runner = Runner(Sum([Cached(FunctionReward(lambda text: [1.0] * len(text), name="ours")), (Plain(), 0.0)]))
    runner(PROMPTS, TEXTS)
    runner(PROMPTS, TEXTS)
    assert runner.log()["cache/hit_rate"] == 0.5


def test_a_setting_called_weights_is_not_what_aspects_weigh(tmp_path: Path) -> None:
    for name in ("model.safetensors", FILE):
        (tmp_path / name).touch()
    reward = Aesthetic(tmp_path, weights=tmp_path / FILE)
    assert aspect_weights(reward).tolist() == [1.0]  # a path among the settings once stood here
