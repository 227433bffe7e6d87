"""The check that ranks hold the same bits."""

import pytest
import torch

from genalign.types import GenalignError


@pytest.mark.parametrize("theirs", ["equal", "off by one bit"])
def test_ranks_that_hold_different_bits_are_stopped(theirs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from genalign.training import selfcheck

    ours = torch.tensor([0.1, 0.2])
    other = ours if theirs == "equal" else torch.nextafter(ours, torch.ones(2))
    sums: list[torch.Tensor] = []
    monkeypatch.setattr(selfcheck, "world", lambda: 2)
    monkeypatch.setattr(selfcheck, "gather", lambda mine: sums.append(mine) or torch.cat(sums))
    selfcheck.check_equal([other, None], "gradients")  # what the other rank sends
    if theirs == "equal":
        selfcheck.check_equal([ours, None], "gradients")
    else:
        with pytest.raises(GenalignError, match="gradients differ between ranks"):
            selfcheck.check_equal([ours, None], "gradients")
