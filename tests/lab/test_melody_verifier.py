"""The ears that check MelodyWorld: on pieces whose truth is known, on every wrong caption, and on bad sounds."""

import numpy as np
import pytest
import torch
from scipy import signal

from genalign import build_reward
from genalign.files.shipped import shipped
from genalign.lab import melody
from genalign.lab.melody_bank import INSTRUMENTS, RATE, played
from genalign.lab.melody_facts import check
from genalign.lab.melody_hearing import PITCHES, WINDOW, bands_of, filters, listen, spectrum
from genalign.lab.melody_matching import key_of, match
from genalign.lab.melody_pieces import SAMPLES, START, arrange, render
from genalign.lab.melody_songs import songs
from genalign.lab.melody_verifier import ASPECTS, BOUNDS, QUALITIES, qualities, read, verify, verify_batch
from genalign.types import Media, Prompt, Track


def pieces_of(count, seed, kind=None, split="heldout"):
    """Facts and pieces, of which `kind`, if given, is stated."""
    rng = np.random.default_rng(seed)
    facts, pieces = [], []
    while len(facts) < count:
        each = melody.sample_facts(rng, split)
        if kind is None or melody.is_stated(kind, each):
            facts.append(each)
            pieces.append(arrange(each, rng))
    return facts, pieces, rng


def noisy(wave, rng, share):
    return wave + share * np.sqrt((wave**2).mean()) * rng.standard_normal(wave.shape).astype(np.float32)


def coarse(wave, bits):
    return np.round(wave * 2 ** (bits - 1)) / 2 ** (bits - 1)


@pytest.mark.parametrize(("fault", "least"), [("none", 0.95), ("noise", 0.85), ("bits", 0.85)])
def test_true_pieces_are_heard_right(fault, least):
    facts, pieces, rng = pieces_of(24, 8)
    waves = [render(piece) for piece in pieces]
    if fault == "noise":  # 20 dB below the sound
        waves = [noisy(wave, rng, 0.1) for wave in waves]
    elif fault == "bits":
        waves = [coarse(wave, 9) for wave in waves]
    right = verify_batch(waves, facts)
    assert right["all_facts"][0].mean() >= least
    assert right["all_facts"][1].mean() > 0.3
    for kind in melody.KINDS:
        stated = [melody.is_stated(kind, each) for each in facts]
        assert np.array_equal(np.isnan(right[kind][0]), ~np.array(stated))


def test_a_sound_of_half_the_rate_is_heard_by_what_it_holds():
    """tiny-music's rate: an instrument lacks the overtones above 4 kHz, and is told by the others."""
    facts, pieces, _ = pieces_of(24, 8)
    waves = [signal.resample_poly(render(piece), 1, 2, axis=1).astype(np.float32) for piece in pieces]
    right = verify_batch(waves, facts, RATE / 2)
    assert right["all_facts"][0].mean() >= 0.9
    assert bands_of(RATE / 2) < bands_of(RATE) == len(filters())


@pytest.mark.slow
def test_held_out_pieces_are_heard_right_in_every_kind_of_fact():
    facts, pieces, _ = pieces_of(300, 90)
    right = {kind: [] for kind in (*melody.KINDS, "all_facts")}
    for each, piece in zip(facts, pieces, strict=True):
        for kind, value in check(each, read(render(piece)).facts).items():
            if value is not None:
                right[kind].append(value)
    assert min(np.mean(values) for values in right.values()) >= 0.95


@pytest.mark.slow
def test_pitches_are_those_that_a_pitch_tracker_hears():
    """torchcrepe (CREPE, Kim et al., 2018), whose wheel holds its weights; on voices that sustain, alone."""
    torchcrepe = pytest.importorskip("torchcrepe", reason="pip install torchcrepe, which no extra brings: 89 MB")
    rng, agreed = np.random.default_rng(17), []
    for name in ("flute", "violin", "trumpet", "clarinet"):
        facts = {**melody.sample_facts(rng), "voices": [name], "register": "high", "drums": False}
        wave = render(arrange(facts, rng))[0]
        pitch, periodic = torchcrepe.predict(
            torch.from_numpy(wave)[None], RATE, 512, 100, 1950, model="full", return_periodicity=True, device="cpu"
        )
        loud = listen(wave / np.sqrt((wave**2).mean())).rolls[0]
        heard = loud.argmax(axis=0) + PITCHES[0]
        theirs = 69 + 12 * np.log2(pitch[0].numpy() / 440)
        sure = (periodic[0].numpy() > 0.8) & (loud.max(axis=0) > 0.3 * loud.max())
        apart = np.abs(heard - theirs)[sure] % 12
        agreed.append(np.mean(np.minimum(apart, 12 - apart) < 0.6))  # a tracker may hear an octave
    assert np.mean(agreed) > 0.9


