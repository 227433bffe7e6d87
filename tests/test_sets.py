"""Set measures against closed forms, scipy and torchmetrics; their credit against n full recomputations."""

import json
import math
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.image.fid import FrechetInceptionDistance

from genalign.reward import ClipReward, Runner, SetReward, Similarity, build_reward
from genalign.reward.heads.exemplars import read_exemplars
from genalign.reward.sets import reward as sets
from genalign.reward.sets.frechet import Frechet, Moments, frechet_infinity
from genalign.reward.sets.kernel import Coverage, KernelDistance
from genalign.reward.sets.neighbours import Precision, Recall
from genalign.reward.sets.reward import contrast, couples
from genalign.reward.sets.vendi import Vendi
from genalign.types import Media, Track, UsageError
from tests.toy_rewards import images, prompts, tiny_clip

MEASURES = ["frechet", "kernel", "coverage", "precision", "recall", "vendi-1", "vendi-2"]


def rows(count: int, dims: int, seed: int = 0) -> torch.Tensor:
    """Gaussian rows with a decaying spectrum, off the origin."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, dims, generator=generator, dtype=torch.float64)
    return drawn * torch.linspace(1.5, 0.05, dims, dtype=torch.float64) + 0.2


def measure(name: str, exemplars: torch.Tensor):
    return {
        "frechet": lambda: Frechet(Moments.of(exemplars)),
        "kernel": lambda: KernelDistance(exemplars),
        "coverage": lambda: Coverage(exemplars),
        "precision": lambda: Precision(exemplars),
        "recall": lambda: Recall(exemplars),
        "vendi-1": lambda: Vendi(1),
        "vendi-2": lambda: Vendi(2),
    }[name]()


def recomputed_without(of, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([of.value(torch.cat([x[:i], x[i + 1 :]])) for i in range(len(x))])


def recomputed_with(of, x: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    return torch.stack([of.value(torch.cat([x[:i], others[i : i + 1], x[i + 1 :]])) for i in range(len(x))])


def textbook_frechet(x: np.ndarray, y: np.ndarray) -> float:
    """By scipy's square root of the product, which is neither symmetric nor safe."""
    s, sigma = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(s @ sigma)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + sigma - 2 * root.real))


# ---- Frechet --------------------------------------------------------------------------------------------------------


def test_frechet_is_scipys_and_torchmetrics():
    x, y = rows(80, 12, 1) * 1.3, rows(300, 12, 2)
    value = float(Frechet(Moments.of(y)).value(x))
    assert value == pytest.approx(textbook_frechet(x.numpy(), y.numpy()), abs=1e-8)
    theirs = FrechetInceptionDistance(feature=torch.nn.Flatten(), input_img_size=(3, 2, 2), normalize=True)
    theirs.set_dtype(torch.float64)
    theirs.update(y.reshape(-1, 3, 2, 2), real=True)
    theirs.update(x.reshape(-1, 3, 2, 2), real=False)
    assert float(theirs.compute()) == pytest.approx(value, abs=1e-6)


def test_frechet_closed_forms():
    y = rows(200, 6, 3)
    distance, shift = Frechet(Moments.of(y)), torch.arange(6.0).double()
    assert abs(distance.value(y)) < 1e-8
    assert float(distance.value(y + shift)) == pytest.approx(float(shift @ shift), abs=1e-8)
    line, other = rows(50, 1, 4), 2.5 * rows(70, 1, 5) + 1
    expected = (line.mean() - other.mean()) ** 2 + (line.std() - other.std()) ** 2
    assert float(Frechet(Moments.of(other)).value(line)) == pytest.approx(float(expected), abs=1e-10)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).double())[0]
    x = 0.7 * rows(90, 6, 6)
    plain = float(distance.value(x))
    assert float(Frechet(Moments.of(y @ turn)).value(x @ turn)) == pytest.approx(plain, abs=1e-8)
    assert float(Frechet(Moments.of(3 * y)).value(3 * x)) == pytest.approx(9 * plain, abs=1e-7)
    assert float(Frechet(Moments.of(x)).value(y)) == pytest.approx(plain, abs=1e-8)
    assert float(distance.value(x.flip(0))) == pytest.approx(plain, abs=1e-10)


