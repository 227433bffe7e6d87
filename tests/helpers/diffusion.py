"""Diffusion policies on tiny pipelines: how tests make, move, replay and measure them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from torch import Tensor

from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.settings import Lora, PolicySettings, Sampler
from genalign.types import (
    Policy,
    Prompt,
    Trajectory,
)
from tests.helpers.tiny_pipelines import BETAS, FAMILIES, MORE

PROMPTS = [Prompt("a b", uid=1), Prompt("c d e", uid=2), Prompt("x", uid=5)]


def settings(name: str = "stable-diffusion-3", guided: bool = False, **sampler: Any) -> PolicySettings:
    family = {**FAMILIES, **MORE}[name]
    # Variance-preserving paths in the middle: random weights make x0_hat huge, which no short step at the end survives.
    steps = {"steps": 4, "kernel": "flow-sde"} if family.flow else {
        "steps": 8, "kernel": "ddim", "window": 3, "window_start": (2, 3)
    }  # fmt: skip
    guidance = {} if guided else {"guidance": 1.0}
    return PolicySettings(
        model=name,
        call={**family.call, **(family.on if guided else {})},
        sampler=Sampler(**{**steps, **guidance, **sampler}),
        lora=Lora(rank=2, alpha=4),
        batch_size=4,
    )


def policy(
    name: str = "stable-diffusion-3", guided: bool = False, dtype=torch.float32, **sampler: Any
) -> DiffusionPolicy:
    return DiffusionPolicy(FAMILIES[name].build().to(dtype), settings(name, guided, **sampler))


def log_ratio(made: DiffusionPolicy, trajectory: Trajectory) -> torch.Tensor:
    """(B, S), replayed in the rollout's own micro-batches."""
    ratio = torch.zeros_like(trajectory.logp)
    with torch.no_grad():
        for rows, steps in trajectory.units():
            ratio[rows[0] : rows[-1] + 1, steps] = (
                made.replay(trajectory, rows, steps).score - trajectory.logp[rows][:, steps]
            )
    return ratio


@contextmanager
def moved(made: Policy, size: float = 0.05) -> Iterator[None]:
    """Other adapter weights, for as long as the context lasts."""
    before = {name: p.detach().clone() for name, p in made.named_trainable().items()}
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in made.named_trainable().values():
            p.add_(size * torch.randn(p.shape, generator=generator).to(p))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, p in made.named_trainable().items():
                p.copy_(before[name])


def draw(plain: Any, made: DiffusionPolicy, **more: Any) -> torch.Tensor:
    """PROMPTS[0] at seed 7 by diffusers alone, in single steps on the pipeline's own time grid."""
    config = plain.scheduler.config
    if isinstance(plain.scheduler, (diffusers.PNDMScheduler, diffusers.DDPMScheduler)):
        known = {name: config[name] for name in inspect.signature(diffusers.DDIMScheduler).parameters if name in config}
        plain.scheduler = diffusers.DDIMScheduler(**{"clip_sample": False, **known})
    elif isinstance(plain.scheduler, diffusers.EulerAncestralDiscreteScheduler):
        plain.scheduler = diffusers.EulerDiscreteScheduler(**BETAS)
    elif isinstance(plain.scheduler, diffusers.DPMSolverMultistepScheduler):
        plain.scheduler.register_to_config(solver_order=1)
    plain.set_progress_bar_config(disable=True)
    return plain(
        prompt=PROMPTS[0].text,
        generator=torch.Generator().manual_seed(7),
        num_inference_steps=made.settings.sampler.steps,
        output_type="pt",
        **made.settings.call,
        **more,
    ).images


class Remembering(diffusers.StableDiffusion3Pipeline):
    """Guidance with momentum over steps, and a knob that no replay can reproduce."""

    noisy = False

    @torch.no_grad()
    def __call__(self, prompt, generator, num_inference_steps, output_type="pt", guidance_scale=3.0):
        text, empty, pooled, pooled_empty = self.encode_prompt(prompt, prompt, prompt)
        shape = (self.transformer.config.in_channels, 8, 8)
        x = torch.cat([torch.randn(1, *shape, generator=g) for g in generator])
        self.scheduler.set_timesteps(num_inference_steps)
        momentum = 0.0
        for t in self.scheduler.timesteps:
            branches = [
                self.transformer(x, words, pool, t.expand(len(x)), return_dict=False)[0]
                for words, pool in ((empty, pooled_empty), (text, pooled))
            ]
            momentum = branches[1] - branches[0] + 0.5 * momentum
            out = branches[1] + guidance_scale * momentum + (torch.rand(()) if self.noisy else 0.0)
            x = self.scheduler.step(out, t, x, return_dict=False)[0]
        decoded = self.vae.decode(x, return_dict=False)[0]
        return type("Made", (), {"images": self.image_processor.postprocess(decoded, output_type)})


def saved_bytes(draw: Any) -> int:
    """What autograd keeps of a forward pass, each tensor once."""
    seen: dict[tuple[int, tuple[int, ...]], int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            alive.append(tensor)  # so that no address is used twice
            seen[tensor.data_ptr(), tuple(tensor.shape)] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = draw()
    assert kept.requires_grad
    return sum(seen.values())
