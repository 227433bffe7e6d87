"""Which latents become which medium, of decoders that are written out here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from genalign.policy import spans
from genalign.policy.spans import Spans, spans_of
from genalign.types import Media, Track


def pipe(parts: tuple[int, ...], modalities: tuple[str, ...] = ("video", "audio")) -> Any:
    tracks, stage = SimpleNamespace(modalities=frozenset(modalities)), SimpleNamespace(parts=parts)
    return SimpleNamespace(spans=None, tracks=tracks, stage=stage, entry=lambda: 0)


def drawing(seen: slice | list[int], heard: slice | list[int]) -> Any:
    """A decoder that shows the latents at `seen` and sounds those at `heard`."""

    def decode(_: Any, x: Tensor) -> Media:
        frames = x[:, seen].sigmoid().mean(1).reshape(-1, 1, 1, 1, 1).expand(-1, 2, 3, 1, 1)
        return Media(video=Track(frames, 8.0), audio=Track(x[:, heard].tanh()[:, None], 100.0))

    return decode


@pytest.mark.parametrize(
    ("parts", "seen", "heard", "media"),
    [
        ((4, 2), slice(0, 4), slice(4, 6), {"video": [slice(0, 4)], "audio": [slice(4, 6)]}),
        ((2, 4), slice(2, 6), slice(0, 2), {"audio": [slice(0, 2)], "video": [slice(2, 6)]}),
        ((2, 1, 3), [0, 1, 3, 4, 5], [2], {"video": [slice(0, 2), slice(3, 6)], "audio": [slice(2, 3)]}),
        ((4, 2), slice(0, 6), slice(4, 6), {}),  # the second part is seen and heard
        ((6,), slice(0, 4), slice(4, 6), {}),
    ],
)
def test_a_part_is_of_the_medium_that_it_changes_alone(monkeypatch, parts, seen, heard, media) -> None:
    monkeypatch.setattr(spans, "decode", drawing(seen, heard))
    made = pipe(parts)
    found = spans_of(made)
    assert {name: list(slices) for name, slices in found.of.items()} == media
    assert found.media == tuple(media)
    assert spans_of(made) is found
    x = torch.arange(12.0).reshape(2, 6)
    expected = [torch.cat([x[:, part] for part in slices], 1) for slices in media.values()] or [x]
    assert all(torch.equal(a, b) for a, b in zip(found.split(x), expected, strict=True))


def test_one_medium_is_not_decoded_for_this(monkeypatch) -> None:
    monkeypatch.setattr(spans, "decode", None)
    assert spans_of(pipe((4, 2), ("video",))).media == ()
    x = torch.zeros(2, 3, 4)
    assert Spans({}).split(x)[0] is x
