"""Evaluation against values that are known because policy and rewards are arithmetic."""

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from genalign.evaluation.evaluate import evaluate, print_table
from genalign.evaluation.intervals import compare, win_rate
from genalign.evaluation.settings import EvalSettings
from genalign.ranks import leave
from genalign.types import Prompt, Scores, UsageError, sample_seed
from tests.helpers.forked import run_ranks
from tests.helpers.level import Level
from tests.helpers.painter import GAIN, PROMPTS, SCALES, Painter


def run(
    out, policy=None, rewards=(), held_out=(), seeds=(0,), count=7, batch_size=3, base_cache=None, learnt=0, **more
):
    settings = EvalSettings(
        prompts="x", seeds=list(seeds), guidance=SCALES, count=count, batch_size=batch_size, steps=4,
        base_cache=base_cache, training_prompts=learnt,
    )  # fmt: skip
    return evaluate(policy or Painter(), PROMPTS, rewards, held_out, settings, out, **more)


def test_a_reward_that_looks_at_the_batch_sees_all_prompts_at_once(tmp_path):
    whole, plain = Level("whole", looks_at="batch"), Level()
    result = run(tmp_path / "whole", rewards=[whole], seeds=(0, 1))
    assert whole.rows == [14] * 6  # three scales, before and after
    run(tmp_path / "plain", rewards=[plain], seeds=(0, 1))
    assert plain.rows == [6, 6, 2] * 6
    assert result["metrics"]["whole/grey"]["before"] > 0


def test_training_prompts_are_scored_by_the_training_reward_at_the_first_scale(tmp_path):
    training = [Prompt(f"learnt {i}", uid=100 + i) for i in range(9)]
    cache = str(tmp_path / "base.safetensors")
    policy = Painter()
    options = {
        "rewards": [Level("own"), Level("more")],
        "held_out": [Level()],
        "base_cache": cache,
        "training": training,
    }
    result = run(tmp_path, policy, learnt=5, **options)
    learnt = {sample_seed(0, prompt.uid, 0) for prompt in training[:5]}
    asked = [(which, scale) for which, scale, _, seeds in policy.asked if learnt & set(seeds)]
    assert set(asked) == {("reference", SCALES[0]), ("policy", SCALES[0])}
    row, judged = (result["metrics"][f"{name} on 5 training prompts"] for name in ("own/total", "level/grey"))
    gain = GAIN["policy"][SCALES[0]] - GAIN["reference"][SCALES[0]]
    assert row["delta"] == pytest.approx(gain * (3 * (1 + 3) + 2 * (1 + 2 + 3)) / 5, abs=1e-5)  # "odd" sees two of five
    assert judged["delta"] == pytest.approx(gain, abs=1e-6)
    assert (row["held_out"], judged["held_out"]) == (False, True)
    assert run(tmp_path, learnt=5, **options) == result  # both bases from their caches
    assert not [name for name in run(tmp_path, **options)["metrics"] if "training prompts" in name]


def test_values_sweep_and_best_scale(tmp_path):
    result = run(tmp_path, held_out=[Level()])
    assert result == json.loads((tmp_path / "eval.json").read_text())
    noise = np.mean([(s % 1000) / 1e5 for s in run_seeds(Painter(), tmp_path)])
    metric = result["metrics"]["level/grey"]
    assert metric["before"] == pytest.approx(0.03 + 0.3 + noise, abs=1e-6)  # best of the base: scale 2
    assert metric["after"] == pytest.approx(0.03 + 0.5 + noise, abs=1e-6)  # best of the tuned: scale 1
    assert metric["delta"] == pytest.approx(0.2, abs=1e-6)
    assert metric["ci95"] == pytest.approx([0.2, 0.2], abs=1e-6)  # every prompt gains the same: no spread
    assert (metric["wins"], metric["wins95"]) == (1.0, [1.0, 1.0])
    assert metric["held_out"] is True
    assert result["sweep"]["before"]["best"] == 2.0
    assert result["sweep"]["after"]["best"] == 1.0
    row = [0.03 + noise + GAIN["reference"][scale] for scale in SCALES]
    assert result["sweep"]["before"]["metrics"]["level/grey"] == pytest.approx(row, abs=1e-6)


def run_seeds(policy, out):
    run(out, policy, held_out=[Level()])
    return [seed for which, scale, _, seeds in policy.asked if which == "policy" and scale == 1.0 for seed in seeds]