@pytest.mark.parametrize(("count", "exemplars"), [(1, 40), (2, 40), (5, 8), (30, 12), (64, 700)])
def test_frechet_of_few_rows_is_that_of_regularised_covariances(count: int, exemplars: int):
    """Rank-deficient sides are the limit of full-rank ones."""
    x, y = rows(count, 32, 7), rows(exemplars, 32, 8)
    value = Frechet(Moments.of(y)).value(x)
    s = torch.cov(x.T) if count > 1 else torch.zeros(32, 32).double()
    sigma, tiny = torch.cov(y.T), 1e-13 * torch.eye(32).double()
    values, vectors = torch.linalg.eigh(sigma + tiny)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ (s + tiny) @ root).clamp(min=0).sqrt().sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + s.trace() + sigma.trace() - 2 * cross
    assert torch.isfinite(value)
    assert float(value) == pytest.approx(float(expected), abs=2e-4)
    same = Frechet(Moments.of(y)).value(torch.cat([y, y, y, y]))  # ddof 1 scales a repeated set's covariance
    scale = math.sqrt((4 * exemplars) / (4 * exemplars - 1) * (exemplars - 1) / exemplars)
    assert float(same) == pytest.approx(float(sigma.trace()) * (1 - scale) ** 2, abs=1e-7)


@pytest.mark.parametrize("count", [6, 40])
def test_frechet_gradient_is_the_finite_difference(count: int):
    x = rows(count, 9, 9).requires_grad_()
    distance = Frechet(Moments.of(rows(100, 9, 10)))
    assert torch.autograd.gradcheck(distance.value, x, eps=1e-6, atol=1e-6)
    (at_home,) = torch.autograd.grad(Frechet(Moments.of(x.detach())).value(x), x)
    if count > 9:
        assert at_home.abs().max() < 1e-8


