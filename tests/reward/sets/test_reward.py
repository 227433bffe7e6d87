"""Rewards of a whole set: credit by leaving out and by swapping, siblings, ranks, failures."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from genalign.reward import ClipReward, Runner, SetReward, Similarity, build_reward
from genalign.reward.heads.exemplars import read_exemplars
from genalign.reward.sets import reward as sets
from genalign.reward.sets.credit import contrast, couples
from genalign.reward.sets.frechet import Frechet, Moments
from genalign.reward.sets.kernel import KernelDistance
from genalign.types import Media, Track, UsageError
from tests.helpers.feature_sets import exemplar_room, measure, on_two_ranks, rows
from tests.helpers.toy_rewards import images, prompts

MEASURES = ["frechet", "kernel", "coverage", "precision", "recall", "vendi-1", "vendi-2"]


def recomputed_without(of, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([of.value(torch.cat([x[:i], x[i + 1 :]])) for i in range(len(x))])


def recomputed_with(of, x: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    return torch.stack([of.value(torch.cat([x[:i], others[i : i + 1], x[i + 1 :]])) for i in range(len(x))])


# ---- credit ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "dims", "exemplars"), [(2, 5, 30), (3, 5, 30), (17, 16, 40), (60, 16, 300), (24, 48, 20)]
)
@pytest.mark.parametrize("name", MEASURES)
def test_credit_equals_recomputation(name: str, count: int, dims: int, exemplars: int):
    of, x, others = measure(name, rows(exemplars, dims, 1)), 0.8 * rows(count, dims, 2), rows(count, dims, 3)
    if count > 3:
        x[1] = x[0]
    torch.testing.assert_close(of.leave_one_out(x), recomputed_without(of, x), atol=2e-6, rtol=1e-7)
    torch.testing.assert_close(of.swapped(x, others), recomputed_with(of, x, others), atol=2e-6, rtol=1e-7)
    back = x.clone()
    back[1] = others[1]
    again = others.clone()
    again[1] = x[1]
    assert float(of.swapped(back, again)[1]) == pytest.approx(float(of.value(x)), abs=2e-6)  # and back again


# ---- contrast -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["frechet", "kernel", "vendi-1"])
def test_the_chosen_set_is_better_than_both_and_either_order_gives_it(name: str):
    of, first, second = measure(name, rows(200, 6, 0) * 0.5), rows(24, 6, 1), rows(24, 6, 2)
    wins, lost = contrast(of, first, second)
    chosen = torch.where(wins[:, None], second, first)
    others = torch.where(wins[:, None], first, second)
    good, bad, start = (of.better * float(of.value(x)) for x in (chosen, others, first))
    assert good > max(start, of.better * float(of.value(second)))
    assert bad < good
    assert 0 < wins.sum() < len(wins)
    one = of.better * (of.value(chosen) - recomputed_with(of, chosen, others))
    torch.testing.assert_close(lost, one.clamp(min=0), atol=1e-6, rtol=1e-6)
    assert (one > -1e-6).all()  # no single exchange is left that would help
    turned, _ = contrast(of, second, first)
    assert torch.equal(turned, ~wins)


def test_an_additive_measure_chooses_the_better_of_each_pair():
    class Mean:
        better = 1.0

        def value(self, x):
            return x[:, 0].mean()

        def leave_one_out(self, x):
            return recomputed_without(self, x)

        def swapped(self, x, others):
            return recomputed_with(self, x, others)

    first, second = rows(30, 2, 1), rows(30, 2, 2)
    wins, lost = contrast(Mean(), first, second)
    assert torch.equal(wins, second[:, 0] > first[:, 0])
    torch.testing.assert_close(lost, (second - first)[:, 0].abs() / 30)


def test_couples_join_siblings_only():
    group = torch.tensor([7, 3, 7, 3, 7, 7, 5])
    assert couples(group).tolist() == [[1, 3], [0, 4], [2, 5]]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exemplar_room(tmp_path_factory.mktemp("room"))


def reward(room: Path, measure: str = "frechet", exemplars: str | None = "shown", **settings) -> SetReward:
    spec = {"use": "set", "model": "clip", "measure": measure, **settings}
    built = build_reward({**spec, **({"exemplars": exemplars} if exemplars else {})}, room)
    assert isinstance(built, SetReward)
    return built


def unit(room: Path, media: Media) -> torch.Tensor:
    return F.normalize(ClipReward(room / "clip").see(media).double(), dim=1)


@pytest.mark.parametrize("name", ["frechet", "kernel", "coverage", "precision", "recall", "vendi"])
def test_scores_average_to_the_measure_and_rank_by_leaving_out(room: Path, name: str):
    asked, media = prompts(20), images(20)
    scored = Runner(reward(room, name, None if name == "vendi" else "shown"))(asked, media)
    shown = read_exemplars(str(room / "shown")).seen(ClipReward(room / "clip"))
    of, x = measure(f"{name}-1" if name == "vendi" else name, shown), unit(room, media)
    assert float(scored.total.mean()) == pytest.approx(of.better * float(of.value(x)), rel=1e-4, abs=1e-6)
    without = recomputed_without(of, x)
    expected = of.better * (without.mean() - without) * 19
    torch.testing.assert_close((scored.total - scored.total.mean()).double(), expected, atol=1e-4, rtol=1e-3)
    assert scored.total_valid.all()


def test_swap_credit_marks_the_better_half(room: Path):
    asked, media = [p for p in prompts(10) for _ in range(2)], images(20)
    group = torch.tensor([p.uid for p in asked])
    total = reward(room, "kernel", credit="swap")(asked, media, group).total
    x = unit(room, media)
    of = KernelDistance(read_exemplars(str(room / "shown")).seen(ClipReward(room / "clip")))
    wins, _ = contrast(of, x[0::2], x[1::2])
    settled = total[0::2] != total[1::2]
    assert settled.sum() > 5
    assert torch.equal((total[1::2] > total[0::2])[settled], wins[settled])


def test_without_siblings_swap_is_leave_one_out(room: Path):
    asked, media = prompts(9), images(9)
    one, other = (
        reward(room, credit=credit)(asked, media, torch.arange(9)).total for credit in ("swap", "leave_one_out")
    )
    torch.testing.assert_close(one, other)
    assert one.std() > 0


@pytest.mark.parametrize("credit", ["leave_one_out", "swap"])
def test_two_ranks_score_as_one(room: Path, monkeypatch, credit: str):
    asked, media = [p for p in prompts(8) for _ in range(2)], images(16)
    group = torch.tensor([p.uid for p in asked])
    one = reward(room, credit=credit)
    expected = one(asked, media, group).total
    pixels = media["image"].data.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(one(asked, Media(image=Track(pixels)), group).total.mean(), pixels)
    split = [list(range(6)), list(range(6, 16))]

    def score(rank: int):
        mine = split[rank]
        seen = pixels.detach()[mine].clone().requires_grad_()
        total = one([asked[i] for i in mine], Media(image=Track(seen)), group[mine]).total
        return total.detach(), torch.autograd.grad(total.sum() / 16, seen)[0]

    parts = on_two_ranks(monkeypatch, "genalign.reward.sets.reward", score)
    torch.testing.assert_close(torch.cat([total for total, _ in parts]), expected)
    torch.testing.assert_close(torch.cat([grad for _, grad in parts]), gradient, atol=1e-7, rtol=1e-4)
    assert gradient.abs().max() > 1e-6
    assert sets.gather is not None


def test_a_rank_that_breaks_keeps_nobody_waiting(room: Path, monkeypatch):
    asked, media, one = prompts(12), images(12), reward(room)
    plain = one.encoder.see

    def see(given: Media) -> torch.Tensor:
        if given.rows == 5:
            raise ValueError("the lamp is broken")
        return plain(given)

    monkeypatch.setattr(one.encoder, "see", see)
    split = [list(range(5)), list(range(5, 12))]
    broken, whole = on_two_ranks(
        monkeypatch,
        "genalign.reward.sets.reward",
        lambda r: one([asked[i] for i in split[r]], media.select(split[r])).total,
    )
    assert isinstance(broken, ValueError)
    monkeypatch.undo()
    torch.testing.assert_close(whole, one(asked[5:], media.select(split[1])).total)


def test_rows_that_are_not_finite_fail_and_leave_the_set(room: Path, monkeypatch):
    one, media = reward(room), images(9)
    plain = one.encoder.see

    def see(given: Media) -> torch.Tensor:
        seen = plain(given)
        seen[2] = torch.nan
        return seen

    clean = one(prompts(8), media.select([0, 1, 3, 4, 5, 6, 7, 8])).total
    monkeypatch.setattr(one.encoder, "see", see)
    scored = one(prompts(9), media)
    assert scored.failed[:, 0].tolist() == [k == 2 for k in range(9)]
    torch.testing.assert_close(scored.total[scored.total_valid], clean)


def test_gradients_raise_the_measure(room: Path):
    one = reward(room, "kernel")
    pixels = images(8)["image"].data.clone().requires_grad_()

    def score(at):
        return one(prompts(8), Media(image=Track(at))).total.double().mean()

    (gradient,) = torch.autograd.grad(score(pixels), pixels)
    direction, step = gradient / gradient.norm(), 0.02
    with torch.no_grad():
        finite = (score(pixels + step * direction) - score(pixels - step * direction)) / (2 * step)
    assert float(finite) == pytest.approx(float(gradient.norm()), rel=0.05)


def test_one_sample_at_a_time(room: Path):
    one = reward(room, "frechet", level="sample")
    assert one.looks_at == "sample"
    both, alone = one(prompts(6), images(6)).total, one(prompts(1), images(6).select([4])).total
    assert float(both[4]) == pytest.approx(float(alone[0]), abs=1e-5)
    shown = read_exemplars(str(room / "shown")).seen(ClipReward(room / "clip"))
    nearest = (unit(room, images(6)) - shown.mean(0)).square().sum(1).argmin()
    assert both.argmax() == nearest


def test_texts_as_exemplars_and_the_gap_between_modalities(room: Path):
    clip = ClipReward(room / "clip")
    plain, moved = reward(room, exemplars="said.txt"), reward(room, exemplars="said.txt", pairs="made.py:both")
    pairs = read_exemplars(f"{room / 'made.py'}:both")
    gap = pairs.seen(clip).mean(0) - pairs.read(clip).mean(0)
    texts = F.normalize(clip.read([f"prompt number {k}" for k in range(12)]).double(), dim=1)
    x = unit(room, images(10))
    for one, wanted in ((plain, texts), (moved, texts + gap)):
        value = float(one(prompts(10), images(10)).total.mean())
        assert value == pytest.approx(-float(Frechet(Moments.of(wanted)).value(x)), rel=1e-4)
    assert plain.version != moved.version


def test_components_are_the_exemplars_principal_ones(room: Path):
    one = reward(room, components=4)
    shown, x = read_exemplars(str(room / "shown")).seen(ClipReward(room / "clip")), unit(room, images(10))
    principal = torch.linalg.svd(shown - shown.mean(0)).Vh[:4].T
    expected = -float(Frechet(Moments.of(shown @ principal)).value(x @ principal))
    assert float(one(prompts(10), images(10)).total.mean()) == pytest.approx(expected, rel=1e-4)


def test_similarity_is_the_mean_cosine(room: Path):
    one = build_reward({"use": "similarity", "model": "clip", "exemplars": "shown", "scale": 0.5, "offset": 0.5}, room)
    assert isinstance(one, Similarity)
    shown, x = read_exemplars(str(room / "shown")).seen(ClipReward(room / "clip")), unit(room, images(6))
    expected = 0.5 * (x @ shown.T).mean(1) + 0.5
    torch.testing.assert_close(one(prompts(6), images(6)).total.double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"measure": "frechett"}, "no measure 'frechett'; did you mean 'frechet'"),
        ({"measure": "vendi"}, "vendi takes no exemplars"),
        ({"exemplars": None}, "compares with exemplars"),
        ({"exemplars": "nowhere"}, "no exemplars 'nowhere'"),
        ({"exemplars": "clip/open_clip_config.json"}, "holds no exemplars"),
        ({"exemplars": "made.py:wrong"}, r"must return pictures \(M,3,H,W\)"),
        ({"exemplars": "made.py:show"}, "no function 'show'; did you mean 'shown'"),
        ({"measure": "coverage", "level": "sample"}, "no value for one sample"),
        ({"pairs": "said.txt", "exemplars": "said.txt"}, "no pairs of picture and text"),
        ({"components": 0}, "components"),
    ],
)
def test_bad_settings_are_one_sentence(room: Path, settings: dict, message: str):
    spec = {"use": "set", "model": "clip", "measure": "frechet", "exemplars": "shown", **settings}
    with pytest.raises(UsageError, match=message):
        Runner(build_reward({k: v for k, v in spec.items() if v is not None}, room))(prompts(4), images(4))
