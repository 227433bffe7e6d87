"""Which precision a machine computes in without losing time."""

from functools import cache

import torch


@cache
def computes_bfloat16(device: str) -> bool:
    """Whether products in bfloat16 take no longer than in float32 on this kind of device ("cpu", "cuda", ...).

    oneDNN says so of CPUs with AVX-512 or AMX. On one that has AVX2 at most, as most laptops', a step of
    image-nft takes between five and six times as long in bfloat16 as in float32.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return True
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # built without oneDNN
        return False


def autocast() -> torch.autocast:
    """Products on a CPU in bfloat16, where they take no longer."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=computes_bfloat16("cpu"))