def test_frechet_gradient_is_finite_where_rows_repeat():
    x = rows(3, 9, 9).repeat(4, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(Frechet(Moments.of(rows(100, 9, 10))).value(x), x)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 1e-3


def test_each_row_alone_and_each_clip_of_frames():
    distance, x = Frechet(Moments.of(rows(100, 9, 1))), rows(20, 9, 2)
    alone = torch.stack([distance.value(row[None]) for row in x])
    torch.testing.assert_close(distance.each(x[:, None]), alone)
    clips = torch.stack([distance.value(x[i : i + 5]) for i in (0, 5, 10, 15)])
    torch.testing.assert_close(distance.each(x.reshape(4, 5, 9)), clips)


def test_moments_merge_in_any_chunks_and_over_ranks(monkeypatch):
    x = rows(103, 7, 11) + 1e4  # a one-pass sum of squares loses eight digits here
    whole = Moments.of(x)
    for sizes in ([103], [1] * 103, [1, 50, 2, 50], [60, 0, 43]):
        merged = Moments.of(x[:0])
        for part in x.split(sizes):
            merged = merged.merge(Moments.of(part))
        assert merged.count == 103
        torch.testing.assert_close(merged.covariance, whole.covariance, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(whole.covariance, torch.cov(x.T), rtol=1e-10, atol=1e-10)
    joined = on_two_ranks(
        monkeypatch, "genalign.reward.sets.frechet", lambda r: Moments.of(x[r::2][: 40 + r]).over_ranks()
    )
    both = Moments.of(torch.cat([x[0::2][:40], x[1::2][:41]]))
    for moments in joined:
        assert moments.count == 81
        torch.testing.assert_close(moments.covariance, both.covariance, rtol=1e-10, atol=1e-10)


def test_the_limit_of_many_rows_has_no_bias_left():
    x, y = (torch.randn(4096, 24, generator=torch.Generator().manual_seed(s)).double() for s in (0, 1))
    law = Moments(10**9, torch.zeros(24).double(), (10**9 - 1) * torch.eye(24).double())
    plain, limit = float(Frechet(law).value(x)), frechet_infinity(x, law)
    assert plain > 0.025  # d (d + 1) / (4 n) and the mean's d / n
    assert abs(limit) < plain / 4
    assert limit == frechet_infinity(x, law)
    wide = torch.randn(4096, 64, generator=torch.Generator().manual_seed(2)).double()
    law = Moments(10**9, torch.zeros(64).double(), (10**9 - 1) * torch.eye(64).double())
    assert float(Frechet(law).value(wide)) > 0.2
    assert abs(frechet_infinity(wide, law)) < 0.06  # subsets drawn with replacement keep almost all of the bias
    with pytest.raises(UsageError, match="needs 192 rows, not 100"):
        frechet_infinity(y[:100], law)


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


class Operations(TorchDispatchMode):
    """Counts additions and products; of decompositions as Golub and Van Loan (2013) do: R-SVD 8.6, eigh 8.3."""

    def __init__(self) -> None:
        super().__init__()
        self.total, self.decompositions = 0.0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        out = func(*args, **(kwargs or {}))
        if name in ("mm", "mv"):
            self.total += 2 * args[0].numel() * (args[1].shape[1] if name == "mm" else 1)
        elif name in ("_linalg_svd", "_linalg_eigh"):
            m, n = max(args[0].shape), min(args[0].shape)
            vectors = (kwargs or {}).get("compute_uv", True)
            thin = 6 * m * n**2 + 20 * n**3 if vectors else 2 * m * n**2 + 2 * n**3
            self.total += 9 * n**3 if name == "_linalg_eigh" else thin
            self.decompositions += 1
        else:
            assert "linalg" not in name, f"{name} is not counted"
            self.total += out.numel() if isinstance(out, torch.Tensor) else 0
        return out


@pytest.mark.parametrize("credit", ["leave_one_out", "swapped"])
def test_all_frechet_credit_costs_a_hundredth_of_recomputing_it(credit: str):
    count, dims = 256, 512
    distance, x, others = Frechet(Moments.of(rows(2048, dims, 1))), rows(count, dims, 2), rows(count, dims, 3)
    sets_of = (x,) if credit == "leave_one_out" else (x, others)
    with Operations() as all_at_once:
        credits = getattr(distance, credit)(*sets_of)
    with Operations() as one:
        distance.value(x[1:])
    assert all_at_once.decompositions <= 2
    assert one.decompositions == 1
    assert all_at_once.total <= count * one.total / 100
    some = range(0, count, 16)  # each by one full computation
    if credit == "leave_one_out":
        expected = [distance.value(torch.cat([x[:i], x[i + 1 :]])) for i in some]
    else:
        expected = [distance.value(torch.cat([x[:i], others[i : i + 1], x[i + 1 :]])) for i in some]
    assert (credits[list(some)] - torch.stack(expected)).abs().max() < 1e-5
    assert credits.std() > 1e-3  # a hundred times the tolerance


# ---- kernel, coverage, Vendi ----------------------------------------------------------------------------------------


def test_kernel_distance_is_the_double_sum():
    x, y = rows(15, 4, 1), rows(20, 4, 2)
    of = KernelDistance(y)
    assert of.bandwidth == pytest.approx(float(torch.pdist(y).median()))
    total = 0.0
    for a, b, sign in ((x, x, 1), (y, y, 1), (x, y, -2)):
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if sign < 0 or i != j]
        values = [math.exp(-float((a[i] - b[j]).square().sum()) / (2 * of.bandwidth**2)) for i, j in pairs]
        total += sign * sum(values) / len(pairs)
    assert float(of.value(x)) == pytest.approx(total, abs=1e-12)
    assert torch.autograd.gradcheck(of.value, x.clone().requires_grad_())


def test_kernel_distance_of_one_law_is_0_on_average_and_sometimes_below():
    of = KernelDistance(rows(400, 4, 0))
    values = torch.stack([of.value(rows(40, 4, seed)) for seed in range(1, 60)])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values)) + 1e-3
    assert (values < 0).any()


def test_precision_and_recall_in_loops_and_at_their_ends():
    x, y = rows(40, 4, 1), 0.5 * rows(60, 4, 2) + 0.5

    def within(centres, points) -> float:
        reaches = [sorted((c - d).norm() for d in centres)[3] for c in centres]  # its own place 0 is itself
        hits = 0
        for point in points:
            hits += any((c - point).norm() <= reach for c, reach in zip(centres, reaches, strict=True))
        return hits / len(points)

    assert float(Precision(y).value(x)) == pytest.approx(within(y, x))
    assert float(Recall(y).value(x)) == pytest.approx(within(x, y))
    assert float(Precision(x).value(x)) == float(Recall(x).value(x)) == 1
    assert float(Precision(x).value(x + 100)) == float(Recall(x).value(x + 100)) == 0
    narrow = y[:1] + 1e-3 * rows(40, 4, 3)  # all good, and all the same
    assert float(Precision(y).value(narrow)) == 1
    assert float(Recall(y).value(narrow)) < 0.1
    wide = torch.cat([y, y + 50])  # everything, and as much rubbish
    assert float(Precision(y).value(wide)) == 0.5
    assert float(Recall(y).value(wide)) == 1


