"""Runner: what a reward does wrong becomes a mask and a count, and in the end a sentence."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from genalign.reward import FunctionReward, Hybrid, Runner, Sharpness, Sum
from genalign.types import GenalignError, Media, Prompt, Reward, Scores, Track, UsageError
from tests.helpers.toy_rewards import images, prompts, says, texts


class Broken:
    """An in-process head of two aspects that goes wrong as told."""

    name, needs, aspects, differentiable = "head", frozenset({"image"}), ("a", "b"), False
    looks_at, version, weights = "sample", "1", (1.0, 0.0)

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self, prompts: list[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        if self.how == "raises":
            raise RuntimeError("CUDA out of memory")
        rows = len(prompts) + (self.how == "long")
        valid = torch.ones(rows, 2, dtype=torch.bool)
        good = Scores(
            self.aspects, torch.ones(rows, 2), valid, ~valid, torch.ones(rows), valid[:, 0], torch.tensor([1.0, 0.0])
        )
        values = good.values.clone()
        if self.how in ("nan", "inf"):
            values[1, 0] = float(self.how)
            return replace(good, values=values, total=values[:, 0])
        if self.how == "nan in a column of weight 0":
            values[1, 1] = float("nan")
            return replace(good, values=values)
        if self.how == "confidence":
            sure = torch.full((rows, 2), 0.5)
            sure[1, 0] = 1.1
            return replace(good, confidence=sure)
        if self.how == "dtype":
            return replace(good, values=torch.ones(rows, 2, dtype=torch.long))
        if self.how == "names":
            return replace(good, names=("a", "c"))
        return good

    def update(self, scores: Scores, step: int) -> None: ...

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...


@pytest.mark.parametrize("how", ["raises", "long", "dtype", "names"])
def test_a_head_that_cannot_be_read_fails_all_rows_and_stops_the_run(how: str) -> None:
    scores = Runner(Broken(how), max_failure=1.0)(prompts(3), images(3))  # type: ignore[arg-type]
    assert scores.failed.all()
    assert not scores.valid.any()
    assert not scores.total_valid.any()
    assert scores.total.tolist() == [0, 0, 0]
    told = "CUDA out of memory" if how == "raises" else "returned"
    with pytest.raises(GenalignError, match=f"reward 'head' failed on 3 of the last 3 samples.*{told}"):
        Runner(Broken(how))(prompts(3), images(3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("how", "failed", "readable"),
    [
        ("nan", [1, 0], [True, False, True]),
        ("inf", [1, 0], [True, False, True]),
        ("confidence", [1, 0], [True, False, True]),
        ("nan in a column of weight 0", [1, 1], [True, True, True]),
    ],
)
def test_a_bad_entry_fails_alone(how: str, failed: list[int], readable: list[bool]) -> None:
    scores = Runner(Broken(how))(prompts(3), images(3))  # type: ignore[arg-type]
    assert scores.failed.nonzero().tolist() == [failed]
    assert scores.total_valid.tolist() == readable
    assert scores.values[tuple(failed)] == 0
    assert torch.isfinite(scores.total).all()
    assert [bool(error) for error in scores.info["error"]] == [False, True, False]


def test_a_part_that_breaks_inside_a_hybrid_masks_and_is_named() -> None:
    hybrid = Hybrid(says((1.0, 1.0), (1.0, 0.5), None, name="rule"), Broken("raises"))  # type: ignore[arg-type]
    asked = prompts(3, row=range(3))
    scores = Runner(hybrid, max_failure=1.0)(asked, images(3))
    assert scores.total_valid.tolist() == [True, False, False]
    with pytest.raises(GenalignError, match=r"reward 'hybrid' failed on 3 .*\(hybrid, head/a, head/b\).*out of memory"):
        Runner(hybrid)(asked, images(3))


def test_max_failure_counts_over_the_last_rows() -> None:
    """Invariant 15."""

    def flaky(number: list[float]) -> list[float]:
        return number

    def ask(runner: Runner, bad: int) -> None:
        numbers = [float("nan")] * bad + [1.0] * (10 - bad)
        runner(prompts(10, number=numbers), texts(*"abcdefghij"))

    runner = Runner(FunctionReward(flaky), max_failure=0.2, window=20)
    for bad in (2, 0, 4, 0):  # at most 4 of any 20
        ask(runner, bad)
    assert runner.log()["rewards/flaky/fail_rate"] == 0.2
    ask(runner, 4)
    with pytest.raises(GenalignError, match="failed on 5 of the last 20 samples"):
        ask(runner, 1)
    strict = Runner(FunctionReward(flaky), max_failure=0.0)
    ask(strict, 0)
    with pytest.raises(GenalignError, match="max_failure=0 allows"):
        ask(strict, 1)


def test_batches_keep_siblings_together_and_rows_in_order() -> None:
    calls: list[list[int]] = []

    def spy(number: list[float], group: list[int]) -> list[float]:
        calls.append(group)
        return number

    group = torch.tensor([1, 2, 1, 3, 2, 3, 1])
    asked = prompts(7, number=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    scores = Runner(FunctionReward(spy), batch_size=4)(asked, texts(*"abcdefg"), group)
    assert calls == [[1, 1, 1], [2, 2, 3, 3]]
    assert scores.total.tolist() == [0, 1, 2, 3, 4, 5, 6]
    sizes: list[int] = []

    def rowwise(number: list[float]) -> list[float | None]:
        sizes.append(len(number))
        return [None if n == 6 else n for n in number]

    scores = Runner(FunctionReward(rowwise), batch_size=3)(asked, texts(*"abcdefg"), group)
    assert sizes == [3, 3, 1]
    assert scores.total.tolist() == [0, 1, 2, 3, 4, 5, 0]
    assert scores.total_valid.tolist() == [True] * 6 + [False]


def test_batches_do_not_change_a_sum_with_abstentions() -> None:
    values = [1.0, None, 3.0, None, 5.0, 6.0]
    both = Sum([says(*values, name="a"), says(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, name="b")])
    asked, group = prompts(6, row=range(6)), torch.tensor([0, 1, 0, 1, 1, 0])
    whole = Runner(both)(asked, texts(*"abcdef"), group)
    parts = Runner(both, batch_size=2)(asked, texts(*"abcdef"), group)
    assert torch.equal(whole.total, parts.total)
    assert whole.total[1] == 5.0 + 2.0  # the sibling that has an opinion says 5


@pytest.mark.parametrize("values", [-0.5, 1.5, 200.0])
def test_images_outside_their_range_stop_the_run(values: float) -> None:
    """Invariant 3."""
    media = Media(image=Track(torch.full((1, 3, 8, 8), values)))
    with pytest.raises(GenalignError, match=r"'sharpness' was given image values in .* outside \[0, 1\]"):
        Runner(Sharpness())(prompts(1), media)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_image_that_holds_no_number_masks_its_row_and_the_run_goes_on(bad: float) -> None:
    pixels = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    clean = Runner(Sharpness())(prompts(2), Media(image=Track(pixels[[0, 2]])))
    pixels[1, 0, 4, 4] = bad
    runner = Runner(Sharpness(), max_failure=0.5)
    scores = runner(prompts(3), Media(image=Track(pixels)))
    assert scores.failed[:, 0].tolist() == [False, True, False]
    assert scores.total_valid.tolist() == [True, False, True]
    assert torch.equal(scores.total[[0, 2]], clean.total)
    assert scores.info["error"] == [None, "the image holds values that are not numbers", None]
    assert runner.log()["rewards/sharpness/fail_rate"] == pytest.approx(1 / 3)
    with pytest.raises(GenalignError, match="the image holds values that are not numbers"):
        Runner(Sharpness(), max_failure=0.0)(prompts(3), Media(image=Track(pixels)))  # at the first, with the reason
    pixels[0] = 1.5  # the range is still looked at
    with pytest.raises(GenalignError, match=r"outside \[0, 1\]"):
        runner(prompts(3), Media(image=Track(pixels)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_sample_that_is_not_finite_is_masked_and_its_neighbours_are_scored(value: float) -> None:
    """One picture that overflowed in half precision, as a batch and as a list of rows, with gradients to the others."""
    pictures = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = Runner(Sharpness())(prompts(3), Media(image=Track(pictures)))
    spoilt = pictures.clone()
    spoilt[1, 0, 2, 2] = value
    spoilt.requires_grad_()
    for data in (spoilt, list(spoilt)):
        scores = Runner(Sharpness(), max_failure=0.5)(prompts(3), Media(image=Track(data)))
        assert scores.failed[:, 0].tolist() == [False, True, False]
        assert scores.total_valid.tolist() == [True, False, True]
        torch.testing.assert_close(scores.total[[0, 2]], wanted.total[[0, 2]])
        assert float(scores.total[1]) == 0
        assert "not numbers" in scores.info["error"][1]
        assert scores.info["error"][0] is None


def test_genaligns_own_errors_are_not_masked() -> None:
    def missing(prompt: list[str]) -> list[float]:
        raise UsageError("no such model")

    with pytest.raises(UsageError, match="no such model"):
        Runner(FunctionReward(missing))(prompts(1), texts("a"))


def test_runner_is_the_reward_it_wraps() -> None:
    inner = Sharpness()
    runner = Runner(inner, batch_size=2)
    assert isinstance(runner, Reward)
    assert (runner.name, runner.needs, runner.aspects, runner.version) == (
        inner.name,
        inner.needs,
        inner.aspects,
        inner.version,
    )
    assert runner.differentiable
    pixels = torch.rand(3, 3, 8, 8, requires_grad=True)
    runner(prompts(3), Media(image=Track(pixels))).total.sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().max() > 0
