"""What must hold of every reward, by number. Tests all over this folder say which of these they hold; the rest is here.

Preprocessing: 1 the tensor path is the PIL path; 2 each model has its own published transform; 3 another range of
values is refused, and half precision is widened before anything is resized; 4 no lossy file on the way to a server;
5 a video's axes, rate and frames; 6 audio's rate, channels and crop; 7 texts beyond the context are told of.
Numerics: 8 order, batch size and padding change nothing; 9 repeated prompts score as the diagonal of all pairs;
10 cosines and heads in fp32; 11 weights are frozen and gradients right; 12 a constant group gives exactly 0; 13 groups
survive shuffling and ranks; 14 a common factor of the weights changes no advantage.
Failures: 15 the failing rows alone are masked, counted and told of, and too many stop the run; 16 siblings keep their
advantages and backward stays finite; 17 a failure is never a number, never remembered, never counted twice; 18 a
time-out ends the work; 19 what the data lacks is refused before the first step.
Algebra: 20 preferences are symmetric; 21 ensembles; 22 gates; 23 shapes and means; 24 hybrids; 25 fronts and
hypervolumes; 26 multipliers; 27 win rates and credit of sets; 28 STARC; 29 only update moves a state; 30 files and
Python build equal rewards.
Judges and data: 31 yes and no; 32 order bias; 33 which end of a ranking is the best; 34 no prompt on both sides of an
exam; 35 symptoms of hacking; 36 nothing unpickles, foreign code is locked up; 37 licences are told.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from genalign import ranks
from genalign.cli.eval_reward import report
from genalign.data.comparisons import read_comparisons
from genalign.method import common
from genalign.method.losses import advantages
from genalign.reward import ClipReward, CompareJudge, HeadReward, Runner, Sum
from genalign.reward.sets import reward as sets
from genalign.run.build import build
from genalign.run.recipe import load_recipe
from genalign.types import Media, Prompt, Track, UsageError
from tests.helpers.tiny_recipe import write_recipe
from tests.helpers.toy_judges import Scripted, likely, pieces, serving
from tests.helpers.toy_rewards import images, prompts, says, table, texts, tiny_clip, tiny_text_head


def test_every_number_is_claimed_by_a_test() -> None:
    written = "".join(file.read_text() for file in Path(__file__).parents[1].rglob("*.py"))
    claimed = re.findall(r"[Ii]nvariants? ([\d, ]+)", written)
    numbers = {int(number) for claim in claimed for number in re.findall(r"\d+", claim)}
    assert numbers == set(range(1, 38))


# ---- preprocessing --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("models") / "clip")


def test_half_precision_is_widened_before_it_is_resized_and_autocast_stays_out(clip_folder: Path) -> None:
    """Invariants 3, 10: what is not in fp32 at .28 has steps of .002, a tenth of what tells siblings apart."""
    clip, asked, given = ClipReward(clip_folder), prompts(4), images(4, size=50)
    half = given["image"].data.bfloat16()  # type: ignore[union-attr]
    narrow, wide = (clip(asked, Media(image=Track(pixels))).total for pixels in (half, half.float()))
    assert torch.equal(narrow, wide)
    assert narrow.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ClipReward(clip_folder)(asked, Media(image=Track(half))).total, wide)
    assert not torch.equal(wide.bfloat16().float(), wide)


def test_weights_stored_in_half_precision_are_computed_with_in_fp32(clip_folder: Path, tmp_path: Path) -> None:
    """Invariant 10."""
    folders = [tiny_clip(tmp_path / name) for name in ("half", "widened")]
    state = {key: value.half() for key, value in load_file(clip_folder / "open_clip_model.safetensors").items()}
    save_file(state, folders[0] / "open_clip_model.safetensors")
    save_file({key: value.float() for key, value in state.items()}, folders[1] / "open_clip_model.safetensors")
    one, two = (ClipReward(folder)(prompts(4), images(4)).total for folder in folders)
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("kind", "shape", "told"),
    [
        ("video", (2, 3, 5, 8, 8), r"video has shape \(3, 5, 8, 8\), not \(F,3,H,W\)"),
        ("video", (5, 3, 8, 8), r"video has shape \(3, 8, 8\)"),
        ("image", (2, 8, 8, 3), r"image has shape \(8, 8, 3\), not \(3,H,W\)"),
        ("image", (2, 8, 8), "image has shape"),
        ("audio", (2, 800), r"audio has shape \(800,\), not \(C,N\)"),
    ],
)
def test_axes_in_another_order_are_refused(kind: str, shape: tuple[int, ...], told: str) -> None:
    """Invariant 5: the order of axes is part of the type, where the sizes tell."""
    for data in (torch.zeros(shape), list(torch.zeros(shape))):
        with pytest.raises(UsageError, match=told):
            Media(**{kind: Track(data, 2.0)})
    assert Media(video=Track(torch.zeros(2, 5, 3, 8, 8), 2.0)).rows == 2


# ---- numerics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_the_side_of_padding_does_not_matter(tmp_path: Path, pool: str) -> None:
    """Invariant 8."""
    from transformers import AutoTokenizer

    said_texts = texts("a cat", "two cats and the star", "a")
    totals = []
    for side in ("left", "right"):
        folder = tiny_text_head(tmp_path / side, pool=pool)
        AutoTokenizer.from_pretrained(folder, padding_side=side).save_pretrained(folder)
        totals.append(HeadReward(folder)(prompts(3), said_texts).total)
    assert torch.equal(*totals)
    assert totals[0].std() > 1e-3


def test_repeated_prompts_score_as_the_diagonal_of_all_pairs(clip_folder: Path) -> None:
    """Invariant 9."""
    names, given = ["a cat", "two stars", "a cat", "the dog", "two stars"], images(5)
    seen = torch.nn.functional.normalize(ClipReward(clip_folder).see(given), dim=1)
    read = torch.nn.functional.normalize(ClipReward(clip_folder).read(names), dim=1)
    every = read @ seen.T  # (prompts, images)
    clip = ClipReward(clip_folder, batch_size=2)
    for _ in range(2):  # the second time from the features it remembers
        torch.testing.assert_close(clip([Prompt(name) for name in names], given).total, every.diagonal())
    assert every.std() > 1e-3


@pytest.mark.parametrize("rule", ["sum_then_normalise", "normalise_then_sum"])
def test_a_group_split_over_ranks_is_one_group(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 13: two threads whose gather meets at a barrier, as two processes would."""
    a, b = table(8, 2).T.tolist()
    group = torch.tensor([4, 4, 9, 4, 9, 9, 4, 9])
    scores = Sum([says(*a, name="a"), says(*b, name="b")])(prompts(8, row=range(8)), texts(*["x"] * 8), group)
    expected, _, _ = advantages(scores, group, rule)
    split, local, mail = [[0, 1, 2], [3, 4, 5, 6, 7]], threading.local(), {}
    barrier, found = threading.Barrier(2, timeout=60), {}

    def gather(tensor: torch.Tensor) -> torch.Tensor:
        mail[local.rank] = tensor
        barrier.wait()
        both = torch.cat([mail[0], mail[1]])
        barrier.wait()
        return both

    def work(rank: int) -> None:
        local.rank = rank
        everyone, whole, here = common.over_ranks(scores.select(split[rank]), group[split[rank]])
        found[rank] = advantages(everyone, whole, rule)[0][here]

    for module in (ranks, common):
        monkeypatch.setattr(module, "gather", gather)
    monkeypatch.setattr(ranks, "world", lambda: 2)
    monkeypatch.setattr(common, "rank", lambda: local.rank)
    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(torch.cat([found[0], found[1]]), expected)
    alone = advantages(scores.select(split[0]), group[split[0]], rule)[0]
    assert not torch.allclose(found[0], alone)


