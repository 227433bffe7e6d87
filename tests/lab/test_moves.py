"""EmojiWorld moves: seeded facts, captions and clips, against trajectories by hand, PIL and scipy."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from genalign.files.shipped import shipped
from genalign.lab import moves, moves_clips
from genalign.lab.moves_clips import FRAMES, RATE, SIDE, Clip, Path, choreograph, contact_sheet, render, stamp
from genalign.lab.moves_facts import check
from genalign.lab.sprites import sprites
from genalign.lab.world import BACKGROUNDS, Shares


def alone(name, motion, speed=None, background="blue"):
    return {"moves": [{"name": name, "motion": motion, "speed": speed}], "passing": None, "background": background}


PASSING = {
    "moves": [
        {"name": "red car", "motion": ["right"], "speed": None},
        {"name": "tree", "motion": ["still"], "speed": None},
    ],
    "passing": ["red car", "behind", "tree"],
    "background": None,
}
PAIR = {
    "moves": [
        {"name": "cat", "motion": ["left"], "speed": "fast"},
        {"name": "dog", "motion": ["still"], "speed": None},
    ],
    "passing": None,
    "background": "pink",
}


def test_clips_are_seeded_and_plain_data():
    def draw(seed):
        rng = np.random.default_rng(seed)
        facts = [moves.sample_facts(rng) for _ in range(4)]
        return facts, np.stack([render(choreograph(each, rng), rng) for each in facts])

    (facts, first), (_, second), (_, other) = draw(3), draw(3), draw(4)
    assert first.shape == (4, FRAMES, 3, SIDE, SIDE)
    assert first.dtype == np.float32
    assert first.min() >= 0
    assert first.max() <= 1
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert json.loads(json.dumps(facts)) == facts


def test_every_motion_and_sprite_occurs_about_as_often_as_its_kin():
    rng, names, motions = np.random.default_rng(0), Counter(), Counter()
    for _ in range(4000):
        for move in moves.sample_facts(rng)["moves"]:
            names[move["name"]] += 1
            motions[tuple(move["motion"])] += 1
    assert set(names) == set(sprites())
    assert set(motions) == set(moves.MOTIONS)
    assert max(names.values()) < 2 * min(names.values())
    assert len(moves.MOTIONS) == 12 + 8


def test_heldout_combinations_never_occur_in_the_training_prompts():
    rows = {}
    for split in ("train", "heldout"):
        lines = shipped("assets", "emojimoves", f"{split}.jsonl").read_text().splitlines()
        rows[split] = [json.loads(line) for line in lines]
    assert len(rows["heldout"]) >= 512
    assert all(moves.held_out(row["facts"]) for row in rows["heldout"])
    train = {part for row in rows["train"] for part in moves.combinations(row["facts"])}
    for row in rows["heldout"]:
        assert set(moves.combinations(row["facts"])) - train, "all of it was seen in training"
    assert len(train) > 300
    assert len({row["prompt"] for row in rows["train"]}) == len(rows["train"])


def test_what_is_held_out_is_held_out_in_company_too():
    """Whoever must not be seen moving left alone must not be seen so beside another either."""
    rng = np.random.default_rng(5)
    for _ in range(300):
        facts = moves.sample_facts(rng, "train")
        for move in facts["moves"]:
            assert not moves.held_out({"moves": [move], "passing": None, "background": None})
    assert moves.combinations(PAIR) == ["cat left", "dog still", "cat left + dog still"]
    assert moves.combinations(PASSING)[-1] == "red car behind tree"


def test_one_changed_fact_is_found_by_its_own_check_alone():
    rng = np.random.default_rng(1)
    for _ in range(600):
        facts = moves.sample_facts(rng)
        truth = {kind: moves.is_stated(kind, facts) or None for kind in moves.KINDS}
        assert check(facts, facts) == {**truth, "all_facts": True}
        for kind in moves.KINDS:
            if moves.is_stated(kind, facts):
                found = check(moves.change_one_fact(facts, rng, (kind,)), facts)
                assert found[kind] is False
                assert not found["all_facts"]
                others = {k for k in moves.KINDS if found[k] is False} - {kind}
                allowed = {"object": {"passing"}, "motion": {"order"}}.get(kind, set())  # they name the same object
                assert others <= allowed, (kind, facts, found)


def test_captions_say_what_is_stated_and_nothing_else():
    rng = np.random.default_rng(2)
    for _ in range(50):
        text = moves.caption(alone("cat", ["left"], "slow", None), rng)
        assert text.startswith("a cat ")
        assert "left" in text.split()
        assert {"slowly", "low"} & set(text.split())
        assert not any(colour in text.split() for colour in BACKGROUNDS)
        text = moves.caption(alone("cat", ["up", "right"]), rng)
        assert text.index(" up") < text.index(" right")
        assert text.endswith(("on blue", "on a blue background", "over a blue background"))
        text = moves.caption(PASSING, rng)
        assert " behind " in text
        assert text.count("red car") == text.count("tree") == 1
        assert "right" in text.split()
        text = moves.caption(PAIR, rng)
        assert all(part in text for part in ("a cat", "a dog", " left", " pink"))
    assert len({moves.caption(PASSING, rng) for _ in range(60)}) >= 8
    assert moves.caption(alone("umbrella", ["grows"], None, None), rng).startswith("an umbrella ")
    with pytest.raises(ValueError, match="'motion'"):
        moves.without("motion", PAIR)
    with pytest.raises(ValueError, match="'test'"):
        moves.sample_facts(rng, "test")


def test_web_captions_contradict_in_the_stated_shares(monkeypatch):
    """Each kind by itself, with nothing held out; a held-out contradiction is left out."""
    rng, total = np.random.default_rng(3), 3000
    monkeypatch.setattr(moves, "held_out", lambda facts: False)
    told = []
    monkeypatch.setattr(moves, "caption", lambda facts, rng: told.append(facts) or "")
    for kind, facts in (
        *((kind, alone("cat", ["left"], "slow")) for kind in ("object", "motion", "speed", "background")),
        ("order", alone("cat", ["left", "up"])),
        ("passing", PASSING),
    ):
        told.clear()
        for _ in range(total):
            moves.web_caption(facts, rng, Shares({}, {kind: 0.3}))
        wrong = [facts for facts in told if not check(facts, facts_of(kind))["all_facts"]]
        assert len(wrong) / total == pytest.approx(0.3, abs=4 * (0.21 / total) ** 0.5), kind
    told.clear()
    for _ in range(total):
        moves.web_caption(alone("cat", ["left"], "slow"), rng, Shares({"speed": 0.2}, {"speed": 0.3}))
    speeds = Counter(facts["moves"][0]["speed"] for facts in told)
    assert speeds[None] / total == pytest.approx(0.2, abs=4 * (0.16 / total) ** 0.5)
    assert speeds["fast"] / total == pytest.approx(0.3, abs=4 * (0.21 / total) ** 0.5)
    monkeypatch.setattr(moves, "held_out", lambda facts: True)
    told.clear()
    moves.web_caption(PASSING, rng, Shares({}, dict.fromkeys(moves.KINDS, 1.0)))
    assert told == [PASSING]


def facts_of(kind):
    return {"order": alone("cat", ["left", "up"]), "passing": PASSING}.get(kind, alone("cat", ["left"], "slow"))


def path_of(facts, seed=0):
    return choreograph(facts, np.random.default_rng(seed)).paths[0]


@pytest.mark.parametrize("word", ["left", "right", "up", "down"])
@pytest.mark.parametrize("speed", ["slow", "fast"])
def test_a_direction_is_even_motion_at_its_speed(word, speed):
    signs = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # of x and y, y downwards
    for seed in range(20):
        steps = np.diff(path_of(alone("cat", [word], speed), seed).states, axis=0)
        pace = np.abs(steps[0]).sum()
        assert (0.9 <= pace <= 1.4) if speed == "slow" else (2.5 <= pace <= 3.1)
        assert np.allclose(steps[:, :2], pace * np.array(signs[word]))
        assert np.allclose(steps[:, 2:], 0)


def test_turns_scalings_orders_and_bounces_are_what_they_are_called():
    turned = path_of(alone("cat", ["clockwise"])).states
    assert 88 <= turned[-1, 3] <= 152
    assert path_of(alone("cat", ["anticlockwise"])).states[-1, 3] < -80
    grown = path_of(alone("cat", ["grows"])).states[:, 2]
    assert grown[-1] / grown[0] >= 1.4
    assert (np.diff(path_of(alone("cat", ["shrinks"])).states[:, 2]) < 0).all()
    assert np.ptp(path_of(alone("cat", ["still"])).states, axis=0).max() == 0
    first, then = np.diff(path_of(alone("cat", ["left", "down"])).states[[0, 4, 8], :2], axis=0)
    assert first[0] < -8
    assert first[1] == then[0] == 0
    assert then[1] > 8
    for seed in range(10):
        fallen = path_of(alone("basketball", ["floor bounce"]), seed)
        heights, (contact,) = fallen.states[:, 1], fallen.contacts
        assert heights.argmax() == contact
        falling = np.diff(heights[: contact + 1])
        assert np.allclose(np.diff(falling), np.diff(falling)[0])  # one gravity
        assert np.diff(falling)[0] > 0
        back = path_of(alone("cat", ["left bounce"]), seed)
        assert back.states[:, 0].argmin() == back.contacts[0]
        assert np.allclose(np.abs(np.diff(back.states[:, 0])), abs(back.states[1, 0] - back.states[0, 0]))


def test_at_a_bounce_it_touches_the_edge_and_never_leaves_the_frame():
    """Pixels of the frame's last row or column that are not background, by looking at the rendered clip."""
    for seed in range(6):
        for name in ("bus", "cat", "key"):
            for word, edge in (
                ("floor bounce", np.s_[-1, :]),
                ("left bounce", np.s_[:, 0]),
                ("right bounce", np.s_[:, -1]),
            ):
                clip = choreograph(alone(name, [word]), np.random.default_rng(seed))
                drawn, empty = render(clip), render(replace(clip, paths=()))
                ink = np.abs(drawn - empty).max(axis=1)
                touched = [bool(frame[edge].max() > 0.02) for frame in ink]
                assert touched[clip.contacts[0]]
                assert sum(touched) <= 3