def test_abstaining_and_failed_rows_are_left_out_and_never_zero(tmp_path):
    result = run(tmp_path, held_out=[Level()])
    grey, odd, broken = (result["metrics"][f"level/{name}"] for name in Level.aspects)
    odd_mean = np.mean([1, 3, 5]) / 100 + 0.5
    assert odd["after"] == pytest.approx(2 * odd_mean, abs=0.02 + 1e-6)
    assert broken["after"] == pytest.approx(3 * (np.mean([0, 1, 2, 4, 5, 6]) / 100 + 0.5), abs=0.03 + 1e-6)
    assert broken["delta"] == pytest.approx(3 * grey["delta"], abs=1e-5)
    assert result["sweep"]["after"]["failed"] == {"level/grey": 0, "level/odd": 0, "level/broken": len(SCALES)}


def test_same_seeds_steps_and_weights_before_and_after(tmp_path):
    policy = Painter()
    run(tmp_path, policy, held_out=[Level()], tuned="ema", seeds=(0, 5))
    asked = {which: [call[1:] for call in policy.asked if call[0] == which] for which in ("reference", "ema", "policy")}
    assert asked["reference"] == asked["ema"]
    assert not asked["policy"]
    assert {steps for _, steps, _ in asked["ema"]} == {4}
    assert (
        len({seed for _, _, seeds in asked["ema"] for seed in seeds}) == 14
    )  # 7 prompts, 2 seeds, shared by all scales


def test_training_rewards_are_marked_and_have_a_total(tmp_path):
    result = run(tmp_path, rewards=[Level("train")], held_out=[Level("judge")])
    assert result["metrics"]["train/total"]["held_out"] is False
    assert result["metrics"]["train/grey"]["held_out"] is False
    assert "judge/total" not in result["metrics"]
    assert result["sweep"]["headline"] == "judge/grey"


def test_several_judges_are_held_out_and_the_first_one_leads(tmp_path):
    result = run(tmp_path, rewards=[Level("own")], held_out=[Level("first"), Level("second")])
    assert result["sweep"]["headline"] == "first/grey"
    assert result["metrics"]["second/grey"] == result["metrics"]["first/grey"]
    marked = [name for name, metric in result["metrics"].items() if metric["held_out"]]
    assert marked == [f"{judge}/{aspect}" for judge in ("first", "second") for aspect in Level.aspects]
    assert {part["metric"] for part in result["judged"]["aspects"].values()} == {"first/odd", "first/broken"}
    assert result["judged"]["by"] == "value"
    with pytest.raises(UsageError, match=r"eval\.rewards or from eval\.held_out"):
        run(tmp_path, held_out=[Level(), Level()])


def test_one_guidance_scale_is_one_pass(tmp_path, capsys):
    policy, judge = Painter(), Level()
    settings = EvalSettings(prompts="x", count=7, guidance=[2.0], steps=4)
    result = evaluate(policy, PROMPTS, [], [judge], settings, tmp_path)
    assert [(which, scale) for which, scale, _, _ in policy.asked] == [("reference", 2.0), ("policy", 2.0)]
    assert judge.rows == [7, 7]
    print_table(result)
    said = " ".join(capsys.readouterr().out.split())
    assert "7 prompts, seeds 0; guidance 2 " in said
    assert "best" not in said


@pytest.mark.parametrize(
    ("needs", "levels", "unit"),
    [
        ({"image", "facts.objects"}, [0, 1, 1], "follows"),
        ({"image", "prompt"}, [0, 1, 0], "follows"),
        ({"image"}, [0, 1, 1], "passes"),
        ({"image", "prompt"}, [0, 1, 0.5], "value"),
    ],
)
def test_what_a_headline_counts(tmp_path, needs, levels, unit):
    class Verdicts(Level):
        """One aspect, with given values; the fourth prompt is abstained on."""

        aspects = ("verdict",)

        def __call__(self, prompts, media, group=None):
            values = torch.tensor([float([*levels, 7][p.uid % 4]) for p in prompts])[:, None]
            valid = torch.tensor([p.uid % 4 < 3 for p in prompts])[:, None]
            return Scores(("verdict",), values, valid, ~valid & False, values[:, 0], valid[:, 0], torch.ones(1))

    judge = Verdicts("judge", ("verdict",), needs=frozenset(needs))
    assert run(tmp_path, held_out=[judge])["judged"]["by"] == unit


def test_words_of_the_facts_have_their_own_rows(tmp_path):
    """`odd` is stated as a fact by odd prompts; its words are compared at the scales that the headline chose."""
    prompts = [replace(p, facts={"odd": ["x", "low" if p.uid < 4 else "high"]}) for p in PROMPTS]
    settings = EvalSettings(prompts="x", count=7, guidance=SCALES, steps=4)
    result = evaluate(Painter(), prompts, [], [Level()], settings, tmp_path)
    words = result["judged"]["aspects"]["odd"]["words"]
    assert set(words) == {"x", "low", "high"}
    odd = result["metrics"]["level/odd"]
    assert words["x"] == {key: odd[key] for key in ("before", "after", "delta", "ci95")}
    assert (2 * words["low"]["before"] + words["high"]["before"]) / 3 == pytest.approx(odd["before"])  # 1, 3; 5


