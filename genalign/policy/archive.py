"""Trajectories on disk, and digests of what decides whether a policy draws the same sample from the same seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from genalign.policy.chunk import Chunk
from genalign.policy.record import Tape
from genalign.policy.tables import Tables
from genalign.policy.transition import Path as DiffusionPath
from genalign.policy.transition import StepTable
from genalign.types import GenalignError, Media, Prompt, Trajectory, UsageError

ROWS = ("a", "s", "a_next", "s_next")


def weights_digest(modules: Iterable[nn.Module], trained: Iterable[nn.Parameter]) -> str:
    """SHA-256 of the modules' parameters and buffers by name, the trained ones left out."""
    digest, skip = hashlib.sha256(), {id(parameter) for parameter in trained}
    for module in modules:
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if id(tensor) not in skip:
                digest.update(name.encode())
                for part in _parts(tensor.detach()):
                    digest.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _parts(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that a quantised one is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor.as_subclass(Tensor)]
    return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]


def settings_digest(*settings: Any) -> str:
    """SHA-256 of settings as JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def save_trajectory(trajectory: Trajectory, path: Path) -> None:
    """Write what replay needs of a rollout as one file."""
    tape: Tape = trajectory.tape
    labels = _labels(trajectory.prompts, trajectory.seeds)
    save_rows(path, tape.table, tape.steps, Chunk.cat(tape.chunks), trajectory.logp, labels)


def recalled(
    folder: Path, prompts: Sequence[Prompt], seeds: Sequence[int], together: int, about: tuple[str, ...]
) -> Trajectory:
    """The stored rows of these prompts and seeds, in this order and in micro-batches of `together`; without media.

    about: as the policy's own trajectories have it.

    Raises:
        UsageError: `folder` lacks one of them.
    """
    index, labels = index_rows(folder), _labels(prompts, seeds)
    missing = [label for label in labels if label not in index]
    if missing:
        raise UsageError(f"{folder} has no trajectory of seed {missing[0][1]} for prompt {missing[0][0]!r}")
    table, steps, rows, logp = load_rows([index[label] for label in labels])
    parts = [list(range(at, min(at + together, len(seeds)))) for at in range(0, len(seeds), together)]
    return Trajectory(
        prompts=tuple(prompts),
        media=Media(),
        group=torch.tensor([prompt.uid for prompt in prompts]),
        logp=logp,
        mask=torch.ones_like(logp, dtype=torch.bool),
        seeds=tuple(seeds),
        rows_together=together,
        steps_together=max(1, len(about)),
        about=about,
        tape=Tape(table, steps, tuple(rows.select(part) for part in parts)),
    )


def _labels(prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[tuple[str, int]]:
    if any(prompt.media is not None for prompt in prompts):
        raise UsageError("trajectories are stored by prompt text and seed, so not for prompts that bring an image")
    return [(prompt.text, seed) for prompt, seed in zip(prompts, seeds, strict=True)]


def save_rows(
    path: Path, table: StepTable | Tables, steps: Sequence[int], rows: Chunk, logp: Tensor, labels: Any
) -> None:
    """Write one micro-batch's recorded steps. labels: [prompt text, seed] of each row.

    Raises:
        GenalignError: the pipeline's guidance remembers earlier steps, so latents alone do not bring the rows back.
    """
    if isinstance(table, Tables):
        raise GenalignError("this pipeline steps its media by schedules of their own, which are not stored")
    if rows.outputs:
        raise GenalignError("this pipeline's guidance remembers earlier steps, so its trajectories cannot be stored")
    tensors = {f"latents/{i}": x.detach().cpu().contiguous() for i, x in rows.latents.items()}
    tensors |= {f"before/{i}": x.detach().cpu().contiguous() for i, x in rows.before.items()}
    if rows.clean is not None:
        tensors["clean"] = rows.clean.detach().to("cpu", copy=True).contiguous()  # safetensors refuses shared memory
    tensors |= {"logp": logp.contiguous(), "A": table.A, "B": table.B, "S": table.S}
    tensors |= {f"path/{name}": getattr(table.path, name).clone() for name in ROWS}
    about = {"steps": list(steps), "predicts": table.path.predicts, "clip": table.path.clip, "rows": labels}
    about |= {"block": table.block, "unit": table.path.unit}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"genalign": json.dumps(about)})


def index_rows(folder: Path) -> dict[tuple[str, int], tuple[Path, int]]:
    """(prompt text, seed) -> (file, row) of every trajectory in a folder.

    Raises:
        UsageError: no readable trajectory there.
    """
    found: dict[tuple[str, int], tuple[Path, int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for row, (text, seed) in enumerate(_about(path)["rows"]):
            found[text, seed] = path, row
    if not found:
        raise UsageError(f"{folder} holds no trajectories; draw some with genalign sample RECIPE --rollout")
    return found


def load_rows(places: Sequence[tuple[Path, int]]) -> tuple[StepTable, tuple[int, ...], Chunk, Tensor]:
    """Table, recorded steps, latents and logp of rows that `index_rows` found, in the given order.

    Raises:
        UsageError: the files were drawn by different step tables.
    """
    tables: list[StepTable] = []
    steps: tuple[int, ...] = ()
    parts, logps = [], []
    for path, row in places:
        about = _about(path)
        with safe_open(path, "pt") as file:
            a, s, a_next, s_next = (file.get_tensor(f"path/{name}") for name in ROWS)
            grid = DiffusionPath(a, s, a_next, s_next, about["predicts"], about["clip"], about.get("unit", 1.0))
            table = [file.get_tensor(name) for name in "ABS"]
            tables.append(StepTable(grid, table[0], table[1], table[2], about["block"]))
            chunk = Chunk()
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                kind, _, step = name.partition("/")
                if kind == "latents":
                    chunk.latents[int(step)] = file.get_slice(name)[row : row + 1]
                elif kind == "before":
                    chunk.before[int(step)] = file.get_slice(name)[row : row + 1]
                elif kind == "clean":
                    chunk.clean = file.get_slice(name)[row : row + 1]
            parts.append(chunk)
            logps.append(file.get_slice("logp")[row : row + 1])
        steps = tuple(about["steps"])
        alike = torch.equal(tables[0].S, tables[-1].S) and tables[0].block == tables[-1].block
        if not alike or set(parts[0].latents) != set(parts[-1].latents):
            raise UsageError(
                f"{path} was drawn by another sampler than {places[0][0]}; keep them in folders of their own"
            )
    return tables[0], steps, Chunk.cat(parts), torch.cat(logps)


def _about(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, "pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})["genalign"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UsageError(f"{path} is no trajectory of genalign ({error}); remove it or draw it again") from error
    return about
