"""Levels: a quarter of the bytes, read as the same floats, and never more memory for a longer clip."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from genalign.media.frames import measure, small_luma
from genalign.reward import Runner, build_reward, reward
from genalign.reward.runtime.wire import pack_batch, receive, send, unpack_batch
from genalign.types import GenalignError, Media, Track, UsageError
from genalign.types.samples import CHUNK, in_chunks, to_levels
from tests.helpers.clips import gliding
from tests.helpers.toy_rewards import prompts


def batch(rows: int = 3, frames: int = 5) -> torch.Tensor:
    return torch.rand(rows, frames, 3, 6, 10, generator=torch.Generator().manual_seed(0))


def test_levels_are_a_quarter_of_the_bytes_and_the_nearest_of_256() -> None:
    floats = batch()
    media = Media(video=Track(floats, 8.0)).compact()
    track = media["video"]
    assert track.held.dtype == torch.uint8
    assert 4 * track.held.nbytes == floats.nbytes
    assert torch.equal(track.held, (floats.double() * 255).round().to(torch.uint8))
    assert track.data.dtype == torch.float32
    assert (track.data - floats).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(track.data, track.held.float() / 255)
    assert (track.rate, len(track), track.shapes()) == (8.0, 3, {(5, 3, 6, 10)})


def test_a_row_of_wan_at_480p_is_97_megabytes() -> None:
    """81 frames of 480 x 832: the arithmetic of the memory table, on a row that is never touched."""
    row = torch.empty(1, 81, 3, 480, 832, dtype=torch.uint8)
    assert Track(row).held.nbytes == 97_044_480
    assert 4 * row.nbytes == 388_177_920


def test_chunks_hold_whole_frames_and_one_at_least() -> None:
    row = torch.empty(1, dtype=torch.uint8).expand(9, 3, 480, 832)
    assert [len(part) for part in in_chunks(row)] == [3, 3, 3]
    assert [len(part) for part in in_chunks(row[:2].repeat(1, 1, 2, 2))] == [1, 1]
    assert [len(part) for part in in_chunks(gliding())] == [9]


def test_what_is_not_a_video_in_range_stays_as_it_is() -> None:
    """Pictures to the bit; a graph; and what levels could not show, so that it is still found out."""
    image = torch.rand(2, 3, 4, 4)
    broken = [torch.full((1, 2, 3, 4, 4), value) for value in (float("nan"), 1.5, -0.5)]
    graph = batch().requires_grad_()
    held = Media(image=Track(image), text=Track(["a", "b"])).compact()
    assert held["image"].held is image
    assert held["text"].held == ["a", "b"]
    for kept in [*broken, graph]:
        assert Media(video=Track(kept)).compact()["video"].held is kept
    with pytest.raises(GenalignError, match=r"video values in \[1.5, 1.5\]"):
        Runner(build_reward("moving", Path()))(prompts(1), Media(video=Track(broken[1], 8.0)).compact())
    scores = Runner(build_reward("moving", Path()))(prompts(1), Media(video=Track(broken[0], 8.0)).compact())
    assert scores.failed.all()
    with pytest.raises(UsageError, match="audio is held as uint8"):
        Media(audio=Track(torch.zeros(1, 1, 9, dtype=torch.uint8), 8000.0))


def test_levels_are_read_back_to_where_the_floats_were() -> None:
    elsewhere = torch.device("meta")
    track = Track(to_levels(batch()), 8.0, device=elsewhere)
    assert track.held.device == torch.device("cpu")
    for kept in (track, track.as_levels(), track.select([1]), Media.cat([Media(video=track)] * 2)["video"]):
        assert kept.device == elsewhere
        assert kept.row(0, [1]).device == kept.data.device == elsewhere
        assert kept.held.device == torch.device("cpu")


def test_rows_frames_and_joins_of_levels() -> None:
    floats = batch()
    levels = Media(video=Track(floats, 8.0)).compact()
    whole = levels["video"].data
    assert torch.equal(levels["video"].row(1, [4, 0]), whole[1, [4, 0]])
    assert torch.equal(levels["video"].row(2, slice(1, 3)), whole[2, 1:3])
    assert all(torch.equal(row, one) for row, one in zip(levels["video"], whole, strict=True))
    assert torch.equal(levels.select([2, 0])["video"].held, levels["video"].held[[2, 0]])
    joined = Media.cat([levels, levels.select([1])])["video"]
    assert joined.held.dtype == torch.uint8
    assert torch.equal(joined.data[3], whole[1])
    mixed = Media.cat([levels, Media(video=Track(floats, 8.0))])["video"]  # levels beside floats are read first
    assert torch.equal(mixed.held, torch.cat([whole, floats]))
    lists = Media(video=Track([floats[0], floats[1, :2]], 8.0)).compact()["video"]
    assert [row.dtype for row in lists.held] == [torch.uint8] * 2
    assert torch.equal(lists.row(1), whole[1, :2])


def test_functions_read_floats_and_pay_only_for_what_they_read(monkeypatch) -> None:
    floats = batch()
    media = Media(video=Track(floats, 8.0), text=Track(["a", "bb", "ccc"])).compact()
    seen = []

    @reward
    def light(video):
        seen.append(video)
        return video.mean((1, 2, 3, 4))

    @reward
    def long(text):
        return [float(len(t)) for t in text]

    assert torch.allclose(light(prompts(3), media).total, floats.mean((1, 2, 3, 4)), atol=1e-3)
    assert seen[0].dtype == torch.float32
    monkeypatch.setattr(
        Track, "data", property(lambda track: track.held if track.held == ["a", "bb", "ccc"] else 1 / 0)
    )
    assert long(prompts(3), media).total.tolist() == [1.0, 2.0, 3.0]


def test_levels_cross_to_another_process_as_they_are(tmp_path) -> None:
    media = Media(video=Track(batch(), 8.0)).compact()
    with (tmp_path / "frame").open("wb") as file:
        send(file, pack_batch(prompts(3), media, None))
    assert (tmp_path / "frame").stat().st_size < media["video"].held.nbytes + 2000
    with (tmp_path / "frame").open("rb") as file:
        message = receive(file)
    assert message is not None
    _, back, _ = unpack_batch(message)
    assert torch.equal(back["video"].data, media["video"].data)


def peak(work) -> int:
    """The most bytes that were allocated at once while `work` ran, by PyTorch's own record of every allocation."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.parametrize("use", ["moving", "steady", "smooth-motion"])
