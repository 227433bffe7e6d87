"""What must hold before the first update of a run; each fault is one sentence and stops it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from genalign.ranks import gather, world
from genalign.types import Experience, ForwardProcess, GenalignError, Policy, Trajectory


@torch.no_grad()
def check_replay(policy: Policy, experience: Experience, fresh: bool, blocks: int = 4) -> None:
    """Before the first update: ratio exactly 1, reference == adapters off, and (`fresh` adapters) KL exactly 0.

    Looks at `blocks` replay units spread over the trajectory, in the rollout's own micro-batches; a method on the
    forward process replays nothing, and its errors under policy and reference are looked at instead.

    Raises:
        GenalignError: naming which of the three does not hold, and by how much.
    """
    trajectory = experience.trajectory
    clean = getattr(experience, "clean", None)  # of methods on the forward process
    if isinstance(clean, Tensor) and isinstance(policy, ForwardProcess):
        _check_forward(policy, policy, trajectory, clean, fresh)
    units = trajectory.units()
    # The same calls that the losses will make: other micro-batches may round otherwise, and would show nothing.
    for rows, steps in units[:: max(1, len(units) // blocks)][:blocks]:
        cell = torch.tensor(rows)[:, None], torch.tensor(steps)[None, :]
        mask = trajectory.mask[cell]
        replayed = policy.replay(trajectory, rows, steps, versus="reference")
        with policy.weights("reference"):
            off = policy.replay(trajectory, rows, steps)
        assert replayed.versus_score is not None
        # Labelled samples come from the reference, and stored ones perhaps from micro-batches of another size.
        drew, slack = (off, 1e-3) if experience.scores is None else (replayed, 0.0)
        _must_be_zero(drew.score.cpu() - trajectory.logp[cell].cpu(), mask, "the log-ratio of the first replay", slack)
        _must_be_zero((replayed.versus_score - off.score).cpu(), mask, "the reference against adapters off")
        if fresh and replayed.kl is not None:
            _must_be_zero(replayed.kl.cpu(), mask, "the KL to the reference before the first update")


def _check_forward(policy: Policy, forward: ForwardProcess, trajectory: Trajectory, clean: Tensor, fresh: bool) -> None:
    """fit() instead of replay(), on the first micro-batch, at an early, a middle and a late time."""
    rows = range(min(len(clean), trajectory.rows_together))
    prompts, seeds = [trajectory.prompts[row] for row in rows], [trajectory.seeds[row] for row in rows]
    for at in (0.1, 0.5, 0.9) if rows else ():
        fitted = forward.fit(prompts, clean[list(rows)], at, seeds, versus="reference")
        with policy.weights("reference"):
            off = forward.fit(prompts, clean[list(rows)], at, seeds)
        assert fitted.versus_score is not None
        what, unit = "the reference's error against that of adapters off", "squared error"
        _must_be_zero(fitted.versus_score - off.score, off.mask, what, unit=unit)
        if fresh:
            what = "the distance to the reference before the first update"
            if not fitted.likelihood:
                assert fitted.gap is not None
                _must_be_zero(fitted.gap, off.mask, what, unit=unit)
            _must_be_zero(fitted.score - fitted.versus_score, off.mask, what, unit=unit)


def _must_be_zero(values: Tensor, mask: Tensor, what: str, slack: float = 0.0, unit: str = "nats") -> None:
    worst = values.cpu()[mask.cpu()].abs().max().item() if mask.any() else 0.0
    if not worst <= slack:  # a NaN is not 0 either
        raise GenalignError(
            f"self-check failed: {what} is {worst:.3g} {unit} instead of exactly 0, so this model cannot be trained "
            f"faithfully here; set policy.dtype to float32 and drop dropout or other randomness from the model"
        )


def check_equal(tensors: Sequence[Tensor | None], what: str) -> None:
    """Every rank must hold the same bits.

    Raises:
        GenalignError: they differ.
    """
    if world() == 1:
        return
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(b"none" if tensor is None else _bytes(tensor))
    mine = torch.tensor([int.from_bytes(digest.digest()[:7], "big")], dtype=torch.int64)
    if len(set(gather(mine).tolist())) > 1:
        raise GenalignError(f"self-check failed: {what} differ between ranks; check that all ranks run the same recipe")


def _bytes(tensor: Tensor) -> bytes:
    # One dimension first: torch lets no tensor of none be viewed as another type.
    return tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
