"""Networks that wait on the CPU: policies without are the oracle, and what is away is poisoned."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn

from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.residence import Residence
from genalign.policy.settings import Lora, PolicySettings, Sampler
from genalign.types import GenalignError, Trajectory, UsageError
from tests.helpers.absence import poison
from tests.helpers.diffusion import PROMPTS
from tests.helpers.tiny_pipelines import FAMILIES
from tests.helpers.tiny_videos import CLIPS
from tests.helpers.video_policies import RATE

CHOSEN = {
    name: {**FAMILIES, **CLIPS}[name] for name in ("stable-diffusion", "stable-diffusion-3", "flux", "wan-2-2", "ltx-2")
}
LEVERS = {
    "phases": {"offload": "phases"},
    "phases and checkpointing": {"offload": "phases", "gradient_checkpointing": True},
    "blocks": {"offload": "blocks"},
    "blocks and checkpointing": {"offload": "blocks", "gradient_checkpointing": True},
}


def policy(name: str, **levers: object) -> DiffusionPolicy:
    """One with an adapter that does something."""
    family = CHOSEN[name]
    settings = {
        "model": name,
        "call": family.call,
        "lora": Lora(rank=2, alpha=4),
        "sampler": Sampler(steps=3, kernel="cps", guidance=3.0),
        "batch_size": 2,
        "frame_rate": RATE if name.startswith("wan") else None,
        **levers,
    }
    of = DiffusionPolicy(family.build(), PolicySettings.model_validate(settings))
    with torch.no_grad():
        for layer, p in of.named_trainable().items():
            if "lora_B" in layer:
                p.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    return of


def updated(of: DiffusionPolicy) -> tuple[Trajectory, Tensor, float]:
    """A rollout, the gradients of one update, and the largest log-ratio."""
    trajectory, worst = of.rollout(PROMPTS[:1], 2, seed=0), 0.0
    for rows, steps in trajectory.units():
        score = of.replay(trajectory, rows, steps).score
        worst = max(worst, float((score.detach() - trajectory.logp[rows][:, steps]).abs().max()))
        score.mean().backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in of.named_trainable().values()]
    return trajectory, torch.cat([grad.flatten() for grad in grads]), worst


@pytest.mark.parametrize("name", CHOSEN)
def test_samples_and_gradients_are_the_same_bit_for_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, gradients, _ = updated(policy(name))
    assert bool(gradients.any())
    poison(monkeypatch)
    for levers in LEVERS.values():
        trajectory, found, worst = updated(policy(name, **levers))
        assert worst == 0
        assert torch.equal(trajectory.logp, plain.logp)
        assert torch.equal(found, gradients)
        for medium, track in trajectory.media.items():
            assert torch.equal(track.data, plain.media[medium].data)


def test_sampling_is_differentiated_through_networks_that_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The autoencoder was asked last, so the denoiser comes back in the backward pass."""
    found = []
    for number, levers in enumerate(({"gradient_checkpointing": True}, *LEVERS.values())):
        if number == 1:
            poison(monkeypatch)
        of = policy("stable-diffusion", **levers)
        media = of.generate_with_grad(PROMPTS[:1], [0], grad_steps=2)
        media["image"].data.square().mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in of.named_trainable().values() if p.grad is not None]))
    assert bool(found[0].any())
    assert all(torch.equal(found[0], each) for each in found[1:])


def test_samples_are_encoded_and_fitted_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for offload in (None, "phases"):
        if offload is not None:
            poison(monkeypatch)
        of = policy("stable-diffusion-3", offload=offload)
        media = of.rollout(PROMPTS[:1], 2, seed=0).media
        clean = of.encode(media)
        found += [clean, of.fit(PROMPTS[:1] * 2, clean, 0.5, [1, 2]).score.detach()]
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


def test_an_autoencoder_in_half_precision_stays_in_it() -> None:
    of = policy("stable-diffusion-3", offload="phases", dtype="bfloat16")
    of.pipeline.to(torch.bfloat16)
    of.encode(of.rollout(PROMPTS[:1], 2, seed=0).media)
    of.rollout(PROMPTS[:1], 2, seed=1)
    assert {p.dtype for p in of.pipeline.vae.parameters()} == {torch.bfloat16}


