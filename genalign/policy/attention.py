"""Attention kernels, through diffusers' own backends."""

from __future__ import annotations

from typing import Any

import torch

from genalign.types import UsageError

BACKENDS = {"sdpa": "native", "xformers": "xformers", "flash": "flash"}


def use_attention(denoiser: Any, name: str, device: torch.device) -> None:
    """Make the denoiser attend with the named kernel, after a trial on the device where it computes, in its dtype.

    Raises UsageError where the kernel cannot load or run here.
    """
    if name == "sdpa":
        return
    weight = next(denoiser.parameters())
    cure = "policy.attention=sdpa always works" + (", or pip install genalign[xformers]" if name == "xformers" else "")
    try:
        from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

        trial = torch.zeros(1, 8, 1, 32, device=device, dtype=weight.dtype)  # rows, tokens, heads, head width
        with torch.no_grad(), attention_backend(BACKENDS[name]):
            dispatch_attention_fn(trial, trial, trial)
        denoiser.set_attention_backend(BACKENDS[name])
    except Exception as error:  # a missing kernel shows as any kind of error, depending on how it was built
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"attention {name!r} does not run on {device.type} here ({reason}); {cure}") from error
    processors = [module.processor for module in denoiser.modules() if hasattr(module, "processor")]
    if not any(getattr(processor, "_attention_backend", None) for processor in processors):
        raise UsageError(f"{type(denoiser).__name__} does not take attention backends, so {name!r} cannot act; {cure}")
