"""Bad sounds in files: each is scored, or fails alone with a sentence, by every reward that reads sounds."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from genalign.media import audio
from genalign.media.files import track_of
from genalign.reward import Runner, build_reward
from genalign.types import Media, Prompt, UsageError
from tests.helpers.tiny_heads import tiny_clap

RATE = 16_000
RULES = ("loudness", "clipping", "silence", "clicks", "steady-beat", "one-key", "sound-rules.yaml", "music-rules.yaml")
SCORED = ("silent", "clipped", "stereo", "slow")  # strange, but sounds
FACTS = {
    "melody": None,
    "voices": ["flute"],
    "key": None,
    "tempo": None,
    "register": None,
    "loudness": "loud",
    "drums": False,
}


def written(folder: Path) -> dict[str, Path]:
    """A good sound, and what users bring along."""
    times = np.arange(3 * RATE) / RATE
    good = 0.3 * np.sin(2 * np.pi * 440 * times) * np.exp(-4 * (times % 0.5)) * np.minimum(1, (times % 0.5) / 0.01)
    broken = good.copy()
    broken[100] = np.nan
    kinds = {
        "good": (good, RATE),
        "silent": (0 * good, RATE),
        "clipped": (np.clip(20 * good, -1, 1), RATE),
        "stereo": (np.stack([good, 0 * good], 1), RATE),
        "slow": (good[::2], RATE // 2),
        "nan": (broken, RATE),
        "short": (good[:1], RATE),
    }
    for name, (wave, rate) in kinds.items():
        soundfile.write(folder / f"{name}.wav", wave, rate, subtype="FLOAT")
    return {name: folder / f"{name}.wav" for name in kinds}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    (folder / "heard").mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        soundfile.write(folder / "heard" / f"{number}.flac", 0.2 * rng.standard_normal(RATE).cumsum() / 50, RATE)
    tiny_clap(folder / "clap")
    return folder


def rewards(room: Path) -> dict[str, object]:
    of_set = {"use": "set", "measure": "kernel", "exemplars": "heard"}
    return {
        **{name: {"use": name} for name in RULES},
        "kad": {**of_set, "model": "mel"},
        "fad": {**of_set, "measure": "frechet", "model": "mel", "components": 2},
        "per-song": {**of_set, "model": "mel", "level": "sample", "windows": 0.5},
        "clap-kad": {**of_set, "model": "clap"},
        "clap": {"use": "clap", "model": str(room / "clap")},
        "melody": {"use": "melody_rules.py:melody_facts"},
        "quality": {"use": "melody_rules.py:sound_quality"},
    }


NAMES = (*RULES, "kad", "fad", "per-song", "clap-kad", "clap", "melody", "quality")


@pytest.mark.parametrize("name", NAMES)
def test_each_bad_sound_is_scored_or_fails_alone(room: Path, tmp_path: Path, name: str) -> None:
    files = written(tmp_path)
    media = Media(audio=track_of([audio.read(path) for path in files.values()]))
    asked = [Prompt("a flute melody", facts=FACTS) for _ in files]
    reward = Runner(build_reward(rewards(room)[name], room), max_failure=1.0)  # type: ignore[arg-type]
    scores = reward(asked, media)
    found = dict(zip(files, zip(scores.total.tolist(), scores.failed.any(1).tolist(), strict=True), strict=True))
    assert all(np.isfinite(total) for total, _ in found.values())
    assert found["nan"][1]
    assert not any(found[kind][1] for kind in ("good", *SCORED))
    if reward.looks_at == "sample":
        alone = reward(asked[:1], media.select([0]))
        assert float(alone.total[0]) == pytest.approx(found["good"][0], abs=1e-5)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read as a sound"),
        (b"RIFF", "cannot be read as a sound"),
        (None, "holds no sample; drop it"),
    ],
)
def test_files_without_a_sound_are_refused_in_a_sentence(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "x.wav"
    if content is None:
        soundfile.write(path, np.zeros((0, 1)), RATE)
    else:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=words) as refused:
        audio.read(path)
    assert str(path) in str(refused.value)


def test_an_exemplar_folder_with_one_file_is_refused_before_anything_loads(tmp_path: Path) -> None:
    files = written(tmp_path)
    (tmp_path / "one").mkdir()
    files["good"].rename(tmp_path / "one" / "good.wav")
    for measure in ("frechet", "kernel"):
        with pytest.raises(UsageError, match="holds one sound, which has no spread to compare with; add some"):
            build_reward({"use": "set", "model": "mel", "measure": measure, "exemplars": "one"}, tmp_path)


def test_silence_everywhere_breaks_no_measure(room: Path) -> None:
    silence = Media(audio=track_of([(torch.zeros(1, RATE), float(RATE))] * 4))
    for name in ("kad", "fad", "per-song", "silence", "clipping"):
        scores = build_reward(rewards(room)[name], room)([Prompt("x")] * 4, silence)  # type: ignore[arg-type]
        assert bool(scores.total.isfinite().all())