def test_coverage_counts_reached_exemplars():
    x, y = rows(12, 3, 1), rows(30, 3, 2)
    of = Coverage(y, neighbours=3)
    apart = torch.cdist(y, y)
    reach = apart.sort(1).values[:, 3]
    expected = ((torch.cdist(x, y) <= reach).any(0)).double().mean()
    assert float(of.value(x)) == pytest.approx(float(expected))
    assert 0 < float(of.value(x)) < 1
    assert float(of.value(y)) == 1


def test_vendi_of_copies_of_orthogonal_rows_and_of_the_published_kernel():
    """Invariant 27."""
    eye = torch.eye(6, dtype=torch.float64)
    for order in (1, 2):
        of = Vendi(order)
        assert float(of.value(eye[:1].repeat(5, 1))) == pytest.approx(1)
        assert float(of.value(eye)) == pytest.approx(6)
        x = rows(9, 4, 1)
        assert float(of.value(x.repeat(3, 1))) == pytest.approx(float(of.value(x)))
        assert float(of.value(5 * x)) == pytest.approx(float(of.value(x)))
        assert 1 <= float(of.value(x)) <= 9
        assert torch.autograd.gradcheck(of.value, x.clone().requires_grad_())
    assert float(Vendi(2).value(x)) < float(Vendi(1).value(x))
    published = torch.tensor([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]]).double()
    root = torch.linalg.cholesky(published)
    assert float(Vendi(1).value(root)) == pytest.approx(2.1573, abs=1e-4)
    shares = torch.linalg.eigvalsh(published / 3)
    assert float(Vendi(2).value(root)) == pytest.approx(float(1 / shares.square().sum()))


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


# ---- rewards --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("room")
    tiny_clip(folder / "clip")
    (folder / "shown").mkdir()
    for k, picture in enumerate(images(40, seed=5)["image"].data):
        levels = (picture.permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(levels).save(folder / "shown" / f"{k:02}.png")
    (folder / "said.txt").write_text("\n".join(f"prompt number {k}" for k in range(12)))
    (folder / "made.py").write_text(
        "import torch\n"
        "def shown():\n    return torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))\n"
        "def both():\n    return shown(), [f'prompt {k}' for k in range(8)]\n"
        "def wrong():\n    return torch.zeros(3)\n"
    )
    return folder


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


def on_two_ranks(monkeypatch, module: str, task) -> list:
    """task(rank) on two threads whose gather meets at a barrier, as two processes would."""
    barrier, mail, local = threading.Barrier(2, timeout=120), {}, threading.local()

    def fake_gather(tensor):
        mail[local.rank] = tensor
        barrier.wait()
        both = torch.cat([mail[0], mail[1]])
        barrier.wait()
        return both

    def run(rank: int) -> None:
        local.rank = rank
        try:
            results[rank] = task(rank)
        except ValueError as error:
            results[rank] = error

    results: list = [None, None]
    monkeypatch.setattr(f"{module}.gather", fake_gather)
    if module.endswith("sets"):
        monkeypatch.setattr(f"{module}.rank", lambda: local.rank)
    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


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
    plain = one.clip.see

    def see(given: Media) -> torch.Tensor:
        if given.rows == 5:
            raise ValueError("the lamp is broken")
        return plain(given)

    monkeypatch.setattr(one.clip, "see", see)
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
    plain = one.clip.see

    def see(given: Media) -> torch.Tensor:
        seen = plain(given)
        seen[2] = torch.nan
        return seen

    clean = one(prompts(8), media.select([0, 1, 3, 4, 5, 6, 7, 8])).total
    monkeypatch.setattr(one.clip, "see", see)
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


def test_exemplars_are_read_in_every_form(room: Path, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": f"p{k}", "image": str(room / "shown" / f"{k:02}.png")}) + "\n" for k in range(3))
    )
    both = read_exemplars(str(tmp_path / "rows.jsonl"))
    assert (len(both.pictures), both.texts) == (3, ("p0", "p1", "p2"))
    assert len(read_exemplars(f"{room / 'made.py'}:shown").pictures) == 8
    assert len(read_exemplars(str(room / "shown")).pictures) == 40
    assert read_exemplars(str(room / "shown")).digest == read_exemplars(str(room / "shown")).digest


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
