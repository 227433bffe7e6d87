"""What a reward, a policy and a method must be able to do; nobody inherits from these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from genalign.types.records import Experience, Loss, Scores, Steps, Trajectory
from genalign.types.samples import Media, Prompt

Weights = Literal["policy", "reference", "ema"]


@runtime_checkable
class CoreReward(Protocol):
    """Turns media into named scores. The same object trains, guides sampling, evaluates and serves.

    A class of your own needs these members; those of `Reward` beyond them have defaults.

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


@runtime_checkable
class Reward(CoreReward, Protocol):
    """A reward with every member, also those that a user's class may leave out (`reward.wrapper.with_defaults`).

    weights: what each of the K aspects adds to the total; () stands for 1 each (the default). aspect_needs: which of
    `needs` each of the K aspects reads; () stands for all of them, each (the default). waits: a call spends its time
    waiting for a server or another process, so that it may go on beside sampling (False). users: whose taste a personal
    reward knows, by the name that stands in facts.user (()). pairwise: the reward only compares; beside its win rates
    among siblings it has `compare(prompts, a, b)`, the (B,) logits that a is better than b (False). parts: the rewards
    that it is made of (()).
    """

    @property
    def weights(self) -> tuple[float, ...]: ...

    @property
    def aspect_needs(self) -> tuple[frozenset[str], ...]: ...

    @property
    def waits(self) -> bool: ...

    @property
    def users(self) -> tuple[str, ...]: ...

    @property
    def pairwise(self) -> bool: ...

    @property
    def parts(self) -> tuple[Reward, ...]: ...

    def lacks(self, offered: Set[str]) -> frozenset[str]:
        """What is not `offered` and keeps the reward from scoring anything; empty where it can (needs - offered).

        offered: modalities, "prompt", and keys as "facts.answer". A reward made of rewards does not lack a modality
        for a part that the others can do without: that part abstains, and its facts are not needed.
        """
        ...


@runtime_checkable
class Policy(Protocol):
    """A generator whose sampling can be replayed with gradients. Diffusion pipelines and language models alike."""

    modalities: frozenset[str]

    @property
    def guided(self) -> bool:
        """Whether sampling has a guidance scale that an evaluation can sweep."""
        ...

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
class Method(Protocol):
    """What experience is collected, and the losses that are computed from it.

    needs: any of "rollout", "pairs", "reference", "reward", "constraints" (in the reward), "forward" (a policy that is
    ForwardProcess) and "reward_grad" (a differentiable reward, and a policy that is Differentiable).
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
