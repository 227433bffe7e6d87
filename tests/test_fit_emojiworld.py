"""Preferences about EmojiWorld captions, a fifth of them labelled the wrong way round: what a vote gives back."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from genalign.files.shipped import shipped
from genalign.lab.text_head import garble
from genalign.lab.world import caption, sample_facts
from genalign.reward.fit.backbones import BackboneSettings, build_backbone
from genalign.reward.fit.train import Fit, PreferenceData, compare, fit_head
from genalign.types import Media, Prompt, Track

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
