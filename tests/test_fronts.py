"""Which spread of scores is signal and which is rounding: a constant offset switches no learning off.

Scores are fp32. Multiples of 2^-6 about 1500 are exact there, so that what an offset changes can be compared to the bit
of the fp64 statistics; the offset is 10^5 times the spread.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from genalign.fronts import RELATIVE_FLOOR
from genalign.method.distributional import halves
from genalign.method.groups import consistency_blend, difficulty_scale
from genalign.method.losses import advantages, all_pairs, best_worst_pairs, regression_weights
from genalign.method.pareto import among_siblings
from genalign.types import Scores
from tests.helpers.toy_policy import make_scores

GROUP = torch.arange(3).repeat_interleave(4)
OFFSET = 1500.0
STEPS = torch.tensor([0.0, 1, 3, 2, 5, 5, 1, 0, 2, 4, 4, 7]) / 64
ULP = torch.finfo(torch.float32).eps


def scored(values: Tensor) -> Scores:
    return make_scores(values[:, None])


USES: dict[str, Callable[[Scores], Tensor]] = {
    "advantages": lambda scores: advantages(scores, GROUP)[0],
    "advantages, aspect by aspect": lambda scores: advantages(scores, GROUP, "normalise_then_sum")[0],
    "advantages, not scaled": lambda scores: advantages(scores, GROUP, std="none")[0],
    "regression weights": lambda scores: regression_weights(scores, GROUP, 0.05)[0],
    "best and worst": lambda scores: best_worst_pairs(scores, GROUP),
    "all pairs": lambda scores: all_pairs(scores, GROUP),
    "halves": lambda scores: halves(scores, GROUP),
    "among siblings": lambda scores: among_siblings(scores.total.double(), GROUP),
    "standing of groups": lambda scores: consistency_blend(
        torch.zeros(12), torch.zeros(12, dtype=torch.bool), scores, GROUP, threshold=0.9
    )[0],
    "difficulty": lambda scores: difficulty_scale(scores, GROUP) - 1,
}


@pytest.mark.parametrize("use", USES)
def test_an_offset_changes_nothing(use: str) -> None:
    plain, shifted = USES[use](scored(STEPS)), USES[use](scored(OFFSET + STEPS))
    assert plain.abs().sum() > 0.1
    torch.testing.assert_close(shifted, plain, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("level", [OFFSET, 0.1, -3.3e-5])
def test_what_a_kernel_leaves_between_equal_samples_teaches_nothing(use: str, level: float) -> None:
    noise = torch.tensor([0.0, 1, 2, 0, 3, 1, 0, 2, 0, 0, 1, 3]) * ULP
    assert not USES[use](scored(level * (1 + noise))).any()


def test_the_floor_is_eight_units_in_the_last_place() -> None:
    assert RELATIVE_FLOOR == 2**-20
    values = torch.tensor([1.0, 1 + 2**-18, 1.0, 1 + 2**-18] * 3)
    assert advantages(scored(values), GROUP)[1].all()


@pytest.mark.parametrize(
    ("scores", "pairs"),
    [
        ([0.9, 0.90008, 0.1], 2),  # 0.9 and 0.90008 are closer than 1e-4 of themselves
        ([0.9, 0.9002, 0.1], 3),
        ([-0.9, -0.90008, -0.1], 2),
        ([0.90, 0.90008], 1),  # a group whose whole span is that small: an offset
        ([0.90, 0.90008, 0.900081], 2),  # a tenth of the span
        ([1.0, 1 + 2**-21], 0),  # nothing that fp32 can carry
        ([0.0, 1e-30], 1),
        ([0.0, 0.0], 0),
    ],
)
def test_near_ties_give_no_pair(scores: list[float], pairs: int) -> None:
    group = torch.zeros(len(scores), dtype=torch.long)
    assert len(all_pairs(scored(torch.tensor(scores)), group)) == pairs


def test_an_unreadable_sibling_widens_no_span() -> None:
    values, valid = torch.tensor([0.90, 0.90008, 100.0])[:, None], torch.tensor([True, True, False])[:, None]
    assert len(all_pairs(make_scores(values, valid), torch.zeros(3, dtype=torch.long))) == 1


def test_an_offset_learns_as_trl_does() -> None:
    """TRL's own lines, cut out of its rollout. It divides by std + 1e-4, here about 1% more, and sums in fp32."""
    grpo = pytest.importorskip("trl.trainer.grpo_trainer")
    source = textwrap.dedent(inspect.getsource(grpo.GRPOTrainer._generate_and_score_completions))
    start, end = source.find("unscorable_mask ="), source.find("# Slice to keep only the local part")
    if min(start, end) < 0:
        pytest.skip("this TRL keeps its advantages elsewhere")
    values = OFFSET + 0.01 * torch.randn(12, generator=torch.Generator().manual_seed(0))
    trl = SimpleNamespace(
        multi_objective_aggregation="sum_then_normalize",
        scale_rewards="group",
        reward_weights=torch.tensor([1.0]),
        reward_funcs=[None],
    )
    names = {"self": trl, "rewards_per_func": values[:, None], "num_generations": 4, "device": "cpu", "mode": "train"}
    exec(textwrap.dedent("    " + source[start:end]), vars(grpo) | names, names)
    advantage, counted, log = advantages(scored(values), GROUP)
    assert counted.all()
    assert log["frac_reward_zero_std"] == 0.0
    torch.testing.assert_close(advantage, names["advantages"].float(), rtol=0.04, atol=0.02)
    own = values.double().view(3, 4)  # and the closed form in fp64, of the scores as fp32 holds them
    exact = (own - own.mean(1, keepdim=True)) / own.std(1, keepdim=True)
    torch.testing.assert_close(advantage, exact.flatten().float(), rtol=1e-5, atol=1e-6)
