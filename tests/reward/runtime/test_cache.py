"""Scores from a cache: what is part of the key, what is not kept."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from genalign.reward import FunctionReward, Sharpness
from genalign.reward.runtime.cache import Cached
from genalign.types import Media, Prompt, Track, UsageError
from tests.helpers.scoring import same
from tests.helpers.toy_rewards import images, prompts, texts


class Spy:
    """A function that scores a text's length, abstains on "?", breaks on "!", and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, text: list[str]) -> list[float | None]:
        self.asked += text
        return [None if t == "?" else float("nan") if t == "!" else float(len(t)) for t in text]


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_was_scored_is_not_scored_again_and_a_failure_is(tmp_path: Path, on_disk: bool) -> None:
    """Invariant 17."""
    spy = Spy()
    inner = FunctionReward(spy, name="length")
    cached = Cached(inner, tmp_path / "deep" / "scores.sqlite" if on_disk else None)
    given = texts("a", "bb", "a", "?", "!")
    first = cached(prompts(5), given)
    assert spy.asked == ["a", "bb", "a", "?", "!"]  # "prompt number 0" and "prompt number 2" differ
    second = cached(prompts(5), given)
    assert spy.asked[5:] == ["!"]
    same(first, second)
    same(first, inner(prompts(5), given))
    assert (cached.rows_seen, cached.hits) == (10, 4)
    again = Cached(inner, cached.file)
    again([Prompt("x"), Prompt("x")], texts("ccc", "ccc"))
    assert spy.asked.count("ccc") == 1  # equal rows of one batch are asked once
    again(prompts(5), given)
    assert spy.asked.count("bb") == (2 if on_disk else 3)  # the spy itself was called once, `same` once


@pytest.mark.parametrize("change", ["text", "facts", "media", "edit source", "version", "rate"])
def test_whatever_a_reward_could_read_is_part_of_the_key(change: str) -> None:
    calls: list[int] = []

    def count(media: Media, facts: list[Any], offset: float = 0.0) -> list[float]:
        calls.append(media.rows)
        return [1.0] * media.rows

    reward = FunctionReward(count)
    prompt, media = Prompt("a", images(1), {"k": 1}), images(1)
    cached = Cached(reward)
    cached([prompt], media)
    if change == "text":
        prompt = replace(prompt, text="b")
    elif change == "facts":
        prompt = replace(prompt, facts={"k": 2})
    elif change == "edit source":
        prompt = replace(prompt, media=images(1, seed=1))
    elif change == "media":
        media = images(1, seed=1)
    elif change == "rate":
        media = Media(image=Track(media["image"].data, 2.0))
    else:
        other = Cached(reward.with_settings({"offset": 1.0}))
        other._rows, cached = cached._rows, other
    cached([prompt], media)
    assert len(calls) == 2
    cached([replace(prompt, uid=7)], media)
    assert len(calls) == 2  # which row of which file it is changes nothing


def test_what_cannot_be_cached_is_refused(tmp_path: Path) -> None:
    def siblings(text: list[str], group: list[int]) -> list[float]:
        return [1.0] * len(text)

    with pytest.raises(UsageError, match="looks at siblings, so no sample of it can be cached"):
        Cached(FunctionReward(siblings)).looks_at  # noqa: B018
    (tmp_path / "other").write_text("this is no database, however long one makes it. " * 50)
    with pytest.raises(UsageError, match="cannot be used as a cache"):
        Cached(Sharpness(), tmp_path / "other")(prompts(1), images(1))
    assert not Cached(Sharpness()).differentiable

    class Stateful(Sharpness):
        def state_dict(self) -> dict[str, torch.Tensor]:
            return {"multiplier": torch.ones(1)}

    with pytest.raises(UsageError, match="state that training moves"):
        Cached(Stateful())(prompts(1), images(1))


def test_a_torn_row_of_the_file_is_scored_anew(tmp_path: Path) -> None:
    cached = Cached(Sharpness(), tmp_path / "scores.sqlite")
    whole = cached(prompts(1), images(1))
    with sqlite3.connect(tmp_path / "scores.sqlite") as database:
        database.execute("UPDATE scores SET row = substr(row, 1, 40)")
    same(Cached(Sharpness(), tmp_path / "scores.sqlite")(prompts(1), images(1)), whole)


def test_every_picture_of_a_prompt_is_part_of_the_key() -> None:
    spy = Spy()
    cached = Cached(FunctionReward(spy, name="length"))
    pictures = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for second in (pictures[1], pictures[1], 1 - pictures[1]):
        cached([Prompt("x", Media(image=Track(torch.stack([pictures[0], second]))))], texts("ccc"))
    assert spy.asked == ["ccc", "ccc"]
