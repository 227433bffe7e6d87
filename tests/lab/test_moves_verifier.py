"""The eyes that check EmojiWorld moves: on clips whose truth is known, on every kind of wrong caption and clip."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from genalign import build_reward
from genalign.files.shipped import shipped
from genalign.lab import moves
from genalign.lab.moves_clips import FRAMES, RATE, Clip, Path, choreograph, render
from genalign.lab.moves_degraded import DEGRADATIONS
from genalign.lab.moves_sound import SAMPLE_RATE, SAMPLES, knocks, onsets
from genalign.lab.moves_trails import watch
from genalign.lab.moves_verifier import ASPECTS, QUALITIES, facts_of, synchrony, verify, verify_batch
from genalign.types import Media, Prompt, Track

TIMES = np.arange(FRAMES)


def clips_of(count, seed, split="heldout", noise=0.0, kind=None):
    """Facts and clips, of which `kind`, if given, is stated."""
    rng = np.random.default_rng(seed)
    facts, made = [], []
    while len(facts) < count:
        each = moves.sample_facts(rng, split)
        if kind is None or moves.is_stated(kind, each):
            facts.append(each)
            made.append(choreograph(each, rng))
    clips = np.stack([render(clip, rng) for clip in made])
    return facts, made, np.clip(clips + noise * rng.standard_normal(clips.shape), 0, 1).astype(np.float32), rng


@pytest.mark.parametrize(("noise", "count"), [(0.0, 100), (0.05, 40)])
def test_true_clips_are_seen_right(noise, count):
    facts, _, clips, _ = clips_of(count, 8, noise=noise)
    right = verify_batch(clips, facts)
    assert right["whole"][0].mean() >= (0.97 if noise == 0 else 0.92)
    assert right["all_facts"][1].mean() > 0.6
    for kind in moves.KINDS:
        stated = [moves.is_stated(kind, each) for each in facts]
        assert np.array_equal(np.isnan(right[kind][0]), ~np.array(stated))


@pytest.mark.parametrize("kind", moves.KINDS)
def test_each_changed_fact_is_rejected_by_its_own_aspect(kind):
    facts, _, clips, rng = clips_of(12, 9, kind=kind)
    for each, clip in zip(facts, clips, strict=True):
        true, wrong = (verify(clip, stated) for stated in (each, moves.change_one_fact(each, rng, (kind,))))
        assert wrong[kind][0] <= true[kind][0] - 0.4
        assert wrong["all_facts"][0] == 0
        for other in set(ASPECTS) - {kind, "all_facts", "whole", "order", "passing", "speed"}:
            assert wrong[other][0] == true[other][0]


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_each_degradation_is_rejected_by_the_aspect_that_it_is_about(name):
    aspect, degrade = DEGRADATIONS[name]
    rng, least = np.random.default_rng(10), []
    for _ in range(16):
        facts = moves.sample_facts(rng)
        if facts["moves"][0]["motion"] == ["still"]:
            continue  # its frames are all the same: neither order nor standstill shows
        clip = choreograph(facts, rng)
        true, worse = verify(render(clip, rng), facts), verify(degrade(clip, rng), facts)
        assert worse["whole"][0] == 0, facts
        assert worse[aspect][0] <= true[aspect][0] - 0.2, facts
        falls = {quality: true[quality][0] - worse[quality][0] for quality in QUALITIES}
        least.append(max(falls, key=lambda quality: falls[quality]))
    if aspect in QUALITIES:  # of the three, this one falls most, but that a flicker is a change of colour too
        assert np.mean([quality == aspect for quality in least]) > (0.4 if name == "flickering" else 0.8)


def drawn(paths, background="green"):
    return render(Clip(tuple(Path(name, np.asarray(states, float)) for name, states in paths), background, {}))


def test_what_is_seen_is_written_as_facts():
    """Trajectories and facts by hand."""
    slow = np.column_stack([10 + 1.2 * TIMES, 30 + 0 * TIMES, 15 + 0 * TIMES, 0 * TIMES])
    up = np.column_stack([36 + 0 * TIMES, 38 - 2.8 * TIMES, 14 + 0 * TIMES, 0 * TIMES])
    seen = watch(drawn([("cat", slow), ("key", up)]))
    assert (
        facts_of(seen)
        == {
            "moves": [
                {"name": "cat", "motion": ["right"], "speed": "slow"},
                {"name": "key", "motion": ["up"], "speed": "fast"},
            ],
            "passing": None,
            "background": "green",
        }
        or facts_of(seen)["moves"][0]["name"] == "key"
    )
    for trail in seen.trails:
        states = {"cat": slow, "key": up}[trail.name]
        assert np.abs(trail.states[:, :3] - states[:, :3]).max() < 0.6  # pixels
        assert trail.visible.all()
    turning = np.column_stack([24 + 0 * TIMES, 24 + 0 * TIMES, 22 + 0 * TIMES, -14 * TIMES])
    (trail,) = watch(drawn([("umbrella", turning)])).trails
    assert np.abs(trail.states[:, 3] - turning[:, 3]).max() < 4  # degrees
    assert facts_of(watch(drawn([("umbrella", turning)])))["moves"][0]["motion"] == ["anticlockwise"]
    assert facts_of(watch(drawn([])))["moves"] == []


@pytest.mark.parametrize("depth", moves.DEPTHS)
def test_who_passes_whom_and_on_which_side(depth):
    across = np.column_stack([np.linspace(7, 41, FRAMES), 21 + 0 * TIMES, 13 + 0 * TIMES, 0 * TIMES])
    still = np.tile([24.0, 22.0, 13.0, 0.0], (FRAMES, 1))
    paths = [("house", still), ("red car", across)]
    seen = facts_of(watch(drawn(paths if depth == "in front of" else paths[::-1])))
    assert seen["passing"] == ["red car", depth, "house"]
    assert {move["name"]: move["motion"] for move in seen["moves"]} == {"red car": ["right"], "house": ["still"]}


def test_soft_pictures_are_seen_too():
    """As soft as what a small model draws."""
    facts, _, clips, _ = clips_of(30, 11)
    soft = ndimage.gaussian_filter(clips, (0, 0, 0, 0.8, 0.8))
    assert verify_batch(soft, facts)["all_facts"][0].mean() >= 0.9


def test_it_is_less_sure_where_it_is_wrong():
    facts, _, clips, _ = clips_of(40, 12, noise=0.1)
    score, confidence = verify_batch(clips, facts)["all_facts"]
    assert 0.2 < score.mean() < 0.98  # noise makes some of both
    assert confidence[score == 1].mean() > confidence[score == 0].mean() + 0.05


def test_partial_credit_and_a_clip_of_another_size():
    facts = {"moves": [{"name": "cat", "motion": ["left", "up"], "speed": None}], "passing": None, "background": None}
    clip = render(choreograph(facts, np.random.default_rng(0)))
    asked = {**facts, "moves": [{"name": "cat", "motion": ["left", "down"], "speed": None}]}
    result = verify(clip, asked)
    assert result["motion"][0] == 0.5
    assert result["order"][0] == 0
    assert np.isnan(result["background"][0])
    company = {**facts, "moves": [*facts["moves"], {"name": "dog", "motion": ["still"], "speed": None}]}
    assert verify(clip, company)["object"][0] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match=r"\(9, 3, 48, 48\)"):
        verify(clip[:8], facts)


def test_a_knock_is_heard_when_it_sounds():
    """Against numpy's first sample that is not silence; a hum that only goes on is no knock."""
    wave = knocks([2, 6])
    assert wave.shape == (1, SAMPLES)
    assert SAMPLES == 18_000
    assert np.flatnonzero(wave[0])[0] == 2 * SAMPLE_RATE / RATE
    heard = onsets(wave, SAMPLE_RATE)
    assert heard == pytest.approx([2 / RATE, 6 / RATE], abs=0.006)
    assert onsets(np.zeros((1, SAMPLES)), SAMPLE_RATE) == []
    hum = 0.3 * np.sin(2 * np.pi * 200 * np.arange(SAMPLES) / SAMPLE_RATE)[None]
    assert len(onsets(hum, SAMPLE_RATE)) <= 1  # its beginning
    noisy = wave + 0.02 * np.random.default_rng(0).standard_normal(wave.shape)
    assert onsets(noisy, SAMPLE_RATE) == pytest.approx(heard, abs=0.006)
    twice = np.repeat(np.repeat(wave, 2, axis=1), 2, axis=0)  # 32 kHz, stereo
    assert onsets(twice, 2 * SAMPLE_RATE) == pytest.approx(heard, abs=0.006)
    with pytest.raises(ValueError, match="sample rate"):
        onsets(wave[0], SAMPLE_RATE)


