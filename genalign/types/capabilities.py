"""What some policies and methods can do beyond what each must; nobody inherits from these."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from genalign.types.protocols import Policy, Reward, Weights
from genalign.types.records import Experience, Scores, Steps, Trajectory
from genalign.types.samples import Media, Prompt

Guide = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # (step, x, out, x0_hat) -> out, all (B,*L)


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
