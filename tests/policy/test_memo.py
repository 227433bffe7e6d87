"""Replay asks no encoder again: exact counts of real calls, with and without the memo."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from genalign.policy import memo
from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.memo import EncoderMemo, Kept
from tests.helpers import sound_policies
from tests.helpers.diffusion import PROMPTS, log_ratio
from tests.helpers.edits import PIXELS, asking
from tests.helpers.tiny_sounds import SOUNDS
from tests.helpers.tiny_videos import ANIMATING
from tests.helpers.video_policies import settings


def counted(module: Any, method: str, counts: list[int]) -> None:
    """Let every real call of a method be counted."""
    real = getattr(module, method)

    def call(*args: Any, **kwargs: Any) -> Any:
        counts[0] += 1
        return real(*args, **kwargs)

    object.__setattr__(module, method, call)


# Three prompts twice: six units of up to four rows at three steps, or nine of two where a batch has one picture.
@pytest.mark.parametrize(
    ("name", "rows", "calls"),
    [
        ("cogvideox-i2v", 4, {"vae": 18}),
        ("ltx-i2v", 4, {"vae": 18}),
        ("wan-i2v", 2, {"vae": 18, "image_encoder": 9}),
        ("audioldm2", 4, {"text_encoder_2": 4, "language_model": 32}),
    ],
)
def test_replay_asks_no_encoder_again(monkeypatch, name, rows, calls) -> None:
    pipeline = {**ANIMATING, **SOUNDS}[name].build()
    chosen = sound_policies.settings(name) if name in SOUNDS else settings(pipeline, name)
    counts = {part: [0] for part in calls}
    for part, count in counts.items():
        counted(getattr(pipeline, part), "encode" if part == "vae" else "forward", count)
    of = DiffusionPolicy(pipeline, chosen.model_copy(update={"batch_size": rows}))
    prompts = [asking(prompt.text, pixels, prompt.uid) for prompt, pixels in zip(PROMPTS, PIXELS, strict=True)]
    prompts = PROMPTS if name in SOUNDS else prompts
    trajectory = of.rollout(prompts, 2, seed=0)
    assert trajectory.logp.shape == (6, 3)
    for count in counts.values():
        count[0] = 0
    assert bool((log_ratio(of, trajectory) == 0).all())
    assert {part: count[0] for part, count in counts.items()} == dict.fromkeys(calls, 0)
    monkeypatch.setattr(Kept, "get", lambda self, key: None)
    assert bool((log_ratio(of, trajectory) == 0).all())
    assert {part: count[0] for part, count in counts.items()} == calls


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, x: Any, cache: Any = None) -> Any:
        self.asked += 1
        return SimpleNamespace(state=x * 2)


def remembering() -> tuple[Tower, EncoderMemo]:
    tower = Tower()
    return tower, EncoderMemo(SimpleNamespace(components={"tower": tower, "tokenizer": object()}), ())


def test_only_equal_arguments_have_an_answer_from_memory() -> None:
    tower, encoders = remembering()
    x = torch.arange(4.0)
    for _ in range(2):
        with encoders.active():
            assert torch.equal(tower(x).state, x * 2)
            assert torch.equal(tower(x + 1).state, x * 2 + 2)
            assert torch.equal(tower(x.to(torch.bfloat16)).state, (x * 2).to(torch.bfloat16))
            assert torch.equal(tower(x.view(2, 2)).state, (x * 2).view(2, 2))
    assert tower.asked == 4
    tower(x)  # outside of it the tower is its own again
    assert tower.asked == 5
    assert "forward" not in vars(tower)


def test_what_memory_cannot_answer_is_asked() -> None:
    tower, encoders = remembering()
    x = torch.ones(4)
    with encoders.active():
        tower(x).state.add_(1)  # a pipeline that writes into what it was given
        assert torch.equal(tower(x).state, x * 2)
        assert tower.asked == 2
        for _ in range(2):
            tower(x, cache=object())
        assert tower.asked == 4
        steep = x.clone().requires_grad_()
        tower(steep).state.sum().backward()
        assert torch.equal(steep.grad, 2 * x)
        encoders.closed = True
        tower(x)
        assert tower.asked == 6


def test_the_oldest_answers_make_room_and_a_huge_one_is_not_kept(monkeypatch) -> None:
    monkeypatch.setattr(memo, "KEPT", 3 * 16)
    monkeypatch.setattr(memo, "LARGEST", 2 * 16)
    tower, encoders = remembering()
    with encoders.active():
        for k in (0, 1, 2, 3, 0):  # 16 bytes each
            tower(torch.full((4,), float(k)))
        assert tower.asked == 5
        tower(torch.full((4,), 3.0))
        assert tower.asked == 5
        for _ in range(2):
            tower(torch.zeros(12))
        assert tower.asked == 7
