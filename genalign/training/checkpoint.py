"""Checkpoints that survive being killed: safetensors and JSON, written aside, renamed whole, and checked before use.

A folder `checkpoint-N/` holds one .safetensors file per part (adapter, ema, optimizer, random, reward), `state.json`,
and `manifest.json` with the SHA-256 of each. It counts only if every sum agrees; N is the number of finished steps.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from genalign.files.atomic import sync_path
from genalign.types import GenalignError

MANIFEST = "manifest.json"
PREFIX = "checkpoint-"


@dataclass(frozen=True)
class Checkpoint:
    """parts: name -> tensors on the CPU. state: plain data beside them."""

    folder: Path
    step: int
    parts: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def save_checkpoint(
    run: Path, step: int, parts: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int
) -> Path:
    """Write `checkpoint-{step}` into `run`, then delete all but the newest `keep`.

    Raises:
        GenalignError: the folder cannot be written; older checkpoints are then untouched.
    """
    final, draft = run / f"{PREFIX}{step}", run / f".{PREFIX}{step}.tmp"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for name, tensors in parts.items():
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, draft / f"{name}.safetensors")
        (draft / "state.json").write_text(json.dumps({**state, "step": step}))
        sums = {path.name: _sum(path) for path in sorted(draft.iterdir())}
        (draft / MANIFEST).write_text(json.dumps({"step": step, "sha256": sums}, indent=1))
        # On the disk before it gets its name: a power cut leaves the draft, or a whole checkpoint.
        for path in [*draft.iterdir(), draft]:
            sync_path(path)
        if final.exists():
            shutil.rmtree(final)
        os.replace(draft, final)
        sync_path(run)
    except (OSError, SafetensorError) as error:
        raise GenalignError(f"cannot write {final}: {error}; free space or check the folder's permissions") from error
    for old in _folders(run)[:-keep]:
        shutil.rmtree(old)
    return final


def newest_checkpoint(run: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of `run` (None if there is none), and a sentence for each newer one passed over."""
    refused: list[str] = []
    for folder in reversed(_folders(run)):
        fault = _fault(folder)
        if fault is None:
            return folder, refused
        refused.append(f"passing over {folder}: {fault}")
    return None, refused


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        GenalignError: a file is missing, or its sum is not the manifest's.
    """
    fault = _fault(folder)
    if fault is not None:
        raise GenalignError(f"{folder} cannot be resumed from: {fault}; resume from an older checkpoint or start anew")
    names = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
    parts = {Path(n).stem: load_file(folder / n) for n in sorted(names) if n.endswith(".safetensors")}
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return Checkpoint(folder, state["step"], parts, state)


def _folders(run: Path) -> list[Path]:
    numbered = [(path.name.removeprefix(PREFIX), path) for path in run.glob(f"{PREFIX}*") if path.is_dir()]
    return [path for _, path in sorted((int(n), path) for n, path in numbered if n.isdigit())]


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sums = manifest["sha256"]
        for name, expected in sums.items():
            if Path(name).name != name or not (folder / name).is_file():
                return f"{name} is not a file of it"
            if _sum(folder / name) != expected:
                return f"{name} is not what was written"
        if folder.name != f"{PREFIX}{manifest['step']}" or "state.json" not in sums:
            return f"{MANIFEST} belongs to another checkpoint"
    except OSError as error:
        return f"{Path(error.filename or MANIFEST).name} cannot be read"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    return None


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def random_state() -> dict[str, Tensor]:
    """State of the global generators of torch (CPU and this device), numpy and Python as tensors."""
    _, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, spare = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "numpy_place": torch.tensor([place, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([gauss], dtype=torch.float64),
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_gauss": torch.tensor([float("nan") if spare is None else spare], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Undo `random_state`."""
    torch.set_rng_state(state["torch"])
    place, has_gauss = state["numpy_place"].tolist()
    np.random.set_state(
        ("MT19937", state["numpy"].numpy().astype(np.uint32), place, has_gauss, state["numpy_gauss"].item())
    )
    version, *words = state["python"].tolist()
    spare = state["python_gauss"].item()
    random.setstate((version, tuple(words), None if math.isnan(spare) else spare))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
