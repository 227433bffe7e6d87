"""What ranks send each other: the formulas of docs/capacity.md, by bytes counted on one and two gloo ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.traffic import Case, measure, on_ranks

WHOLE, SPLIT, AGAIN = ("plain", "replicated"), ("plain", "fsdp2"), ("recomputed", "fsdp2")
PADDED = 1.1  # parts of weights whose rows two ranks do not divide are padded with zeros


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, list[dict[str, Any]]]:
    return on_ranks(2, tmp_path_factory.mktemp("two"), (WHOLE, SPLIT, AGAIN), prompts=4, updates=2)


def test_one_process_sends_nothing(tmp_path: Path) -> None:
    found = measure(WHOLE, tmp_path / "run", prompts=2)
    assert found["sent"] == found["small"] == {}
    assert found["passes"]["graph"] > 0


def test_whole_weights_send_the_gradient_of_the_adapter_once_an_update(two: dict[Case, list[dict[str, Any]]]) -> None:
    for found in two[WHOLE]:
        assert found["sent"]["reduce"] == found["steps"] * found["updates"] * 4 * found["adapter"]
        assert found["sent"].keys() <= {"reduce", "gather"}
        rest = found["sent"].get("gather", 0) + sum(found["small"].values())
        assert rest <= found["steps"] * (2048 + 64 * found["rows"]) + 20_000  # with one checkpoint's generators


@pytest.mark.parametrize("case", [SPLIT, AGAIN])
def test_split_weights_are_sent_once_a_forward_and_once_a_backward_pass(
    case: Case, two: dict[Case, list[dict[str, Any]]]
) -> None:
    """Blocks that are computed again in the backward pass are there already, so that checkpointing sends no more."""
    for found in two[case]:
        passes = found["passes"]["plain"] + 2 * found["passes"]["graph"]
        part = found["frozen"] / 2
        assert passes * part <= found["sent"]["weights"] <= PADDED * passes * part
        assert found["sent"]["reduce"] == two[WHOLE][0]["sent"]["reduce"]
