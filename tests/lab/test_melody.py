"""MelodyWorld: its melodies, seeded facts, captions and pieces, against written-out notes, scipy and pyloudnorm."""

import json
import re
import shutil
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pyloudnorm
import pytest
import soundfile
from PIL import Image

from genalign.files.shipped import shipped
from genalign.lab import melody, melody_pieces
from genalign.lab.build import main
from genalign.lab.melody_bank import HITS, INSTRUMENTS, RATE, STORED, build_bank, hit, midi_file, note, played
from genalign.lab.melody_facts import check
from genalign.lab.melody_figure import draw
from genalign.lab.melody_pieces import (
    HIGH_ONLY,
    LENGTH,
    LEVEL,
    MIDDLE,
    PACE,
    SAMPLES,
    START,
    TICK,
    arrange,
    chords,
    drumming,
    render,
)
from genalign.lab.melody_songs import KEYS, SCALES, TONICS, songs
from genalign.types import UsageError

FACTS = {
    "melody": "Frere Jacques",
    "voices": ["flute", "piano"],
    "key": "D major",
    "tempo": "fast",
    "register": "high",
    "loudness": "soft",
    "drums": True,
}


def pieces_of(count, seed, split=None):
    rng = np.random.default_rng(seed)
    facts = [melody.sample_facts(rng, split) for _ in range(count)]
    return facts, [arrange(each, rng) for each in facts]


def test_the_melodies_are_many_and_of_known_source():
    known = songs()
    assert len(known) >= 40
    assert {song.mode for song in known.values()} == set(SCALES)
    for song in known.values():
        years = [int(year) for year in re.findall(r"\b1\d{3}", song.source)]
        assert all(year < 1900 for year in years)
        assert years or "century" in song.source or "period" in song.source, song.name
        assert song.length > LENGTH * PACE["fast"][1] / 60 - 0.5  # it lasts as long as any piece
        assert all(length > 0 for _, length, _ in song.notes)


def test_notes_are_read_as_they_are_written():
    twinkle, elise = songs()["Twinkle Twinkle Little Star"], songs()["Fur Elise"]
    assert [(start, pitch) for start, _, pitch in twinkle.notes[:7]] == list(enumerate((0, 0, 7, 7, 9, 9, 7)))
    assert twinkle.notes[6][1] == 2
    assert [pitch for *_, pitch in elise.notes[:9]] == [7, 6, 7, 6, 7, 2, 5, 3, 0]  # E D# E D# E B D C A above A
    assert [place for _, place in songs()["Amazing Grace"].beats()][:5] == [
        2,
        0,
        1,
        2,
        0,
    ]  # an upbeat before a bar of three


def test_no_two_melodies_begin_alike():
    seen = Counter()
    for song in songs().values():
        first = song.notes[0][2]
        lead_in = [
            (start, pitch - first) for start, _, pitch in song.notes if start < LENGTH * PACE["slow"][0] / 60 - 0.2
        ]
        seen[tuple(lead_in)] += 1
    assert max(seen.values()) == 1


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_a_note_of_the_bank_has_the_pitch_that_it_is_called_by(name):
    """By the spectrum's peaks: some low harmonic within a third of a semitone of each multiple of the pitch."""
    for pitch in (46, 52, 61, 74, 85):
        wave = note(name, pitch)
        assert wave.shape == (round(STORED * RATE),)
        assert np.isfinite(wave).all()
        frequency = 440 * 2 ** ((pitch - 69) / 12)
        spectrum = np.abs(np.fft.rfft(wave[1600:9792] * np.hanning(8192), 32768))
        loudest = np.argmax(spectrum) * RATE / 32768
        harmonic = max(1, round(loudest / frequency))
        assert abs(12 * np.log2(loudest / (harmonic * frequency))) < 0.34
        assert harmonic <= 8


def test_a_note_between_stored_ones_is_a_semitone_apart():
    for low, high in ((52, 53), (53, 54)):
        peaks = []
        for pitch in (low, high):
            spectrum = np.abs(np.fft.rfft(note("flute", pitch)[1600:] * np.hanning(22400), 2**18))
            near = 2**18 * 440 * 2 ** ((pitch - 69) / 12) / RATE
            window = slice(int(near * 0.96), int(near * 1.04))
            peaks.append(window.start + np.argmax(spectrum[window]))
        assert np.log2(peaks[1] / peaks[0]) * 12 == pytest.approx(1, abs=0.12)


