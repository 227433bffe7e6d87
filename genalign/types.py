"""The nouns of genalign. Every other room speaks in these and in nothing else.

    prompt -> Policy.rollout -> Trajectory(media, logp (B,S)) -> Reward -> Scores (B,K) -> Method.losses -> backward

A *step* is a denoising step or a token: whatever one row of log-probabilities is indexed by. Letters in shapes: B rows,
S steps, K aspects of a reward, R rows of a micro-batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

MODALITIES = ("image", "video", "audio", "text")


class GenalignError(Exception):
    """A run error: one sentence that names the culprit and the cure. The CLI prints it and exits with 1."""


class UsageError(GenalignError):
    """A wrong recipe, argument or file: one sentence. The CLI prints it and exits with 2."""


@dataclass(frozen=True)
class Track:
    """One modality of a batch.

    `data`: image (B,3,H,W) and video (B,F,3,H,W) in [0,1]; audio (B,C,N) in [-1,1]; text a list of B strings. A tensor
    where shapes agree (autograd is kept), else a list of B tensors without the batch axis. `rate`: frames or samples a
    second, None for image and text.
    """

    data: Tensor | list[Tensor] | list[str]
    rate: float | None = None

    def __len__(self) -> int:
        return len(self.data)

    def select(self, rows: Sequence[int]) -> Track:
        if isinstance(self.data, Tensor):
            return Track(self.data[torch.as_tensor(list(rows), dtype=torch.long, device=self.data.device)], self.rate)
        return Track([self.data[i] for i in rows], self.rate)  # type: ignore[arg-type]


class Media(Mapping[str, Track]):
    """What a policy made, or what a prompt brings along: modality -> Track, all of one length B."""

    def __init__(self, **tracks: Track) -> None:
        unknown = [name for name in tracks if name not in MODALITIES]
        if unknown:
            raise UsageError(f"unknown modality {unknown[0]!r}; genalign knows {', '.join(MODALITIES)}")
        lengths = {name: len(track) for name, track in tracks.items()}
        if len(set(lengths.values())) > 1:
            raise UsageError(f"the modalities of one Media must have equal lengths, not {lengths}")
        self._tracks = tracks
        self.rows = next(iter(lengths.values()), 0)  # B

    def __getitem__(self, name: str) -> Track:
        return self._tracks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tracks)

    def __len__(self) -> int:
        """Number of modalities (a Media is a mapping); the batch size is `rows`."""
        return len(self._tracks)

    def select(self, rows: Sequence[int]) -> Media:
        """The given rows, in the given order."""
        return Media(**{name: track.select(rows) for name, track in self.items()})

    @staticmethod
    def cat(parts: Sequence[Media]) -> Media:
        """Join batches of the same modalities and rates; tensors are concatenated where shapes agree, else listed."""
        joined: dict[str, Track] = {}
        for name in parts[0]:
            datas = [part[name].data for part in parts]
            tensors = [d for d in datas if isinstance(d, Tensor)]
            if len(tensors) == len(datas) and len({d.shape[1:] for d in tensors}) == 1:
                joined[name] = Track(torch.cat(tensors), parts[0][name].rate)
            else:
                rows = [row for d in datas for row in d]
                joined[name] = Track(rows, parts[0][name].rate)  # type: ignore[arg-type]
        return Media(**joined)


@dataclass(frozen=True)
class Prompt:
    """What is asked for.

    text: the prompt. media: input image or edit source (one row), or None. facts: whatever a reward may check (answer,
    scene, exemplar id); read-only. uid: its row number in the data file: the group of its samples, and part of
    their seeds, so that neither batch size nor world size changes what is drawn.
    """

    text: str
    media: Media | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    uid: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", MappingProxyType(dict(self.facts)))


def sample_seed(seed: int, uid: int, k: int) -> int:
    """Seed (63 bits) of the k-th sample of prompt `uid` under run seed `seed`, on any rank and in any batch."""
    digest = hashlib.sha256(f"{seed}/{uid}/{k}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


SIBLING_BITS = 16


def sibling_seed(seed: int, uid: int, k: int) -> int:
    """Like sample_seed, but the samples of one prompt differ in the last SIBLING_BITS bits alone, never all 0."""
    return family_seed(sample_seed(seed, uid, 0)) | (k + 1)


def family_seed(seed: int) -> int:
    """What siblings by sibling_seed have in common may be drawn from this; it is nobody's own seed."""
    return seed >> SIBLING_BITS << SIBLING_BITS