@pytest.mark.parametrize("kind", melody.KINDS)
def test_each_changed_fact_is_rejected_by_its_own_aspect(kind):
    facts, pieces, rng = pieces_of(3, 10, kind)
    for each, piece in zip(facts, pieces, strict=True):
        wave = render(piece)
        true, wrong = (verify(wave, stated) for stated in (each, melody.change_one_fact(each, rng, (kind,))))
        assert true["all_facts"][0] == 1
        assert wrong[kind][0] <= true[kind][0] - 0.3
        assert wrong["all_facts"][0] == wrong["whole"][0] == 0
        for other in set(ASPECTS) - {kind, "all_facts", "whole", "order"}:
            assert wrong[other][0] == true[other][0] or np.isnan(true[other][0])


def test_what_a_prompt_leaves_open_is_not_asked():
    (facts,), (piece,), _ = pieces_of(1, 10)
    bare = {**dict.fromkeys(melody.OMITTABLE), "voices": facts["voices"]}
    right = verify(render(piece), bare)
    assert {kind for kind in melody.KINDS if not np.isnan(right[kind][0])} <= {"instruments", "order"}
    assert right["whole"][0] == 1


def test_bands_are_triangles_that_add_up():
    """Between the first and the last band every line of the spectrum belongs to bands whose weights sum to 1."""
    within = filters()[:, 4 : int(7000 * WINDOW / RATE)]
    assert within.sum(axis=0) == pytest.approx(1, abs=1e-5)
    tone = np.sin(2 * np.pi * 62.5 * np.arange(SAMPLES) / RATE)  # the eighth line
    magnitudes = spectrum(tone)[:, 20]
    assert np.argmax(magnitudes) == 8 - 3
    oracle = np.abs(signal.stft(tone, RATE, "hann", WINDOW, WINDOW - 512, boundary="zeros")[2])[8, 20] * WINDOW / 2
    assert magnitudes[8 - 3] == pytest.approx(oracle, rel=1e-4)


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_single_notes_are_heard_as_what_they_are(name):
    for pitch in (58, 65, 76):
        wave = np.zeros(SAMPLES)
        for start in (0.1, 1.1, 2.1):
            sound = played(name, pitch, 0.7)
            wave[round(start * RATE) :][: len(sound)] += sound
        heard = listen(wave / np.sqrt((wave**2).mean()))
        assert heard.voices == (name,)
        assert PITCHES[int(heard.rolls[0].sum(axis=1).argmax())] == pitch


def test_melodies_are_matched_at_any_pace_and_tonic():
    """On rolls drawn by hand, one cell a note and frame: the truth is exact."""
    rng = np.random.default_rng(11)
    for name in rng.choice(list(songs()), 12, replace=False):
        song, pace, home = songs()[name], float(rng.uniform(90, 210)), int(rng.integers(55, 70))
        roll = np.zeros((len(PITCHES), 97), np.float32)
        for start, length, pitch in song.notes:
            first, last = (START + beat * 60 / pace for beat in (start, start + length))
            frames = slice(round(first * RATE / 512), round(last * RATE / 512) - 1)
            roll[home + pitch - PITCHES[0], frames] = 1
        found = match(roll)
        assert (found.melody, found.home) == (name, home)
        assert found.pace == pytest.approx(pace, rel=0.04)
        assert found.best == max(found.likeness.values()) > 0.7


def test_a_scale_has_its_key():
    roll = np.zeros((1, len(PITCHES), 8), np.float32)
    for weight, pitch in zip((3, 1, 2, 1, 2.5, 1, 1), (62, 64, 66, 67, 69, 71, 73), strict=True):
        roll[0, pitch - PITCHES[0]] = weight
    assert key_of(roll)[0] == "D major"
    assert key_of(0 * roll) == ("C major", 0.0)


