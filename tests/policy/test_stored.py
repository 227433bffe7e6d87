"""Embeddings and clean latents on the disk: found by content, the same bits, within a bound."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.settings import Cache, Lora, PolicySettings, Sampler
from genalign.policy.stored import Stored
from genalign.types import Media, Track, UsageError
from tests.helpers.diffusion import PROMPTS
from tests.helpers.tiny_pipelines import FAMILIES, MORE

KNOWN = {**FAMILIES, **MORE}
NAMES = ["stable-diffusion-3", "stable-diffusion-xl", "pixart-sigma", "z-image"]  # tuples, masks, lists of embeddings


def policy(name: str, folder: Path | None, **parts: Any) -> DiffusionPolicy:
    settings = PolicySettings(
        model=name,
        call=KNOWN[name].call,
        lora=Lora(rank=2),
        sampler=Sampler(steps=2, kernel="flow-sde" if KNOWN[name].flow else "cps", guidance=3.0),
        batch_size=2,
        cache=None if folder is None else Cache(folder=str(folder)),
    )
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return DiffusionPolicy(KNOWN[name].build(**parts), settings)


def counted(of: DiffusionPolicy) -> list[str]:
    """Names of the frozen networks that are asked from now on."""
    asked: list[str] = []
    for name, part in of.pipeline.components.items():
        if name.startswith("text_encoder") and part is not None:
            part.register_forward_hook(lambda *_, name=name: asked.append(name))
        elif name == "vae":
            part.encoder.register_forward_hook(lambda *_, name=name: asked.append(name))
    return asked


@pytest.mark.parametrize("name", NAMES)
def test_a_second_run_asks_no_text_encoder_and_draws_the_same(name: str, tmp_path: Path) -> None:
    plain = policy(name, None).rollout(PROMPTS, 1, seed=3)
    first = policy(name, tmp_path / "c").rollout(PROMPTS, 1, seed=3)
    again = policy(name, tmp_path / "c")
    asked = counted(again)
    second = again.rollout(PROMPTS, 1, seed=3)
    assert asked == []
    for found in (first, second):
        torch.testing.assert_close(found.logp, plain.logp, rtol=0, atol=0)
        torch.testing.assert_close(found.media["image"].data, plain.media["image"].data, rtol=0, atol=0)


def test_clean_latents_are_found_by_the_pixels(tmp_path: Path) -> None:
    pictures = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    plain = policy("stable-diffusion-3", None)
    wanted = torch.cat([plain.encode(Media(image=Track(row[None]))) for row in pictures])
    first = policy("stable-diffusion-3", tmp_path).encode(Media(image=Track(pictures)))
    of = policy("stable-diffusion-3", tmp_path)
    asked = counted(of)
    second = of.encode(Media(image=Track(pictures.flip(0)))).flip(0)
    assert asked == []
    torch.testing.assert_close(first, wanted, rtol=0, atol=0)
    torch.testing.assert_close(second, wanted, rtol=0, atol=0)
    of.encode(Media(image=Track(pictures + 1e-3)))
    assert asked == ["vae"] * 3


def test_other_weights_have_answers_of_their_own(tmp_path: Path) -> None:
    policy("stable-diffusion-3", tmp_path).rollout(PROMPTS[:1], 1, seed=0)
    other = policy("stable-diffusion-3", tmp_path)
    next(other.pipeline.text_encoder.parameters()).data.mul_(1.01)
    asked = counted(other)
    other.rollout(PROMPTS[:1], 1, seed=0)
    assert "text_encoder" in asked


def test_what_was_asked_for_longest_ago_makes_room(tmp_path: Path) -> None:
    stored = Stored(tmp_path, 10_000, lambda: "x")
    calls: list[int] = []

    def ask(number: int) -> torch.Tensor:
        def make() -> torch.Tensor:
            calls.append(number)
            return torch.full((500,), float(number))  # 2,000 bytes, and a header

        answer: torch.Tensor = stored.answer(number, make)
        assert torch.equal(answer, torch.full((500,), float(number)))
        for age, path in enumerate(sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)):
            os.utime(path, ns=(age, age))  # a clock may not tell two that quick apart
        return answer

    for number in (0, 1, 2, 3, 0, 4):  # 0 was asked for again, so that 1 is the oldest
        ask(number)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 10_000
    calls.clear()
    ask(0)
    assert calls == []
    ask(1)
    assert calls == [1]


def test_a_file_that_was_cut_is_made_again(tmp_path: Path) -> None:
    stored = Stored(tmp_path, 10**6, lambda: "x")
    tree = ([torch.arange(3.0), None], (torch.ones(2, dtype=torch.bfloat16), 4))
    stored.answer("q", lambda: tree)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    found = stored.answer("q", lambda: tree)
    assert found is tree
    read = Stored(tmp_path, 10**6, lambda: "x").answer("q", lambda: None)
    assert isinstance(read, tuple)
    assert isinstance(read[0], list)
    assert read[0][1] is None
    assert read[1][1] == 4
    assert torch.equal(read[0][0], tree[0][0])
    assert torch.equal(read[1][0], tree[1][0])


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"policy\.cache\.folder .* cannot be made") as error:
        Stored(tmp_path / "file" / "folder", 1, lambda: "x")
    assert "\n" not in str(error.value)