def test_a_note_ends_when_it_is_let_go():
    wave = played("organ", 60, 0.3)
    assert len(wave) == round(0.36 * RATE)
    assert np.array_equal(wave[: round(0.3 * RATE)], note("organ", 60)[: round(0.3 * RATE)])
    assert abs(wave[-1]) < 1e-6
    assert played("organ", 60, 9.0) is note("organ", 60)
    with pytest.raises(ValueError, match="the bank holds piano, marimba"):
        note("kazoo", 60)
    with pytest.raises(ValueError, match="from 39 to 92"):
        note("piano", 93)


def test_midi_files_are_as_the_standard_writes_them():
    assert midi_file([60], 1.0, 2.0, 19, 0) == (
        b"MThd" + struct.pack(">IHHH", 6, 0, 1, 500) + b"MTrk" + struct.pack(">I", 24)
        + b"\x00\xff\x51\x03\x07\xa1\x20" + b"\x00\xc0\x13" + b"\x00\x90\x3c\x64"
        + b"\x87\x68\x80\x3c\x00" + b"\x87\x68\xff\x2f\x00"
    )  # fmt: skip


def test_a_bank_needs_a_synthesizer(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="install Debian's fluidsynth and fluid-soundfont-gm"):
        build_bank(tmp_path / "none.sf2", tmp_path)


FONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")


@pytest.mark.slow
@pytest.mark.skipif(
    not (FONT.exists() and shutil.which("fluidsynth")), reason="apt install fluidsynth fluid-soundfont-gm"
)
def test_the_shipped_bank_is_what_the_synthesizer_plays(tmp_path):
    build_bank(FONT, tmp_path)
    names = {path.name for path in tmp_path.glob("*.flac")}
    assert names == {f"{name}.flac" for name in (*INSTRUMENTS, "drums")}
    for name in names:
        made, rate = soundfile.read(tmp_path / name)
        kept, _ = soundfile.read(shipped("assets", "melodyworld", name))
        assert rate == RATE
        assert np.abs(made - kept).max() < 2**-12


def test_parts_that_need_a_font_say_so(tmp_path):
    for part, wanted in (("melody-bank", "FluidR3_GM.sf2"), ("sprites", "NotoColorEmoji.ttf")):
        with pytest.raises(UsageError, match=f"needs --font PATH, the {wanted}"):
            main(part, out=tmp_path, font=tmp_path / "none")


def test_the_picture_shows_eight_pieces(tmp_path):
    draw(tmp_path / "x.png")
    shown, kept = (
        Image.open(path) for path in (tmp_path / "x.png", shipped("assets", "melodyworld", "spectrograms.png"))
    )
    assert shown.size == kept.size
    apart = np.abs(np.asarray(shown.convert("L"), float) - np.asarray(kept.convert("L"), float))
    assert apart.mean() < 12  # fonts may differ


def test_pieces_are_seeded_plain_and_as_loud_as_stated():
    facts, pieces = pieces_of(8, 3)
    waves = [render(piece) for piece in pieces]
    again = [render(piece) for piece in pieces_of(8, 3)[1]]
    assert all(np.array_equal(*pair) for pair in zip(waves, again, strict=True))
    assert json.loads(json.dumps(facts)) == facts
    meter = pyloudnorm.Meter(RATE)
    for each, wave, piece in zip(facts, waves, pieces, strict=True):
        assert wave.shape == (1, SAMPLES)
        assert wave.dtype == np.float32
        assert np.abs(wave).max() <= 0.9501
        measured = meter.integrated_loudness(wave[0].astype(float))
        assert LEVEL[each["loudness"]][0] - 3 <= measured <= LEVEL[each["loudness"]][1] + 0.1
        assert PACE[each["tempo"]][0] <= piece.pace <= PACE[each["tempo"]][1]
        ticks = 60 / piece.pace / TICK  # of a quarter note, whose half begins on a tick as well
        assert ticks / 2 == pytest.approx(round(ticks / 2))


def test_the_notes_of_a_piece_are_the_facts():
    facts, pieces = pieces_of(200, 4)
    for each, piece in zip(facts, pieces, strict=True):
        song, beat = songs()[each["melody"]], 60 / piece.pace
        lead = [one for one in piece.notes if one.voice == 0]
        home = lead[0].pitch - song.notes[0][2]
        assert each["key"] == f"{next(t for t, n in TONICS.items() if n == home % 12)} {song.mode}"
        for one, (start, length, pitch) in zip(lead, song.notes, strict=False):
            assert one.pitch == home + pitch
            assert one.start == pytest.approx(START + start * beat)
            assert one.length == pytest.approx(length * beat)
        assert MIDDLE[each["register"]] <= song.middle + home < MIDDLE[each["register"]] + 12
        seconds = [one for one in piece.notes if one.voice == 1]
        assert bool(seconds) == (len(each["voices"]) == 2)
        assert bool(piece.hits) == each["drums"]
        if seconds:
            assert each["register"] == "high"
            assert max(one.pitch for one in seconds) <= 63
        if each["voices"][0] in HIGH_ONLY:
            assert each["register"] == "high"


