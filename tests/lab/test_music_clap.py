"""The builder of tiny-clap: a short run, its folder in transformers' own hands, and what its figures count."""

from pathlib import Path

import numpy as np
import pytest
import torch

from genalign import build_reward
from genalign.lab import build, melody, music_clap
from genalign.lab.melody_bank import RATE
from genalign.lab.melody_pieces import arrange, render
from genalign.types import Media, Prompt, Track


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("clap")
    music_clap.save_clap(*music_clap.build_clap(work, steps=2, rows=4), work / "tiny-clap")
    return work / "tiny-clap"


def test_transformers_and_the_reward_load_the_folder_and_agree(folder: Path) -> None:
    from transformers import ClapModel, ClapProcessor

    rng = np.random.default_rng(0)
    facts = [melody.sample_facts(rng) for _ in range(3)]
    waves, texts = np.stack([render(arrange(each, rng)) for each in facts]), [melody.caption(f, rng) for f in facts]
    model = ClapModel.from_pretrained(folder, dtype=torch.float32).eval()
    middle = [wave[0, 576 : 576 + 48_000] for wave in waves]  # 3 s of 3.072
    read = ClapProcessor.from_pretrained(folder)(
        text=texts, audio=middle, sampling_rate=RATE, padding=True, return_tensors="pt"
    )
    assert read.input_features.shape == (3, 1, 121, 128)
    with torch.no_grad():
        made = model(**{**read, "is_longer": torch.zeros(3, 1, dtype=torch.bool)})
    wanted = torch.nn.functional.cosine_similarity(made.audio_embeds, made.text_embeds)
    reward = build_reward({"use": "clap", "model": str(folder)}, folder)
    scores = reward([Prompt(text) for text in texts], Media(audio=Track(torch.from_numpy(waves), RATE)))
    torch.testing.assert_close(scores.total.float(), wanted, rtol=0, atol=1e-4)


def test_a_text_of_any_length_of_the_world_fits(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer, rng = AutoTokenizer.from_pretrained(folder), np.random.default_rng(1)
    texts = [melody.caption(melody.sample_facts(rng), rng) for _ in range(200)]
    assert max(len(ids) for ids in tokenizer(texts).input_ids) <= music_clap.TOKENS


def test_the_figures_count_how_often_the_true_caption_wins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With features that know the drums alone, a changed beat is always seen, and nothing else is."""

    def drums(texts):
        return torch.tensor([[0.0, 1.0] if "with a drum" in t or "with drums" in t else [1.0, 0.0] for t in texts])

    facts = []
    monkeypatch.setattr(music_clap, "arrange", lambda each, rng: facts.append(each) or arrange(each, rng))
    monkeypatch.setattr(music_clap.Clap, "hear", lambda self, media: torch.tensor(
        [[0.0, 1.0] if each["drums"] else [1.0, 0.0] for each in facts]
    ))  # fmt: skip
    monkeypatch.setattr(music_clap.Clap, "read", lambda self, texts: drums(texts))
    shares = music_clap.clap_accuracy(folder, count=12)
    assert shares == {kind: float(kind == "drums") for kind in melody.KINDS}


def test_its_card_is_written(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(music_clap, "clap_accuracy", lambda folder: {"melody": 0.75})
    monkeypatch.setattr(music_clap, "build_clap", lambda work: (1, 2))
    monkeypatch.setattr(music_clap, "save_clap", lambda model, tokenizer, out: None)
    build.main("clap", tmp_path / "tiny-clap", tmp_path)
    card = (tmp_path / "tiny-clap" / "README.md").read_text()
    assert "melody 75.0%" in card
    assert "genalign lab build clap" in card