@dataclass(frozen=True)
class Trajectory:
    """A rollout: media, and a row of log-probabilities that only its policy can replay.

    prompts: B, one a row (repeated within a group). group: (B,) int64, the prompt's uid; siblings share it and need not
    be adjacent. logp: (B,S) fp32, each a SUM over latent dims, or a token's log-prob, under the policy that sampled.
    mask: (B,S) bool, False where a row has no such step. seeds: (B,) python ints, the sample seeds.
    rows_together: rows of the rollout's own micro-batches (contiguous): replay in these to get the log-ratio exactly 0.
    steps_together: how many steps one replay forward yields: 1 for denoising steps, S for tokens.
    tape: opaque; only the policy that wrote it reads it.
    """

    prompts: tuple[Prompt, ...]
    media: Media
    group: Tensor
    logp: Tensor
    mask: Tensor
    seeds: tuple[int, ...]
    rows_together: int
    steps_together: int
    tape: Any = None

    def units(self, rows: Sequence[int] | None = None) -> list[tuple[list[int], list[int]]]:
        """(rows, steps) blocks that cover the trajectory, each one replay: the rollout's own micro-batches by step."""
        chosen = list(range(len(self.prompts))) if rows is None else list(rows)
        total = self.logp.shape[1]
        return [
            (chosen[i : i + self.rows_together], list(range(s, min(s + self.steps_together, total))))
            for i in range(0, len(chosen), self.rows_together)
            for s in range(0, total, self.steps_together)
        ]


@dataclass(frozen=True)
class Scores:
    """What a reward says of B samples, in K named aspects; scalarised last, by the advantage rule.

    values (B,K) fp32: 0 and never read where not valid. valid (B,K) bool: False where the aspect abstains or failed.
    failed (B,K) bool: True where scoring went wrong (server down, NaN, wrong shape); a failure is never a number.
    confidence (B,K) in [0,1] or None. std (B,K) or None: the reward's own uncertainty. total (B,) fp32: the scalar the
    reward itself would be read as; total_valid (B,) bool says where it may be read. weights (K,): what each aspect
    contributes to a sum (0 for parts kept only for the log). info: lists of B extras (judge text, parse trace).
    """

    names: tuple[str, ...]
    values: Tensor
    valid: Tensor
    failed: Tensor
    total: Tensor
    total_valid: Tensor
    weights: Tensor
    confidence: Tensor | None = None
    std: Tensor | None = None
    info: Mapping[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows, aspects = self.values.shape
        if aspects != len(self.names):
            raise ValueError(f"{aspects} columns of scores but {len(self.names)} names {self.names}")
        for name, shape in (("valid", (rows, aspects)), ("failed", (rows, aspects)), ("total", (rows,))):
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"Scores.{name} has shape {tuple(getattr(self, name).shape)}, expected {shape}")

    def select(self, rows: Sequence[int]) -> Scores:
        index = torch.as_tensor(list(rows), dtype=torch.long)
        return replace(
            self,
            values=self.values[index],
            valid=self.valid[index],
            failed=self.failed[index],
            total=self.total[index],
            total_valid=self.total_valid[index],
            confidence=None if self.confidence is None else self.confidence[index],
            std=None if self.std is None else self.std[index],
            info={key: [values[i] for i in rows] for key, values in self.info.items()},
        )


