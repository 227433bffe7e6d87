"""Flow-NRG: sampling guided by the gradient of a reward that reads noisy latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from genalign.method.search.base import Inference, SearchState
from genalign.method.search.levels import Reader
from genalign.method.settings import LatentReward, MethodSettings
from genalign.types import Method, Prompt, UsageError


class FitSettings(BaseModel):
    """How `genalign fit-reward` makes the reward that guides."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    prompts: int = Field(default=512, ge=1)
    """Prompts of the training file that are sampled."""
    per_prompt: int = Field(default=8, ge=2)
    """Samples of each, compared with each other."""
    steps: int = Field(default=1500, ge=1)
    """Optimizer steps."""
    prompts_per_batch: int = Field(default=8, ge=1)
    """Prompts whose samples meet in one batch."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of AdamW, with warm-up and cosine decay."""
    text: str = "tiny-clip"
    """The open_clip model whose frozen text tower reads prompts."""
    words: int = Field(default=0, ge=0)
    """Besides, their words and neighbouring pairs of words, as a hashed count of this length, since CLIP's embeddings
    say little of verbs and order; 0: none."""
    noise_aware: bool = True
    """Train on latents of all noise levels; false is the ablation that saw clean ones only."""


class GuidanceSettings(MethodSettings):
    """Flow-NRG: which reward guides, and how hard."""

    presets: ClassVar = {"nrg": {}}
    folders: ClassVar = {"noisy": ("assets",)}

    group: int = Field(1, ge=1, le=1)
    """One sample at a time: guidance compares nothing."""
    noisy: str = "tiny-noisy"
    """The folder that `genalign fit-reward` wrote."""
    strength: float = Field(1.0, ge=0)
    """w: the sampled density is the model's times exp(w x the weighted sum of objectives)."""
    weights: dict[str, float] | None = None
    """Objective -> weight; null: as the reward that was fitted weighs its aspects."""
    cap: float = Field(5.0, gt=0)
    """Bound on s / a (t / (1 - t) of a flow), which has no bound at pure noise."""
    fit: FitSettings = FitSettings()
    """Read by `genalign fit-reward`."""

    def build(self, folder: Path) -> Method:
        return Guidance(self)

    @property
    def guided_by(self) -> str:
        return self.noisy

    def build_guided(self, latent: Callable[[], LatentReward]) -> Method:
        return Guidance(self, latent)


class Guidance(Inference):
    """Reward guidance by a noise-aware latent reward (Flow-NRG, arXiv 2501.13918): score += w grad r.

    In the model's own output: velocity -= w min(s/a, cap) grad r, epsilon -= w s grad r, after guidance by text.

    Departs from the paper: (1) s / a is capped instead of left out at t = 1 alone. (2) Each objective is divided by its
    spread over the samples it was fitted on, so that one strength serves all.

    latent: what loads the fitted reward, given by whoever knows where it is.
    """

    def __init__(self, settings: GuidanceSettings, latent: Callable[[], LatentReward] | None = None) -> None:
        self.settings, self.name, self.latent = settings, settings.name, latent
        self.needs = frozenset({"reward"})

    def reward(self) -> LatentReward:
        """The fitted reward that guides. Raises UsageError where there is none."""
        if self.latent is None:
            raise UsageError("nrg has no fitted reward; make one by genalign fit-reward RECIPE and set method.noisy")
        return self.latent()

    def _search(self, state: SearchState) -> None:
        latent, prompts = self.reward(), state.prompts
        with torch.no_grad(), state.paying():
            weights = objective_weights(latent, self.settings.weights)
            guide = RewardGuide(latent, weights, prompts, self.settings)
            media = state.differentiable.generate_with_grad(
                prompts, state.seeds, grad_steps=0, guidance=state.guidance, steps=state.steps, guide=guide
            )
        passes = len(prompts) * guide.steps  # the latent reward is a network as well
        state.spent.forward += passes
        state.spent.backward += passes
        state.score(media, range(len(prompts)))


def objective_weights(latent: LatentReward, given: Mapping[str, float] | None) -> Tensor:
    """(K,) in the order of the reward's aspects; an objective that is not named counts 0.

    Raises:
        UsageError: an objective that the reward does not have.
    """
    if given is None:
        return torch.tensor(latent.weights)
    unknown = sorted(set(given) - set(latent.aspects))
    if unknown:
        raise UsageError(
            f"method.weights names {unknown[0]!r}, but the fitted reward's objectives are {', '.join(latent.aspects)}"
        )
    return torch.tensor([float(given.get(name, 0.0)) for name in latent.aspects])


class RewardGuide:
    """The guide of one sampling that adds the weighted objectives' gradient; with strength 0 it changes no bit.

    steps: how many it has guided.
    """

    def __init__(
        self, latent: LatentReward, weights: Tensor, prompts: Sequence[Prompt], settings: GuidanceSettings
    ) -> None:
        self.latent, self.weights, self.prompts, self.settings = latent, weights, prompts, settings
        self.steps = 0
        self._read = Reader()

    def __call__(self, step: int, x: Tensor, out: Tensor, x0: Tensor) -> Tensor:
        self.steps += 1
        s, level = self.settings, self._read(x, out, x0)
        with torch.enable_grad():
            leaf = x.detach().to(torch.promote_types(x.dtype, torch.float32)).requires_grad_()
            values = self.latent(self.prompts, leaf, level.a, level.s)  # (R,K)
            (rise,) = torch.autograd.grad((values * self.weights.to(values)).sum(), leaf)
        ratio = min(level.s / level.a, s.cap) if level.a > 0 else s.cap
        shift = s.strength * level.s * ratio * rise  # of x0_hat
        return out - (level.p / level.q * shift).to(out.dtype)