def test_chords_and_drums_by_hand():
    waltz = songs()["Silent Night"]  # G A G E ... in C: tonic chords in three
    assert chords(waltz, 0)[:5] == [(0, 48), (1, 52), (1, 55), (2, 52), (2, 55)]
    assert drumming(waltz)[:9] == [
        ("kick", 0), ("hat", 0), ("hat", 0.5), ("snare", 1), ("hat", 1), ("hat", 1.5),
        ("snare", 2), ("hat", 2), ("hat", 2.5),
    ]  # fmt: skip
    twinkle = songs()["Twinkle Twinkle Little Star"]
    roots = {start: pitch for start, pitch in chords(twinkle, 0) if start in (0, 2, 4, 6, 8, 10)}
    assert roots[4] == 53  # A4 A4 over F
    assert roots[0] == roots[2] == roots[6] == 48
    assert [name for name, _ in drumming(twinkle)[:12:3]] == ["kick", "snare", "kick", "snare"]
    assert set(HITS) == {"kick", "snare", "hat"}
    assert all(np.abs(hit(name)).max() > 1 for name in HITS)


def test_facts_left_open_are_drawn_within_what_is_stated():
    open_facts = {**dict.fromkeys(melody.OMITTABLE), "voices": ["guitar"], "key": "E minor", "drums": None}
    rng = np.random.default_rng(5)
    drawn = [arrange(open_facts, rng) for _ in range(40)]
    assert {bool(piece.hits) for piece in drawn} == {True, False}
    assert min(piece.loudness for piece in drawn) < -29 < -21 < max(piece.loudness for piece in drawn)
    for piece in drawn:
        classes = Counter(one.pitch % 12 for one in piece.notes)
        assert classes[8] <= 0.2 * classes.total()  # G sharp, the leading note, is rare but may be there
    with pytest.raises(ValueError, match="can be left out of a caption, not 'order'"):
        melody.without("order", FACTS)
    with pytest.raises(ValueError, match="'train', 'heldout' or None, not 'test'"):
        melody.sample_facts(rng, "test")


def test_captions_state_the_facts_and_no_others():
    rng = np.random.default_rng(6)
    texts = {melody.caption(FACTS, rng) for _ in range(60)}
    assert len(texts) > 30
    for text in texts:
        assert "Frere Jacques" in text
        assert "in D major" in text
        assert text.index("flute") < text.index("piano") or "a piano accompanies a flute" in text
        assert any(word in text for word in ("fast", "quickly"))
        assert any(word in text for word in ("soft", "quietly"))
        assert any(word in text for word in ("with drums", "with a drum beat"))
    bare = {**dict.fromkeys(melody.OMITTABLE), "voices": ["organ"]}
    assert {melody.caption(bare, rng) for _ in range(20)} == {"an organ melody", "an organ plays a melody"}


@pytest.mark.parametrize("kind", melody.KINDS)
def test_one_changed_fact_is_wrong_and_alone(kind):
    rng, changed = np.random.default_rng(7), 0
    while changed < 30:
        facts = melody.sample_facts(rng)
        if not melody.is_stated(kind, facts):
            continue
        changed += 1
        other = melody.change_one_fact(facts, rng, (kind,))
        truth = check(other, facts)
        assert truth[kind] is False
        assert truth["all_facts"] is False
        allowed = {kind, "all_facts"} | ({"order"} if kind == "instruments" else set())
        assert {name for name, right in truth.items() if right is False} <= allowed
        assert other["key"].split()[1] == songs()[other["melody"]].mode


def test_held_out_combinations_are_never_trained_on():
    rng = np.random.default_rng(8)
    train = [melody.sample_facts(rng, "train") for _ in range(400)]
    kept_out = [melody.sample_facts(rng, "heldout") for _ in range(200)]
    seen = {combination for facts in train for combination in melody.combinations(facts)}
    assert not any(melody.held_out(facts) for facts in train)
    assert all(not seen.issuperset(melody.combinations(facts)) for facts in kept_out)
    assert 0.2 < np.mean([melody.held_out(melody.sample_facts(rng)) for _ in range(600)]) < 0.45