def test_partial_credit_grows_towards_the_truth():
    facts = {
        "melody": None,
        "voices": ["organ"],
        "key": "C major",
        "tempo": "slow",
        "register": "low",
        "loudness": "loud",
    }
    facts["drums"] = False
    rng, credits = np.random.default_rng(12), []
    piece = arrange({**facts, "melody": "Ode to Joy"}, rng)
    wave = render(piece)
    for gain in (0.03, 0.6, 1.0):
        credits.append(verify(wave * gain, facts)["loudness"][0])
    assert credits == sorted(credits)
    assert credits[0] < 0.1 < credits[1] < 0.5 < credits[2]
    related = [verify(wave, {**facts, "key": key})["key"][0] for key in ("C major", "G major", "E major")]
    assert related[0] == 1 > related[1] > related[2]
    assert verify(wave, {**facts, "voices": ["organ", "piano"]})["instruments"][0] == pytest.approx(2 / 3)
    assert pytest.approx([np.sqrt(102 * 132), np.sqrt(148 * 195)]) == BOUNDS


def test_faults_of_a_sound_lower_their_own_quality():
    rng = np.random.default_rng(13)
    facts = {**melody.sample_facts(rng), "voices": ["violin"], "register": "high", "drums": False}
    wave = render(arrange(facts, rng))
    loud = wave * (0.9 / np.abs(wave).max())
    assert min(qualities(loud).values()) > 0.7
    clipped = np.clip(loud * 4, -1, 1)
    gone, clicking = loud.copy(), loud.copy()
    gone[:, SAMPLES // 5 :] = 0
    clicking[:, 4000::4000] += 0.9
    for fault, quality in ((clipped, "unclipped"), (gone, "unbroken"), (clicking, "clickless")):
        found = qualities(fault)
        assert found[quality] < 0.5
        assert all(found[other] > 0.5 for other in QUALITIES if other != quality)
    assert verify(clipped, facts)["whole"][0] == 0


def test_stereo_and_other_rates_are_heard_alike():
    (facts,), (piece,), _ = pieces_of(1, 14)
    wave = render(piece)
    double = signal.resample_poly(wave, 3, 1, axis=1).astype(np.float32)
    assert verify(np.concatenate([double, double]), facts, 48_000)["all_facts"][0] == 1
    assert read(np.concatenate([wave, wave])).facts == read(wave).facts


def test_silence_and_noise_are_no_piece():
    (facts,), _, rng = pieces_of(1, 15)
    nothing = verify(np.zeros((1, SAMPLES), np.float32), facts)
    assert nothing["instruments"][0] == nothing["whole"][0] == 0
    assert read(np.zeros((1, SAMPLES), np.float32)).facts["voices"] == ()
    hiss = read(0.1 * rng.standard_normal((1, SAMPLES)).astype(np.float32))
    assert hiss.facts["melody"] is None
    assert not hiss.facts["drums"]
    assert verify(0.1 * rng.standard_normal((1, SAMPLES)).astype(np.float32), facts)["melody"][1] < 0.3


@pytest.mark.parametrize(
    ("wave", "rate", "match"),
    [
        (np.zeros(SAMPLES), RATE, "reads \\(channels, samples\\)"),
        (np.zeros((1, SAMPLES)), 0, "at 0 Hz"),
        (np.full((1, SAMPLES), np.nan), RATE, "is not finite; drop it"),
        (np.zeros((1, 1)), RATE, "hears 0.4 s at least, not 6.25e-05 s"),
        (np.zeros((1, 0)), RATE, "hears 0.4 s at least, not 0 s"),
    ],
)
def test_bad_sounds_are_refused_in_a_sentence(wave, rate, match):
    with pytest.raises(ValueError, match=match):
        read(wave, rate)


def test_the_shipped_rules_score_sounds():
    facts, pieces, _ = pieces_of(2, 16)
    waves = np.stack([render(piece) for piece in pieces])
    media = Media(audio=Track(torch.from_numpy(waves), RATE))
    prompts = [Prompt("a melody", facts=each) for each in facts]
    scores, swapped, quality = (
        build_reward(f"melody_rules.py:{name}", shipped("rewards"))(given, media)
        for name, given in (("melody_facts", prompts), ("melody_facts", prompts[::-1]), ("sound_quality", prompts))
    )
    assert scores.total.tolist() == pytest.approx([1, 1], abs=0.2)
    assert bool((swapped.total < 0.5).all())
    assert bool((quality.total > 0.8).all())
    assert set(melody.KINDS) < set(scores.names)
