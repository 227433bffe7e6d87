"""Measures of sets of sounds: features against scipy and transformers, distances against scipy, bad exemplars."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import soundfile
import torch
from scipy import signal
from torch.nn import functional as F
from transformers import ClapFeatureExtractor, ClapModel

from genalign.files.shipped import shipped
from genalign.lab import melody
from genalign.lab.melody_pieces import arrange, render
from genalign.reward import Runner, build_reward
from genalign.reward.heads.exemplars import read_exemplars
from genalign.reward.heads.sound_features import ClapFeatures, MelFeatures, windows
from genalign.reward.sets.frechet import Frechet, FrechetInfinity, Moments
from genalign.reward.sets.kernel import KernelDistance
from genalign.types import Media, Track, UsageError
from tests.helpers.feature_sets import measure, rows
from tests.helpers.tiny_heads import tiny_clap
from tests.helpers.toy_rewards import prompts

RATE = 16_000


def sounds(count: int, seed: int = 0, seconds: float = 1.0, rate: int = RATE) -> Media:
    """Two tones and noise, of many pitches and loudnesses."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    waves = []
    for _ in range(count):
        low, high = rng.uniform(100, 800), rng.uniform(800, 3000)
        wave = np.sin(2 * np.pi * low * time) + rng.uniform(0, 1) * np.sin(2 * np.pi * high * time)
        waves.append(rng.uniform(0.1, 0.4) * (wave + 0.1 * rng.standard_normal(len(time))))
    return Media(audio=Track(torch.tensor(np.stack(waves), dtype=torch.float32)[:, None], rate))


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    tiny_clap(folder / "clap")
    (folder / "heard").mkdir()
    for k, wave in enumerate(sounds(100, seed=5)["audio"].data):
        soundfile.write(folder / "heard" / f"{k:03}.wav", wave.T.numpy(), RATE, subtype="FLOAT")
    (folder / "said.txt").write_text("\n".join(f"prompt number {k}" for k in range(12)))
    (folder / "made.py").write_text(
        "import torch\n"
        "def heard():\n"
        "    noise = torch.randn(8, 1, 8000, generator=torch.Generator().manual_seed(0))\n"
        "    return {'sounds': 0.1 * noise, 'rate': 8000}\n"
        "def both():\n    return heard(), [f'prompt {k}' for k in range(8)]\n"
        "def wrong():\n    return {'sounds': torch.zeros(3), 'rate': 8000}\n"
    )
    return folder


def reward(room: Path, measure: str = "frechet", exemplars: str | None = "heard", model: str = "mel", **settings):
    spec = {"use": "set", "model": model, "measure": measure, **settings}
    return build_reward({**spec, **({"exemplars": exemplars} if exemplars else {})}, room)


def textbook(x: np.ndarray, y: np.ndarray) -> float:
    s, sigma = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(s @ sigma)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + sigma - 2 * root.real))


def test_mel_features_are_a_mel_spectrograms_moments() -> None:
    """By scipy's own short-time transform; the bands are triangles by their definition."""
    media = sounds(3, seconds=0.7)
    edges = 700 * (10 ** (np.linspace(*(2595 * np.log10(1 + np.array([60, 7600]) / 700)), 34) / 2595) - 1)
    lines = np.arange(257)[:, None] * RATE / 512
    bands = np.minimum((lines - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - lines) / np.diff(edges)[1:]).clip(0)
    for seen, wave in zip(MelFeatures().see(media), media["audio"].data, strict=True):
        padded = np.pad(wave[0].numpy().astype(float), 256, mode="reflect")
        starts = range(0, len(padded) - 511, 256)
        power = np.stack(
            [np.abs(np.fft.rfft(padded[k : k + 512] * signal.get_window("hann", 512))) ** 2 for k in starts]
        )
        levels = np.maximum(10 * np.log10(np.maximum(power @ bands, 1e-10)) - 20 * np.log10(128), -80) / 10
        assert seen.numpy() == pytest.approx(np.concatenate([levels.mean(0), levels.std(0)]), abs=2e-3)


