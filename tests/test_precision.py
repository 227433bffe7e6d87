"""What torch says of this CPU is the oracle."""

from __future__ import annotations

import pytest
import torch

from genalign import precision
from genalign.policy.settings import PolicySettings
from genalign.precision import autocast, computes_bfloat16


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512", "DEFAULT"), reason="not of x86")
def test_a_cpu_computes_in_bfloat16_where_it_has_wide_registers() -> None:
    assert computes_bfloat16("cpu") == (torch.backends.cpu.get_cpu_capability() == "AVX512")


@pytest.mark.parametrize("fast", [True, False])
def test_products_are_in_bfloat16_where_that_is_no_slower(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "computes_bfloat16", lambda device: fast)
    with autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if fast else torch.float32)
    chosen = PolicySettings(model="tiny-flow", dtype="auto").dtype
    assert chosen == ("bfloat16" if fast else "float32")
    assert PolicySettings(model="tiny-flow", dtype="bfloat16").dtype == "bfloat16"