def test_nobody_leaves_the_frame_and_pairs_never_meet():
    rng = np.random.default_rng(7)
    for _ in range(300):
        facts = moves.sample_facts(rng)
        clip = choreograph(facts, rng)
        for path in clip.paths:
            half = path.states[:, 2:3] * (0.5 if path.contacts else 0.48)
            assert (path.states[:, :2] >= half - 3 * bool(path.contacts)).all()
            assert (path.states[:, :2] <= SIDE - half + 3 * bool(path.contacts)).all()
        if len(clip.paths) == 2 and facts["passing"] is None:
            gap = np.abs(clip.paths[0].states[:, :2] - clip.paths[1].states[:, :2]).max(axis=1)
            assert (gap > (clip.paths[0].states[:, 2] + clip.paths[1].states[:, 2]) / 2 + 3).all()


def test_who_is_in_front_hides_the_other():
    rng = np.random.default_rng(8)
    for depth in moves.DEPTHS:
        clip = choreograph({**PASSING, "passing": ["red car", depth, "tree"]}, rng)
        assert [path.name for path in clip.paths] == (
            ["tree", "red car"] if depth == "in front of" else ["red car", "tree"]
        )
        front = render(replace(clip, paths=clip.paths[1:]))
        alpha = stamped_alpha(clip.paths[1])
        both = render(clip).transpose(0, 2, 3, 1)
        assert np.abs(both - front.transpose(0, 2, 3, 1))[alpha > 0.99].max() < 0.011
        (a, b) = (path.states for path in clip.paths)
        apart = np.abs(a[:, 0] - b[:, 0])
        assert apart[0] > 14
        assert apart[-1] > 14
        assert apart.min() < 3


