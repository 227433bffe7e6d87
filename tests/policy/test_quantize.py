"""Quantised denoisers: dense layers that hold the dequantised weights are the oracle of gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genalign.policy import load_policy, quantize
from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.quantize import check_quantization, quantize_layers, quantized_layer
from genalign.policy.settings import Lora, PolicySettings, Sampler
from genalign.run.build import build
from genalign.run.recipe import load_recipe
from genalign.types import Trajectory, UsageError
from tests.helpers.diffusion import PROMPTS
from tests.helpers.quantized_layers import KINDS, REASON, dequantized, named
from tests.helpers.tiny_pipelines import FAMILIES, MORE

CPU = torch.device("cpu")


def policy(name: str, folder: Path, **levers: Any) -> DiffusionPolicy:
    family = {**FAMILIES, **MORE}[name]
    settings = PolicySettings(
        model=name,
        call=family.call,
        lora=Lora(rank=2, alpha=4),
        sampler=Sampler(steps=3, guidance=1.0),
        batch_size=2,
        **levers,
    )
    of = load_policy(settings, folder)
    assert isinstance(of, DiffusionPolicy)
    with torch.no_grad():
        for layer, p in of.named_trainable().items():
            assert p.dtype == torch.float32
            if "lora_B" in layer:
                p.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    return of


def gradients(of: DiffusionPolicy, trajectory: Trajectory) -> tuple[Tensor, float]:
    worst = 0.0
    for p in of.named_trainable().values():
        p.grad = None
    for rows, steps in trajectory.units():
        score = of.replay(trajectory, rows, steps).score
        worst = max(worst, float((score.detach() - trajectory.logp[rows][:, steps]).abs().max()))
        score.mean().backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in of.named_trainable().values()]
    return torch.cat([grad.flatten() for grad in grads]), worst


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["stable-diffusion-3", "flux", "z-image"])
def test_gradients_are_those_of_the_weights_that_are_held(name: str, kind: str, tmp_path: Path) -> None:
    pytest.importorskip(KINDS[kind], reason=REASON)
    {**FAMILIES, **MORE}[name].build().save_pretrained(tmp_path)
    of = policy(name, tmp_path, quantization=kind)
    trajectory = of.rollout(PROMPTS[:1], 2, seed=0)
    found, worst = gradients(of, trajectory)
    assert worst == 0
    assert of.digest()["model"] != policy(name, tmp_path).digest()["model"]
    for levers in ({"gradient_checkpointing": True}, {"gradient_checkpointing": True, "offload": "blocks"}):
        if kind == "bitsandbytes-int8" and "offload" in levers:
            continue
        saving = policy(name, tmp_path, quantization=kind, **levers)
        saving.rollout(PROMPTS[:1], 2, seed=0)
        assert torch.equal(gradients(saving, trajectory)[0], found)
    held = 0
    for module in list(of.denoiser.modules()):
        base = getattr(module, "base_layer", None)
        for owner, child, layer in [(module, "base_layer", base)] if base is not None else list(named(module)):
            if type(layer.weight) not in (Tensor, nn.Parameter):
                held += 1
                setattr(owner, child, dequantized(layer))
    assert held > 5
    wanted, _ = gradients(of, trajectory)
    cosine = float(nn.functional.cosine_similarity(found, wanted, dim=0))
    assert cosine > (0.999 if kind == "bitsandbytes-int8" else 0.999999)  # which rounds activations in its products


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_takes_fewer_bytes(kind: str) -> None:
    pytest.importorskip(KINDS[kind], reason=REASON)
    layer = nn.Linear(256, 256).requires_grad_(False)
    made: Any = quantized_layer(layer, kind)
    weight = made.weight
    if "nf4" in kind:
        size = weight.data.nbytes + weight.quant_state.absmax.nbytes
    elif KINDS[kind] == "bitsandbytes":
        size = weight.CB.nbytes + weight.SCB.nbytes
    else:
        size = sum(getattr(weight, name).nbytes for name in weight.__tensor_flatten__()[0])
    assert size <= layer.weight.nbytes / (7 if "nf4" in kind else 3.9)


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for kind, package in [*KINDS.items(), ("x.gguf", "gguf")]:
        for name in (package, f"{package}.quantization"):
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UsageError, match=r"needs a package .*pip install 'genalign\[quantization\]'") as error:
            check_quantization(kind, CPU, torch.float32)
        assert "\n" not in str(error.value)


class Dynamic(nn.Linear):
    """As torchao's layers with dynamic activations answer: without a graph."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach().round(decimals=1)).detach()