def test_sound_and_bounce_must_come_together():
    rng = np.random.default_rng(13)
    for word in moves.BOUNCES:
        facts = {"moves": [{"name": "dog", "motion": [word], "speed": None}], "passing": None, "background": "blue"}
        made = choreograph(facts, rng)
        clip, (contact,) = render(made, rng), made.contacts
        assert synchrony(clip, knocks([contact]), SAMPLE_RATE)[0] == 1
        assert synchrony(clip, knocks([contact + 2]), SAMPLE_RATE)[0] == 0
        assert synchrony(clip, knocks([]), SAMPLE_RATE)[0] == 0
        assert synchrony(clip, knocks([0, contact]), SAMPLE_RATE)[0] == pytest.approx(2 / 3)
    still = {"moves": [{"name": "dog", "motion": ["still"], "speed": None}], "passing": None, "background": "blue"}
    clip = render(choreograph(still, rng))
    assert np.isnan(synchrony(clip, knocks([]), SAMPLE_RATE)[0])
    assert synchrony(clip, knocks([3]), SAMPLE_RATE)[0] == 0


def test_the_shipped_rules_score_clips_with_and_without_sound():
    """As rewards: what the verifier says of the rows, an abstention where a fact is not stated or nothing sounds."""
    rng = np.random.default_rng(14)
    facts = [
        {"moves": [{"name": "dog", "motion": ["floor bounce"], "speed": None}], "passing": None, "background": None},
        {"moves": [{"name": "cat", "motion": ["left"], "speed": "slow"}], "passing": None, "background": "pink"},
    ]
    made = [choreograph(each, rng) for each in facts]
    clips = torch.from_numpy(np.stack([render(clip, rng) for clip in made]))
    waves = torch.from_numpy(np.stack([knocks(clip.contacts) for clip in made]))
    prompts = [Prompt("", facts=each, uid=k) for k, each in enumerate(facts)]
    media = Media(video=Track(clips, RATE), audio=Track(waves, SAMPLE_RATE))
    shown, made_well, heard = (
        build_reward(f"clip_rules.py:{name}", shipped("rewards"))(prompts, media)
        for name in ("clip_facts", "clip_quality", "knocks_with_bounces")
    )
    assert shown.total.tolist() == pytest.approx([1, 1], abs=0.05)  # a slow pace has partial credit
    assert shown.valid[:, shown.names.index("speed")].tolist() == [False, True]
    assert shown.valid[:, shown.names.index("background")].tolist() == [False, True]
    assert made_well.total.min() > 0.9
    assert heard.total_valid.tolist() == [True, False]
    assert heard.total[0] == 1
    swapped = build_reward("clip_rules.py:clip_facts", shipped("rewards"))(prompts, media.select([1, 0]))
    assert swapped.total.max() < 0.4