def stamped_alpha(path):
    frames = []
    for state in path.states:
        canvas = np.zeros((SIDE, SIDE, 4), np.float32)
        moves_clips.paste(canvas, path.name, state)
        frames.append(canvas[..., 3])
    return np.stack(frames)


def test_sprites_move_by_less_than_a_pixel():
    """scipy's centre of mass of what is drawn follows the stated centre to a fiftieth of a pixel."""
    states = np.array([[20 + 0.3 * t, 22 - 0.15 * t, 16.0, 0.0] for t in range(FRAMES)])
    clip = render(Clip((Path("red heart", states),), "white", {}))
    ink = np.abs(clip - clip[:, :, :1, :1]).sum(axis=1)
    centres = np.array([ndimage.center_of_mass(frame) for frame in ink])[:, ::-1]
    assert np.abs(np.diff(centres, axis=0) - [0.3, -0.15]).max() < 0.02


@pytest.mark.parametrize("angle", [0.0, 35.0, 200.0])
def test_a_stamp_is_the_sprite_turned_clockwise(angle):
    """Against PIL's own turning (counter-clockwise), at the sheet's own size."""
    image = Image.fromarray((sprites()["rocket"].image * 255).round().astype(np.uint8), "RGBA").convert("RGBa")
    canvas = Image.new("RGBa", (80, 80))
    canvas.paste(image, (16, 16))
    theirs = np.asarray(canvas.rotate(-angle, Image.Resampling.BILINEAR), np.float32) / 255
    ours = stamp("rocket", 48, angle, 40, 40, 80)
    assert np.abs(ours - theirs).mean() < 0.008  # the other way round it is 0.1
    assert np.abs(ours - theirs).max() < 0.4  # of single pixels of a hard edge


