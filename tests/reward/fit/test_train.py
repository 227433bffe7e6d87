"""Heads fitted to synthetic features with a planted truth (plain, cyclic, noisy, personal) and to EmojiWorld."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from genalign.files.shipped import shipped
from genalign.lab.text_head import garble
from genalign.lab.world import caption, sample_facts
from genalign.reward.fit.backbones import BackboneSettings, build_backbone
from genalign.reward.fit.heads import strangers
from genalign.reward.fit.train import Fit, PreferenceData, build_head, compare, fit_head, vote
from genalign.types import Media, Prompt, Track, UsageError


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lesson_of(
    features: torch.Tensor, truth: torch.Tensor, pairs: int, users: torch.Tensor | None = None, seed: int = 1
):
    """Pairs of random rows; truth (M,), or (U,M) where each pair has a user who says."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randint(len(features), (2, pairs), generator=generator)
    b = torch.where(a == b, (b + 1) % len(features), b)
    whose = torch.full((pairs,), -1) if users is None else users
    table = truth if truth.dim() == 2 else truth[None]
    p = (table[whose.clamp(min=0), a] > table[whose.clamp(min=0), b]).float()
    return PreferenceData(features, a, b, p, whose, torch.arange(pairs) // 2)


def accuracy(head, lesson: PreferenceData) -> float:
    return float(((compare(head, lesson) > 0).float() == lesson.p).float().mean())


def plan(head: str = "linear", loss: str = "bradley-terry", **settings) -> Fit:
    return Fit.model_validate({"head": {"kind": head}, "loss": {"name": loss}, "fit": {"steps": 200}} | settings)


FEATURES = draw(300, 12) * torch.linspace(0.1, 10, 12) + 3  # of very different spreads
TRUTH = (FEATURES - 3) / torch.linspace(0.1, 10, 12) @ draw(12, seed=5)


@pytest.mark.parametrize("loss", ["bradley-terry", "ties", "margin", "soft", "yes-no", "gpm"])
def test_every_loss_finds_the_planted_direction(loss: str):
    head = fit_head(plan("linear", loss, fit={"steps": 400}), lesson_of(FEATURES, TRUTH, 400))
    assert accuracy(head, lesson_of(FEATURES, TRUTH, 400, seed=2)) > (0.85 if loss == "gpm" else 0.93)


def test_comparing_is_antisymmetric():
    lesson = lesson_of(FEATURES, TRUTH, 50)
    turned = PreferenceData(FEATURES, lesson.b, lesson.a, lesson.p, lesson.users, lesson.group)
    users = torch.arange(50) % 3
    for head, loss in [(k, "bradley-terry") for k in ("mlp", "pal", "vpl", "micro")] + [
        ("linear", "gpm"),
        ("mlp", "yes-no"),
    ]:
        torch.manual_seed(0)
        net = build_head(plan(head, loss), 12, 3)
        there, back = (compare(net, PreferenceData(**{**vars(x), "users": users})) for x in (lesson, turned))
        torch.testing.assert_close(there, -back, atol=1e-5, rtol=1e-4)
        same = PreferenceData(FEATURES, lesson.a, lesson.a, lesson.p, users, lesson.group)
        torch.testing.assert_close(compare(net, same), torch.zeros(50), atol=1e-5, rtol=0)


def test_two_layers_see_what_one_does_not():
    """|x| is no linear function of x."""
    features = draw(400, 2)
    lesson, exam = (lesson_of(features, features[:, 0].abs(), 600, seed=s) for s in (1, 2))
    assert accuracy(fit_head(plan("linear"), lesson), exam) < 0.62
    assert accuracy(fit_head(plan("mlp"), lesson), exam) > 0.93


def test_ratings_are_regressed():
    lesson = lesson_of(FEATURES, TRUTH, 300)
    rated = PreferenceData(
        FEATURES, torch.arange(300), torch.arange(300), 2 * TRUTH + 7, strangers(TRUTH), torch.arange(300)
    )
    head = fit_head(plan("linear", "regression", fit={"steps": 600, "learning_rate": 0.1}), rated)
    said = head.score(FEATURES, strangers(FEATURES))
    assert float((said - 2 * TRUTH - 7).abs().max()) < 0.5
    assert accuracy(head, lesson) > 0.97


def test_a_cycle_is_ordered_by_gpm_and_by_no_bradley_terry():
    """Three kinds of rows, each of which beats the next: a scalar can serve two of the three comparisons at most."""
    kinds = torch.arange(90) % 3
    features = torch.nn.functional.one_hot(kinds, 3).float() + 0.05 * draw(90, 3)
    a, b = torch.cartesian_prod(torch.arange(90), torch.arange(90)).unbind(1)
    rows = kinds[a] != kinds[b]
    a, b = a[rows], b[rows]
    lesson = PreferenceData(features, a, b, ((kinds[b] - kinds[a]) % 3 == 1).float(), strangers(a), a)
    assert accuracy(fit_head(plan("linear", "gpm"), lesson), lesson) == 1.0
    for head in ("linear", "mlp"):
        assert accuracy(fit_head(plan(head), lesson), lesson) <= 2 / 3 + 0.01


def test_a_tie_pulls_two_rows_together():
    """Rows 0 and 1 tie, both beat row 2: with ties as data the first two end near each other."""
    features = torch.eye(3)
    a, b = torch.tensor([0, 0, 1] * 20), torch.tensor([1, 2, 2] * 20)
    lesson = PreferenceData(features, a, b, torch.tensor([0.5, 1.0, 1.0] * 20), strangers(a), a)
    values = fit_head(plan("linear", "ties", fit={"steps": 600}), lesson).score(features, strangers(features))
    assert abs(float(values[0] - values[1])) < 0.1
    assert float(values[:2].min() - values[2]) > 2


# ---- strength -------------------------------------------------------------------------------------------------------


def noisy(share: float) -> tuple[PreferenceData, torch.Tensor]:
    lesson = lesson_of(FEATURES, TRUTH, 600)
    wrong = torch.rand(600, generator=torch.Generator().manual_seed(3)) < share
    return PreferenceData(**{**vars(lesson), "p": torch.where(wrong, 1 - lesson.p, lesson.p)}), wrong


def test_votes_know_wrong_labels():
    lesson, wrong = noisy(0.2)
    told = vote(plan(votes={"voters": 3}), lesson)
    strength = torch.where(lesson.p > 0.5, 1, -1) * told.mean(0)
    lower = (strength[wrong][:, None] < strength[~wrong]).float().mean()  # area under the ROC curve
    assert lower > 0.9
    assert told.shape == (3, 600)


@pytest.mark.parametrize("how", ["flip", "soften", "margin"])
def test_a_fifth_of_wrong_labels_costs_little_once_they_are_settled(how: str):
    exam = lesson_of(FEATURES, TRUTH, 500, seed=2)
    clean = accuracy(fit_head(plan("mlp"), noisy(0)[0]), exam)
    raw = accuracy(fit_head(plan("mlp"), noisy(0.2)[0]), exam)
    settled = accuracy(fit_head(plan("mlp", votes={"how": how, "voters": 3}), noisy(0.2)[0]), exam)
    assert settled > (0.85 if how == "margin" else 0.9) * clean  # a margin weighs pairs, it takes back no wrong label
    assert settled > raw + 0.05


def test_the_slope_is_limited():
    lesson = lesson_of(FEATURES, TRUTH, 400)
    free, bound = (fit_head(plan("mlp", fit={"steps": 200, "lipschitz": limit}), lesson) for limit in (None, 1.0))

    def steepest(head) -> float:
        rows = FEATURES.clone().requires_grad_()
        (slope,) = torch.autograd.grad(head.score(rows, strangers(rows)).sum(), rows)
        return float((slope * head.trunk.spread).norm(dim=1).max())

    assert steepest(free) > 3
    assert steepest(bound) < 1.3
    assert accuracy(bound, lesson) > 0.9


# ---- personal -------------------------------------------------------------------------------------------------------

USERS = 20


def two_groups(pairs: int = 1600, seed: int = 1) -> PreferenceData:
    """Users of even number like the first feature, the odd ones dislike it; all like the second a little."""
    features = draw(200, 6)
    tastes = torch.stack([2 * features[:, 0] + features[:, 1], -2 * features[:, 0] + features[:, 1]])
    whose = torch.arange(pairs) % USERS
    lesson = lesson_of(features, tastes, pairs, whose % 2, seed)
    return PreferenceData(**{**vars(lesson), "users": whose})


@pytest.mark.parametrize("kind", ["pal", "vpl", "micro"])
def test_two_planted_groups_are_found(kind: str):
    how = {
        "head": {"kind": kind, "dims": 4},
        "fit": {"steps": 300, "batch": 400, "learning_rate": 0.005 if kind == "vpl" else 0.02},
    }
    head = fit_head(Fit.model_validate(how), two_groups(), USERS)
    exam = two_groups(seed=2)
    assert accuracy(head, exam) > 0.9
    one = fit_head(plan("mlp"), two_groups())
    assert accuracy(one, exam) < 0.75  # one reward for all
    known = {"pal": lambda: head.weights, "vpl": lambda: head.known, "micro": lambda: head.known}[kind]()
    near = torch.cdist(known, known).fill_diagonal_(torch.inf).argmin(1)  # each user's nearest is of his own group
    assert (near % 2 == torch.arange(USERS) % 2).float().mean() > 0.95
    with pytest.raises(UsageError, match="add 'user'"):
        fit_head(Fit.model_validate(how), two_groups(), 0)


@pytest.mark.parametrize("kind", ["pal", "vpl", "micro"])
def test_a_newcomer_needs_few_pairs(kind: str):
    how = {
        "head": {"kind": kind, "dims": 4},
        "fit": {"steps": 300, "batch": 400, "learning_rate": 0.005 if kind == "vpl" else 0.02},
    }
    head = fit_head(Fit.model_validate(how), two_groups(), USERS)
    table = {"pal": "mind", "vpl": "known", "micro": "known"}[kind]
    for group in (0, 1):
        own, exam = (two_groups(seed=s) for s in (7, 8))
        mine = own.select((own.users % 2 == group).nonzero()[:20, 0])
        first = (mine.p > 0.5)[:, None]
        a, b = mine.features[mine.a], mine.features[mine.b]
        found = head.adapt(torch.where(first, a, b), torch.where(first, b, a))
        with torch.no_grad():
            getattr(head, table)[0] = found.log() if kind == "pal" else found
        asked = exam.select((exam.users % 2 == group).nonzero()[:, 0])
        assert (
            accuracy(head, PreferenceData(**{**vars(asked), "users": torch.zeros(len(asked), dtype=torch.long)})) > 0.85
        )


def test_one_ideal_point_is_one_reward_for_all():
    lesson = lesson_of(draw(200, 3), -(draw(200, 3) - 1).norm(dim=1), 800, torch.arange(800) % 4 * 0)
    how = {"head": {"kind": "pal", "members": 1, "dims": 3}, "fit": {"steps": 300, "learning_rate": 0.03}}
    head = fit_head(Fit.model_validate(how), lesson, 4)
    rows = lesson.features
    torch.testing.assert_close(head.score(rows, torch.zeros(200).long()), head.score(rows, strangers(rows)))
    assert accuracy(head, lesson) > 0.93


# ---- settings -------------------------------------------------------------------------------------------------------


def test_the_same_settings_give_the_same_head_and_leave_the_stream_alone():
    lesson = lesson_of(FEATURES, TRUTH, 100)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, second = (fit_head(plan("mlp", fit={"steps": 20}), lesson) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(
        torch.equal(x, y) for x, y in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"head": {"kind": "pal"}, "loss": {"name": "gpm"}}, "head pal has a loss of its own"),
        ({"loss": {"name": "gpm"}, "votes": {}}, "drop votes"),
        ({"loss": {"name": "yes-no"}, "fit": {"lipschitz": 1.0}}, "drop fit.lipschitz"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, said: str):
    with pytest.raises(ValidationError, match=said):
        Fit.model_validate(settings)


def test_ties_alone_teach_bradley_terry_nothing():
    lesson = lesson_of(FEATURES, TRUTH, 10)
    with pytest.raises(UsageError, match=r"loss\.name: ties"):
        fit_head(plan(), PreferenceData(**{**vars(lesson), "p": torch.full((10,), 0.5)}))


PAIRS, LEARNT = 600, 400


@pytest.fixture(scope="module")
def lesson() -> PreferenceData:
    """Features of two texts a pair, the first of which is a caption and the second the same one garbled."""
    rng, texts = np.random.default_rng(0), []
    while len(texts) < 2 * PAIRS:
        true = caption(sample_facts(rng), rng)
        if (wrong := garble(true, rng)) != true:
            texts += [true, wrong]
    settings = BackboneSettings(kind="text", model="tiny-text-head", template="{text}", batch_size=200)
    backbone = build_backbone(settings, "text", shipped("assets"))
    features = backbone.features([Prompt("-")] * len(texts), Media(text=Track(texts)))
    number = torch.arange(PAIRS)
    return PreferenceData(features, 2 * number, 2 * number + 1, torch.ones(PAIRS), torch.full((PAIRS,), -1), number)


def test_votes_give_back_what_wrong_labels_take(lesson: PreferenceData):
    clean, exam = lesson.select(torch.arange(LEARNT)), lesson.select(torch.arange(LEARNT, PAIRS))
    wrong = torch.rand(LEARNT, generator=torch.Generator().manual_seed(0)) < 0.2
    noisy = replace(clean, p=torch.where(wrong, 0.0, 1.0))

    def accuracy(learnt: PreferenceData, **votes) -> float:
        plan = Fit.model_validate({"head": {"kind": "mlp"}, "fit": {"steps": 200}} | votes)
        return float((compare(fit_head(plan, learnt), exam) > 0).float().mean())

    best, raw = accuracy(clean), accuracy(noisy)
    assert best > 0.85
    for how in ("flip", "soften"):
        settled = accuracy(noisy, votes={"how": how, "voters": 3})
        assert settled >= max(0.95 * best, raw), how


def test_match_is_two_towers_written_out():
    """Scores of a clip by itself, and of its product with the prompt, in a float64 loop."""
    torch.manual_seed(3)
    rows, of_prompt, width = draw(5, 9), 4, 6
    head = build_head(Fit.model_validate({"head": {"kind": "match", "width": width}}), 9, 0, of_prompt)
    head.trunk.measure(rows[:, :5])
    weights = {name: value.double().numpy() for name, value in head.state_dict().items()}
    for row, found in zip(rows.double().numpy(), head.score(rows, strangers(rows)).tolist(), strict=True):
        x = (row[:5] - weights["trunk.mean"]) / weights["trunk.spread"]
        hidden = weights["trunk.layers.0.weight"] @ x + weights["trunk.layers.0.bias"]
        hidden = hidden / (1 + np.exp(-hidden))
        out = weights["trunk.layers.2.weight"] @ hidden + weights["trunk.layers.2.bias"]
        said = weights["said.weight"] @ row[5:] + weights["said.bias"]
        assert found == pytest.approx(out[0] + sum(out[1 + k] * said[k] for k in range(width)) / width**0.5, abs=1e-5)


def test_match_learns_what_goes_with_a_prompt_and_no_sum_of_both_can():
    """A sample is right where its number is its prompt's: neither says anything alone."""
    generator = torch.Generator().manual_seed(4)
    shown, asked = torch.randint(6, (2, 2000), generator=generator)
    shown[::2] = asked[::2]
    one_hot = torch.nn.functional.one_hot
    features = torch.cat([one_hot(shown, 6), one_hot(asked, 6)], 1).float()
    right, wrong = (shown == asked).nonzero()[:, 0], (shown != asked).nonzero()[:, 0]
    count = min(len(right), len(wrong))
    both = PreferenceData(
        features, right[:count], wrong[:count], torch.ones(count), torch.full((count,), -1), torch.arange(count)
    )
    learn, exam = both.select(torch.arange(0, count, 2)), both.select(torch.arange(1, count, 2))
    found = {}
    for kind in ("match", "linear"):
        settings = {"head": {"kind": kind, "width": 8}, "fit": {"steps": 400}}
        found[kind] = accuracy(fit_head(Fit.model_validate(settings), learn, of_prompt=6), exam)
    assert found["match"] > 0.97
    assert found["linear"] < 0.7


@pytest.mark.parametrize(
    "change", [{"fit": {"lipschitz": 1.0}}, {"loss": {"name": "gpm"}}, {"loss": {"name": "yes-no"}}]
)
def test_match_refuses_what_it_cannot_do(change):
    with pytest.raises(ValidationError, match="drop them"):
        Fit.model_validate({"head": {"kind": "match"}} | change)
