"""Comparators and the rewards they become, against double loops; a cycle that no scalar reward can hold."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genalign.reward import BothOrders, ClipReward, Difference, Gpm, Preference, Versus, WinRate, build_reward
from genalign.reward.base import Stateless
from genalign.reward.build import HEADS
from genalign.reward.combine.pairwise import Verdict
from genalign.types import Media, Prompt, Scores, Track, UsageError
from tests.helpers.toy_rewards import images, prompts, texts, tiny_clip


class Told(Stateless):
    """A reward of given rows: what each text says, K numbers; "?" abstains, "!" fails."""

    needs = frozenset({"text"})
    looks_at = "sample"
    differentiable = False
    version = "told"

    def __init__(self, *aspects: str) -> None:
        self.name, self.aspects = "told", aspects or ("told",)

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        said = [str(text) for text in media["text"].data]
        width = len(self.aspects)
        rows = [[0.0] * width if text in "?!" else [float(word) for word in text.split()] for text in said]
        values = torch.tensor(rows, dtype=torch.float32).reshape(len(said), width)
        failed = torch.tensor([text == "!" for text in said])[:, None].expand(-1, width)
        valid = torch.tensor([text not in "?!" for text in said])[:, None].expand(-1, width)
        return Scores(self.aspects, values, valid, failed, values.sum(1), valid.all(1), torch.ones(width))


def ring(count: int) -> list[str]:
    """Vectors spread evenly over a circle, as texts."""
    return [f"{math.cos(2 * math.pi * k / count)} {math.sin(2 * math.pi * k / count)}" for k in range(count)]


def compare(preference: Preference, a: list[str], b: list[str]) -> Tensor:
    return preference.compare(prompts(len(a)), texts(*a), texts(*b)).logit


def test_gpm_is_the_skew_form_of_the_paper() -> None:
    """Invariant 20."""
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 6, generator=rng, dtype=torch.float64) for _ in range(2))
    scales = [1.0, 0.5, 2.0]
    skew = torch.zeros(6, 6, dtype=torch.float64)
    for block, c in enumerate(scales):
        skew[2 * block, 2 * block + 1], skew[2 * block + 1, 2 * block] = c, -c
    expected = [((x / x.norm()) @ skew @ (y / y.norm()) / 0.1).item() for x, y in zip(a, b, strict=True)]
    gpm = Gpm(Told("a", "b", "c", "d", "e", "f"), scales=scales)
    written = [[" ".join(str(value) for value in row.tolist()) for row in rows] for rows in (a, b)]
    assert compare(gpm, *written).tolist() == pytest.approx(expected, abs=1e-4)
    assert compare(gpm, written[1], written[0]).tolist() == pytest.approx([-value for value in expected], abs=1e-4)
    assert compare(gpm, written[0], written[0]).abs().max() < 1e-5
    assert compare(gpm, *written).abs().max() <= 2 / 0.1


def test_three_vectors_at_120_degrees_beat_each_other_in_a_ring() -> None:
    a, b, c = ring(3)
    logits = compare(Gpm(Told("x", "y")), [a, b, c], [b, c, a])
    assert logits.tolist() == pytest.approx([math.sqrt(3) / 2 / 0.1] * 3, abs=1e-4)
    scores = WinRate(Gpm(Told("x", "y")))(prompts(3), texts(a, b, c), torch.zeros(3, dtype=torch.long))
    assert scores.total.tolist() == pytest.approx([0.5] * 3, abs=1e-6)  # in a ring, nobody is best
    crowded = WinRate(Gpm(Told("x", "y")))(prompts(4), texts(a, b, b, c), torch.zeros(4, dtype=torch.long))
    assert crowded.total.argmax().item() == 0  # among many of b, what beats b is best: no fixed number says that
    assert crowded.total.argmin().item() == 3


@pytest.mark.parametrize(
    ("kind", "least"), [("gpm", math.log(1 + math.exp(-math.sqrt(3) / 2))), ("scalar", math.log(2))]
)
def test_a_cyclic_preference_is_learnt_by_gpm_and_by_no_scalar(kind: str, least: float) -> None:
    """Rock, scissors, paper: the least loss of free embeddings is that of a ring at 120 degrees, of scalars log 2."""
    torch.manual_seed(0)
    preference = Gpm(Told("x", "y"), tau=1.0) if kind == "gpm" else Difference(Told("x"))
    free = torch.randn(3, 2 if kind == "gpm" else 1, requires_grad=True)
    optimizer = torch.optim.Adam([free], lr=0.1)
    first, second = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])

    def logits() -> Tensor:
        told = torch.nn.functional.normalize(free, dim=1) if kind == "gpm" else free
        return preference.logit(told[first], told[second])

    for _ in range(200):
        optimizer.zero_grad()
        loss = -torch.nn.functional.logsigmoid(logits()).mean()
        loss.backward()
        optimizer.step()
    assert loss.item() == pytest.approx(least, abs=1e-3)
    assert bool((logits() > 0.1).all()) == (kind == "gpm")


def winrate_by_loops(values: list[float | None], group: list[int], tau: float) -> list[float | None]:
    rates: list[float | None] = []
    for i, own in enumerate(values):
        wins = [
            1 / (1 + math.exp(-(own - other) / tau))
            for j, other in enumerate(values)
            if j != i and group[j] == group[i] and own is not None and other is not None
        ]
        rates.append(sum(wins) / len(wins) if wins else None)
    return rates


def test_winrate_is_the_mean_over_siblings_wherever_they_stand() -> None:
    """Invariant 27."""
    values = [0.3, -1.0, 2.0, 0.1, None, 0.7, 0.0, 1.5]
    group = [7, 3, 7, 3, 7, 3, 5, 7]
    said = texts(*("?" if value is None else str(value) for value in values))
    scores = WinRate(Difference(Told(), tau=0.5))(prompts(8), said, torch.tensor(group))
    expected = winrate_by_loops(values, group, 0.5)
    for row, rate in enumerate(expected):
        assert bool(scores.valid[row, 0]) == (rate is not None)
        assert scores.total[row].item() == pytest.approx(rate or 0.0, abs=1e-6)
    assert not scores.failed.any()
    for which in (3, 7):
        members = [row for row in range(8) if group[row] == which and expected[row] is not None]
        assert scores.total[members].mean().item() == pytest.approx(0.5, abs=1e-6)
    order = [5, 0, 7, 2, 1, 6, 4, 3]
    shuffled = WinRate(Difference(Told(), tau=0.5))(prompts(8), said.select(order), torch.tensor(group)[order])
    assert torch.allclose(shuffled.total, scores.total[order], atol=1e-6)


def test_a_sibling_that_fails_leaves_the_others_alone() -> None:
    group = torch.zeros(4, dtype=torch.long)
    whole = WinRate(Difference(Told()))(prompts(3), texts("1", "2", "4"), group[:3])
    torn = WinRate(Difference(Told()))(prompts(4), texts("1", "!", "2", "4"), group)
    assert torch.allclose(torn.total[[0, 2, 3]], whole.total)
    assert torn.failed[:, 0].tolist() == [False, True, False, False]
    assert torn.valid[:, 0].tolist() == [True, False, True, True]
    left = WinRate(Difference(Told()))(prompts(2), texts("1", "!"), group[:2])
    assert left.failed[:, 0].tolist() == [False, True]  # the other abstains: there is nobody to beat
    assert not left.valid.any()


def test_strangers_abstain() -> None:
    for group in (None, torch.tensor([1, 2])):
        scores = WinRate(Difference(Told()))(prompts(2), texts("1", "2"), group)
        assert not scores.valid.any()
        assert not scores.failed.any()


class Biased:
    """A judge that favours what is shown first."""

    name, needs, differentiable, version = "biased", frozenset({"text"}), False, "biased"

    def __init__(self, told: Callable[[str], float] = float) -> None:
        self.asked = 0
        self.told = told

    def compare(self, prompts: Sequence[Prompt], a: Media, b: Media) -> Verdict:
        self.asked += len(prompts)
        pairs = zip(a["text"].data, b["text"].data, strict=True)
        logit = torch.tensor([self.told(str(one)) - self.told(str(two)) + 0.7 for one, two in pairs])
        return Verdict(logit, torch.ones(len(logit), dtype=torch.bool), torch.zeros(len(logit), dtype=torch.bool))


def test_both_orders_take_the_bias_of_a_judge_away() -> None:
    """Invariants 20, 32."""
    fair = BothOrders(Biased())
    assert isinstance(fair, Preference)
    assert compare(fair, ["1", "2"], ["3", "2"]).tolist() == pytest.approx([-2.0, 0.0], abs=1e-6)
    one, two = compare(fair, ["1"], ["3"]).sigmoid(), compare(fair, ["3"], ["1"]).sigmoid()
    assert (one + two).item() == pytest.approx(1.0, abs=1e-6)
    group = torch.zeros(4, dtype=torch.long)
    judged = WinRate(fair)(prompts(4), texts("1", "3", "2", "0"), group)
    scored = WinRate(Difference(Told()))(prompts(4), texts("1", "3", "2", "0"), group)
    assert torch.allclose(judged.total, scored.total, atol=1e-6)
    counted = Biased()
    WinRate(counted)(prompts(4), texts("1", "3", "2", "0"), group)
    assert counted.asked == 6  # each pair once


def test_versus_compares_with_what_each_prompt_brings() -> None:
    asked = prompts(4, answer=["1.0", "2.5", None, "0"])
    versus = Versus(Difference(Told(), tau=0.5), "facts.answer")
    assert versus.needs == {"text", "facts.answer"}
    scores = versus(asked, texts("2", "2.5", "9", "!"))
    assert scores.total.tolist() == pytest.approx([1 / (1 + math.exp(-2)), 0.5, 0, 0], abs=1e-6)
    assert scores.valid[:, 0].tolist() == [True, True, False, False]
    assert scores.failed[:, 0].tolist() == [False, False, False, True]
    drawn = Versus(Difference(Told()), lambda asked: texts(*("1" for _ in asked)))  # what a base model said
    assert drawn(prompts(2), texts("1", "3")).total.tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-2))], abs=1e-6)
    with pytest.raises(UsageError, match=r"write prompt or facts\.KEY"):
        Versus(Difference(Told()), "answer")


def test_versus_the_prompts_own_picture_has_gradients(tmp_path: Path) -> None:
    clip = ClipReward(tiny_clip(tmp_path / "clip"))
    own = images(2, seed=3)
    asked = [Prompt("a cat", media=own.select([0])), Prompt("a star")]
    pixels = images(2)["image"].data.clone().requires_grad_()  # type: ignore[union-attr]
    versus = Versus(Difference(clip, tau=0.1), "prompt")
    scores = versus(asked, Media(image=Track(pixels)))
    ours, theirs = (clip(asked[:1], media.select([0])).total for media in (Media(image=Track(pixels)), own))
    assert scores.total[0].item() == pytest.approx(torch.sigmoid((ours - theirs) / 0.1).item(), abs=1e-6)
    assert scores.valid[:, 0].tolist() == [True, False]
    assert versus.differentiable
    scores.total.sum().backward()
    assert pixels.grad is not None
    assert pixels.grad[0].abs().sum() > 0
    assert pixels.grad[1].abs().sum() == 0
    rate = WinRate(Difference(clip, tau=0.1))(asked, Media(image=Track(pixels)), torch.zeros(2, dtype=torch.long))
    (gradient,) = torch.autograd.grad(rate.total[0], pixels)
    assert gradient[0].abs().sum() > 0


@pytest.fixture(autouse=True)
def pair_is_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward file names a class of the package by its head alone."""
    monkeypatch.setitem(HEADS, "pair", f"{__name__}:Pair")