def test_round_sprites_are_those_that_look_alike_after_a_turn():
    """By scipy's rotation of 60 to 300 degrees: differences in colour to the sprite itself that are small everywhere,
    or much smaller at some turn than at most."""
    turns = range(60, 301, 4)
    alike = set()
    for name, sprite in sprites().items():
        image = sprite.image[..., :3] * sprite.image[..., 3:]
        turned = [ndimage.rotate(image, angle, reshape=False, order=1) for angle in turns]
        apart = np.array([np.abs(each - image).mean(axis=2).sum() for each in turned]) / sprite.image[..., 3].sum()
        inside = turns[0] < turns[apart.argmin()] < turns[-1]
        if apart.min() < 0.12 or (inside and apart.min() < 0.6 * np.median(apart)):
            alike.add(name)
    assert alike == set(moves.ROUND)


def test_a_contact_sheet_shows_every_frame_in_its_row():
    rng = np.random.default_rng(9)
    clips = [render(choreograph(moves.sample_facts(rng), rng)) for _ in range(3)]
    sheet = contact_sheet(clips, zoom=1, gap=2)
    assert sheet.shape == (3 * 50, FRAMES * 50, 3)
    assert sheet.dtype == np.uint8
    shown = sheet[50 : 50 + SIDE, 4 * 50 : 4 * 50 + SIDE].transpose(2, 0, 1)
    assert np.abs(shown / 255 - clips[1][4]).max() < 1 / 255


def test_the_size_is_one_that_video_autoencoders_hold():
    assert (FRAMES - 1) % 4 == 0
    assert SIDE % 16 == 0
    assert RATE == 8


def test_a_pair_is_of_two_objects_and_of_the_split():
    rng = np.random.default_rng(5)
    for split in ("train", "heldout"):
        found = [moves.sample_pair(rng, split) for _ in range(40)]
        assert all(len(facts["moves"]) == 2 and moves.held_out(facts) == (split == "heldout") for facts in found)
        assert {facts["passing"] is None for facts in found} == {True, False}


def test_what_a_latent_shows_is_what_stands_out_in_its_square():
    """Against the rendered pixels: a square of which a third differs from the background in all of its frames shows a
    sprite, one of which nothing ever does shows none, and both sprites of a pair are shown."""
    rng, names = np.random.default_rng(6), list(sprites())
    wrong = seen = 0
    for _ in range(60):
        clip = choreograph(moves.sample_facts(rng), rng)
        places = moves_clips.shown(clip).reshape(3, 6, 6)
        stands_out = np.abs(render(clip) - render(Clip((), clip.background, clip.facts))).max(axis=1) > 0.1
        shares = stands_out.reshape(FRAMES, 6, 8, 6, 8).mean(axis=(2, 4))  # of a square, by frame
        frames = [shares[:1], shares[1:5], shares[5:]]
        full = np.stack([some.min(axis=0) > 1 / 3 for some in frames])
        empty = np.stack([some.max(axis=0) == 0 for some in frames])
        wrong += int((places[full] == len(names)).sum() + (places[empty] != len(names)).sum())
        seen += int(full.sum() + empty.sum())
        assert {names.index(path.name) for path in clip.paths} == set(places.ravel().tolist()) - {len(names)}
    assert wrong / seen < 0.05