@pytest.mark.parametrize("rule", ["sum_then_normalise", "normalise_then_sum"])
@pytest.mark.parametrize("factor", [1e-3, 7.0, 1e5])
def test_a_common_factor_of_the_weights_changes_no_advantage(rule: Any, factor: float) -> None:
    """Invariant 14."""
    a, b = table(8, 2, seed=3).T.tolist()
    group = torch.tensor([4, 4, 9, 4, 9, 9, 4, 9])

    def told(scale: float) -> torch.Tensor:
        both = Sum([(says(*a, name="a"), scale), (says(*b, name="b"), -0.3 * scale)])
        return advantages(Runner(both)(prompts(8, row=range(8)), texts(*["x"] * 8), group), group, rule)[0]

    torch.testing.assert_close(told(factor), told(1.0), atol=1e-5, rtol=1e-5)
    assert told(1.0).abs().max() > 0.5


# ---- algebra --------------------------------------------------------------------------------------------------------


def test_leave_one_out_of_an_additive_measure_gives_back_its_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 27: where the measure is a mean of terms, each row's score is its own."""

    class Mean:
        better = 1.0

        def value(self, rows: torch.Tensor) -> torch.Tensor:
            return rows[:, 0].mean()

        def leave_one_out(self, rows: torch.Tensor) -> torch.Tensor:
            return torch.stack([self.value(torch.cat([rows[:i], rows[i + 1 :]])) for i in range(len(rows))])

    terms = torch.rand(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one = sets.SetReward.__new__(sets.SetReward)
    one.level, one.credit, one.aspects, one.measure = "set", "leave_one_out", ("mean",), Mean()  # type: ignore[misc, assignment]
    monkeypatch.setattr(one, "features", lambda media: terms)
    torch.testing.assert_close(one(prompts(7), images(7)).total, terms[:, 0].float())


# ---- judges and data ------------------------------------------------------------------------------------------------


def test_the_exam_of_a_judge_tells_how_often_its_two_orders_disagree(tmp_path: Path) -> None:
    """Invariant 32: p(first is better) is 0.7 whatever is shown, but for one text, which the judge knows."""
    rows = [{"prompt": "p", "chosen": "good", "rejected": "bad"}, {"prompt": "q", "chosen": "fine", "rejected": "bad"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))

    def mind(body: dict[str, Any], number: int) -> Any:
        told = pieces(body)[0]
        first = told.index("good") < told.index("Two:") if "good" in told else None
        p = torch.tensor(0.7 if first is None else 0.9 if first else 0.1)
        return likely(yes=float(p.log()), no=float((1 - p).log()))

    found = read_comparisons(tmp_path / "pairs.jsonl")
    with serving(Scripted(mind).app) as url:
        endpoint = {"url": f"{url}/v1", "model": "scripted", "pause": 0.01}
        judge = CompareJudge(endpoint=endpoint, reads="text", reference="facts.user")  # any text to compare with
        load = found.load
        found.load = lambda numbers, users=(): load(numbers, ["the reference"] * len(numbers))  # type: ignore[method-assign]
        (told,) = [row for row in report(judge, found) if "judged" in row]
    samples = len(found.items)
    assert told["judged"] == samples == 4
    assert told["order_flips"] == pytest.approx(3 / 4)
    assert told["position_bias"] == pytest.approx((3 * 0.4 + 0) / 4, abs=1e-6)


def test_an_exam_on_prompts_that_are_trained_on_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Invariant 34."""
    recipe = load_recipe(write_recipe(tmp_path))
    with caplog.at_level(logging.WARNING, "genalign"):
        build(recipe)
        assert caplog.messages == []
        (tmp_path / "exam.txt").write_text("exam a\nprompt c\nprompt d\n")
        build(recipe)
    assert caplog.messages == [
        "2 of 3 prompts in exam.txt are also training prompts, so this evaluation is not held out"
    ]