@runtime_checkable
class Reward(Protocol):
    """Turns media into named scores. The same object trains, guides sampling, evaluates and serves.

    name: for logs. needs: names it reads: modalities ("image", "text", ...), "prompt", or keys of Prompt.facts as
    "facts.answer". aspects: the K names it returns. looks_at: "sample", or "group"/"batch" when siblings matter.
    differentiable: gradients flow from scores to media. version: hash of weights, preprocessing and settings.
    """

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> frozenset[str]: ...

    @property
    def aspects(self) -> tuple[str, ...]: ...

    @property
    def looks_at(self) -> Literal["sample", "group", "batch"]: ...

    @property
    def differentiable(self) -> bool: ...

    @property
    def version(self) -> str: ...

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        """Score B samples; group (B,) int64 says which are siblings (None: all are strangers)."""
        ...

    def update(self, scores: Scores, step: int) -> None:
        """The only place where a reward's own state (multipliers, running statistics) may change."""
        ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Steps:
    """What replay yields for R rows and the S steps asked for.

    score (R,S) fp32 with grad: log-density SUMMED over latent dims, or the token's log-prob. count: latent dims of one
    step (1 for a token), so that nats per dim = score / count. mask (R,S) bool. versus_score (R,S) without grad, and
    kl (R,S) >= 0 with grad in closed form, and gap (R,S) = |out - out_versus|^2 (None for tokens), all only when
    replayed `versus` other weights. features: (R,S,H) for a value head, or None. shares: of a `fit`, the squared
    errors of x0_hat and of eps_hat in one squared error of the output; None: not known.
    """

    score: Tensor
    count: int
    mask: Tensor
    versus_score: Tensor | None = None
    kl: Tensor | None = None
    gap: Tensor | None = None
    features: Tensor | None = None
    shares: tuple[float, float] | None = None


Weights = Literal["policy", "reference", "ema"]


@runtime_checkable
class Policy(Protocol):
    """A generator whose sampling can be replayed with gradients. Diffusion pipelines and language models alike."""

    modalities: frozenset[str]

    def rollout(self, prompts: Sequence[Prompt], per_prompt: int, seed: int | Sequence[int]) -> Trajectory:
        """Sample `per_prompt` rows of each prompt, siblings adjacent, without grad, recording what replay needs.

        An int seed gives row k of a prompt the seed `sample_seed(seed, prompt.uid, k)`; a sequence of
        len(prompts) * per_prompt ints gives each row its own (how labelled pairs are regenerated).
        """
        ...

    def replay(
        self,
        trajectory: Trajectory,
        rows: Sequence[int],
        steps: Sequence[int] | None = None,
        versus: Weights | None = None,
    ) -> Steps:
        """Score recorded steps again under the present weights, with grad. `steps` index columns of logp (None: all).

        With `versus` the other weights score the same rows without grad, in the same batch layout.
        """
        ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        guidance: float | None = None,
        steps: int | None = None,
    ) -> Media:
        """Plain deterministic sampling without grad (ODE, DDIM eta 0, greedy), one row a prompt."""
        ...

    def weights(self, which: Weights) -> AbstractContextManager[None]:
        """Within the context the policy computes with other weights; requires_grad flags are untouched."""
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters as torch optimizers take them: [{"params": [...]}]."""
        ...

    def named_trainable(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by stable name (what a checkpoint and the adapter folder hold)."""
        ...

    def step_ema(self, decay: float) -> None:
        """Move the "ema" weights towards the policy, once an optimizer step."""
        ...

    def save_adapter(self, folder: Any) -> None:
        """Write adapter_config.json, adapter_model.safetensors, and diffusers' own LoRA file where it has one."""
        ...

    def load_adapter(self, folder: Any) -> None:
        """Read back what `save_adapter` wrote, into the trainable parameters."""
        ...

    def calls(self) -> int:
        """Denoiser (or LM) forward passes so far, counted in samples: a batch of 8 under guidance counts 16."""
        ...