def test_web_captions_contradict_and_omit_in_the_stated_shares():
    rng, shares, texts = np.random.default_rng(9), melody.WEB, []
    facts = {**FACTS, "voices": ["violin"], "melody": None, "key": "C major"}
    assert not melody.held_out(facts)
    for _ in range(400):
        texts.append(melody.web_caption(facts, rng, shares))
    drums = np.mean([("no drums" in text or "without drums" in text) for text in texts])
    assert drums == pytest.approx(shares.contradicted["drums"], abs=0.08)
    assert np.mean(["drum" not in text for text in texts]) == pytest.approx(shares.omitted["drums"], abs=0.08)
    assert 0.03 < np.mean(["violin" not in text for text in texts]) < 0.2


def test_the_prompts_are_those_of_the_splits():
    for split in ("train", "heldout"):
        rows = [
            json.loads(line) for line in shipped("assets", "melodyworld", f"{split}.jsonl").read_text().splitlines()
        ]
        assert len({row["prompt"] for row in rows}) == len(rows) == {"train": 2048, "heldout": 640}[split]
        assert all(melody.held_out(row["facts"]) == (split == "heldout") for row in rows)
        for kind in melody.OMITTABLE:
            assert 0.3 < np.mean([row["facts"][kind] is not None for row in rows]) < 0.75
        assert {row["facts"]["key"] for row in rows} == {None, *KEYS}


def test_what_a_latent_shows_is_the_note_that_sounds_there():
    """Against what sounds: of a lead alone the strongest line of the spectrum is a harmonic of the note shown, and the
    instrument shown is that of the facts."""
    rng, right, heard = np.random.default_rng(7), 0, 0
    for _ in range(12):
        facts = {**melody.sample_facts(rng), "drums": False}
        facts["voices"] = facts["voices"][:1]
        piece = melody_pieces.arrange(facts, rng)
        wave, places = melody_pieces.render(piece)[0], melody_pieces.shown(piece)
        sounds = places[:, 0] < len(INSTRUMENTS)
        assert sounds.sum() > 24
        nothing = [len(INSTRUMENTS), len(melody_pieces.PITCHES), melody_pieces.HELD]
        assert (places[~sounds, :3] == nothing).all()
        assert (places[:, 3:] == nothing).all()
        assert {INSTRUMENTS[lead] for lead in places[sounds, 0]} == set(facts["voices"])
        starts = [note.start for note in piece.notes]
        for k in range(1, 47):
            since = (k + 0.5) * 0.064 - melody_pieces.TICK * places[k, 2]
            if 0 <= places[k, 2] < melody_pieces.HELD - 1:
                assert min(abs(since - start) for start in starts) < 0.51 * melody_pieces.TICK
            if not (
                sounds[k] and (places[k - 1, :2] == places[k, :2]).all() and (places[k + 1, :2] == places[k, :2]).all()
            ):
                continue
            part = wave[(k - 1) * 1024 : (k + 2) * 1024]
            strongest = np.abs(np.fft.rfft(part * np.hanning(len(part)), 16384)).argmax() * RATE / 16384
            pitch = melody_pieces.PITCHES[places[k, 1]]
            ratio = strongest / (440 * 2 ** ((pitch - 69) / 12))
            right += abs(ratio - max(1, round(ratio))) < 0.04 * ratio
            heard += 1
    assert heard > 100
    assert right / heard > 0.95


def test_what_a_latent_shows_of_the_second_voice_is_a_note_that_is_held_there():
    """Against a loop over the notes; the drawn pieces play together in most places."""
    rng, together = np.random.default_rng(8), 0
    for _ in range(8):
        facts = {**melody.sample_facts(rng), "voices": ["flute", "piano"]}
        piece = melody_pieces.arrange(facts, rng)
        places = melody_pieces.shown(piece)
        for k, (player, pitch, held) in enumerate(places[:, 3:].tolist()):
            time = (k + 0.5) * 0.064
            played = [note for note in piece.notes if note.voice == 1]
            notes = [note for note in played if -1e-6 <= time - note.start < 0.95 * note.length + 1e-6]
            if player == len(INSTRUMENTS):
                assert not [note for note in notes if 1e-6 < time - note.start < 0.95 * note.length - 1e-6]
                continue
            assert INSTRUMENTS[player] == "piano"
            fitting = [note for note in notes if note.pitch == melody_pieces.PITCHES[pitch]]
            assert any(
                abs(time - note.start - held * melody_pieces.TICK) < 0.51 * melody_pieces.TICK for note in fitting
            )
            together += places[k, 0] < len(INSTRUMENTS)
    assert together > 200
