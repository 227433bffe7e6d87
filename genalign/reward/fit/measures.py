"""How good a reward is: numbers about scores and verdicts, numpy in and floats out.

h (N,) in [0,1]: the verdicts, 1 where a is better, 0 where b is, 1/2 for a tie. delta (N,): the reward's r(a) - r(b).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

NOTHING = float("nan")
Array = np.ndarray


def accuracy(h: Array, delta: Array) -> float:
    """Share of untied verdicts that the reward shares; its own ties count as wrong (as ImageReward and HPSv2 count)."""
    lead = np.sign(h - 0.5)
    untied = lead != 0
    return float((lead * delta > 0)[untied].mean()) if untied.any() else NOTHING


def accuracy_with_ties(h: Array, delta: Array) -> tuple[float, float]:
    """(accuracy, eps): the best share of all verdicts, ties included, where |delta| <= eps is called a tie.

    (Tie calibration, Deutsch et al., arXiv 2305.14324; O(N log N).) eps is chosen on the data themselves: report it.
    """
    if not len(h):
        return NOTHING, NOTHING
    lead, size = np.sign(h - 0.5), np.abs(delta)
    # From eps below every |delta| upwards: each pair that becomes a tie gains or loses one, so one pass over the
    # sorted sizes counts what is right at every eps.
    order = np.argsort(size, kind="stable")
    gained = np.where(lead == 0, 1, -(lead * delta > 0).astype(int))[order]  # by calling one more pair a tie
    right = int(((lead * delta > 0) & (lead != 0)).sum()) + np.concatenate([[0], gained.cumsum()])
    last = np.concatenate([[True], np.diff(size[order]) > 0, [True]])  # equal |delta| become ties together
    right = np.where(last, right, -1)
    best = int(right.argmax())
    return float(right[best] / len(h)), float(size[order][best - 1]) if best else -1.0


def calibration(h: Array, delta: Array, bins: int = 10) -> tuple[float, float]:
    """(ECE, Brier score) of s(delta) as the probability that a is better; tied verdicts count as 1/2.

    Each pair is turned so that the reward prefers its first, so that its confidence lies in [1/2,1]; ECE is the
    mean over equally wide bins of |share right - mean confidence|, by their number (Guo et al., arXiv 1706.04599).
    """
    if not len(h):
        return NOTHING, NOTHING
    p = _sigmoid(delta)
    confidence, right = np.maximum(p, 1 - p), np.where(p >= 0.5, h, 1 - h)
    which = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    error = sum(abs((right - confidence)[which == i].sum()) for i in range(bins)) / len(h)
    return float(error), float(np.square(p - h).mean())


def temperature(h: Array, delta: Array, wrong: float = 0.0) -> float:
    """T > 0 at which s(delta / T) is most likely: what a reward's differences must be divided by to be logits.

    wrong: the share of verdicts, below 1/2, that are thought to be the opposite of what was meant.
    """
    from scipy.optimize import minimize_scalar

    if not np.any(delta):
        return NOTHING

    def loss(log_t: float) -> float:
        p = wrong + (1 - 2 * wrong) * _sigmoid(delta / np.exp(log_t))
        q = wrong + (1 - 2 * wrong) * _sigmoid(-delta / np.exp(log_t))
        return -float((h * np.log(p.clip(1e-300)) + (1 - h) * np.log(q.clip(1e-300))).mean())

    middle = float(np.log(np.abs(delta).mean()))
    return float(np.exp(minimize_scalar(loss, bounds=(middle - 8, middle + 8), method="bounded").x))


def kendall(h: Array, delta: Array) -> float:
    """Kendall's tau-a over the pairs: (agreed - contradicted) / all."""
    return float((np.sign(h - 0.5) * np.sign(delta)).mean()) if len(h) else NOTHING


def length_bias(delta: Array, longer: Array) -> float:
    """Correlation of the reward's lead with the lead in length (N,); 0 for one that does not depend on it."""
    if len(delta) < 2 or not delta.std() or not longer.std():
        return NOTHING
    return float(np.corrcoef(delta, longer)[0, 1])


