"""The builder of tiny-vlm-judge: its tower is tiny-clip's, its folder is a judge, and its training lowers its loss."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genalign.files.shipped import shipped
from genalign.lab import vlm
from genalign.reward import YesNoJudge
from genalign.types import Media, Prompt, Track

tokenizer = functools.cache(vlm.vlm_tokenizer)


def test_the_tower_sees_what_tiny_clip_sees() -> None:
    import open_clip

    clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{shipped('assets', 'tiny-clip')}")
    clip.visual.output_tokens = True
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tower = vlm.vlm_model(tokenizer(), layers=1).model.vision_tower.eval()
    captured: list[torch.Tensor] = []
    clip.visual.transformer.register_forward_hook(lambda module, args, out: captured.append(out))
    with torch.no_grad():
        clip.eval().encode_image(pixels)
        ours = tower(pixels).last_hidden_state
    assert torch.allclose(ours, captured[0], atol=1e-4)
    assert ours.std() > 0.1


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A model after a few steps on very few rows, and its losses."""
    work, losses = tmp_path_factory.mktemp("vlm"), list[float]()

    def watched(model: Any, loss_of: Any, **options: Any) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
        for _ in range(14):
            loss = loss_of(0)  # the same batch each time: what training can lower at all
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())

    patch = pytest.MonkeyPatch()
    patch.setattr(vlm, "fit", watched)
    patch.setattr(vlm, "vlm_tokenizer", tokenizer)
    vlm.save_vlm(*vlm.build_vlm(work, rows=2), work / "tiny-vlm-judge")
    patch.undo()
    return work / "tiny-vlm-judge", losses


def test_training_lowers_the_loss(built: tuple[Path, list[float]]) -> None:
    losses = built[1]
    assert losses[0] > 4  # nats: hundreds of words, none known
    assert losses[-1] < losses[0] / 3


def test_the_folder_is_a_judge_that_reads_what_training_read(built: tuple[Path, list[float]]) -> None:
    from transformers import AutoModelForImageTextToText

    folder = built[0]
    pictures, told, _ = vlm.scenes(np.random.default_rng(1), 3, "heldout")
    media = Media(image=Track(torch.from_numpy(pictures).permute(0, 3, 1, 2).repeat_interleave(2, 0)))
    p = YesNoJudge(model=folder, question=vlm.QUESTION)([Prompt(text) for text in told], media).total
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    mean, std = (torch.tensor(vlm.PREPROCESS[key]).view(3, 1, 1) for key in ("mean", "std"))
    levels = media["image"].data.mul(255).round().div(255)  # type: ignore[union-attr]
    with torch.no_grad():
        logits = vlm.answer_logits(model, tokenizer(), (levels - mean) / std, told)
    yes, no = (logits[:, tokenizer().convert_tokens_to_ids(word)] for word in ("yes", "no"))
    assert p.tolist() == pytest.approx((yes - no).sigmoid().tolist(), abs=1e-4)
    assert p.std() > 1e-4


def test_questions_are_short_and_every_word_is_known() -> None:
    _, told, label = vlm.scenes(np.random.default_rng(2), 50, "train")
    ids = [tokenizer()(vlm.ASKED.format(prompt=text), add_special_tokens=False)["input_ids"] for text in told]
    assert max(map(len, ids)) + vlm.PATCHES <= vlm.LONGEST
    assert len(ids[0]) <= len(vlm.ASKED.format(prompt=told[0]).split()) + 2  # "?" and "."
    assert label.tolist() == [1, 0] * 50
    assert all(true != false for true, false in zip(told[::2], told[1::2], strict=True))


def test_false_captions_are_first_of_other_pictures_then_of_one_intricate_fact() -> None:
    """Told apart by their words: the next picture's caption names its objects, an intricate one changes none."""
    from genalign.lab.sprites import sprites

    def named(text: str) -> set[str]:
        return {name for name, sprite in sprites().items() if name in text or sprite.plural in text}

    _, other, _ = vlm.scenes(np.random.default_rng(3), 40, "train", easy=1.0)
    assert all(named(other[2 * k + 1]) == named(other[(2 * k + 2) % 80]) for k in range(40))
    _, near, _ = vlm.scenes(np.random.default_rng(3), 200, "train", intricate=1.0)
    same = [named(a) == named(b) for a, b in zip(near[::2], near[1::2], strict=True)]
    pairs = [" and " in a and " on " not in a.split(" and ")[0] for a in near[::2]]  # they have neither to change
    assert all(kept or pair for kept, pair in zip(same, pairs, strict=True))
    assert sum(same) > 100


def test_the_card_measures_what_the_folder_says(
    built: tuple[Path, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from genalign.lab.cards import write_card

    measured = vlm.vlm_accuracy
    monkeypatch.setattr(vlm, "vlm_accuracy", lambda folder: measured(folder, 8))
    write_card(built[0])
    accuracy, gap = measured(built[0], 8)
    card = " ".join((built[0] / "README.md").read_text().split())
    assert f"balanced accuracy is {accuracy:.1%}" in card
    assert f"of p(yes) {gap:.3f}" in card
    assert 'question: "Does this picture show {prompt}?"' in card


def test_accuracy_and_calibration_are_what_their_definitions_say() -> None:
    p, label = torch.tensor([0.95, 0.85, 0.92, 0.15, 0.12, 0.55]), torch.tensor([1, 1, 0, 0, 1, 1])
    assert vlm.balanced_accuracy(p, label) == pytest.approx((3 / 4 + 1 / 2) / 2)
    bins = [([0.95, 0.92], [1, 0]), ([0.85], [1]), ([0.15, 0.12], [0, 1]), ([0.55], [1])]
    expected = sum(len(q) * abs(np.mean(q) - np.mean(y)) for q, y in bins) / 6
    assert vlm.calibration_error(p, label) == pytest.approx(expected, abs=1e-6)


def test_the_shipped_judge_is_right_and_knows_how_sure_it_is() -> None:
    """On scenes of another seed than its card's; a coin is right in half, and a judge that is always sure is off by
    its mistakes."""
    accuracy, gap = vlm.vlm_accuracy(shipped("assets", "tiny-vlm-judge"), count=200, seed=19)
    assert accuracy > 0.9
    assert gap < 0.1