@runtime_checkable
class Fitting(Protocol):
    """A policy that can be trained on given samples by its forward process (Diffusion-DPO, RWR, NFT and their kin)."""

    def encode(self, media: Media) -> Tensor:
        """Images in [0,1] -> clean latents (B,*L) in the layout that the sampler steps in, without grad."""
        ...

    def clean(self, trajectory: Trajectory) -> Tensor:
        """The clean latents (B,*L) that a rollout ended with: nothing need be encoded to fit own samples."""
        ...

    def fit(
        self,
        prompts: Sequence[Prompt],
        clean: Tensor,
        at: float,
        seeds: Sequence[int],
        versus: Weights | None = None,
    ) -> Steps:
        """How well R rows are denoised from x_t = a x0 + s eps at one time t, without guidance: Steps with S = 1.

        clean: x0 (R,*L). at in [0,1): which step of a fine sampling grid, 0 the noisiest; one time a call, so rows that
        shall share t are given in one call. eps (R,*L) is drawn from each row's seed: equal seeds share their noise.
        score (R,1) = -|target - out|^2 with grad, SUMMED over latent dims, target being what the model was trained to
        say (velocity, epsilon, v or sample); versus_score without grad, gap with grad. Errors are fp32 or wider.
        """
        ...


Guide = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # (step, x, out, x0_hat) -> out, all (B,*L)


@runtime_checkable
class Pathwise(Protocol):
    """A policy through whose sampling gradients flow, to its weights or to its noise (AlignProp, DRaFT, ReNO)."""

    def generate_with_grad(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int] | None = None,
        *,
        noise: Tensor | None = None,
        grad_steps: int | None = None,
        guidance: float | None = None,
        steps: int | None = None,
        guide: Guide | None = None,
        checkpoint: bool = True,
    ) -> Media:
        """What generate() draws, as one micro-batch and with grad: the last `grad_steps` steps keep it (None: all).

        noise (B,*L): what sampling starts from, which may require grad; else it is drawn from the seeds. guide: may
        change the guided output of each step, before the sampler takes it. checkpoint: every denoiser call is
        recomputed in backward, so that what it saves does not grow with the steps.
        """
        ...

    def initial_noise(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Tensor:
        """What generate() starts from at these seeds: standard normal, (B,*L)."""
        ...

    def decode(self, clean: Tensor) -> Media:
        """Clean latents (B,*L) -> media with grad, by the pipeline's own decoding."""
        ...


@dataclass(frozen=True)
class Loss:
    """One micro-batch: `total` is a scalar already divided by the GLOBAL row count; backward() it at once.

    log: sums and counts to be averaged over the step, name -> (sum, count). step: True ends an optimizer update.
    """

    total: Tensor
    log: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    step: bool = False


@dataclass(frozen=True)
class Experience:
    """What collect() hands to losses(): the trajectory, its scores, and what the method derived from them."""

    trajectory: Trajectory
    scores: Scores | None
    advantage: Tensor | None = None  # (B,)
    counted: Tensor | None = None  # (B,) bool: rows that enter the loss (not masked, and their scores have spread)
    pairs: Tensor | None = None  # (P,2) int64 rows: winner, loser
    global_rows: int = 0  # rows (or pairs) that count, over all ranks
    log: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class Method(Protocol):
    """What you collect and what you lose.

    needs: any of "rollout", "pairs", "reference", "reward", "constraints" (in the reward), "forward" (a policy that is
    Fitting) and "reward_grad" (a differentiable reward, and a policy that is Pathwise).
    """

    name: str
    needs: frozenset[str]

    def collect(
        self, policy: Policy, prompts: Sequence[Prompt], reward: Reward | None, seed: int, step: int
    ) -> Experience:
        """This rank's share of the step's experience, without grad."""
        ...

    def losses(self, policy: Policy, experience: Experience) -> Iterable[Loss]:
        """Micro-batch losses; the last of each optimizer update has step=True (also on a rank without rows)."""
        ...
