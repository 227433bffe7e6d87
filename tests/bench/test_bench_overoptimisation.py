"""What wrong labels cost a fitted reward, and how an ensemble delays its over-optimisation by best-of-n.

`python -m tests.bench.test_bench_overoptimisation` prints both tables; about 12 minutes of one core, nearly all of them
spent on drawing the candidates.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genalign import build, load_recipe
from genalign.files.shipped import shipped
from genalign.lab.drawn import heldout_prompts
from genalign.lab.judge import Judge
from genalign.lab.world import caption, change_one_fact, place, render, sample_facts
from genalign.reward.combine.ensemble import least, moments
from genalign.reward.fit.backbones import BackboneSettings, build_backbone
from genalign.reward.fit.measures import best_of_n
from genalign.reward.fit.train import Fit, PreferenceData, compare, fit_head
from genalign.types import Media, Prompt, Track

WRONG = 0.2  # share of the labels that are turned round
MEMBERS, PAIRS_OF_MEMBER = 5, 150
SIZES = (1, 2, 4, 8, 16, 32, 64)


def clip_features(prompts: list[Prompt], images: Tensor) -> Tensor:
    """(B,H) of images (B,3,64,64) and what they were asked to show."""
    backbone = build_backbone(BackboneSettings(kind="clip", model="tiny-clip"), "image", shipped("assets"))
    with torch.no_grad():
        return backbone.features(prompts, Media(image=Track(images)))


def scene_pairs(count: int, split: str, seed: int) -> PreferenceData:
    """Rendered scenes: what the caption says, and the same with one fact changed; the first is preferred."""
    rng, texts, scenes = np.random.default_rng(seed), [], []
    for _ in range(count):
        facts = sample_facts(rng, split)
        texts += [caption(facts, rng)] * 2
        scenes += [render(place(each, rng), rng) for each in (facts, change_one_fact(facts, rng))]
    features = clip_features([Prompt(text) for text in texts], torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2))
    number = torch.arange(count)
    return PreferenceData(features, 2 * number, 2 * number + 1, torch.ones(count), torch.full((count,), -1), number)


def mislabelled(lesson: PreferenceData, seed: int) -> PreferenceData:
    wrong = torch.rand(len(lesson), generator=torch.Generator().manual_seed(seed)) < WRONG
    return replace(lesson, p=torch.where(wrong, 0.0, 1.0))


def plan(seed: int = 0, **votes: Any) -> Fit:
    return Fit.model_validate({"head": {"kind": "mlp"}, "fit": {"steps": 300, "seed": seed}} | votes)


def accuracies(learnt: PreferenceData, exam: PreferenceData, seed: int = 0) -> dict[str, float]:
    """On the exam's pairs, of heads fitted to true labels, to wrong ones, and to wrong ones with votes."""
    noisy = mislabelled(learnt, seed)
    fitted = {
        "true labels": (plan(seed), learnt),
        "20% wrong": (plan(seed), noisy),
        "20% wrong, votes flip": (plan(seed, votes={"how": "flip"}), noisy),
        "20% wrong, votes soften": (plan(seed, votes={"how": "soften"}), noisy),
    }
    return {
        name: float((compare(fit_head(how, lesson), exam) > 0).float().mean()) for name, (how, lesson) in fitted.items()
    }


def members(lesson: PreferenceData, seed: int = 0) -> list[Any]:
    """Heads that each saw their own few pairs, a fifth of them mislabelled; the last one saw the pairs of all."""
    noisy = mislabelled(lesson, seed)
    order = torch.randperm(len(lesson), generator=torch.Generator().manual_seed(seed))[: MEMBERS * PAIRS_OF_MEMBER]
    return [fit_head(plan(m), noisy.select(rows)) for m, rows in enumerate([*order.split(PAIRS_OF_MEMBER), order])]


def curves(told: Tensor, gold: Tensor, sizes: tuple[int, ...] = SIZES) -> dict[str, dict[int, float]]:
    """Expected gold of the best of n by each proxy. told: (M,P,N) of M members; gold: (P,N)."""
    scaled = (told - told.mean((1, 2), keepdim=True)) / told.std((1, 2), keepdim=True)  # members of one scale
    stacked = scaled.permute(1, 2, 0).flatten(0, 1)  # (P N, M)
    heard = torch.ones_like(stacked, dtype=torch.bool)
    mean, variance = moments(stacked, heard)
    proxies = {"mean": mean, "min": least(stacked, heard), "uwo": mean - 0.5 * variance}
    expected = partial(best_of_n, gold=[row.double().numpy() for row in gold], sizes=sizes)
    alone = [expected([row.double().numpy() for row in member]) for member in scaled]
    found = {"one member": {n: float(np.mean([each[n] for each in alone])) for n in sizes}}
    for name, proxy in proxies.items():
        found[f"ensemble, {name}"] = expected([row.double().numpy() for row in proxy.view_as(gold)])
    return found


