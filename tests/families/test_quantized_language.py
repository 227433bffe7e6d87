"""Models that write in few bits: dense layers that hold the dequantised weights are the oracle of gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from genalign.policy import load_policy
from genalign.policy.settings import Lora, PolicySettings
from genalign.run.build import build
from genalign.run.recipe import load_recipe
from genalign.types import UsageError
from tests.helpers.language_policies import ALL, asked
from tests.helpers.quantized_layers import KINDS, REASON, dequantized, named
from tests.helpers.saved_memory import LEVERS, moved, updated
from tests.helpers.tiny_writers import built

# Four bits of layers of 32 x 32 are refused: too few weights for their rounding to come out even.
WIDE = built("Qwen3", head_dim=32, hidden_size=128, intermediate_size=128, initializer_range=0.1)
FAMILIES: dict[str, Any] = {"qwen3": WIDE, "qwen2.5-vl": ALL["qwen2.5-vl"]}
CASES = [("qwen3", kind) for kind in KINDS] + [("qwen2.5-vl", kind) for kind in KINDS if "nf4" not in kind]


def saved(name: str, folder: Path) -> Path:
    model, reader = FAMILIES[name]()
    model.save_pretrained(folder)
    reader.save_pretrained(folder)
    return folder


def loaded(folder: Path, **levers: Any) -> Any:
    settings = PolicySettings(model="tiny", lora=Lora(rank=4), max_new_tokens=6, batch_size=3, **levers)
    return moved(load_policy(settings, folder))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_gradients_are_those_of_the_weights_that_are_held(name: str, kind: str, tmp_path: Path) -> None:
    pytest.importorskip(KINDS[kind], reason=REASON)
    folder, prompts = saved(name, tmp_path), asked("image" if "vl" in name else "text")
    plain, of = loaded(folder), loaded(folder, quantization=kind)
    assert of.digest()["model"] != plain.digest()["model"]
    trajectory, found, worst = updated(of, prompts)
    assert worst == 0
    for levers in LEVERS.values():
        if kind == "bitsandbytes-int8" and "offload" in levers:
            continue
        if levers == {"offload": "blocks"}:  # of quantised layers it needs checkpointing
            continue
        saving = loaded(folder, quantization=kind, **levers)
        again, theirs, off = updated(saving, prompts)
        assert off == 0
        assert torch.equal(again.logp, trajectory.logp)
        assert torch.equal(theirs, found)
    held = []
    for path, module in list(of.model.named_modules()):
        base = getattr(module, "base_layer", None)
        for owner, child, layer in [(module, "base_layer", base)] if base is not None else list(named(module)):
            if type(layer.weight) not in (torch.Tensor, nn.Parameter):
                held.append(f"{path}.{child}")
                setattr(owner, child, dequantized(layer))
    assert len(held) == 14  # of two layers: queries, keys, values, outputs, and three of the MLP; no head, and no tower
    assert not any("visual" in layer or "lm_head" in layer for layer in held)
    for p in of.named_trainable().values():
        p.grad = None
    for rows, steps in trajectory.units():
        replayed = of.replay(trajectory, rows, steps, versus="reference")
        (replayed.score.sum() + replayed.kl.sum()).backward()
    wanted = torch.cat([p.grad.flatten() for p in of.named_trainable().values()])
    cosine = float(nn.functional.cosine_similarity(found, wanted, dim=0))
    assert cosine > (0.99 if kind == "bitsandbytes-int8" else 0.999999)  # which rounds activations in its products
    for rows, steps in trajectory.units():
        replayed = plain.replay(trajectory, rows, steps, versus="reference")
        (replayed.score.sum() + replayed.kl.sum()).backward()
    exact = torch.cat([p.grad.flatten() for p in plain.named_trainable().values()])
    near = float(nn.functional.cosine_similarity(found, exact, dim=0))
    assert near > (0.99 if kind == "torchao-int8" else 0.85)  # of another base: random weights average out nothing


def test_a_class_without_linear_layers_is_one_sentence() -> None:
    from genalign.policy.quantize import quantize_layers

    with pytest.raises(UsageError, match="has no linear layers of torch's own"):
        quantize_layers(nn.Sequential(nn.Embedding(2, 2)), "torchao-int8", torch.device("cpu"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["policy.vae.tiling=true"], r"policy\.vae is of models that draw, but tiny-lm writes text"),
        (["policy.quantization=x.gguf"], r"set policy\.model to a \.gguf file of a language model"),
        (
            ["policy.offload=blocks", "policy.quantization=torchao-int8"],
            "offload blocks of torchao-int8 needs gradient_checkpointing: true",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as error:
        build(load_recipe("text-grpo", words))
    assert "\n" not in str(error.value)