def test_clap_features_are_transformers(room: Path) -> None:
    net = ClapModel.from_pretrained(room / "clap").eval()
    extractor = ClapFeatureExtractor.from_pretrained(room / "clap")
    media = sounds(5, rate=8000)
    inputs = extractor([wave[0].numpy() for wave in media["audio"].data], sampling_rate=8000, return_tensors="pt")
    wanted = net.get_audio_features(**{**inputs, "is_longer": torch.zeros(5, 1, dtype=torch.bool)}).pooler_output
    torch.testing.assert_close(ClapFeatures(room / "clap", 2).see(media), wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("model", ["mel", "clap"])
def test_a_set_of_sounds_has_the_textbooks_distance(room: Path, model: str) -> None:
    one, media = reward(room, model=model, components=6), sounds(60, 1)
    encoder = MelFeatures() if model == "mel" else ClapFeatures(room / "clap")
    x, y = encoder.see(media).double(), read_exemplars(str(room / "heard")).seen(encoder)
    if model == "clap":
        x = F.normalize(x, dim=1)
        assert y.norm(dim=1) == pytest.approx(1)
    principal = torch.linalg.svd(y - y.mean(0)).Vh[:6].T
    value = -float(one(prompts(60), media).total.double().mean())
    assert value == pytest.approx(
        textbook((x @ principal).detach().numpy(), (y @ principal).numpy()), rel=1e-4, abs=1e-6
    )
    assert one.needs == {"audio"}


@pytest.mark.parametrize("name", ["kernel", "coverage", "precision", "recall", "vendi"])
def test_every_measure_reads_sounds(room: Path, name: str) -> None:
    media, encoder = sounds(20, 11), MelFeatures()
    one = reward(room, name, exemplars=None if name == "vendi" else "heard")
    of = measure("vendi-1" if name == "vendi" else name, read_exemplars(str(room / "heard")).seen(encoder))
    value = of.better * float(of.value(encoder.see(media).double()))
    assert float(one(prompts(20), media).total.mean()) == pytest.approx(value, rel=1e-4, abs=1e-6)


def test_each_song_alone_is_its_windows(room: Path) -> None:
    media, encoder = sounds(4, 2, seconds=1.25), MelFeatures()
    own, theirs = reward(room, level="sample", windows=0.5), reward(room, "kernel", level="sample", windows=0.5)
    cut, counts = windows(media, 0.5)
    assert counts == [4] * 4
    starts = [0, 4000, 8000, 12_000]
    assert all(torch.equal(cut["audio"].row(k), media["audio"].row(0)[:, s : s + 8000]) for k, s in enumerate(starts))
    parts = [windows(some, 0.5)[0] for some in read_exemplars(str(room / "heard")).batches(7)]
    wanted = torch.cat([encoder.see(part).double() for part in parts])
    assert len(wanted) == 300  # three of each second
    for one, of in ((own, Frechet(Moments.of(wanted))), (theirs, KernelDistance(wanted))):
        found = one(prompts(4), media).total
        for row in range(4):
            alone = encoder.see(cut.select(list(range(4 * row, 4 * row + 4)))).double()
            assert float(found[row]) == pytest.approx(-float(of.value(alone)), rel=1e-4)
    mixed = Media(audio=Track([media["audio"].row(0), sounds(1, 3, seconds=0.3)["audio"].row(0)], RATE))
    assert float(own(prompts(2), mixed).total[0]) == pytest.approx(float(own(prompts(4), media).total[0]), abs=1e-5)


def test_gradients_of_a_song_reach_its_samples(room: Path) -> None:
    for settings in ({}, {"level": "sample", "windows": 0.5}):
        media = sounds(6, 4)
        wave = media["audio"].data.requires_grad_()  # type: ignore[union-attr]
        scores = reward(room, "kernel", **settings)(prompts(6), Media(audio=Track(wave, RATE)))
        scores.total.sum().backward()
        assert wave.grad is not None
        assert wave.grad.isfinite().all()
        assert (wave.grad.abs().amax((1, 2)) > 0).all()


def test_the_limit_is_free_of_the_bias_of_few_samples() -> None:
    """Of one law the distance tends to 0: its mean over many sets of 256 is above, that of the limits is not."""
    y, drawn = rows(100_000, 6, 1), rows(40 * 256, 6, 2).split(256)
    plain, limit = Frechet(Moments.of(y)), FrechetInfinity(Moments.of(y))
    biased = float(torch.stack([plain.value(x) for x in drawn]).mean())
    assert abs(float(torch.stack([limit.value(x) for x in drawn]).mean())) < biased / 5
    x, others = drawn[0], drawn[1]
    torch.testing.assert_close(limit.value(x) - limit.leave_one_out(x), plain.value(x) - plain.leave_one_out(x))
    torch.testing.assert_close(limit.value(x) - limit.swapped(x, others), plain.value(x) - plain.swapped(x, others))


def test_the_limit_is_a_reward(room: Path) -> None:
    one = reward(room, "frechet-infinity", components=4)
    scores = one(prompts(64), sounds(64, 6))
    assert bool(scores.total_valid.all())
    assert not one.differentiable
    with pytest.raises(UsageError, match="needs 32 rows, not 20; draw more"):
        one(prompts(20), sounds(20, 6))


def test_sounds_are_exemplars_in_every_form(room: Path, tmp_path: Path) -> None:
    made = read_exemplars(f"{room / 'made.py'}:heard")
    assert (len(made.sounds), made.sounds[0][0].shape, made.sounds[0][1]) == (8, (1, 8000), 8000.0)  # type: ignore[index,union-attr]
    both = read_exemplars(f"{room / 'made.py'}:both")
    assert (len(both.sounds), len(both.texts)) == (8, 8)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "p", "audio": "a.flac"}\n{"prompt": "q", "audio": "b.ogg"}\n')
    for name in ("a.flac", "b.ogg"):
        soundfile.write(tmp_path / name, 0.1 * np.ones(4000), RATE)
    listed = read_exemplars(str(tmp_path / "rows.jsonl"))
    assert (len(listed.sounds), listed.texts) == (2, ("p", "q"))
    assert MelFeatures().see(next(listed.batches(2))).shape == (2, 64)
    assert made.digest == read_exemplars(f"{room / 'made.py'}:heard").digest != both.digest
    told, moved = (
        reward(room, exemplars="said.txt", model="clap"),
        reward(room, exemplars="said.txt", model="clap", pairs="made.py:both"),
    )
    media = sounds(10, 7)
    assert float(told(prompts(10), media).total.mean()) != float(moved(prompts(10), media).total.mean())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exemplars": "one"}, "holds one sound, which has no spread to compare with; add some"),
        ({"exemplars": "none"}, "is empty; put exemplars there"),
        ({"exemplars": "mixed"}, "holds pictures and sounds; take a folder with one of them"),
        ({"exemplars": "broken"}, "cannot be read as a sound"),
        ({"exemplars": "hollow"}, "holds no sample; drop it"),
        ({"exemplars": "made.py:wrong"}, "must return pictures"),
        ({"exemplars": "pictures"}, "holds no sounds, which the model of reward 'frechet' reads; take others"),
        ({"exemplars": "said.txt"}, "features of a mel spectrogram read no texts"),
        ({"windows": 0.5}, "are seconds above 0 of sounds, compared with sounds at level: sample"),
        ({"windows": 0.0, "level": "sample"}, "are seconds above 0 of sounds"),
        ({"pairs": "said.txt"}, "no pairs of sound and text"),
    ],
)
def test_bad_settings_and_exemplars_are_one_sentence(room: Path, settings: dict, message: str) -> None:
    if not (room / "one").exists():
        for name in ("one", "none", "mixed", "broken", "hollow", "pictures"):
            (room / name).mkdir()
        for name in ("one", "mixed"):
            soundfile.write(room / name / "a.wav", np.zeros(100), RATE)
        (room / "broken" / "a.wav").write_bytes(b"no sound")
        (room / "broken" / "b.wav").write_bytes(b"no sound")
        for name in ("a", "b"):
            soundfile.write(room / "hollow" / f"{name}.wav", np.zeros(0), RATE)
        for folder in ("mixed", "pictures"):
            for name in ("x", "y"):
                (room / folder / f"{name}.png").write_bytes(b"not looked at")
    with pytest.raises(UsageError, match=message):
        reward(room, **settings)(prompts(4), sounds(4))


