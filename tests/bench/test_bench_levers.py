"""Bytes of one Flow-GRPO update of a denoiser of 30 blocks (Z-Image's depth, tiny width), with and without levers, and
its CPU seconds by turns.

Counted are the frozen weights that are on the device and every tensor that is alive, at the worst moment. There may be
no other device than the CPU: parameters that are away take the bytes of one number (tests/helpers/absence.py).

    python -m tests.bench.test_bench_levers          # or with another width and number of blocks: ... 64 30
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.quantize import quantize_layers
from genalign.policy.residence import Residence
from genalign.policy.settings import Lora, PolicySettings, Sampler
from tests.bench.live import Live
from tests.bench.meter import in_turns
from tests.helpers.absence import poison
from tests.helpers.diffusion import PROMPTS
from tests.helpers.tiny_pipelines import FAMILIES, sd3_transformer

LEVERS: dict[str, dict[str, Any]] = {
    "none": {},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "offload: phases": {"offload": "phases"},
    "offload: blocks": {"offload": "blocks"},
    "gradient_checkpointing, offload: blocks": {"gradient_checkpointing": True, "offload": "blocks"},
    "quantization: torchao-int8": {"quantization": "torchao-int8"},
    "quantization: bitsandbytes-nf4": {"quantization": "bitsandbytes-nf4"},
    "all, in 4 bits": {"gradient_checkpointing": True, "offload": "blocks", "quantization": "bitsandbytes-nf4"},
}
HERE = {
    name: levers
    for name, levers in LEVERS.items()
    if "quantization" not in levers or find_spec(levers["quantization"].partition("-")[0]) is not None
}
BOUND = 0.25
ROUNDS = 7


class Meter(Live):
    """Live tensors, and the frozen weights that are there."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = networks
        self.frozen = 0
        self.weigh()

    def weigh(self) -> None:
        held = {}
        for network in self.networks:
            for tensor in (*network.parameters(), *network.buffers()):
                if not tensor.requires_grad:
                    held.update(storages(tensor))
        self.now += sum(held.values()) - self.frozen
        self.frozen = sum(held.values())
        self.peak = max(self.peak, self.now)


def storages(tensor: Tensor) -> dict[int, int]:
    """Bytes by storage, of a quantised tensor those of its parts."""
    held: Any = tensor
    if hasattr(held, "__tensor_flatten__"):
        return {k: v for name in held.__tensor_flatten__()[0] for k, v in storages(getattr(held, name)).items()}
    found = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()}
    state = getattr(held, "quant_state", None)
    return found if state is None else {**found, **storages(state.absmax)}


def policy(levers: dict[str, Any], width: int = 256, blocks: int = 30) -> DiffusionPolicy:
    family = FAMILIES["stable-diffusion-3"]
    pipeline = family.build(transformer=sd3_transformer(width=width, layers=blocks))
    if "quantization" in levers:
        quantize_layers(pipeline.transformer, levers["quantization"], torch.device("cpu"))
    settings = PolicySettings(
        model="x",
        call={"max_sequence_length": 12},
        lora=Lora(rank=4),
        sampler=Sampler(steps=3, guidance=1.0),
        batch_size=4,
        **{key: value for key, value in levers.items() if key != "quantization"},
    )
    return DiffusionPolicy(pipeline, settings)


def update(of: DiffusionPolicy) -> Callable[[], None]:
    trajectory = of.rollout(PROMPTS[:1], 4, seed=0)

    def run() -> None:
        for rows, steps in trajectory.units():
            of.replay(trajectory, rows, steps).score.mean().backward()
        for parameter in of.named_trainable().values():
            parameter.grad = None

    run()
    return run


def peak(levers: dict[str, Any], patch: pytest.MonkeyPatch, *size: int) -> int:
    """Bytes of one update."""
    if "offload" in levers:
        poison(patch)
    of = policy(levers, *size)
    run = update(of)
    meter = Meter([part for part in of.pipeline.components.values() if isinstance(part, nn.Module)])
    bring = Residence.bring

    def weighed(self: Residence, name: str) -> None:
        if name not in self.present:  # or it is asked again, part by part
            bring(self, name)
            meter.weigh()

    patch.setattr(Residence, "bring", weighed)
    with meter:
        run()
    return meter.peak


@pytest.mark.slow  # policy/test_residence.py says what is there, unit by unit
def test_an_update_with_blocks_away_takes_a_quarter_of_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side, in one run, with and without blocks that are computed again, which take the time."""
    none = peak({}, monkeypatch)
    assert none > 100_000_000
    kept = peak(HERE["offload: blocks"], monkeypatch)
    assert kept <= BOUND * none
    assert peak(HERE["gradient_checkpointing, offload: blocks"], monkeypatch) < kept / 2


def main() -> None:
    torch.set_num_threads(1)
    width, blocks = map(int, sys.argv[1:3] or (256, 30))
    sizes = {}
    for name, levers in HERE.items():
        with pytest.MonkeyPatch.context() as patch:
            sizes[name] = peak(levers, patch, width, blocks)
    works = {name: update(policy(levers, width, blocks)) for name, levers in HERE.items()}
    spent = {name: median(seconds) for name, seconds in in_turns(ROUNDS, **works).items()}
    print(f"One Flow-GRPO update of {blocks} blocks of width {width}, 4 rows of 8x8 latents\n")
    print("| levers | bytes at the peak | of none | CPU time of none |\n|---|---|---|---|")
    for name, size in sizes.items():
        print(f"| {name} | {size:,} | {size / sizes['none']:.2f} | {spent[name] / spent['none']:.2f} |")


if __name__ == "__main__":
    main()
