"""What a reward, a policy and a method must be able to do; nobody inherits from these."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from genalign.types.records import Experience, Loss, Scores, Steps, Trajectory
from genalign.types.samples import Media, Prompt

Weights = Literal["policy", "reference", "ema"]
Guide = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # (step, x, out, x0_hat) -> out, all (B,*L)


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
class ChecksPrompts(Protocol):
    """A policy that can refuse a prompt before anything is sampled."""

    def check_prompt(self, prompt: Prompt, answer: str | None = None) -> None:
        """Refuse a prompt that it cannot sample for; with a given answer (of a language model), that it cannot score.

        Raises:
            UsageError: longer than the model's context, or with media that the model cannot take.
        """
        ...


@runtime_checkable
class SavesMemory(Protocol):
    """A policy that may compute with less memory, by what its settings name."""

    def saving(self) -> tuple[str, ...]:
        """Names of the settings that change how gradients are computed, and must not change the gradients."""
        ...

    def plainly(self) -> AbstractContextManager[None]:
        """Context: computes without them."""
        ...


@runtime_checkable
class Shardable(Protocol):
    """A policy whose frozen weights may be held in parts by several ranks."""

    def shard(self, shard: Callable[[nn.Module], None]) -> None:
        """Call `shard` once with each network that carries an adapter; it changes the network in place, which from then
        on has the weights of a part of itself only while that part's forward is called. What is computed beside its
        forward, network.gathered(function) computes.

        Raises:
            UsageError: a network is asked in a way in which its weights would be missing.
        """
        ...


@runtime_checkable
class ForwardProcess(Protocol):
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
        """How well R rows are denoised from x_t = a x0 + s eps at one time t, without guidance: Steps with S = 1, or a
        column for each modality of Trajectory.about.

        clean: x0 (R,*L). at in [0,1): which step of a fine sampling grid, 0 the noisiest; one time a call, so rows that
        shall share t are given in one call. eps (R,*L) is drawn from each row's seed: equal seeds share their noise.
        score (R,1) = -|target - out|^2 with grad, SUMMED over latent dims, target being what the model was trained to
        predict (velocity, epsilon, v or sample); versus_score without grad, gap with grad. Errors are fp32 or wider.
        """
        ...


@runtime_checkable
class Differentiable(Protocol):
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


@runtime_checkable
class Writing(Protocol):
    """A policy that writes tokens: plain samples are the likeliest ones, and rollouts draw (language models)."""

    def certainty(self, trajectory: Trajectory, rows: Sequence[int]) -> Tensor:
        """(R,) how far what each token was drawn from is from drawing them all alike: KL(uniform || p), in nats, the
        mean over the tokens that the model wrote (self-certainty, arXiv 2502.18581)."""
        ...

    def embeddings(self) -> Tensor:
        """(V,H) what the output layer holds of each token, without grad."""
        ...

    def tilted(self, tilt: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
        """Within the context sampling adds tilt(hidden states (R,H)) -> (R,V), in nats, to the log-probabilities of the
        next token; densities are recorded without it."""
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


class Scoring(Protocol):
    """The scores of one rollout whose rows are given as they are sampled (see `reward.runtime.beside`)."""

    def __enter__(self) -> Scoring: ...

    def __exit__(self, *error: Any) -> None: ...

    def hold(self) -> None:
        """From now on rows that are given wait for `release`."""
        ...

    def release(self) -> None:
        """Score what waits, beside whatever goes on here."""
        ...

    def give(self, prompts: Sequence[Prompt], media: Media, group: Tensor) -> None:
        """Further rows of the rollout, group (R,)."""
        ...

    def result(self, prompts: Sequence[Prompt], media: Media, group: Tensor) -> Scores:
        """Scores of all rows, which are those that were given, in their order; waits for them."""
        ...


@runtime_checkable
class Pausing(Protocol):
    """A method whose experience may be of earlier weights than those that learn from it: it goes by densities that were
    recorded while sampling, or by none at all."""

    def collecting(
        self, policy: Policy, prompts: Sequence[Prompt], reward: Reward | None, seed: int, step: int
    ) -> Generator[Scoring, None, Experience]:
        """`Method.collect` with two pauses, each of which yields the scoring: before anything is sampled, and when all
        is. No other weights are lent to the policy during a pause. What scores nothing pauses nowhere."""
        ...