def test_an_aspect_called_like_its_reward_is_named_once(tmp_path):
    result = run(tmp_path, rewards=[Level("grey")])
    assert set(result["metrics"]) == {"grey", "grey/odd", "grey/broken", "grey/total"}


def test_batch_size_changes_nothing(tmp_path):
    assert run(tmp_path, held_out=[Level()], batch_size=1) == run(tmp_path, held_out=[Level()], batch_size=64)


def test_count_takes_the_first_prompts(tmp_path):
    assert run(tmp_path, held_out=[Level()], count=3)["prompts"] == 3


def test_language_policy_has_one_entry_without_guidance(tmp_path):
    policy = Painter(modalities=frozenset({"text"}))
    result = run(tmp_path, policy, held_out=[Level()])
    assert result["sweep"]["guidance"] == [None]
    assert {(scale, steps) for _, scale, steps, _ in policy.asked} == {(None, None)}
    assert result["metrics"]["level/grey"]["delta"] == pytest.approx(0.4, abs=2e-5)


def test_base_cache_spares_the_base_and_notices_another_model(tmp_path, monkeypatch):
    cache = str(tmp_path / "base.safetensors")
    first = run(tmp_path, held_out=[Level()], base_cache=cache)
    again = Painter()
    assert run(tmp_path, again, held_out=[Level()], base_cache=cache) == first
    assert [call[0] for call in again.asked].count("reference") == 1  # only the sample that identifies the model
    monkeypatch.setitem(GAIN, "reference", {scale: value - 0.05 for scale, value in GAIN["reference"].items()})
    other = run(tmp_path, held_out=[Level()], base_cache=cache)
    assert other["metrics"]["level/grey"]["delta"] == pytest.approx(0.25, abs=1e-6)


def test_interval_is_the_bootstrap_of_the_mean():
    rng = np.random.default_rng(1)
    before = rng.normal(0.3, 1.0, 400)
    after = before + rng.normal(0.1, 0.5, 400)
    compared = compare(before, after)
    oracle = stats.bootstrap((after - before,), np.mean, n_resamples=9999, method="percentile", rng=rng)
    assert compared["ci95"] == pytest.approx(list(oracle.confidence_interval), abs=0.006)
    assert compared == compare(before, after)
    unpaired = stats.bootstrap((after,), np.mean, n_resamples=999, method="percentile", rng=rng).confidence_interval
    assert unpaired.high - unpaired.low > 1.5 * (compared["ci95"][1] - compared["ci95"][0])


def test_a_win_rate_counts_ties_half_and_has_the_bootstrap_of_a_share():
    """By hand: two won, one tied, one lost, one not to be compared; and scipy's bootstrap of the wins alone."""
    won = win_rate(np.array([0.0, 1, 5, 2, np.nan]), np.array([1.0, 3, 5, 1, 0]))
    assert won is not None
    assert won["wins"] == (1 + 1 + 0.5 + 0) / 4
    rng = np.random.default_rng(2)
    before = rng.normal(0.3, 1.0, 400)
    after = before + rng.normal(0.1, 0.5, 400)
    found = win_rate(before, after)
    share = (after > before).astype(float)
    oracle = stats.bootstrap((share,), np.mean, n_resamples=9999, method="percentile", rng=rng).confidence_interval
    assert found["wins"] == share.mean()
    assert found["wins95"] == pytest.approx(list(oracle), abs=0.006)
    assert win_rate(after, before)["wins"] == pytest.approx(1 - found["wins"])


def test_interval_needs_a_pair():
    assert compare(np.array([np.nan, 1.0]), np.array([1.0, np.inf])) is None
    assert win_rate(np.array([np.nan, 1.0]), np.array([1.0, np.inf])) is None


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ({}, "nothing to evaluate with"),
        ({"rewards": [Level()], "held_out": [Level()]}, "level/grey"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, arguments, culprit):
    with pytest.raises(UsageError, match=culprit):
        run(tmp_path, **arguments)


def _one_of_two(index: int, port: int, out: str) -> None:
    os.environ |= {"RANK": str(index), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo")
    run(Path(out) / f"rank{index}", held_out=[Level()], seeds=(0, 1))
    torch.distributed.destroy_process_group()
    leave(0)


def test_two_ranks_share_the_work_and_rank_0_writes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_ranks(_one_of_two, (port, str(tmp_path)), 2)
    written = json.loads((tmp_path / "rank0" / "eval.json").read_text())
    assert written == run(tmp_path / "alone", held_out=[Level()], seeds=(0, 1))
    assert not (tmp_path / "rank1").exists()
