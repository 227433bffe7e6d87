"""Proof, before anything is trained, that a rollout walks the schedule by which the pipeline samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from genalign.policy.pipe import Pipe
from genalign.policy.schedule import MAIN
from genalign.policy.turn import Turn
from genalign.policy.walk import stored_dtype
from genalign.types import GenalignError, Prompt

EXACT, HALF = 1e-4, 5e-2  # tolerated, relative to the largest value or to 1: float32 is near 1e-6, bfloat16 near 1e-2


def check_agreement(pipe: Pipe, prompt: Prompt, seed: int) -> None:
    """Raises GenalignError where plain sampling and a rollout by the ODE kernel would not draw the same sample."""
    difference, dtype = disagreement(pipe, prompt, seed)
    if not difference <= (HALF if dtype.itemsize < 4 else EXACT):  # (NaN is no agreement)
        raise GenalignError(
            f"{pipe.name} would be trained on another schedule than it samples by: its denoiser's input differs by"
            f" {difference:.2g} between plain sampling with {type(pipe.plain_schedulers[MAIN]).__name__} and a rollout;"
            " report it with the names of the pipeline and its scheduler"
        )


@torch.no_grad()
def disagreement(pipe: Pipe, prompt: Prompt, seed: int) -> tuple[float, torch.dtype]:
    """The largest relative difference between what the denoiser is given, and what comes out, in generate() and in an
    ODE rollout of one row; and the dtype of the denoiser.

    Noise from a fixed seed answers for the denoiser in both, so the two differ by nothing but the schedule, rounding
    is not amplified by a network, and no denoiser call is paid for.
    """
    with pipe.on_plain():
        plain = _run(pipe, prompt, seed, kernel=False)
    with pipe.on_kernel():
        kernel = _run(pipe, prompt, seed, kernel=True)
    dtype = next(pipe.stage.denoisers.main.parameters()).dtype
    if len(plain) != len(kernel):
        return float("inf"), dtype
    worst = 0.0
    for ours, theirs in zip(kernel, plain, strict=True):
        if ours.shape != theirs.shape:
            return float("inf"), dtype
        if ours.is_floating_point() and ours.numel():
            ours, theirs = ours.double().nan_to_num(), theirs.double().nan_to_num()  # masked padding may be NaN
            worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1)))
    return worst, dtype


def _run(pipe: Pipe, prompt: Prompt, seed: int, kernel: bool) -> list[Tensor]:
    """Every tensor that the denoiser is given, in order, and last the latents."""
    stage = pipe.stage
    seen: list[Tensor] = []
    generator = torch.Generator().manual_seed(0)
    call = {**pipe.call([prompt], [seed]), "output_type": "latent"}
    entry = pipe.entry()
    turn, steps = Turn(stage.turn, 1), 0

    def denoise(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen.extend(x.clone() for x in _tensors((args, kwargs)))
        blank = stage.denoisers.blank(1)
        many = stage.denoisers.branches(args, kwargs, 1)
        return stage.denoisers.join([torch.randn(blank.shape, generator=generator).to(blank) for _ in range(many)])

    def step(out: Tensor, sample: Tensor) -> Tensor:
        nonlocal steps
        table = pipe.table(entry, "ode", 0.0).part(turn.part)
        moved = table.mean(steps, sample, out).to(stored_dtype(pipe.pipeline.scheduler, out, sample))
        steps += turn.add(sample) is not None
        return moved

    output = stage.run(call, denoise, step if kernel else None)
    return [*seen, *_tensors(dict(output) if isinstance(output, dict) else vars(output))]


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from _tensors(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from _tensors(item)
