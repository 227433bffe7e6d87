"""Measures of rewards against loops, scipy, the reference formula, and what they must not depend on."""

import math
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import kendalltau

from genalign.reward.fit import measures


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


H = np.array([1.0, 0.0, 0.5, 1.0, 0.0] * 8)
DELTA = np.round(draw(0, 40) + (H - 0.5), 1)  # with ties, and zeros


def test_accuracy_counts_a_predicted_tie_as_wrong():
    assert measures.accuracy(np.array([1.0, 0.0, 1.0, 0.5]), np.array([2.0, 1.0, 0.0, 9.0])) == pytest.approx(1 / 3)
    assert math.isnan(measures.accuracy(np.array([0.5]), np.array([1.0])))


def test_accuracy_with_ties_is_the_best_of_all_thresholds():
    best = max(
        np.mean(
            [
                (abs(d) <= eps) if h == 0.5 else (abs(d) > eps and (d > 0) == (h == 1))
                for h, d in zip(H, DELTA, strict=True)
            ]
        )
        for eps in [-1.0, *np.abs(DELTA)]
    )
    value, eps = measures.accuracy_with_ties(H, DELTA)
    assert value == pytest.approx(best)
    again = [
        (abs(d) <= eps) if h == 0.5 else (abs(d) > eps and (d > 0) == (h == 1)) for h, d in zip(H, DELTA, strict=True)
    ]
    assert np.mean(again) == pytest.approx(best)
    assert measures.accuracy_with_ties(np.array([1.0, 0.0]), np.array([1.0, -1.0])) == (1.0, -1.0)


def test_a_calibrated_reward_has_no_error_and_an_overconfident_one_has():
    delta = 2 * draw(1, 200_000)
    h = (np.random.default_rng(2).random(200_000) < 1 / (1 + np.exp(-delta))).astype(float)
    ece, brier = measures.calibration(h, delta)
    assert ece < 0.005
    assert brier == pytest.approx(float(np.mean(1 / (1 + np.exp(-delta)) * 1 / (1 + np.exp(delta)))), abs=0.003)
    assert measures.calibration(h, 4 * delta)[0] > 0.1
    assert measures.temperature(h, 4 * delta) == pytest.approx(4, rel=0.03)
    turned = np.where(np.random.default_rng(3).random(200_000) < 0.2, 1 - h, h)
    assert measures.temperature(turned, 4 * delta) > 6  # wrong verdicts make a reward look too sure
    assert measures.temperature(turned, 4 * delta, wrong=0.2) == pytest.approx(4, rel=0.05)
    assert measures.calibration(1 - h, -delta) == pytest.approx((ece, brier))  # the order of a pair is nothing


def test_ece_in_a_loop():
    delta, h = draw(3, 60), (draw(4, 60) > 0).astype(float)
    total = 0.0
    sure = [(1 / (1 + math.exp(-abs(d))), v if d >= 0 else 1 - v) for d, v in zip(delta, h, strict=True)]
    for i in range(10):
        inside = [(c, right) for c, right in sure if 0.5 + i / 20 <= c < 0.5 + (i + 1) / 20]
        if inside:
            total += abs(sum(right for _, right in inside) - sum(c for c, _ in inside)) / 60
    assert measures.calibration(h, delta)[0] == pytest.approx(total)


def test_kendall_over_all_pairs_is_scipys():
    x, y = draw(5, 12), draw(6, 12)
    pairs = list(combinations(range(12), 2))
    h = np.array([float(x[i] > x[j]) for i, j in pairs])
    delta = np.array([y[i] - y[j] for i, j in pairs])
    assert measures.kendall(h, delta) == pytest.approx(kendalltau(x, y).statistic)


def test_length_bias_is_a_correlation():
    longer = draw(7, 50)
    assert measures.length_bias(3 * longer, longer) == pytest.approx(1)
    assert abs(measures.length_bias(draw(8, 50_000), draw(9, 50_000))) < 0.02
    assert math.isnan(measures.length_bias(np.zeros(5), longer[:5]))


