"""What ranks hold and are sent, against sums by hand."""

from __future__ import annotations

import torch
from torch import nn

from genalign.training.shares import Share, share


class Network(nn.Module):
    """Two blocks with a weight in common, an input layer in no block, a buffer, a number, and something trained."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(3, 5, bias=False)  # 15 numbers: in parts of 3 rows, 9
        self.blocks = nn.ModuleList([nn.Linear(5, 7), nn.Linear(5, 7, bias=False)])  # 35 + 7 and 35: 20 + 4 and 20
        self.blocks[0].shared = self.blocks[1].shared = nn.Parameter(torch.zeros(2, 2))  # type: ignore[assignment]
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("frequencies", torch.zeros(6, dtype=torch.float64))
        self.requires_grad_(False)
        self.trained = nn.Parameter(torch.zeros(100))


def test_parts_of_two_ranks_are_counted_with_their_padding() -> None:
    unsplit = 4 * (2 * 2 + 1) + 8 * 6
    beside = 4 * (15 + 2 * 42)  # what is in no block, and the first block as it comes and as it computes
    assert share(Network(), 2) == Share(4 * (15 + 42 + 35) + unsplit, 4 * 53 + unsplit, beside, 4 * 53)


def test_more_ranks_than_rows_hold_a_row_each() -> None:
    rows = 4 * (3 + 5 + 1 + 5)
    found = share(Network(), 16)
    assert found.held == rows + 4 * 5 + 8 * 6
    assert found.received == 15 * rows


def test_bytes_of_other_dtypes_are_their_own() -> None:
    assert share(nn.Linear(4, 4, bias=False).requires_grad_(False).to(torch.bfloat16), 2) == Share(32, 16, 64, 16)
