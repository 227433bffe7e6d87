"""Sum and Hybrid: formulas, abstaining, failing, state; one hybrid for images and text."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genalign.method.losses import advantages
from genalign.reward import ClipReward, FunctionReward, HeadReward, Hybrid, Runner, Sharpness, Sum
from genalign.types import Media, Prompt, Reward, Scores, Track, UsageError
from tests.helpers.toy_rewards import images, prompts, says, texts, tiny_clip, tiny_text_head

NAN = math.nan


def rows(count: int) -> list[Prompt]:
    return prompts(count, row=range(count))


def test_sum_is_weighted_and_keeps_its_parts() -> None:
    total = Sum([(says(1.0, 2.0, name="a"), 0.5), (says(10.0, 20.0, name="b"), 2.0), (says(7.0, 7.0, name="c"), 0.0)])
    scores = total(rows(2), texts("x", "y"))
    assert scores.total.tolist() == [20.5, 41.0]
    assert scores.names == total.aspects == ("a", "b", "c")
    assert scores.values.tolist() == [[1, 10, 7], [2, 20, 7]]
    assert scores.weights.tolist() == list(total.weights) == [0.5, 2.0, 0.0]
    assert isinstance(total, Reward)


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("zero_advantage", [1 + 20, 2 + 40, 3 + 30, 4 + 0]),  # the mean of 20 and 40; group 9 has no opinion at all
        ("renormalise", [21, 42, 9, 12]),  # weights 1 and 2: the first counts for all three
        ("invalid", [21, 42, None, None]),
    ],
)
def test_abstaining_parts(missing: str, expected: list[float | None]) -> None:
    part = Sum(
        [says(1.0, 2.0, 3.0, 4.0, name="a"), (says(10.0, 20.0, None, None, name="b"), 2.0)],
        missing=missing,  # type: ignore[arg-type]
    )
    scores = part(rows(4), texts(*"wxyz"), torch.tensor([5, 5, 5, 9]))
    read = [t if ok else None for t, ok in zip(scores.total.tolist(), scores.total_valid.tolist(), strict=True)]
    assert read == expected
    assert not scores.failed.any()


def test_an_abstaining_part_moves_no_advantage() -> None:
    group = torch.zeros(4, dtype=torch.long)
    quiet = Sum([says(1.0, 1.0, 1.0, 1.0, name="a"), says(0.0, 1.0, None, 2.0, name="b")])
    advantage, _, _ = advantages(quiet(rows(4), texts(*"wxyz"), group), group)
    assert advantage[2] == 0
    zero = Sum([says(1.0, 1.0, 1.0, 1.0, name="a"), says(0.0, 1.0, 0.0, 2.0, name="b")])
    assert advantages(zero(rows(4), texts(*"wxyz"), group), group)[0][2] < 0  # what reading None as 0 would do


def test_a_failed_part_masks_its_row_and_a_silent_one_does_not() -> None:
    both = Sum(
        [says(1.0, 2.0, None, None, name="a"), says(NAN, 1.0, 4.0, None, name="b"), (says(*[NAN] * 4, name="c"), 0)]
    )
    scores = both(rows(4), texts(*"wxyz"))
    assert scores.total_valid.tolist() == [False, True, True, False]
    assert scores.failed[:, :2].tolist() == [[False, True], [False, False], [False, False], [False, False]]
    assert scores.failed[:, 2].all()  # seen in the log, but of weight 0


def test_hybrid_with_confidence_is_a_convex_mix() -> None:
    """Invariant 24."""
    rule = says((1.0, 1.0), (1.0, 0.0), (1.0, 0.25), None, (0.0, 0.5), name="rule")
    model = says(0.4, 0.4, 0.4, 0.4, 0.8, name="model")
    hybrid = Hybrid(rule, model)
    scores = hybrid(rows(5), texts(*"vwxyz"))
    assert scores.total.tolist() == pytest.approx([1.0, 0.4, 0.25 + 0.75 * 0.4, 0.4, 0.4])
    assert scores.names == hybrid.aspects == ("hybrid", "rule", "model")
    assert torch.equal(scores.values[:, 0], scores.total)
    assert scores.weights.tolist() == [1, 0, 0]
    assert scores.confidence is not None
    assert scores.confidence[:, 0].tolist() == [1, 0, 0.25, 1, 0.5]


def test_a_rule_of_several_aspects_is_as_sure_as_their_weighted_mean() -> None:
    def two() -> dict[str, list[tuple[float, float]]]:
        return {"a": [(1.0, 0.2)], "b": [(0.0, 0.8)], "log": [(9.0, 0.0)]}

    rule = FunctionReward(two, name="two", aspects={"a": 1.0, "b": 3.0, "log": 0.0})
    scores = Hybrid(rule, says(10.0, name="model"))(rows(1), texts("x"))
    sure = (0.2 + 3 * 0.8) / 4
    assert scores.total.item() == pytest.approx(sure * 1.0 + (1 - sure) * 10)


def test_fallback_takes_the_model_only_where_the_rule_abstains() -> None:
    hybrid = Hybrid(says((1.0, 0.1), None, None, name="rule"), says(NAN, 0.4, NAN, name="model"), mode="fallback")
    scores = hybrid(rows(3), texts(*"xyz"))
    assert scores.total.tolist() == pytest.approx([1.0, 0.4, 0.0])
    assert scores.total_valid.tolist() == [True, True, False]
    assert scores.failed[:, 0].tolist() == [False, False, True]


def test_hybrid_never_covers_a_failure_with_the_other_part() -> None:
    rule = says(NAN, (1.0, 1.0), (1.0, 0.5), None, None, name="rule")
    model = says(0.4, NAN, NAN, None, 0.3, name="model")
    scores = Hybrid(rule, model)(rows(5), texts(*"vwxyz"))
    assert scores.total_valid.tolist() == [False, True, False, False, True]
    assert scores.failed[:, 0].tolist() == [True, False, True, False, False]


def test_where_the_model_abstains_the_rule_stands_alone() -> None:
    scores = Hybrid(says((1.0, 0.5), name="rule"), says(None, name="model"))(rows(1), texts("x"))
    assert scores.total.tolist() == [1.0]


def test_stratified_keeps_right_above_wrong_and_ranks_within() -> None:
    """Invariant 24."""
    generator = torch.Generator().manual_seed(0)
    right = torch.rand(40, generator=generator) > 0.5
    model = 1e3 * torch.randn(40, generator=generator)
    group = torch.arange(40) // 10
    hybrid = Hybrid(
        says(*right.float().tolist(), name="rule"), says(*model.tolist(), name="m"), "stratified", alpha=0.3
    )
    assert hybrid.looks_at == "group"
    total = hybrid(rows(40), texts(*["x"] * 40), group).total
    assert total[right].min() > total[~right].max()
    for name in range(4):
        for kind in (right, ~right):
            mine = (group == name) & kind
            low, high = model[mine].min(), model[mine].max()
            expected = kind[mine].float() * right[mine].float() + 0.3 * (2 * (model[mine] - low) / (high - low) - 1)
            assert mine.sum() > 1
            assert torch.allclose(total[mine], expected, atol=1e-5)


def test_stratified_without_siblings_is_the_rule() -> None:
    hybrid = Hybrid(says(0.9, 0.1, None, name="rule"), says(3.0, 8.0, 1.0, name="m"), "stratified")
    scores = hybrid(rows(3), texts(*"xyz"))
    assert scores.total.tolist() == [1, 0, 0]
    assert scores.total_valid.tolist() == [True, True, False]


def test_gradients_flow_through_the_model_by_its_share(tmp_path: Path) -> None:
    clip = ClipReward(tiny_clip(tmp_path / "clip"))
    pixels = torch.rand(2, 3, 32, 32, requires_grad=True)
    media = Media(image=Track(pixels))
    hybrid = Hybrid(says((1.0, 0.75), (1.0, 1.0), name="rule"), clip)
    (mixed,) = torch.autograd.grad(hybrid(rows(2), media).total.sum(), pixels)
    (pure,) = torch.autograd.grad(clip(rows(2), media).total.sum(), pixels)
    assert torch.allclose(mixed[0], 0.25 * pure[0], atol=1e-8)
    assert mixed[1].abs().max() == 0
    assert pure[1].abs().max() > 0
    assert Sum([clip, Sharpness()]).differentiable
    assert not hybrid.differentiable


def test_one_hybrid_class_scores_images_and_text(tmp_path: Path) -> None:
    seen, read = ClipReward(tiny_clip(tmp_path / "clip")), HeadReward(tiny_text_head(tmp_path / "head"))

    def exact(answer: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return answer

    rule = FunctionReward(exact)
    asked = prompts(2, answer=[(1.0, 0.5), (0.0, 0.0)])
    for model, media in ((seen, images(2)), (read, texts("a cat", "two stars"))):
        scores = Runner(Hybrid(rule, model))(asked, media)
        learned = model(asked, media).total
        assert scores.total.tolist() == pytest.approx([0.5 + 0.5 * learned[0].item(), learned[1].item()], abs=1e-6)


def test_one_hybrid_object_scores_images_and_text() -> None:
    def rule(media: Media) -> list[tuple[float, float]]:
        return [(1.0, 0.5)] * media.rows

    def model(media: Media) -> list[float]:
        if "text" in media:
            return [len(text) / 10 for text in media["text"].data]  # type: ignore[arg-type]
        return media["image"].data.mean((1, 2, 3)).tolist()  # type: ignore[union-attr]

    hybrid = Hybrid(FunctionReward(rule), FunctionReward(model))
    given = images(2)
    light = given["image"].data.mean((1, 2, 3))  # type: ignore[union-attr]
    assert torch.allclose(hybrid(prompts(2), given).total, 0.5 + 0.5 * light)
    assert hybrid(prompts(2), texts("ab", "abcd")).total.tolist() == pytest.approx([0.6, 0.7])


class Counter:
    """A reward with state: how many scores it has been shown in `update`."""

    needs, aspects, differentiable, version = frozenset({"text"}), ("seen",), False, "1"
    looks_at = "sample"

    def __init__(self, name: str) -> None:
        self.name, self.count = name, torch.zeros(())

    def __call__(self, prompts: list[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        value, valid = torch.ones(len(prompts), 1), torch.ones(len(prompts), 1, dtype=torch.bool)
        return Scores(self.aspects, value, valid, ~valid, value[:, 0], valid[:, 0], torch.ones(1))

    def update(self, scores: Scores, step: int) -> None:
        assert scores.names == self.aspects
        self.count = self.count + scores.total.sum()

    def state_dict(self) -> dict[str, Tensor]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.count = state["count"]


def test_state_changes_in_update_only_and_round_trips() -> None:
    def counts(reward: Reward) -> dict[str, float]:
        return {key: value.item() for key, value in reward.state_dict().items()}

    def build() -> Runner:
        return Runner(Sum([Hybrid(says(1.0, 1.0, name="rule"), Counter("first")), (Counter("second"), 3.0)]))  # type: ignore[list-item, arg-type]

    runner = build()
    scores = runner(rows(2), texts("x", "y"))
    runner(rows(2), texts("x", "y"))
    assert counts(runner) == {
        "hybrid.first.count": 0,
        "second.count": 0,
    }
    runner.update(scores, 0)
    assert counts(runner) == {
        "hybrid.first.count": 2,
        "second.count": 2,
    }
    other = build()
    other.load_state_dict(runner.state_dict())
    assert other.state_dict() == runner.state_dict()


def test_parts_of_one_name_and_wrong_settings_are_refused() -> None:
    with pytest.raises(UsageError, match=r"two parts .* are called 'a'"):
        Sum([says(1.0, name="a"), says(2.0, name="a")]).aspects  # noqa: B018
    with pytest.raises(UsageError, match="no mode 'stratifed'; did you mean 'stratified'"):
        Hybrid(says(1.0), says(1.0), "stratifed")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"alpha .* 0.5"):
        Hybrid(says(1.0), says(1.0), "stratified", alpha=0.5)
    with pytest.raises(UsageError, match="sum of nothing"):
        Sum([])
