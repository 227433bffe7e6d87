"""Gradients through sampling: against loops written out here, and the bytes that they keep."""

from __future__ import annotations

import functools
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from genalign.policy.diffusion import DiffusionPolicy
from genalign.types import Differentiable, UsageError
from tests.helpers.diffusion import PROMPTS, Remembering, moved, policy, saved_bytes, settings
from tests.helpers.tiny_pipelines import FAMILIES, stable_diffusion_3

SEEDS = [3, 4, 5]


@functools.cache
def made(name: str) -> DiffusionPolicy:
    return policy(name, True)


def image(media: Any) -> Tensor:
    return media["image"].data


@pytest.mark.parametrize("name", FAMILIES)
def test_values_are_those_of_generate_bit_for_bit(name) -> None:
    of = made(name)
    assert isinstance(of, Differentiable)
    plain = image(of.generate(PROMPTS, SEEDS))
    noise = of.initial_noise(PROMPTS, SEEDS)
    assert abs(float(noise.std()) - 1) < 0.15
    assert not noise.requires_grad
    leaf = noise.clone().requires_grad_()
    for given in (
        {"seeds": SEEDS},
        {"noise": leaf},
        {"noise": leaf, "checkpoint": False},
        {"seeds": SEEDS, "grad_steps": 1},
    ):
        found = image(of.generate_with_grad(PROMPTS, **given))
        assert torch.equal(found, plain)
        assert found.requires_grad
    assert 0 <= float(found.detach().min()) <= float(found.detach().max()) <= 1
    image(of.generate_with_grad(PROMPTS, noise=leaf)).square().sum().backward()
    assert leaf.grad is not None
    assert bool((leaf.grad.flatten(1).abs().sum(1) > 0).all())
    none = [
        p
        for module in of.pipeline.components.values()
        if isinstance(module, torch.nn.Module)
        for p in module.parameters()
    ]
    trained = {id(p) for p in of.named_trainable().values()}
    assert all(p.grad is None for p in none if id(p) not in trained)
    for p in of.named_trainable().values():
        p.grad = None


def unrolled(of: DiffusionPolicy, x: Tensor, steps: int, keep: int, scale: float) -> Tensor:
    """Guided Euler sampling of the tiny rectified flow, by hand; steps before the last `keep` are constants."""
    pipeline = of.pipeline
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    texts = [[prompt.text for prompt in PROMPTS]] * 3
    with torch.no_grad():
        words, empty, pooled, pooled_empty = pipeline.encode_prompt(*texts)
    for i, t in enumerate(scheduler.timesteps):
        if 0 < i == steps - keep:
            x = x.detach()
        v, u = (
            of.denoiser(x, encoder_hidden_states=text, pooled_projections=pool, timestep=t.expand(len(x)))[0]
            for text, pool in ((words, pooled), (empty, pooled_empty))
        )
        x = x + (scheduler.sigmas[i + 1] - scheduler.sigmas[i]).to(x) * (u + scale * (v - u))
    vae = pipeline.vae
    return (vae.decode(x / vae.config.scaling_factor + vae.config.shift_factor)[0] / 2 + 0.5).clamp(0, 1)


def gradients(of: DiffusionPolicy, drawn: Tensor) -> dict[str, Tensor]:
    weight = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(0)).to(drawn)
    parameters = of.named_trainable()
    found = torch.autograd.grad((weight * drawn).sum(), list(parameters.values()), allow_unused=True)
    return {name: g for name, g in zip(parameters, found, strict=True) if g is not None}


@pytest.mark.parametrize("keep", [1, 3, 5])
@pytest.mark.parametrize("recompute", [True, False])
def test_gradients_are_those_of_the_unrolled_loop(keep, recompute) -> None:
    of = policy("stable-diffusion-3", True, torch.float64)
    noise = of.initial_noise(PROMPTS, SEEDS)
    assert noise.dtype == torch.float64
    with moved(of, 0.2):
        by_hand = gradients(of, unrolled(of, noise, 5, keep, 4.0))
        drawn = image(
            of.generate_with_grad(PROMPTS, noise=noise, steps=5, guidance=4.0, grad_steps=keep, checkpoint=recompute)
        )
        ours = gradients(of, drawn)
    assert ours.keys() == by_hand.keys()
    scale = max(float(g.abs().max()) for g in by_hand.values())
    assert scale > 0
    for name, g in by_hand.items():  # diffusers' Euler step adds in float32
        torch.testing.assert_close(ours[name], g, rtol=1e-4, atol=1e-5 * scale)