def test_bad_sounds_fail_alone(room: Path) -> None:
    """Silent, clipped, stereo and of another rate are sounds; not a number, and empty, are none."""
    good = sounds(9, 8)["audio"]
    rows_ = [good.row(k) for k in range(9)]
    rows_[1] = torch.full_like(rows_[1], torch.nan)
    rows_[2] = rows_[2][:, :0]
    rows_[3] = rows_[3][:, :1]
    rows_[4] = 0 * rows_[4]
    rows_[5] = (20 * rows_[5]).clamp(-1, 1)
    rows_[6] = rows_[6].expand(2, -1)
    rates = [float(RATE)] * 7 + [8000.0, float(RATE)]
    for settings in ({}, {"level": "sample", "windows": 0.5}):
        one = Runner(reward(room, "kernel", **settings), max_failure=1.0)
        scores = one(prompts(9), Media(audio=Track.of(rows_, rates)))
        assert scores.failed[:, 0].tolist() == [False, True, True] + [False] * 6
        assert bool(scores.total[[0, 3, 4, 5, 6, 7, 8]].isfinite().all())
    with pytest.raises(UsageError, match="sample rate of the audio"):
        reward(room)(prompts(2), Media(audio=Track(rows_[7:])))


@pytest.mark.parametrize("file", ["music-frechet.yaml", "music-per-song.yaml"])
def test_the_shipped_files_prefer_their_style(file: str, tmp_path: Path) -> None:
    text = shipped("rewards", file).read_text().replace(":flutes", ":few")
    (tmp_path / file).write_text(text)
    (tmp_path / "melody_exemplars.py").write_text(
        shipped("rewards", "melody_exemplars.py").read_text() + "\n\ndef few():\n    return flutes(40)\n"
    )
    rng = np.random.default_rng(9)
    facts = [melody.sample_facts(rng) for _ in range(24)]
    quiet = {"voices": ["flute"], "register": "high", "loudness": "soft", "drums": False}
    loud = {"voices": ["trumpet"], "register": "low", "loudness": "loud", "drums": True}
    means = []
    for style in (quiet, loud):
        waves = np.stack([render(arrange({**each, **style}, rng)) for each in facts])
        media = Media(audio=Track(torch.from_numpy(waves), RATE))
        means.append(float(build_reward({"use": str(tmp_path / file)}, tmp_path)(prompts(24), media).total.mean()))
    assert means[0] > means[1]


def test_a_model_that_is_not_here_yet_is_one_of_sounds_where_it_is_compared_with_sounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe is built, and its plan read, before its reward's weights are fetched."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "made.py").write_text(
        "import numpy as np\n\ndef some():\n    return {'sounds': np.zeros((3, 1, 400)), 'rate': 8000}\n"
    )
    spec = {"use": "set", "model": "nobody/no-such-clap", "measure": "frechet", "exemplars": "made.py:some"}
    one = build_reward(spec, tmp_path)
    assert one.needs == {"audio"}
    with pytest.raises(UsageError, match="nobody/no-such-clap cannot be loaded"):
        one(prompts(4), sounds(4))


def test_rewards_share_the_exemplars_that_a_function_makes(tmp_path: Path) -> None:
    """Drawn at random here: made twice, they would differ."""
    text = "import numpy as np\n\ndef some():\n    return {'sounds': np.random.rand(3, 1, 400), 'rate': 8000}\n"
    (tmp_path / "made.py").write_text(text)
    first, again = (read_exemplars(f"{tmp_path / 'made.py'}:some") for _ in range(2))
    assert first.digest == again.digest
