"""The eyes that check EmojiWorld."""

import numpy as np
import pytest
from scipy import ndimage

from genalign.lab import world
from genalign.lab.blobs import boxes, crop, named, segment
from genalign.lab.sprites import resized, sprites
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


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("upright", [True, False])
def test_a_thin_stripe_is_an_object_like_no_other(width, upright):
    """No picture of the world has one; a model that is trained may draw it."""
    image = np.full((64, 64, 3), 0.8, np.float32)
    image[8:56, 30 : 30 + width] = (0.9, 0.1, 0.2)
    image = image if upright else image.swapaxes(0, 1)
    facts = {"objects": [{"name": "red apple", "count": 1}], "relation": None, "background": "white"}
    seen = verify(image, facts)
    assert all(0 <= number <= 1 for pair in seen.values() for number in pair if not np.isnan(number))
    assert seen["all_facts"][0] == 0


def test_a_box_is_named_by_the_nearest_sprite_of_all_sizes_and_places():
    """Against a loop in float64 over sprite, size and place, each drawn and shifted by itself."""
    images, _, _ = scenes(3, seed=11, noise=0.02)
    compared = 0
    for image in ndimage.gaussian_filter(images, (0, 0.8, 0.8, 0)):
        ground, strength = segment(image)
        for box in boxes(strength):
            seen = ndimage.gaussian_filter(crop(image, ground, box, 20).astype(np.float64), (0.8, 0.8, 0))
            nearest = min((_apart(seen, ground, name, side), name) for name in sprites() for side in (14, 16, 18))
            blob = named(image, ground, box)
            assert blob.name == nearest[1]
            assert blob.match == pytest.approx(1 - nearest[0] / 0.35, abs=1e-5)
            compared += 1
    assert compared >= 3


def _apart(seen, ground, name, side):
    """The least mean colour distance of a sprite of this size from the picture (20, 20, 3), at nine places."""
    sprite = np.zeros((20, 20, 4))
    first = (20 - side) // 2
    sprite[first : first + side, first : first + side] = resized(name, side)  # premultiplied
    sprite = ndimage.gaussian_filter(sprite, (0.8, 0.8, 0))
    drawn = sprite[..., :3] + (1 - sprite[..., 3:]) * ground
    stands = np.clip(np.abs(seen - ground).max(axis=-1) / 0.25, 0, 1)
    found = []
    for place in np.ndindex(3, 3):
        shift = (place[0] - 1, place[1] - 1)
        apart = np.abs(drawn - np.roll(seen, shift, axis=(0, 1))).mean(axis=-1)
        found.append(apart.sum() / np.maximum(sprite[..., 3], np.roll(stands, shift, axis=(0, 1))).sum())
    return min(found)


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
