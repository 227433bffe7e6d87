"""Functions as rewards: what they may read, what they may return, and what a wrong return does."""

import math

import numpy as np
import pytest
import torch

from genalign.method.losses import advantages
from genalign.reward import FunctionReward, Runner, check_needs, guarded, reward
from genalign.reward.returned import read_column
from genalign.types import Media, Reward, Track, UsageError
from tests.helpers.toy_rewards import images, prompts, texts


def test_parameter_names_pick_the_columns() -> None:
    seen = {}

    @reward
    def spy(prompt, image, answer, facts, media, group, strict=True):
        seen.update(locals())
        return [0.0] * len(prompt)

    given = images(3)
    spy(prompts(3, answer=["x", "y", None]), given, torch.tensor([4, 4, 7]))
    assert seen["prompt"] == ["prompt number 0", "prompt number 1", "prompt number 2"]
    assert torch.equal(seen["image"], given["image"].data)
    assert seen["answer"] == ["x", "y", None]
    assert seen["facts"][1] == {"answer": "y"}
    assert seen["media"] is given
    assert seen["group"] == [4, 4, 7]
    assert seen["strict"] is True
    assert spy.needs == {"prompt", "image", "facts.answer"}
    assert spy.looks_at == "group"
    assert spy.name == "spy"
    assert isinstance(spy, Reward)


def test_trl_signature_gets_prompts_completions_and_columns() -> None:
    def trl(prompts, completions, **columns):
        return [float(c == a) if a else None for c, a in zip(completions, columns["answer"], strict=True)]

    scores = FunctionReward(trl)(prompts(3, answer=["4", "5", None]), texts("4", "4", "4"))
    assert scores.values[:, 0].tolist() == [1, 0, 0]
    assert scores.valid[:, 0].tolist() == [True, True, False]
    assert not scores.failed.any()


def test_flow_grpo_signature_gets_tensors_and_may_return_info() -> None:
    def brightness(images, prompts, metadata):
        assert images.shape == (2, 3, 24, 24)
        return images.mean((1, 2, 3)).numpy(), {"note": [m["answer"] for m in metadata], "odd": 3}

    given = images(2)
    scores = FunctionReward(brightness)(prompts(2, answer=["x", "y"]), given)
    assert torch.allclose(scores.total, given["image"].data.mean((1, 2, 3)))  # type: ignore[union-attr]
    assert dict(scores.info) == {"note": ["x", "y"]}


@pytest.mark.parametrize(
    "column",
    [
        [0.5, 1, 0],
        [torch.tensor(0.5), np.float64(1), False],
        torch.tensor([0.5, 1, 0], dtype=torch.float64),
        np.array([0.5, 1, 0], dtype=np.float16),
        ([0.5, 1.0, 0.0], [1.0, 1.0, 1.0]),
        [(0.5, 1), (1, 1), (0, 1)],
    ],
)
def test_ways_to_return_the_same_scores(column: object) -> None:
    values, valid, failed, confidence = read_column(column, 3)
    assert values.tolist() == [0.5, 1, 0]
    assert values.dtype == torch.float32
    assert valid.all()
    assert not failed.any()
    assert confidence.tolist() == [1, 1, 1]


def test_none_abstains_and_nan_inf_or_bad_confidence_fail() -> None:
    column = [None, math.nan, math.inf, (0.5, 0.25), (0.5, 1.5), (0.5, math.nan), (None, 0.3), 0.5]
    values, valid, failed, confidence = read_column(column, 8)
    assert valid.tolist() == [False, False, False, True, False, False, False, True]
    assert failed.tolist() == [False, True, True, False, True, True, False, False]
    assert values.tolist() == [0, 0, 0, 0.5, 0, 0, 0, 0.5]
    assert confidence.tolist() == [0, 0, 0, 0.25, 0, 0, 0, 1]