def test_four_times_the_frames_take_the_same_memory_to_score(use: str) -> None:
    """At most 1.1 times as much: CHUNK values are converted at a time, and only numbers of each frame are kept."""
    together = CHUNK // (3 * 96 * 160)
    clip = to_levels(torch.rand(together, 3, 96, 160, generator=torch.Generator().manual_seed(0)))
    rule = build_reward(use, Path())
    costs = []
    for times in (2, 8):
        media = Media(video=Track(clip.repeat(times, 1, 1, 1)[None], 8.0))
        costs.append(peak(lambda media=media: rule(prompts(1), media)))
    assert 4 * CHUNK * 0.9 < costs[0] < 4 * CHUNK * 6
    if use == "smooth-motion":  # which also keeps, and joins, each frame's luma at 64 pixels at most
        assert costs[1] - costs[0] <= 2.1 * 6 * together * 38 * 64 * 4
    else:
        assert costs[1] <= 1.1 * costs[0]


def test_four_times_the_frames_take_the_same_memory_to_convert() -> None:
    costs = []
    for times in (2, 8):
        floats = torch.rand(1, CHUNK // (3 * 48 * 64), 3, 48, 64).repeat(1, times, 1, 1, 1)
        costs.append(peak(lambda floats=floats: Media(video=Track(floats, 8.0)).compact()) - floats.nbytes // 4)
    assert costs[1] <= 1.1 * costs[0]


def test_measures_of_levels_are_those_of_their_floats() -> None:
    levels = to_levels(gliding(20, 1))
    for first, second in zip(measure(levels), measure(levels.float() / 255), strict=True):
        assert torch.equal(first, second)
    assert torch.equal(small_luma(levels, 24), small_luma(levels.float() / 255, 24))
