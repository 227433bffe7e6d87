"""The checks before the first update: that ranks hold the same bits, and gradients where outputs prove nothing."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from genalign.policy.diffusion import DiffusionPolicy
from genalign.training.selfcheck import check_gradients, check_replay
from genalign.types import GenalignError
from tests.helpers.diffusion import PROMPTS, log_ratio, settings
from tests.helpers.tiny_pipelines import FAMILIES


@pytest.mark.parametrize("theirs", ["equal", "off by one bit"])
def test_ranks_that_hold_different_bits_are_stopped(theirs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from genalign.training import selfcheck

    ours = torch.tensor([0.1, 0.2])
    other = ours if theirs == "equal" else torch.nextafter(ours, torch.ones(2))
    sums: list[torch.Tensor] = []
    monkeypatch.setattr(selfcheck, "world", lambda: 2)
    monkeypatch.setattr(selfcheck, "gather", lambda mine: sums.append(mine) or torch.cat(sums))
    selfcheck.check_equal([other, None], "gradients")  # what the other rank sends
    if theirs == "equal":
        selfcheck.check_equal([ours, None], "gradients")
    else:
        with pytest.raises(GenalignError, match="gradients differ between ranks"):
            selfcheck.check_equal([ours, None], "gradients")


# ---- gradients: log-densities are exact in every case here, and prove nothing --------------------------------------


def policy(**levers: Any) -> DiffusionPolicy:
    return DiffusionPolicy(FAMILIES["stable-diffusion-3"].build(), settings().model_copy(update=levers))


def experience(of: DiffusionPolicy, forward: bool = False) -> Any:
    trajectory = of.rollout(PROMPTS[:1], 2, seed=0)
    found = SimpleNamespace(trajectory=trajectory, scores=object())
    if forward:
        found.clean = of.clean(trajectory)
    return found


@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize(
    "levers",
    [
        {"gradient_checkpointing": True},
        {"offload": "phases"},
        {"offload": "blocks"},
        {"gradient_checkpointing": True, "offload": "blocks"},
    ],
)
def test_levers_that_are_exact_pass(levers: dict[str, Any], forward: bool) -> None:
    of = policy(**levers)
    assert check_gradients(of, experience(of, forward)) is None
    assert of.denoiser.gradient_checkpointing is levers.get("gradient_checkpointing", False)  # as it was


def test_without_levers_nothing_is_computed() -> None:
    of = policy()
    found = experience(of)
    before = of.calls()
    assert check_gradients(of, found) is None
    assert of.calls() == before


def cut(block: Callable[..., Any], *args: Any) -> Any:
    """Recomputation that forgets where its inputs came from."""
    return block(*[x.detach() if isinstance(x, Tensor) else x for x in args])


def at_another_scale(of: DiffusionPolicy) -> Callable[..., Any]:
    """As where a LoRA scale was an argument of the call: it is gone when blocks are computed again."""
    from torch.utils.checkpoint import checkpoint

    def run(block: Callable[..., Any], *args: Any) -> Any:
        passes: list[int] = []
        layers = [module for module in block.modules() if hasattr(module, "lora_B")]

        def body(*inner: Any) -> Any:
            passes.append(1)
            before = [dict(layer.scaling) for layer in layers]
            for layer in layers if len(passes) > 1 else ():
                layer.scaling = {name: 3 * scale for name, scale in layer.scaling.items()}
            out = block(*inner)
            for layer, scaling in zip(layers, before, strict=True):
                layer.scaling = scaling
            return out

        return checkpoint(body, *args, use_reentrant=False, preserve_rng_state=False)

    return run


@pytest.mark.parametrize("fault", ["cut", "scaled"])
def test_wrong_gradients_of_right_outputs_are_refused_by_name(fault: str) -> None:
    of = policy(gradient_checkpointing=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in of.named_trainable().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    found = experience(of)
    of.denoiser.enable_gradient_checkpointing(cut if fault == "cut" else at_another_scale(of))
    check_replay(of, found, fresh=False)  # which sees nothing
    assert bool((log_ratio(of, found.trajectory) == 0).all())
    with pytest.raises(GenalignError, match=r"with policy\.gradient_checkpointing the adapter's gradient") as error:
        check_gradients(of, found)
    assert "\n" not in str(error.value)


def test_an_adapter_that_no_gradient_reaches_is_refused() -> None:
    of = policy(gradient_checkpointing=True)
    found = experience(of)
    for module in of.denoiser.modules():
        if hasattr(module, "_disable_adapters"):
            module._disable_adapters = True
    with pytest.raises(GenalignError, match="no gradient reaches the adapter"):
        check_gradients(of, found)


def test_weights_that_are_elsewhere_are_refused() -> None:
    pipeline = FAMILIES["stable-diffusion-3"].build()
    pipeline.transformer.to("meta")
    from genalign.policy.adapters import Adapters
    from genalign.policy.settings import Lora
    from genalign.types import UsageError

    with pytest.raises(UsageError, match="are on 'meta', where an adapter gets no gradient") as error:
        Adapters({"transformer": pipeline.transformer}, Lora())
    assert "\n" not in str(error.value)


def test_a_denoiser_that_several_ranks_compute_together_is_refused() -> None:
    """As diffusers' enable_parallelism leaves it, which a machine without accelerator cannot call."""
    from diffusers.models import ContextParallelConfig
    from diffusers.models._modeling_parallel import ParallelConfig

    from genalign.policy.adapters import Adapters
    from genalign.policy.settings import Lora
    from genalign.types import UsageError

    denoiser = FAMILIES["stable-diffusion-3"].build().transformer
    assert denoiser._parallel_config is None
    denoiser._parallel_config = ParallelConfig(context_parallel_config=ContextParallelConfig(ulysses_degree=2))
    with pytest.raises(UsageError, match="by several ranks together") as error:
        Adapters({"transformer": denoiser}, Lora())
    assert "\n" not in str(error.value)
