"""Parts of a turn: packing is checked against concatenation by hand, and the way back against what went in."""

from __future__ import annotations

import pytest
import torch

from genalign.policy.turn import Turn, packed


def test_one_part_is_handed_through_as_it_is() -> None:
    x, turn = torch.randn(2, 3, 4), Turn(1, 2)
    assert turn.add(x, x + 1)[0] is x
    assert turn.share(x, torch.zeros(2, 3, 4)) is x


def test_frames_among_the_rows_are_an_axis_of_a_row() -> None:
    frames = torch.randn(6, 4, 2, 2)  # two rows of three frames
    (whole,) = Turn(1, 2).add(frames)
    assert torch.equal(whole, torch.stack([frames[:3], frames[3:]]))
    assert torch.equal(Turn(1, 2).share(whole, frames), frames)


def test_parts_stand_end_to_end_and_each_comes_back_in_its_own_strides() -> None:
    video, sound = torch.randn(2, 5, 3).transpose(1, 2), torch.randn(2, 4)
    turn = Turn(2, 2)
    for _ in range(2):  # turn after turn
        assert turn.add(video) is None
        (whole,) = turn.add(sound)
        assert torch.equal(whole, torch.stack([torch.cat([video[k].flatten(), sound[k]]) for k in range(2)]))
        shares = []
        for part in (video, sound):
            shares.append(turn.share(whole, part))
            turn.add(part)
        assert torch.equal(shares[0], video)
        assert torch.equal(shares[1], sound)
        assert shares[0].stride() == video.stride()


def test_rows_that_do_not_divide_are_an_error() -> None:
    with pytest.raises(RuntimeError):
        packed([torch.zeros(5, 2)], 2)