def test_reward_files_build_what_python_builds(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def length(text): return [float(len(t)) for t in text]\n")
    spec = {"winrate": {"use": "mine.py:length"}, "tau": 4, "name": "longer"}
    built = build_reward(spec, tmp_path)
    written = WinRate(Difference(build_reward("mine.py:length", tmp_path), tau=4.0), name="longer")
    assert built.version == written.version
    assert built.aspects == ("longer",)
    assert built.looks_at == "group"
    group = torch.zeros(2, dtype=torch.long)
    assert built(prompts(2), texts("ab", "abcdef"), group).total.tolist() == pytest.approx(
        [1 / (1 + math.e), 1 / (1 + math.exp(-1))], abs=1e-6
    )
    versus = build_reward({"versus": {"use": "mine.py:length"}, "reference": "facts.gold"}, tmp_path)
    assert versus(prompts(1, gold=["abc"]), texts("abc")).total.item() == 0.5
    skew = build_reward({"winrate": {"gpm": "pair", "scales": [2.0]}}, tmp_path)
    assert skew.version == WinRate(Gpm(Pair(), scales=[2.0])).version


class Pair(Told):
    def __init__(self) -> None:
        super().__init__("x", "y")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"winrate": "sharpness", "tua": 1}, r"'winrate' has no setting 'tua'; did you mean 'tau'"),
        ({"winrate": "sharpness", "tau": "much"}, r"tau of .* is 'much'"),
        ({"winrate": "sharpness", "tau": 0}, r"must be above 0"),
        ({"versus": "sharpness"}, r"needs the setting 'reference'"),
        ({"versus": "sharpness", "reference": "gold"}, r"write prompt or facts.KEY"),
        ({"winrate": {"gpm": "sharpness"}}, r"even number of aspects"),
        ({"winrate": {"gpm": "pair", "scales": [1, 2]}}, r"1 blocks, but 2 scales"),
        ({"winrate": {"winrate": "sharpness"}}, r"looks at a whole group"),
    ],
)
def test_wrong_words_are_refused_in_one_sentence(spec: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        build_reward(spec, Path())
    assert "\n" not in str(caught.value)
