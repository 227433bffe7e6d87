"""The training loop: draw prompts, collect, lose, reduce, step, log, save. It knows its objects by protocol only."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from genalign.ranks import all_sum, gather, rank, world
from genalign.training import checkpoint as ck
from genalign.training.metrics import METRICS, append_metrics, mean_over_ranks, truncate_metrics
from genalign.training.monitor import MonitorSettings
from genalign.training.selfcheck import check_equal, check_replay
from genalign.types import Experience, GenalignError, Method, Policy, Prompt, Reward, Scores, UsageError


class TrainSettings(BaseModel):
    """How long, how fast, and what is kept."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    steps: int = Field(default=60, ge=1)
    """Rollouts; each ends in `method.updates_per_rollout` optimizer updates."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything drawn: adapter, prompts, samples."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Of AdamW, constant."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of AdamW, decoupled."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """The gradient's global norm is clipped to this."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of the averaged weights, which are then what is evaluated and saved; null: the last weights are."""
    checkpoint_every: int = Field(default=20, ge=1)
    """Steps between checkpoints; one more is written at the end."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints that stay on disk."""
    patience: int | None = Field(default=None, ge=1)
    """Checkpoints in a row with no better mean reward, after which training ends with the best one; null: never."""
    sample_every: int = Field(default=20, ge=1)
    """Steps between grids of base beside tuned samples; one more is drawn at the end."""
    monitor: MonitorSettings | None = None
    """Watch held-out rewards and diversity while training, and warn of a hacked reward; null: do not."""
    resume: str | None = None
    """Run folder to go on with, or `latest`: the newest one of this recipe."""
    report_to: list[str] = []
    """Trackers that accelerate knows, such as tensorboard or wandb, besides metrics.jsonl."""


@runtime_checkable
class Stateful(Protocol):
    """A method that learns something itself, such as a value network."""

    def state_dict(self) -> Mapping[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


@runtime_checkable
class Counting(Protocol):
    """A reward that counts what goes wrong with it (a Runner), on this rank."""

    def log(self) -> Mapping[str, float]: ...


@dataclass
class Progress:
    """What a run carries from step to step, and all that a checkpoint must hold.

    method: the one that is trained by, where it is Stateful. method_state: what a checkpoint held of it, until it is.
    """

    policy: Policy
    reward: Reward | None
    optimizer: torch.optim.Optimizer
    settings: TrainSettings
    step: int = 0
    digests: Mapping[str, str] = field(default_factory=dict)
    method: Stateful | None = None
    method_state: Mapping[str, Tensor] = field(default_factory=dict)


def start(
    policy: Policy, reward: Reward | None, settings: TrainSettings, digests: Mapping[str, str] | None = None
) -> Progress:
    """Progress at step 0. `digests`: name -> hash of what may not change under a resumed run (data, reward)."""
    optimizer = torch.optim.AdamW(
        policy.parameter_groups(),
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
    )
    return Progress(policy, reward, optimizer, settings, digests=dict(digests or {}))


def train(
    progress: Progress, method: Method, draw: Callable[[int], list[Prompt]], run: Path
) -> Iterator[dict[str, float]]:
    """Train to `settings.steps`, yielding each step's log after it stands in `run`/metrics.jsonl.

    `draw(step)` names the prompts of a step over all ranks; rank r of W takes every W-th from r on. A checkpoint is
    written every `checkpoint_every` steps and at the end.

    Raises:
        GenalignError: the self-check of the first step fails, or a loss or gradient is not finite.
    """
    policy, settings, reward = progress.policy, progress.settings, progress.reward
    first = progress.step
    progress.method = method if isinstance(method, Stateful) else None
    if progress.method is not None and progress.method_state:
        progress.method.load_state_dict(progress.method_state)
    if rank() == 0:
        truncate_metrics(run / METRICS, first)
    while progress.step < settings.steps:
        step, begun, calls = progress.step, time.perf_counter(), policy.calls()
        prompts = draw(step)[rank() :: world()]
        experience = method.collect(policy, prompts, reward, settings.seed, step)
        rollout, calls = time.perf_counter() - begun, policy.calls() - calls
        if step == first:
            check_replay(policy, experience, fresh=step == 0)
        begun, calls = time.perf_counter(), calls - policy.calls()  # the check is not what a step costs
        log = update(progress, method, experience, check=step == first)
        if reward is not None and experience.scores is not None:
            reward.update(gather_scores(experience.scores), step)
        progress.step += 1
        updating, calls = time.perf_counter() - begun, calls + policy.calls()
        rows = all_sum(torch.tensor([len(experience.trajectory.prompts), calls], dtype=torch.float64))
        log = {
            "step": progress.step,
            **log,
            **(reward.log() if isinstance(reward, Counting) else {}),
            "step_time": rollout + updating,
            "time/rollout": rollout,
            "time/update": updating,
            "perf/samples_per_s": rows[0].item() / (rollout + updating),
            "calls": rows[1].item(),
        }
        if rank() == 0:
            append_metrics(run / METRICS, log)
        if progress.step % settings.checkpoint_every == 0 or progress.step == settings.steps:
            save(progress, run)
        yield log


def update(progress: Progress, method: Method, experience: Experience, check: bool = False) -> dict[str, float]:
    """Backward through every micro-batch loss; at each `Loss.step` reduce, clip, and step the optimizer and the EMA."""
    policy, settings = progress.policy, progress.settings
    parameters = list(policy.named_trainable().values())
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for loss in method.losses(policy, experience):
        if loss.total.requires_grad:
            loss.total.backward()
        for name, (total, count) in loss.log.items():
            sums[name][0] += total
            sums[name][1] += count
        if not loss.step:
            continue
        reduce_gradients(parameters)
        if check:
            check_equal([p.grad for p in parameters], "gradients after the sum over ranks")
            check = False
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm).item()
        if norm != norm or norm == float("inf"):
            raise GenalignError(
                f"the gradient of step {progress.step} is not finite ({norm}); lower train.learning_rate, "
                f"or set policy.dtype to float32"
            )
        progress.optimizer.step()
        progress.optimizer.zero_grad(set_to_none=True)
        if settings.ema is not None:
            policy.step_ema(settings.ema)
        sums["grad_norm"][0] += norm
        sums["grad_norm"][1] += 1
    return {**experience.log, **mean_over_ranks(sums)}