def test_one_unit_at_a_time_is_there_and_what_is_trained_never_leaves() -> None:
    units = {name: nn.Sequential(nn.Linear(2, 2)).requires_grad_(False) for name in ("a", "b")}
    units["b"][0].bias.requires_grad_(True)
    home, trained = units["b"][0].weight, units["b"][0].bias
    residence = Residence(units, torch.device("cpu"))
    units["a"](torch.ones(1, 2))
    assert residence.present == {"a"}
    units["b"][0](torch.ones(1, 2))  # a part of it
    assert residence.present == {"b"}
    assert units["b"][0].weight is not home
    assert units["b"][0].bias is trained
    residence.leave()
    assert units["b"][0].weight is home
    with residence.staying():
        for unit in units.values():
            unit(torch.ones(1, 2))
        assert residence.present == {"a", "b"}
    assert residence.present == set()


def test_a_graph_keeps_what_it_was_made_with() -> None:
    """A convolution saves its own weight for the backward pass; the next network is asked before that."""
    torch.manual_seed(0)
    units = {name: nn.Sequential(nn.Conv1d(1, 1, 3)).requires_grad_(False) for name in ("a", "b")}
    x = torch.ones(1, 1, 8, requires_grad=True)
    (wanted,) = torch.autograd.grad(units["b"](units["a"](x)).sum(), x)
    Residence(units, torch.device("cpu"))
    out = units["b"](units["a"](x)).sum()
    units["a"][0].weight.data = torch.full_like(units["a"][0].weight, float("nan"))  # what waits elsewhere is not read
    (found,) = torch.autograd.grad(out, x)
    assert torch.equal(found, wanted)


def test_what_another_library_moves_is_refused() -> None:
    pipeline = FAMILIES["stable-diffusion-3"].build()
    pipeline.enable_model_cpu_offload(device="cpu")
    with pytest.raises(UsageError, match="is moved by hooks of another library; remove them") as error:
        DiffusionPolicy(pipeline, PolicySettings(model="x", offload="phases"))
    assert "\n" not in str(error.value)


def test_a_graph_of_blocks_keeps_none_of_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a linear layer (whose weight is saved transposed), a convolution and a norm; copies die with their turn."""
    blocks = nn.ModuleList(
        nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Conv1d(4, 4, 3, padding=1)).requires_grad_(False)
        for _ in range(3)
    )
    network, x = nn.Sequential(*blocks), torch.randn(2, 4, 8, requires_grad=True)
    (wanted,) = torch.autograd.grad(network(x).square().sum(), x)
    lent: list[weakref.ref[Tensor]] = []

    def here(self: Residence, data: Tensor) -> Tensor:
        copy = data.clone()
        lent.append(weakref.ref(copy.untyped_storage()))
        return copy

    monkeypatch.setattr(Residence, "here", here)
    inner = Residence({str(index): block for index, block in enumerate(blocks)}, torch.device("cpu"))
    residence = Residence({"network": network}, torch.device("cpu"), {"network": inner})
    with residence.graphs_without_blocks():
        out = network(x).square().sum()
    residence.leave()
    assert len(lent) == 3 * 6
    assert not any(each() for each in lent)
    (found,) = torch.autograd.grad(out, x)
    assert torch.equal(found, wanted)
    assert inner.moves == 2 * 3


@pytest.mark.parametrize("how", ["written", "replaced"])
def test_weights_that_change_before_the_backward_pass_are_found_out(how: str) -> None:
    block = nn.Sequential(nn.Linear(4, 4)).requires_grad_(False)
    inner = Residence({"block": block}, torch.device("cpu"))
    residence = Residence({"network": nn.Sequential(block)}, torch.device("cpu"), {"network": inner})
    with residence.graphs_without_blocks():
        out = block(torch.ones(1, 4, requires_grad=True)).sum()
    residence.leave()
    if how == "written":
        block[0].weight.mul_(2)
    else:
        block[0].weight.data = block[0].weight.data * 2
    with pytest.raises(GenalignError, match="block: its weights were changed before the backward pass"):
        out.backward()


def test_quantised_blocks_need_checkpointing() -> None:
    with pytest.raises(ValueError, match="offload blocks of torchao-int8 needs gradient_checkpointing: true"):
        PolicySettings(model="x", offload="blocks", quantization="torchao-int8")
