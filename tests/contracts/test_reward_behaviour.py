"""What combinators are for, on toys of one line: each against the plain form that it is to be better than."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from genalign.method.losses import advantages
from genalign.reward import Constraint, Ensemble, FunctionReward, Gate, Product, Sum
from genalign.types import Media, Prompt, Reward, Track

ARMS = torch.linspace(0, 6, 61)
PULLS = 48


def arm(score: Tensor, name: str) -> FunctionReward:
    """A reward of the arm that was pulled, whose number is the text."""
    return FunctionReward(lambda text: score[[int(t) for t in text]], name=name)


def train(
    reward: Reward, rule: str = "sum_then_normalise", steps: int = 120, rate: float = 0.4, seed: int = 0
) -> float:
    """Policy gradient on a softmax over arms; the mean arm in the end."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.zeros(len(ARMS))
    group = torch.zeros(PULLS, dtype=torch.long)
    for step in range(steps):
        chances = logits.softmax(0)
        pulled = torch.multinomial(chances, PULLS, replacement=True, generator=generator)
        scores = reward([Prompt("pull")] * PULLS, Media(text=Track([str(int(i)) for i in pulled])), group)
        advantage, _, _ = advantages(scores, group, rule)  # type: ignore[arg-type]
        gradient = torch.zeros_like(logits).index_add(0, pulled, advantage) - advantage.sum() * chances
        logits = logits + rate * gradient / math.sqrt(PULLS)
        reward.update(scores, step)
    return float(logits.softmax(0) @ ARMS)


def test_a_constraint_stops_at_its_proxy_point_where_fixed_weights_do_not() -> None:
    """The truth peaks where the proxy is 3; the task (what the KL does in the paper) pulls to 1, the proxy goes on."""
    task, proxy = arm(-((ARMS - 1) ** 2), "task"), arm(ARMS, "proxy")
    held = Constraint(proxy, at_least=3.0, rate=0.2, squash="clamp", name="held")
    assert abs(train(Sum([task, held]), "lagrangian") - 3.0) < 0.6
    assert train(Sum([(task, 0.02), proxy])) > 5.0
    assert train(Sum([task, (proxy, 0.02)])) < 1.5


def test_a_gate_finds_the_outcome_where_a_sum_finds_the_exploit() -> None:
    """Arms above 5 reach the outcome; below, a dense reward of twice the size pays for staying away from it."""
    outcome, dense = arm((ARMS > 5).float(), "outcome"), arm(2 * (1 - ARMS / 6), "dense")
    assert train(Sum([outcome, dense])) < 1.0
    assert train(Gate(outcome, dense)) > 5.0


def test_a_product_cannot_be_maximised_without_its_main_score() -> None:
    progress, calm = arm(ARMS / 6, "progress"), arm(1 - 0.1 * ARMS, "calm")
    assert train(Sum([progress, (calm, 3.0)])) < 1.0
    assert train(Product(progress, calm)) > 4.0  # the maximum of x/6 (1 - 0.1 x) lies at 5


def test_cautious_ensembles_withstand_best_of_n() -> None:
    """Five members with rare heavy-tailed errors of their own: what the best of 1,024 by each is really worth."""
    rng = np.random.default_rng(0)
    runs, count = 16, 1024
    gold = torch.from_numpy(rng.normal(size=(runs, count))).float()
    error = torch.from_numpy(rng.normal(size=(5, runs, count)) * 0.3).float()
    rare = torch.from_numpy(rng.random((5, runs, count)) < 0.01)
    judged = gold + error + rare * torch.from_numpy(np.abs(rng.standard_t(2, (5, runs, count))) * 3).float()
    members = [FunctionReward(lambda media, k=k: judged[k].flatten(), name=f"m{k}") for k in range(5)]
    prompts, media = [Prompt("x")] * (runs * count), Media(text=Track(["x"] * (runs * count)))
    worth = {}
    for risk in ("mean", "min", "uwo", "entropic"):
        chosen = Ensemble(members, risk, beta=0.1)(prompts, media).total.view(runs, count).argmax(1)  # type: ignore[arg-type]
        worth[risk] = gold[torch.arange(runs), chosen].mean().item()
    single = gold[torch.arange(runs), judged[0].argmax(1)].mean().item()
    assert all(worth[risk] > max(single, worth["mean"]) + 0.5 for risk in ("min", "uwo", "entropic"))