def best_of_n(proxy: Sequence[Array], gold: Sequence[Array], sizes: Sequence[int]) -> dict[int, float]:
    """n -> the expected gold score of the best of n by the proxy, mean over groups (exact, without replacement).

    proxy, gold: a score array a group. Of a group's m samples sorted by the proxy, the k-th (from 0) is the best of n
    drawn ones with probability C(k, n - 1) / C(m, n); tied ones share theirs. Groups with fewer than n are left out.
    """
    curve = {}
    for n in sizes:
        means = [float(_chances(p, n) @ g) for p, g in zip(proxy, gold, strict=True) if len(p) >= n]
        if means:
            curve[n] = float(np.mean(means))
    return curve


def _chances(proxy: Array, n: int) -> Array:
    from scipy.special import comb

    count = len(proxy)
    # Of equal scores: any of them is best of n where the draw holds one of them and nothing above; they share that.
    below = np.array([(proxy < value).sum() for value in proxy])
    level = np.array([(proxy == value).sum() for value in proxy])
    return (comb(below + level, n) - comb(below, n)) / level / comb(count, n)


def divergence(n: int) -> float:
    """KL of best of n to its base, in nats: log n - (n - 1) / n (an upper bound where scores tie)."""
    return float(np.log(n) - (n - 1) / n)


def starc(first: Array, second: Array, group: Array) -> float:
    """Distance of two rewards over the same rows (N,), in [0,2]: STARC (arXiv 2309.15257) of one-step problems.

    Both are centred within each group (a bonus for the prompt changes no choice) and scaled to length 1; the distance
    of what remains is sqrt(2 - 2 rho). 0: same choices and strengths; 2: opposite. A reward without spread has no
    direction: then 0 from another such, else 1, the distance of a unit vector from 0.
    """
    rest = []
    for values in (first, second):
        centred = values.astype(float)
        for name in np.unique(group):
            centred[group == name] -= centred[group == name].mean()
        size = np.linalg.norm(centred)
        rest.append(centred / size if size > 1e-12 * max(1.0, np.abs(values).max()) else 0 * centred)
    return float(np.linalg.norm(rest[0] - rest[1]))


def top_one(scores: Array, right: int) -> float:
    """RewardBench 2 of a prompt whose first `right` samples are right: 1 / tied at the top, if one of them is."""
    top = scores == scores.max()
    return float(top[:right].any() / top.sum())


def ties_score(listed: Mapping[str, tuple[Array, int]]) -> float:
    """RewardBench 2 of its subset Ties (arXiv 2506.01937). listed: id -> (scores, how many of the first are right).

    Ids are `ref:N` (one right answer) and `tied:N` (several). 0.3 accuracy of each kind, 0.2 for tied prompts whose gap
    between right and wrong exceeds the range of the right ones, 0.2 where the lesser gap of the two prompts N does, and
    0.01 tanh(lesser gap / range - 1).
    """
    kinds: dict[str, dict[str, tuple[float, float]]] = {"ref": {}, "tied": {}}
    for name, (scores, right) in listed.items():
        kind, _, number = name.partition(":")
        good, bad = scores[:right], scores[right:]
        kinds[kind][number] = (float(good.max() - good.min()), float(good.min() - bad.max()))  # range, gap
    share: dict[str, float] = {}  # of prompts whose right answers all lie above the wrong ones
    for kind, rows in kinds.items():
        share[kind] = float(np.mean([gap > 0 for _, gap in rows.values()])) if rows else 0.0
    both = sorted(kinds["ref"].keys() & kinds["tied"].keys())
    if not both:
        return NOTHING
    spread = np.array([kinds["tied"][n][0] for n in both])
    gap = np.array([kinds["tied"][n][1] for n in both])
    lesser = np.minimum(gap, np.array([kinds["ref"][n][1] for n in both]))
    with np.errstate(divide="ignore", invalid="ignore"):
        bonus = np.nan_to_num(np.tanh(lesser / spread - 1), nan=0.0)
    margins = 0.2 * (gap > spread).mean() + 0.2 * (lesser > spread).mean() + 0.01 * bonus.mean()
    return float(0.3 * share["tied"] + 0.3 * share["ref"] + margins)


def _sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))