class Turned(nn.Linear):
    """One whose backward pass multiplies by something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach() + x @ self.weight.flip(0).T - (x @ self.weight.flip(0).T).detach()


@pytest.mark.parametrize(
    ("made", "sentence"), [(Dynamic, "lets no gradient through"), (Turned, r"has a cosine of -?0\.\d+ to that")]
)
def test_layers_that_spoil_gradients_are_refused(made: Any, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def bad(layer: nn.Linear, kind: str) -> nn.Module:
        spoilt = made(layer.in_features, layer.out_features, bias=layer.bias is not None)
        spoilt.load_state_dict(layer.state_dict())
        return spoilt.requires_grad_(False)

    monkeypatch.setattr(quantize, "quantized_layer", bad)
    with pytest.raises(UsageError, match=sentence):
        check_quantization("torchao-int8", CPU, torch.float32)
    with pytest.raises(UsageError, match=sentence):
        quantize_layers(nn.Sequential(nn.Linear(8, 8)), "torchao-int8", CPU)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["policy.quantization=torchao-int8-dynamic"], "would quantise activations as well"),
        (
            ["policy.quantization=nf4"],
            "yaml: policy.quantization: there is no 'nf4'; write a .gguf file or one of bits",
        ),
        (["policy.quantization=bitsandbytes-nf8"], "one of bitsandbytes-nf4, .* torchao-int4$"),
        (["policy.vae.tiling=true", "policy.model=tiny-expander"], "policy.vae is of models that draw"),
        (["policy.quantization=bitsandbytes-int8", "policy.offload=phases"], "layers cannot be moved"),
        (["policy.quantization=a.gguf", "policy.merged=b"], "nothing can be merged into a .gguf file"),
    ],
)
def test_what_cannot_be_is_one_sentence(words: list[str], sentence: str) -> None:
    name = "text-grpo" if "policy.model=tiny-expander" in words else "image-flow-grpo"
    with pytest.raises(UsageError, match=sentence) as error:
        build(load_recipe(name, words))
    assert "\n" not in str(error.value)
    assert str(error.value).count("torchao-float8") <= 1  # choices are listed once


# ---- files of weights that are quantised ----------------------------------------------------------------------------


def written(network: nn.Module, path: Path) -> Path:
    """A network's tensors as a GGUF file: matrices in blocks of 8 bits where they fit, all else as it is."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "flux")
    for name, tensor in network.state_dict().items():
        values = tensor.float().numpy()
        if values.ndim == 2 and values.shape[1] % 32 == 0:
            packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_denoiser_is_read_from_a_gguf_file(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason=REASON)
    pipeline = FAMILIES["flux"].build()
    pipeline.save_pretrained(tmp_path / "model")
    file = written(pipeline.transformer, tmp_path / "small.gguf")
    of = policy("flux", tmp_path / "model", quantization=str(file))
    plain = policy("flux", tmp_path / "model")
    trajectory = of.rollout(PROMPTS[:1], 2, seed=0)
    plain.rollout(PROMPTS[:1], 2, seed=0)
    found, worst = gradients(of, trajectory)
    assert worst == 0
    assert float(nn.functional.cosine_similarity(found, gradients(plain, trajectory)[0], dim=0)) > 0.99
    other = tmp_path / "other"
    FAMILIES["stable-diffusion-3"].build().save_pretrained(other)
    with pytest.raises(UsageError, match="is not a file of this model's transformer") as error:
        policy("stable-diffusion-3", other, quantization=str(file))
    assert "\n" not in str(error.value)


def test_what_is_no_gguf_file_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason=REASON)
    (tmp_path / "x.gguf").write_text(json.dumps({}))
    for name, sentence in (("x.gguf", "is no GGUF file"), ("y.gguf", "there is no file")):
        with pytest.raises(UsageError, match=sentence):
            check_quantization(str(tmp_path / name), CPU, torch.float32)
