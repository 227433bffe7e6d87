"""EmojiWorld: seeded scenes, their facts and captions."""

import json
from collections import Counter

import numpy as np
import pytest

from genalign.files.shipped import shipped
from genalign.lab import world
from genalign.lab.facts import check, relation_margin
from genalign.lab.sprites import sprites
from tests.helpers.scenes import scenes


def test_world_is_seeded_and_has_at_least_forty_sprites():
    assert len(sprites()) >= 40
    first, second = scenes(5, seed=3)[0], scenes(5, seed=3)[0]
    assert np.array_equal(first, second)
    assert not np.array_equal(first, scenes(5, seed=4)[0])


def test_heldout_combinations_never_occur_in_the_training_prompts():
    """Invariant 34."""
    rows = {}
    for split in ("train", "heldout"):
        lines = shipped("assets", "emojiworld", f"{split}.jsonl").read_text().splitlines()
        rows[split] = [json.loads(line) for line in lines]
    train = {world.combination(r["facts"]) for r in rows["train"]}
    held = {world.combination(r["facts"]) for r in rows["heldout"]}
    assert len(rows["heldout"]) >= 512
    assert not train & held
    assert all(world.held_out(r["facts"]) for r in rows["heldout"])


def test_facts_of_the_scene_are_true_by_construction():
    rng = np.random.default_rng(0)
    for _ in range(300):
        facts = world.sample_facts(rng)
        scene = world.place(facts, rng)
        seen = [(name, left + size / 2, top + size / 2) for name, left, top, size in scene.placed]
        assert check(facts, seen, scene.background)["all_facts"]
        assert not check(world.change_one_fact(facts, rng), seen, scene.background)["all_facts"]


def test_relation_margin_follows_its_definition():
    facts = {"objects": [], "relation": ["a", "left of", "b"], "background": None}
    assert relation_margin(facts, [("a", 10, 30), ("b", 30, 30)]) == pytest.approx(14)  # 20 px further left, less 6
    assert relation_margin(facts, [("a", 30, 30), ("b", 10, 30)]) < 0
    assert relation_margin(facts, [("a", 10, 0), ("b", 30, 40)]) == pytest.approx(20 - 30)  # too diagonal
    assert relation_margin(facts, [("a", 10, 30)]) == -float("inf")


def _counted(name, count):
    return {"objects": [{"name": name, "count": count}], "relation": None, "background": "pink"}


@pytest.mark.parametrize("shares", [world.WEB, world.DISTRACTED], ids=["web", "distracted"])
def test_web_captions_contradict_in_the_stated_shares(shares):
    rng = np.random.default_rng(1)
    kept = Counter()
    total = 6000
    plain = [n for n in sprites() if not world.other_colours(n)]
    name = next(n for n in plain if not any(world.held_out(_counted(n, count)) for count in (2, 3, 4)))
    facts = _counted(name, 3)  # whose contradictions are all combinations of the training split
    for _ in range(total):
        text = world.web_caption(facts, rng, shares)
        kept["count"] += "three" in text or "3" in text
        kept["true ground"] += "pink" in text
        kept["any ground"] += any(colour in text for colour in world.BACKGROUNDS)
    spread = 4 * (0.25 / total) ** 0.5
    omitted, contradicted = shares.omitted["background"], shares.contradicted["background"]
    assert kept["count"] / total == pytest.approx(1 - shares.contradicted["count"], abs=spread)
    assert kept["any ground"] / total == pytest.approx(1 - omitted, abs=spread)
    assert kept["true ground"] / total == pytest.approx(1 - omitted - contradicted, abs=spread)


def test_colours_are_contradicted_where_a_shape_has_several():
    """Red apples have one other colour; of two hearts, neither becomes the other; a cat stays a cat."""
    rng, total = np.random.default_rng(2), 4000
    shares = world.Shares({"colour": 0.0}, {"colour": 0.3})
    apple = {"objects": [{"name": "red apple", "count": 1}], "relation": None, "background": None}
    green = sum("green apple" in world.web_caption(apple, rng, shares) for _ in range(total))
    assert green / total == pytest.approx(0.3, abs=4 * (0.21 / total) ** 0.5)
    hearts = {
        "objects": [{"name": "red heart", "count": 1}, {"name": "blue heart", "count": 1}],
        "relation": ["red heart", "above", "blue heart"],
        "background": None,
    }
    for _ in range(50):
        changed = world.change_colour(hearts, rng)
        names = {o["name"] for o in changed["objects"]}
        assert len(names) == 2
        assert names & {"green heart", "yellow heart"}
        assert set(changed["relation"][::2]) == names
    cat = {"objects": [{"name": "cat", "count": 1}], "relation": None, "background": None}
    assert all("cat" in world.web_caption(cat, rng, shares) for _ in range(50))


def test_no_web_caption_of_a_training_scene_names_a_held_out_combination(monkeypatch):
    rng, told = np.random.default_rng(3), []
    monkeypatch.setattr(world, "caption", lambda facts, rng: told.append(facts) or "")
    scenes_ = [world.sample_facts(rng, "train") for _ in range(2000)]
    for facts in scenes_:
        world.web_caption(facts, rng)
    assert not any(world.held_out(facts) for facts in told)
    assert sum(a["objects"] != b["objects"] for a, b in zip(scenes_, told, strict=True)) > 50
