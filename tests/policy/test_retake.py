"""A real pipeline's last step taken again, where diffusers' scheduler says, and decoding in the middle of sampling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from genalign.method.pathwise import Retaking
from genalign.method.search.levels import watch as levels_of
from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.forward import noise_of
from genalign.policy.pathwise import decode
from genalign.policy.settings import PolicySettings, Sampler
from genalign.policy.twin import twin
from genalign.types import Prompt
from tests.helpers.tiny_pipelines import BETAS, stable_diffusion, stable_diffusion_3

PROMPTS, SEEDS = [Prompt("a cat", uid=0), Prompt("two stars", uid=1)], [7, 8]
CASES = [(stable_diffusion_3, 1.0), (stable_diffusion_3, 3.0), (stable_diffusion, 1.0)]


def make_policy(make: Any, guidance: float) -> DiffusionPolicy:
    pipeline = make()
    if make is stable_diffusion:
        pipeline.scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False)
    sampler = Sampler(kernel="ode", steps=4, guidance=guidance)
    return DiffusionPolicy(pipeline, PolicySettings(model="-", sampler=sampler))


@pytest.mark.parametrize(("make", "guidance"), CASES)
def test_the_last_step_is_the_schedulers_own(make: Any, guidance: float) -> None:
    """A sampling that is bent onto the re-noised latents before its last step ends in the same picture."""
    policy = make_policy(make, guidance)
    start = policy.initial_noise(PROMPTS, [1, 2])
    clean = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    calls = policy.calls()
    assert isinstance(policy, Retaking)
    media = policy.retake(PROMPTS, clean, SEEDS)
    assert policy.calls() - calls == 2 * (2 if guidance > 1 else 1)

    scheduler = policy.pipeline.scheduler
    scheduler.set_timesteps(4)
    eps = noise_of(SEEDS, clean.shape[1:])
    if make is stable_diffusion:
        x = scheduler.add_noise(clean, eps, scheduler.timesteps[-1].expand(2))
    else:
        x = (1 - scheduler.sigmas[-2]) * clean + scheduler.sigmas[-2] * eps
    levels = levels_of(policy, PROMPTS[0])
    seen: list[torch.Tensor] = []

    def bend(step: int, at: torch.Tensor, out: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        seen.append(at)
        if step != 2:
            return out
        now, then = levels[2], levels[3]
        return now.out(at, (x - then.s / now.s * at) / (then.a - then.s * now.a / now.s))

    whole = policy.generate_with_grad(PROMPTS, noise=start, guide=bend)
    torch.testing.assert_close(seen[-1], x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(media["image"].data, whole["image"].data, rtol=1e-3, atol=1e-3)
    media["image"].data.sum().backward()
    assert any(parameter.grad is not None for parameter in policy.named_trainable().values())


@pytest.mark.parametrize(("make", "guidance"), CASES)
def test_a_guide_may_decode_on_its_way(make: Any, guidance: float) -> None:
    policy, other = make_policy(make, guidance), make_policy(make, guidance)
    plain = other.generate_with_grad(PROMPTS, SEEDS, grad_steps=0, guide=lambda i, x, out, x0: out)["image"].data
    seen: list[torch.Tensor] = []
    latents: list[torch.Tensor] = []
    second: list[Any] = []

    def look(step: int, x: torch.Tensor, out: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        second[:] = second or [twin(policy._pipe)]
        latents.append(x0)
        seen.append(decode(second[0], x0)["image"].data)
        return out

    calls = policy.calls()
    media = policy.generate_with_grad(PROMPTS, SEEDS, grad_steps=0, guide=look)["image"].data
    assert torch.equal(media, plain)
    assert policy.calls() - calls == 4 * 2 * (2 if guidance > 1 else 1)
    for x0, image in zip(latents, seen, strict=True):
        assert torch.equal(image, other.decode(x0)["image"].data)


def test_what_a_twin_draws_is_not_counted_among_the_policys_own_passes() -> None:
    policy = make_policy(stable_diffusion_3, 1.0)
    second, calls = twin(policy._pipe), policy.calls()
    drawn = second.draw(second.call(PROMPTS, SEEDS), second.stage.denoisers.count, None)["image"].data
    assert policy.calls() == calls
    assert second.stage.denoisers.calls - calls == 4 * len(PROMPTS)
    assert torch.equal(torch.as_tensor(drawn), torch.as_tensor(policy.generate(PROMPTS, SEEDS)["image"].data))
