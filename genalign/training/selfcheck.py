"""What must hold before the first update of a run; each fault is one sentence and stops it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from genalign.ranks import gather, world
from genalign.types import Experience, ForwardProcess, GenalignError, Policy, SavesMemory, Trajectory

COSINE = 0.999  # at least, of gradients that only rounding may tell apart


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


def check_gradients(policy: Policy, experience: Experience) -> str | None:
    """Before the first update: the adapter's gradient of one row is that without the settings that save memory.

    Equal log-densities say nothing about gradients where blocks are computed again, or leave the device, in between.
    On a CPU they are equal bit for bit; elsewhere kernels add up in any order. Returns why it was not looked at, or
    None.

    Raises:
        GenalignError: naming the settings.
    """
    if not isinstance(policy, SavesMemory) or not policy.saving():
        return None
    names = " and ".join(f"policy.{name}" for name in policy.saving())
    try:
        saving = _gradient(policy, experience)
        if saving is None:
            return f"{names}: gradients were not compared, since nothing that can be replayed was sampled"
        with policy.plainly():
            plain = _gradient(policy, experience)
    except torch.OutOfMemoryError:
        return f"{names}: gradients were not compared, since one row does not fit into memory without"
    assert plain is not None
    cosine = float(torch.nn.functional.cosine_similarity(saving.double(), plain.double(), dim=0))
    equal = torch.equal(saving, plain) if saving.device.type == "cpu" else cosine >= COSINE
    if not plain.any():
        raise GenalignError(
            "self-check failed: no gradient reaches the adapter, so this model would learn nothing; adapt other layers"
            " by policy.lora.targets"
        )
    if not equal:
        raise GenalignError(
            f"self-check failed: with {names} the adapter's gradient of a row has a cosine of {cosine:.4f} to the one"
            f" without, so this model would learn in wrong directions; leave {names} out"
        )
    return None


@torch.enable_grad()
def _gradient(policy: Policy, experience: Experience) -> Tensor | None:
    """Of the adapter, for the first row: of its first replayed steps, or of its denoising error. None: of neither."""
    trajectory = experience.trajectory
    clean, units = getattr(experience, "clean", None), trajectory.units()
    if isinstance(clean, Tensor) and isinstance(policy, ForwardProcess):
        score = policy.fit(list(trajectory.prompts[:1]), clean[:1], 0.5, list(trajectory.seeds[:1])).score
    elif units:
        rows, steps = units[0]
        score = policy.replay(trajectory, list(rows)[:1], steps).score
    else:
        return None
    trained = list(policy.named_trainable().values())
    if not score.requires_grad:
        return torch.cat([torch.zeros_like(p).flatten() for p in trained])
    found = torch.autograd.grad(score.sum(), trained, allow_unused=True)
    grads = [torch.zeros_like(p) if grad is None else grad for p, grad in zip(trained, found, strict=True)]
    return torch.cat([grad.flatten() for grad in grads])


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
