"""The held-out judge of MelodyWorld: what it hears a sound as, what it is taught, and a short run of its builder."""

from functools import partial

import numpy as np
import pytest
import torch

from genalign import build_reward
from genalign.lab import build, melody, music_judge
from genalign.lab.melody_bank import RATE
from genalign.lab.melody_facts import check
from genalign.lab.melody_pieces import SAMPLES, arrange, render
from genalign.lab.music_judge import HEADS, MusicJudge, MusicNet, heard_facts, save_judge, truth
from genalign.types import Media, Prompt, Track, UsageError


class Oracle(MusicNet):
    """Answers as if it had heard these classes."""

    def __init__(self, classes: list[int]) -> None:
        super().__init__(16)
        self.classes = classes

    def forward(self, waves):
        return {
            kind: torch.nn.functional.one_hot(torch.tensor([right]), len(words)).float()
            for (kind, words), right in zip(HEADS.items(), self.classes, strict=True)
        }


def test_a_network_that_learnt_it_hears_the_facts() -> None:
    """The classes of true pieces, read back, are the facts: neither direction of the translation has lost anything."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        facts = melody.sample_facts(rng)
        (heard,) = heard_facts(Oracle(truth(facts)), torch.zeros(1, SAMPLES))
        assert check(facts, heard)["all_facts"], (facts, heard)
        assert not check(melody.change_one_fact(facts, rng), heard)["all_facts"]


@pytest.mark.parametrize("pitch", [45, 60, 69, 90])
def test_a_tone_is_brightest_in_its_own_row_and_a_semitone_is_three_rows(pitch: int) -> None:
    time = torch.arange(SAMPLES) / RATE
    wave = 0.1 * torch.sin(2 * torch.pi * 440 * 2 ** ((pitch - 69) / 12) * time)
    seen = music_judge.spectrogram(wave[None])[0]
    assert seen.shape == (2, 192, 129)
    wanted = (pitch - music_judge.LOWEST) * music_judge.FINE
    assert abs(int(seen[0, :, 64].argmax()) - wanted) <= (1 if pitch > 50 else 4)  # a low row is as wide as a bin
    louder = music_judge.spectrogram(10 * wave[None])[0]
    torch.testing.assert_close(louder[1], seen[1], rtol=0, atol=1e-3)  # by the loudest of the sound
    assert (louder[0] - seen[0]).max() == pytest.approx(np.log(10) / 4, abs=0.01)


def test_shaken_sounds_keep_length_and_about_their_level() -> None:
    rng = np.random.default_rng(0)
    wave = render(arrange(melody.sample_facts(rng), rng))[0]
    level = np.sqrt((wave**2).mean())
    for _ in range(5):
        made = music_judge.shaken(wave, rng)
        assert made.shape == wave.shape
        assert abs(20 * np.log10(np.sqrt((made**2).mean()) / level)) < 0.71


def test_it_can_learn_all_facts_of_one_batch(tmp_path, monkeypatch) -> None:
    """Every head has its gradient: the same six pieces are told apart after some steps."""
    real = music_judge.fit

    def one_batch(net, loss_of, **given):
        real(net, lambda step: loss_of(0), **{**given, "learning_rate": 3e-3, "muon": 0.0, "weight_decay": 0.0})

    monkeypatch.setattr(music_judge, "fit", one_batch)
    monkeypatch.setattr(music_judge, "shaken", lambda wave, rng: wave)
    net = music_judge.build_judge(tmp_path, steps=60, rows=6)
    rng = np.random.default_rng((27, 0))
    pieces = [arrange(melody.sample_facts(rng), rng) for _ in range(6)]
    heard = heard_facts(net, torch.from_numpy(np.stack([render(piece)[0] for piece in pieces])))
    assert all(check(piece.facts, each)["all_facts"] for piece, each in zip(pieces, heard, strict=True))


def test_a_short_run_resumes_and_is_loaded_as_a_held_out_reward(tmp_path, monkeypatch) -> None:
    steps = []
    real = music_judge.fit

    def followed(net, loss_of, **given):
        real(net, lambda step: steps.append(step) or loss_of(step), **given)

    monkeypatch.setattr(music_judge, "fit", followed)
    short = partial(music_judge.build_judge, rows=2)
    net = short(tmp_path / "work", steps=2)
    again = short(tmp_path / "work", steps=2)  # all of it is in the work folder
    assert steps == [0, 1]
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, net.state_dict()[name])
    monkeypatch.setattr(music_judge, "build_judge", lambda work: net)
    build._music_judge(tmp_path / "work", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").stat().st_size < 3e6

    judge = MusicJudge(tmp_path / "out")
    rng = np.random.default_rng(1)
    facts = [melody.without("key", melody.sample_facts(rng)) for _ in range(4)]
    waves = torch.from_numpy(np.stack([render(arrange(each, rng)) for each in facts]))
    prompts = [Prompt("", facts=each, uid=k) for k, each in enumerate(facts)]
    scores = judge(prompts, Media(audio=Track(waves, RATE)))
    assert scores.names == ("all_facts", *melody.KINDS)
    assert scores.valid.tolist() == [[True, *(melody.is_stated(kind, each) for kind in melody.KINDS)] for each in facts]
    assert torch.equal(scores.total, scores.values[:, 0])
    one = judge(prompts[2:3], Media(audio=Track(waves[2:3], RATE)))
    assert torch.equal(one.values[0], scores.values[2])
    for wrong in (Track(waves[..., :-1], RATE), Track(waves, 2 * RATE)):
        with pytest.raises(UsageError, match=r"hears 3\.072 s of sound"):
            judge(prompts, Media(audio=wrong))
    with pytest.raises(UsageError, match=r"facts\.voices"):
        judge([Prompt("a flute")] * 4, Media(audio=Track(waves, RATE)))


def test_without_weights_one_sentence_says_how_to_make_them(tmp_path) -> None:
    with pytest.raises(UsageError, match="genalign lab build music-judge"):
        build_reward({"use": "melodyworld-judge", "folder": str(tmp_path)}, tmp_path)


def test_it_is_half_precision_on_disk(tmp_path) -> None:
    from safetensors.torch import load_file

    save_judge(MusicNet(), tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