def test_best_of_n_is_the_mean_over_all_draws():
    proxy = [np.array([0.3, 0.1, 0.3, 0.9, -1.0]), np.array([1.0, 2.0, 3.0])]
    gold = [draw(10, 5), draw(11, 3)]
    curve = measures.best_of_n(proxy, gold, [1, 2, 3, 4, 8])
    assert list(curve) == [1, 2, 3, 4]
    for n, value in curve.items():
        means = []
        for p, g in zip(proxy, gold, strict=True):
            drawn = [np.array(rows) for rows in combinations(range(len(p)), n)]
            if drawn:
                means.append(np.mean([g[rows][p[rows] == p[rows].max()].mean() for rows in drawn]))
        assert value == pytest.approx(np.mean(means))
    assert measures.divergence(1) == 0
    assert measures.divergence(4) == pytest.approx(math.log(4) - 0.75)


def test_a_hacked_proxy_shows_in_the_curve():
    """Gold falls beyond a proxy of 1: best of many is worse than best of few."""
    groups = [draw(seed, 64) for seed in range(200)]
    curve = measures.best_of_n(groups, [-np.abs(g - 1) for g in groups], [1, 4, 64])
    assert curve[4] > curve[1]
    assert curve[4] > curve[64]


def test_starc_sees_choices_alone():
    """Invariant 28."""
    a, b, c = (draw(seed, 30) for seed in (1, 2, 3))
    group = np.arange(30) // 5
    bonus = draw(4, 6)[group]
    assert measures.starc(a, 3 * a + bonus, group) == pytest.approx(0, abs=1e-7)
    assert measures.starc(a, -a, group) == pytest.approx(2)
    assert measures.starc(a, b, group) == pytest.approx(measures.starc(b, a, group))
    assert measures.starc(a, c, group) <= measures.starc(a, b, group) + measures.starc(b, c, group)
    centred = [np.concatenate([x[group == g] - x[group == g].mean() for g in range(6)]) for x in (a, b)]
    rho = np.corrcoef(*centred)[0, 1]
    assert measures.starc(a, b, group) == pytest.approx(math.sqrt(2 - 2 * rho))
    assert measures.starc(a, bonus, group) == pytest.approx(1)
    assert measures.starc(bonus, 2 * bonus, group) == 0


def reference_ties(rows: dict[str, tuple[list[float], int]]) -> float:
    """RewardBench 2's own definition, prompt by prompt."""
    ref = {k[4:]: v for k, v in rows.items() if k.startswith("ref")}
    tied = {k[5:]: v for k, v in rows.items() if k.startswith("tied")}

    def stats(scores, right):
        good, bad = scores[:right], scores[right:]
        return min(good) > max(bad), max(good) - min(good), min(good) - max(bad)

    of_ref, of_tied = ({k: stats(*v) for k, v in kind.items()} for kind in (ref, tied))
    easy = [of_tied[k][2] > of_tied[k][1] for k in of_ref]
    hard = [min(of_ref[k][2], of_tied[k][2]) > of_tied[k][1] for k in of_ref]
    soft = [math.tanh(min(of_ref[k][2], of_tied[k][2]) / of_tied[k][1] - 1) for k in of_ref]
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    accurate = 0.3 * mean([s[0] for s in of_tied.values()]) + 0.3 * mean([s[0] for s in of_ref.values()])
    return accurate + 0.2 * mean(easy) + 0.2 * mean(hard) + 0.01 * mean(soft)


def test_ties_of_reward_bench_2():
    rng, rows = np.random.default_rng(0), {}
    for n in range(12):
        rows[f"ref:{n}"] = (np.add(rng.normal(size=4), [2, 0, 0, 0]).tolist(), 1)
        rows[f"tied:{n}"] = (np.add(rng.normal(size=6), [2, 2, 2, 0, 0, 0]).tolist(), 3)
    assert measures.ties_score({k: (np.array(v), n) for k, (v, n) in rows.items()}) == pytest.approx(
        reference_ties(rows)
    )
    perfect = {"ref:0": (np.array([9.0, 0]), 1), "tied:0": (np.array([9.0, 8.9, 0]), 2)}
    assert measures.ties_score(perfect) == pytest.approx(1.01, abs=1e-6)


def test_top_one_shares_a_tie():
    assert measures.top_one(np.array([2.0, 1, 0, 0]), 1) == 1
    assert measures.top_one(np.array([2.0, 2, 0, 2]), 1) == pytest.approx(1 / 3)
    assert measures.top_one(np.array([1.0, 2, 0, 0]), 1) == 0