def reduce_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Sum the gradients over ranks in one message; the losses are already divided by the global row count."""
    if world() == 1:
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters])
    for parameter, grad in zip(parameters, all_sum(flat).split([p.numel() for p in parameters]), strict=True):
        parameter.grad = grad.view_as(parameter).clone()


def gather_scores(scores: Scores) -> Scores:
    """Scores of all ranks in rank order, so that a reward's state moves equally everywhere."""
    if world() == 1:
        return scores
    return replace(
        scores,
        values=gather(scores.values),
        valid=gather(scores.valid),
        failed=gather(scores.failed),
        total=gather(scores.total),
        total_valid=gather(scores.total_valid),
        confidence=None if scores.confidence is None else gather(scores.confidence),
        std=None if scores.std is None else gather(scores.std),
        info={},
    )


# ---- checkpoint -----------------------------------------------------------------------------------------------------


def save(progress: Progress, run: Path) -> None:
    """Write a checkpoint (rank 0) with the random states of every rank."""
    states = _random_states()
    if rank() != 0:
        return
    policy, named = progress.policy, progress.policy.named_trainable()
    parts: dict[str, Mapping[str, Tensor]] = {
        "adapter": {name: p.detach() for name, p in named.items()},
        "optimizer": ck.optimizer_state(progress.optimizer, named),
        "random": states,
        "reward": progress.reward.state_dict() if progress.reward is not None else {},
    }
    if progress.method is not None:
        parts["method"] = progress.method.state_dict()
    if progress.settings.ema is not None:
        with policy.weights("ema"):
            parts["ema"] = {name: p.detach().clone() for name, p in policy.named_trainable().items()}
    ck.save_checkpoint(run, progress.step, parts, {"digests": progress.digests}, progress.settings.keep_checkpoints)


def restore(progress: Progress, saved: ck.Checkpoint) -> None:
    """Put a checkpoint back, in place.

    Raises:
        UsageError: data or reward are not what they were. GenalignError: it belongs to a model with other adapters.
    """
    named = progress.policy.named_trainable()
    for what, digest in progress.digests.items():
        if saved.state["digests"].get(what, digest) != digest:
            raise UsageError(f"{what} changed since {saved.folder} was written; put it back or start a new run")
    _copy(named, saved.parts["adapter"], saved.folder)
    if "ema" in saved.parts:
        with progress.policy.weights("ema"):
            _copy(progress.policy.named_trainable(), saved.parts["ema"], saved.folder)
    ck.load_optimizer_state(progress.optimizer, named, saved.parts["optimizer"])
    if progress.reward is not None:
        progress.reward.load_state_dict(saved.parts["reward"])
    progress.method_state = saved.parts.get("method", {})
    states = saved.parts["random"]
    mine = f"{rank() % (1 + max(int(name.partition('/')[0]) for name in states))}/"
    ck.set_random_state({name.removeprefix(mine): s for name, s in states.items() if name.startswith(mine)})
    progress.step = saved.step


@torch.no_grad()
def _copy(named: Mapping[str, torch.nn.Parameter], saved: Mapping[str, Tensor], folder: Path) -> None:
    if set(named) != set(saved) or any(named[name].shape != saved[name].shape for name in named):
        raise GenalignError(f"the adapter in {folder} has other layers than this policy; resume with its own recipe")
    for name, parameter in named.items():
        parameter.copy_(saved[name])


def _random_states() -> dict[str, Tensor]:
    """`rank/name` -> state, of all ranks, on every rank."""
    gathered = {name: gather(state[None]) for name, state in sorted(ck.random_state().items())}  # each (world, ...)
    return {f"{r}/{name}": rows[r].clone() for name, rows in gathered.items() for r in range(world())}
