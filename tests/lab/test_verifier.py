"""The eyes that check EmojiWorld."""

import numpy as np
import pytest
from scipy import ndimage

from genalign.lab import world
from genalign.lab.blobs import boxes, segment
from genalign.lab.verifier import verify, verify_batch
from tests.helpers.scenes import scenes


@pytest.mark.parametrize(("noise", "least"), [(0.0, 0.98), (0.03, 0.98), (0.055, 0.98)])
def test_verifier_accuracy(noise, least):
    images, facts, changed = scenes(300, seed=8, noise=noise)
    right = verify_batch(images, facts)["all_facts"]
    wrong = verify_batch(images, changed)["all_facts"]
    assert right[0].mean() >= least
    assert (wrong[0] == 0).mean() >= 0.98


def test_verifier_is_less_sure_where_it_is_wrong():
    images, facts, _ = scenes(400, seed=9, noise=0.09)
    score, confidence = verify_batch(images, facts)["all_facts"]
    assert 0.2 < score.mean() < 0.98  # noise makes some of both
    assert confidence[score == 1].mean() > confidence[score == 0].mean() + 0.05


def test_verifier_takes_touching_objects_apart():
    facts = {"objects": [{"name": "red apple", "count": 2}], "relation": None, "background": "blue"}
    touching = world.Scene((("red apple", 4, 20, 28), ("red apple", 31, 22, 28)), "blue", facts)
    image = ndimage.gaussian_filter(world.render(touching), (1, 1, 0))  # as soft as what a small model draws
    assert len(boxes(segment(image)[1])) == 1
    assert verify(image, facts)["all_facts"][0] == 1


def test_verifier_gives_partial_credit_and_abstains_on_what_is_not_stated():
    rng = np.random.default_rng(2)
    truth = {"objects": [{"name": "cat", "count": 3}], "relation": None, "background": "blue"}
    image = world.render(world.place(truth, rng))
    asked = {"objects": [{"name": "cat", "count": 4}], "relation": None, "background": None}
    result = verify(image, asked)
    assert result["objects"][0] == 1
    assert result["count"][0] == 0.5
    assert np.isnan(result["relation"][0])
    assert np.isnan(result["background"][0])
    assert result["all_facts"][0] == 0
    with pytest.raises(ValueError, match="64"):
        verify(image[:32], asked)