def test_gradients_to_the_noise_are_those_of_the_unrolled_loop_and_stop_where_steps_have_no_graph() -> None:
    of = policy("stable-diffusion-3", True, torch.float64)
    noise = of.initial_noise(PROMPTS, SEEDS)
    found = []
    for draw in (
        lambda leaf: image(of.generate_with_grad(PROMPTS, noise=leaf, steps=3, guidance=4.0)).double(),
        lambda leaf: unrolled(of, leaf, 3, 3, 4.0),
    ):
        leaf = noise.clone().requires_grad_()
        draw(leaf).square().sum().backward()
        found.append(leaf.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
    leaf = noise.clone().requires_grad_()
    image(of.generate_with_grad(PROMPTS, noise=leaf, steps=3, grad_steps=2)).sum().backward()
    assert leaf.grad is None


@pytest.mark.parametrize("name", ["stable-diffusion-3", "stable-diffusion", "qwen-image"])
def test_bytes_kept_do_not_grow_with_the_steps_before_and_little_with_those_kept(name) -> None:
    of = made(name)

    def draw(steps: int, keep: int, recompute: bool = True) -> int:
        return saved_bytes(
            lambda: image(of.generate_with_grad(PROMPTS, SEEDS, steps=steps, grad_steps=keep, checkpoint=recompute))
        )

    for recompute in (True, False):
        assert len({draw(steps, 2, recompute) for steps in (3, 6, 12)}) == 1
    whole = draw(6, 2, False) - draw(6, 1, False)  # what one step keeps where nothing is recomputed
    assert whole > 50_000
    assert 0 <= draw(6, 5) - draw(6, 1) < 0.1 * whole
    assert draw(6, 5, False) - draw(6, 1, False) > 3.9 * whole


def test_recomputed_calls_are_counted_and_those_without_graph_are_made_once() -> None:
    of = policy("stable-diffusion-3", True)
    drawn = image(of.generate_with_grad(PROMPTS, SEEDS, steps=6, grad_steps=2))
    assert of.calls() == 6 * 2 * 3
    drawn.sum().backward()
    assert of.calls() == (6 + 2) * 2 * 3


@pytest.mark.parametrize("name", ["stable-diffusion-3", "flux", "stable-diffusion"])
def test_a_guide_sees_x0_and_steers_the_sampler(name) -> None:
    of = made(name)
    shape = of.initial_noise(PROMPTS, SEEDS).shape
    goal = torch.randn(shape, generator=torch.Generator().manual_seed(9))
    steps, seen, levels = 5, [], []
    scheduler = of.pipeline.scheduler

    def steer(step: int, x: Tensor, out: Tensor, x0: Tensor) -> Tensor:
        if FAMILIES[name].flow:
            sigma = float(scheduler.sigmas[step])
            torch.testing.assert_close(x0, x - sigma * out, rtol=0, atol=1e-4)
            changed = (x - goal) / sigma
        else:
            abar = float(scheduler.alphas_cumprod[scheduler.timesteps[step]])
            levels.append(abar)
            torch.testing.assert_close(x0, (x - (1 - abar) ** 0.5 * out) / abar**0.5, rtol=1e-4, atol=1e-3)
            changed = (x - abar**0.5 * goal) / (1 - abar) ** 0.5
        seen.append((step, torch.is_grad_enabled()))
        return changed

    drawn = image(of.generate_with_grad(PROMPTS, SEEDS, steps=steps, guide=steer, grad_steps=2))
    assert seen == [(step, step >= 3) for step in range(steps)]
    expected = goal
    if not FAMILIES[name].flow:  # DDIM ends at the schedule's last abar, not at 1
        abar = float(scheduler.final_alpha_cumprod)
        first = of.initial_noise(PROMPTS, SEEDS)
        expected = abar**0.5 * goal + (1 - abar) ** 0.5 * _noise_left(first, goal, levels[0])
    torch.testing.assert_close(drawn, image(of.decode(expected)), rtol=0, atol=2e-4)
    idle = image(of.generate_with_grad(PROMPTS, SEEDS, guide=lambda step, x, out, x0: out))
    assert torch.equal(idle, image(of.generate(PROMPTS, SEEDS)))


def _noise_left(first: Tensor, goal: Tensor, abar: float) -> Tensor:
    """eps of x = a goal + s eps, which DDIM steps towards `goal` leave as it is."""
    return (first - abar**0.5 * goal) / (1 - abar) ** 0.5


def test_initial_noise_is_that_of_each_row_and_of_unit_variance_whatever_the_scheduler() -> None:
    drawn = [torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS]
    for name in ("stable-diffusion-3", "stable-diffusion", "stable-diffusion-xl"):
        assert torch.equal(made(name).initial_noise(PROMPTS, SEEDS), torch.cat(drawn))
    assert float(made("stable-diffusion-xl").pipeline.scheduler.init_noise_sigma) > 2


def test_decode_has_the_gradient_of_the_autoencoder() -> None:
    of = made("stable-diffusion-3")
    vae = of.pipeline.vae
    clean = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for decode in (
        lambda z: image(of.decode(z)),
        lambda z: (vae.decode(z / vae.config.scaling_factor + 0.1)[0] / 2 + 0.5).clamp(0, 1),
    ):
        leaf = clean.clone().requires_grad_()
        drawn = decode(leaf)
        drawn.square().sum().backward()
        found.append((drawn.detach(), leaf.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_wrong_starts_are_one_sentence() -> None:
    of = made("stable-diffusion-3")
    noise = of.initial_noise(PROMPTS, SEEDS)
    for given in ({}, {"seeds": SEEDS, "noise": noise}, {"seeds": SEEDS[:2]}, {"noise": noise[:2]}):
        with pytest.raises(UsageError, match="one seed a prompt, or else from one noise"):
            of.generate_with_grad(PROMPTS, **given)
    with pytest.raises(UsageError, match=r"noise of shape \(3, 4, 4, 4\), where .* \(3, 4, 8, 8\)"):
        of.generate_with_grad(PROMPTS, noise=noise[..., :4, :4])

    class Hidden(Remembering):
        prepare_latents = None

    other = DiffusionPolicy(Hidden(**stable_diffusion_3().components), settings(guided=True))
    with pytest.raises(UsageError, match="cannot start from given noise"):
        other.generate_with_grad(PROMPTS, noise=noise)
    assert image(other.generate_with_grad(PROMPTS, SEEDS)).requires_grad
