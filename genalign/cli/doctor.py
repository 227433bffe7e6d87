"""What this machine can run: versions, device, attention kernels, shipped models, published rewards, network."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Literal, NamedTuple

from genalign.files.shipped import ROOMS, shipped, shipped_models

PACKAGES = (
    *("torch", "torchvision", "diffusers", "transformers", "open-clip-torch", "accelerate", "peft", "safetensors"),
    *("pydantic", "numpy", "scipy", "pillow"),
)
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HOME")


class Row(NamedTuple):
    """One finding. "no" is a thing that is absent and may stay so; "broken" keeps genalign from working."""

    what: str
    state: Literal["ok", "no", "broken"]
    detail: str


def doctor() -> list[Row]:
    """Look, and change nothing. Attention kernels are tried on a tiny tensor, not merely imported."""
    import torch

    rows = [_version("genalign"), Row("python", "ok", sys.version.split()[0]), *map(_version, PACKAGES)]
    rows.append(_device())
    rows.append(Row("attention: sdpa", "ok", f"built into torch {torch.__version__}"))
    rows += [
        Row(f"attention: {name}", *_attempt(trial)) for name, trial in (("xformers", _xformers), ("flash", _flash))
    ]
    rows += [_split_weights(), _deepspeed()]
    rows += [_room(room) for room in ROOMS]
    rows += _rewards()
    rows += [Row(name, "ok" if name in os.environ else "no", os.environ.get(name, "not set")) for name in OFFLINE]
    return rows


def main() -> int:
    """Print the findings; 1 if something genalign needs is broken, else 0."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    rows, table = doctor(), Table("what", "state", "detail")
    for row in rows:
        table.add_row(*map(escape, row), style="red" if row.state == "broken" else None)
    Console().print(table)
    return int(any(row.state == "broken" for row in rows))


def _rewards() -> list[Row]:
    """The published rewards: which are in the hub's cache, and how to get the others. Nothing is fetched."""
    from genalign.reward.heads.published import PRESETS, absent_files, how_to_get

    rows = []
    for name, preset in PRESETS.items():
        ready = not preset.given and not absent_files(name)
        detail = f"{preset.licence}; about {preset.gigabytes:g} GB; "
        rows.append(Row(f"reward: {name}", "ok" if ready else "no", detail + ("here" if ready else how_to_get(name))))
    return rows


def _version(package: str) -> Row:
    try:
        return Row(package, "ok", metadata.version(package))
    except metadata.PackageNotFoundError:
        return Row(package, "broken", f"not installed; pip install {package}")


def _device() -> Row:
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return Row("device", "ok", f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, {memory:.0f} GiB")
    return Row("device", "ok", f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores")


def _split_weights() -> Row:
    from torch.distributed.fsdp import FSDPModule

    if hasattr(FSDPModule, "set_custom_all_gather"):
        return Row("ranks: fsdp2", "ok", "train.backend=fsdp2 splits frozen weights over the launcher's processes")
    return Row("ranks: fsdp2", "no", f"needs a newer torch than {metadata.version('torch')}; pip install -U torch")


def _deepspeed() -> Row:
    from genalign.run.launcher import UNEVEN

    return Row("ranks: deepspeed", "no", UNEVEN)


def _attempt(trial: Callable[[], str]) -> tuple[Literal["ok", "no"], str]:
    """A kernel's own message is the answer here, so every exception is caught and shown."""
    try:
        return "ok", trial()
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        return "no", message if len(message) <= 160 else f"{message[:157]}..."


def _xformers() -> str:
    import torch

    try:
        from xformers.ops import memory_efficient_attention
    except ImportError as error:
        raise ImportError(f"not importable ({error}); pip install 'genalign[xformers]'") from error
    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    query = torch.zeros(1, 8, 1, 16, device=device, dtype=dtype)  # (B, tokens, heads, width)
    memory_efficient_attention(query, query, query)
    return f"version {metadata.version('xformers')} runs on {device}"


def _flash() -> str:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("needs a CUDA device, and torch sees none")
    try:
        from flash_attn import flash_attn_func
    except ImportError as error:
        raise ImportError(f"not importable ({error}); pip install flash-attn") from error
    query = torch.zeros(1, 8, 1, 64, device="cuda", dtype=torch.float16)  # (B, tokens, heads, width)
    flash_attn_func(query, query, query)
    return f"version {metadata.version('flash-attn')} runs"


def _room(room: str) -> Row:
    try:
        folder = shipped(room)
    except FileNotFoundError as error:
        return Row(f"shipped {room}", "broken", str(error))
    if room == "assets":
        names = shipped_models()
    else:
        names = sorted(path.name for path in folder.iterdir() if path.suffix in (".yaml", ".py"))
    return Row(f"shipped {room}", "ok" if names else "no", ", ".join(names) or f"nothing in {folder}")
