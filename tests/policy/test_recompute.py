"""Blocks that are computed again: torch's own gradients without it are the oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.recompute import recompute_blocks, recomputed
from genalign.policy.settings import Lora, PolicySettings, Sampler
from genalign.types import GenalignError, UsageError
from tests.helpers.diffusion import PROMPTS
from tests.helpers.tiny_pipelines import FAMILIES
from tests.helpers.tiny_videos import CLIPS
from tests.helpers.video_policies import RATE

CHOSEN = {
    name: {**FAMILIES, **CLIPS}[name] for name in ("stable-diffusion", "stable-diffusion-3", "flux", "wan-2-2", "ltx-2")
}


def policy(name: str, again: bool) -> DiffusionPolicy:
    """One with an adapter that does something."""
    family = CHOSEN[name]
    of = DiffusionPolicy(
        family.build(),
        PolicySettings(
            model=name,
            call=family.call,
            lora=Lora(rank=2, alpha=4),
            sampler=Sampler(steps=3, kernel="cps", guidance=3.0),
            batch_size=2,
            frame_rate=RATE if name.startswith("wan") else None,
            gradient_checkpointing=again,
        ),
    )
    with torch.no_grad():
        for layer, p in of.named_trainable().items():
            if "lora_B" in layer:
                p.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    return of


def gradients(name: str, again: bool) -> tuple[Tensor, int]:
    """Those of one update, and how often blocks of the denoiser ran."""
    of, ran = policy(name, again), [0]
    trajectory = of.rollout(PROMPTS[:1], 2, seed=0)
    for denoiser in of._stage.denoisers.each.values():
        # Attention blocks, which every denoiser here computes again.
        for module in denoiser.modules():
            if "Transformer" in type(module).__name__ and "Block" in type(module).__name__:
                module.register_forward_pre_hook(lambda *_: ran.__setitem__(0, ran[0] + 1))
    for rows, steps in trajectory.units():
        of.replay(trajectory, rows, steps).score.mean().backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in of.named_trainable().values()]
    return torch.cat([grad.flatten() for grad in grads]), ran[0]


@pytest.mark.parametrize("name", CHOSEN)
def test_gradients_are_the_same_bit_for_bit_and_blocks_run_again(name) -> None:
    kept, once = gradients(name, again=False)
    computed, more = gradients(name, again=True)
    assert bool(kept.any())
    assert torch.equal(kept, computed)
    assert more > once


def test_sampling_is_differentiated_through_blocks_that_are_computed_again() -> None:
    """Beside the recomputation of whole denoiser calls, which contain them."""
    found = []
    for again in (False, True):
        of = policy("wan-2-2", again)
        media = of.generate_with_grad(PROMPTS[:1], [0], grad_steps=2)
        media["video"].data.square().mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in of.named_trainable().values() if p.grad is not None]))
    assert bool(found[0].any())
    assert torch.equal(*found)


def test_what_changes_between_the_two_passes_is_found_out() -> None:
    block, x = nn.Linear(4, 4), torch.ones(2, 4)
    out = recomputed(block, x)
    block.weight.data = block.weight.data / 2  # as weights that were lent and taken back
    with pytest.raises(GenalignError, match="computed something else in the backward pass"):
        out.sum().backward()


def test_a_network_without_blocks_is_refused_in_one_sentence() -> None:
    with pytest.raises(UsageError, match=r"has no blocks .* policy\.gradient_checkpointing") as error:
        recompute_blocks(nn.Linear(2, 2))
    assert "\n" not in str(error.value)