def test_aspects_with_weights_make_the_total() -> None:
    @reward(aspects={"format": 0.5, "answer": 2.0, "length": 0.0})
    def three(text):
        rows = range(len(text))
        return {"format": [1.0 for _ in rows], "answer": [(0.25, 0.5) for _ in rows], "length": [9.0 for _ in rows]}

    scores = three(prompts(2), texts("a", "b"))
    assert scores.names == ("format", "answer", "length")
    assert scores.total.tolist() == [1.0, 1.0]
    assert torch.equal(scores.values @ scores.weights, scores.total)
    assert scores.confidence is not None
    assert scores.confidence[0].tolist() == [1, 0.5, 1]


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (lambda n: [0.0] * (n + 1), "5 scores for 4 rows"),
        (lambda n: torch.zeros(n, 2), r"shape \(4, 2\)"),
        (lambda n: 0.5, "float where 4 scores"),
        (lambda n: ["good"] * n, "TypeError|ValueError|RuntimeError"),
        (lambda n: {"other": [0.0] * n}, "aspects"),
        (lambda n: None, "NoneType"),
    ],
)
def test_a_return_that_cannot_be_read_fails_every_row(returned: object, told: str) -> None:
    import re

    bad = FunctionReward(lambda image: returned(len(image)), name="bad")  # type: ignore[operator]
    scores = guarded(bad, prompts(4), images(4), None)
    assert scores.failed.all()
    assert not scores.total_valid.any()
    assert scores.values.abs().sum() == 0
    assert re.search(told, scores.info["error"][0])


def test_one_row_that_raises_is_masked_alone() -> None:
    @reward
    def shaky(number):
        return [1 / n for n in number]

    runner = Runner(shaky, max_failure=0.5)
    scores = runner(prompts(4, number=[1, 2, 0, 4]), texts("a", "b", "c", "d"))
    assert scores.failed[:, 0].tolist() == [False, False, True, False]
    assert scores.total.tolist() == [1, 0.5, 0, 0.25]
    assert "ZeroDivisionError" in scores.info["error"][2]
    assert runner.log().items() >= {"rewards/shaky/fail_rate": 0.25, "rewards/shaky/abstain_rate": 0.0}.items()


def test_a_masked_row_leaves_its_siblings_alone() -> None:
    group = torch.zeros(5, dtype=torch.long)
    whole = FunctionReward(lambda number: number, name="r")(prompts(4, number=[1.0, 2.0, 4.0, 8.0]), texts(*"abcd"))
    holed = FunctionReward(lambda number: number, name="r")(
        prompts(5, number=[1.0, 2.0, math.nan, 4.0, 8.0]), texts(*"abcde")
    )
    expected, _, _ = advantages(whole, group[:4])
    got, counted, _ = advantages(holed, group)
    assert torch.equal(got[[0, 1, 3, 4]], expected)
    assert got[2] == 0
    assert counted.tolist() == [True, True, False, True, True]
    alone = FunctionReward(lambda number: number, name="r")(prompts(1, number=[math.nan]), texts("a"))
    nothing, _, _ = advantages(alone, group[:1])
    assert nothing.tolist() == [0]


def test_differentiable_functions_keep_the_graph_and_others_do_not() -> None:
    pixels = torch.rand(2, 3, 8, 8, requires_grad=True)
    media = Media(image=Track(pixels))
    light = FunctionReward(lambda image: image.mean((1, 2, 3)), name="light", differentiable=True)
    light(prompts(2), media).total.sum().backward()
    assert pixels.grad is not None
    assert torch.allclose(pixels.grad, torch.full_like(pixels, 1 / 192))
    plain = FunctionReward(lambda image: image.mean((1, 2, 3)), name="light")
    assert not plain(prompts(2), media).total.requires_grad


def test_needs_that_the_data_lacks_are_refused_with_the_nearest_name() -> None:
    """Invariant 19."""

    @reward
    def judge(image, answer):
        return [0.0] * len(image)

    check_needs(judge, {"image", "prompt", "facts.answer"})
    with pytest.raises(UsageError, match=r"'judge' needs 'facts\.answer'.*did you mean 'facts\.answers'"):
        check_needs(judge, {"image", "prompt", "facts.answers"})


def test_settings_are_the_optional_parameters() -> None:
    @reward
    def long_enough(text, least=3):
        return [float(len(t) >= least) for t in text]

    assert long_enough(prompts(1), texts("ab")).total.tolist() == [0]
    assert long_enough.with_settings({"least": 2})(prompts(1), texts("ab")).total.tolist() == [1]
    assert long_enough.with_settings({"least": 2}).version != long_enough.version
    assert long_enough.with_settings({}).version == long_enough.version
    with pytest.raises(UsageError, match=r"no setting 'leats'.*did you mean 'least'"):
        long_enough.with_settings({"leats": 2})
