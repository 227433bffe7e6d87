"""Frames between processes."""

import os

import torch

from genalign.reward.runtime.wire import pack_batch, pack_scores, receive, send, unpack_batch, unpack_scores
from genalign.types import Media, Prompt, Scores, Track
from tests.helpers.toy_rewards import images


def test_frames_round_trip() -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as source, os.fdopen(write, "wb") as sink:
        group = torch.tensor([5, 6])
        given = [Prompt("a", images(1), {"objects": [{"name": "cat", "count": 2}]}, uid=7), Prompt("b")]
        media = Media(text=Track(["x", ""]), audio=Track([torch.rand(1, 9), torch.rand(1, 4)], rate=16000.0))
        send(sink, pack_batch(given, media, group))
        message = receive(source)
        assert message is not None
        back, heard, siblings = unpack_batch(message)
        assert [(p.text, dict(p.facts), p.uid) for p in back] == [(p.text, dict(p.facts), p.uid) for p in given]
        assert torch.equal(back[0].media["image"].data, given[0].media["image"].data)  # type: ignore[index, arg-type]
        assert heard["text"].data == ["x", ""]
        assert heard["audio"].rate == 16000.0
        assert all(torch.equal(a, b) for a, b in zip(heard["audio"].data, media["audio"].data, strict=True))  # type: ignore[arg-type]
        assert torch.equal(siblings, group)  # type: ignore[arg-type]
        half = torch.rand(2, 1).bfloat16()
        yes = torch.ones(2, 1, dtype=torch.bool)
        sent = Scores(("s",), half, yes, ~yes, half[:, 0], yes[:, 0], torch.ones(1), info={"why": ["x", None]})
        send(sink, pack_scores(sent))
        message = receive(source)
        assert message is not None
        got = unpack_scores(message)
        assert torch.equal(got.values, half)
        assert got.names == ("s",)
        assert got.confidence is None
        assert dict(got.info) == {"why": ["x", None]}