def candidates(prompts: int, each: int) -> tuple[Tensor, Tensor]:
    """CLIP features (P,N,H) of tiny-flow's samples for held-out prompts, and whether the held-out judge finds all
    facts (P,N)."""
    policy = build(load_recipe("image-d3po")).policy
    features, right, judge = [], [], Judge()
    for k, prompt in enumerate(heldout_prompts(prompts)):
        asked = [prompt] * each
        media = policy.generate(asked, [k * each + n for n in range(each)], guidance=1.0, steps=8)
        images = media["image"].data
        assert isinstance(images, Tensor)
        features.append(clip_features(asked, images))
        right.append(judge(asked, media).values[:, 0])
    return torch.stack(features), torch.stack(right)


@pytest.mark.slow
def test_votes_give_back_what_wrong_labels_take() -> None:
    """What reward/fit/test_train.py has of planted features, of pictures; the accuracy with votes is at least nine
    tenths of what true labels give."""
    found = accuracies(scene_pairs(1500, "train", 0), scene_pairs(400, "heldout", 1))
    assert found["true labels"] > 0.75
    for how in ("flip", "soften"):
        assert found[f"20% wrong, votes {how}"] >= max(0.9 * found["true labels"], found["20% wrong"])


def test_curves_are_those_of_their_definitions() -> None:
    """A proxy that is the gold climbs to its maximum; members that err differently are caught by the worst case."""
    draw = torch.Generator().manual_seed(0)
    gold = (torch.rand(20, 64, generator=draw) < 0.3).float()
    exact = curves(gold.expand(2, -1, -1) + 1e-6 * torch.rand(2, 20, 64, generator=draw), gold)
    assert exact["one member"][64] == 1.0
    assert abs(exact["one member"][1] - float(gold.mean())) < 1e-6
    fooled = gold.repeat(3, 1, 1)
    for member in range(3):  # each adores another few wrong samples
        fooled[member] += 5 * ((torch.rand(20, 64, generator=draw) < 0.03) & (gold == 0)).float()
    told = curves(fooled + 1e-6 * torch.rand(3, 20, 64, generator=draw), gold)
    assert told["ensemble, min"][64] > told["ensemble, mean"][64]
    assert told["ensemble, min"][64] > told["one member"][64]


def main(prompts: int = 96, each: int = 64, seeds: int = 5) -> None:
    torch.set_num_threads(1)
    learnt, exam = scene_pairs(1500, "train", 0), scene_pairs(1000, "heldout", 1)
    rows = [accuracies(learnt, exam, seed) for seed in range(seeds)]
    print(f"accuracy on 1000 held-out pairs, heads on tiny-clip fitted to 1500 pairs, mean of {seeds} seeds")
    for name in rows[0]:
        right, best = (np.mean([row[key] for row in rows]) for key in (name, "true labels"))
        print(f"| {name} | {right:.1%} | {right / best:.0%} |")
    features, gold = candidates(prompts, each)
    sums: dict[str, list[list[float]]] = {}
    for seed in range(seeds):
        told = torch.stack([
            head.score(features.flatten(0, 1), torch.full((features.shape[0] * each,), -1)).view(gold.shape)
            for head in members(learnt, seed)
        ])  # fmt: skip
        found = curves(told[:-1], gold) | {"one reward, all pairs": curves(told[-1:], gold)["one member"]}
        for name, curve in found.items():
            sums.setdefault(name, []).append([curve[n] for n in SIZES])
    print(
        f"held-out judge on the best of n, {prompts} held-out prompts, "
        f"mean of {seeds} times {MEMBERS} members of {PAIRS_OF_MEMBER} pairs"
    )
    print("| proxy | " + " | ".join(f"n = {n}" for n in SIZES) + " |\n" + "|---" * (len(SIZES) + 1) + "|")
    for name, values in sums.items():
        print(f"| {name} | " + " | ".join(f"{value:.1%}" for value in np.mean(values, 0)) + " |")


if __name__ == "__main__":
    main()
