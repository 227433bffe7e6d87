"""Weights of published rewards: pickles refused and converted, keys that fit."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from genalign.reward import build_reward
from genalign.reward.heads.weights import fit, from_hub, read_weights, weights_file
from genalign.types import UsageError
from tests.helpers.tiny_heads import save_state, tiny_transformers_clip, write_json


def test_pickles_are_refused_and_the_sentence_converts_them(tmp_path: Path) -> None:
    """Invariant 36."""
    weights = {"a.weight": torch.randn(2, 3), "b": torch.arange(4)}
    torch.save(
        {"state_dict": {**weights, "tied": weights["a.weight"]}, "epoch": 3}, tmp_path / "HPS_v2.1_compressed.pt"
    )
    with pytest.raises(UsageError, match=r"only HPS_v2.1_compressed.pt; genalign reads no pickled weights") as caught:
        weights_file(tmp_path, "HPS_v2.1_compressed.safetensors")
    code = str(caught.value).split('python -c "')[1].rstrip('"')
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    made = load_file(weights_file(tmp_path, "HPS_v2.1_compressed.safetensors"))
    assert set(made) == {"a.weight", "b", "tied"}
    assert torch.equal(made["a.weight"], weights["a.weight"])
    with pytest.raises(UsageError, match="is a pickle; genalign reads no pickled weights"):
        weights_file(tmp_path / "HPS_v2.1_compressed.pt", "x.safetensors")
    with pytest.raises(UsageError, match="is a pickle"):
        build_reward({"use": "hpsv2.1", "model": "HPS_v2.1_compressed.pt"}, tmp_path)


def test_models_of_transformers_are_read_from_safetensors_alone(tmp_path: Path) -> None:
    from transformers import CLIPModel

    folder = tiny_transformers_clip(tmp_path / "clip")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"cannot be loaded: .*genalign reads no pickled weights; convert it once"):
        from_hub(CLIPModel, folder)


def test_weights_fit_key_by_key(tmp_path: Path) -> None:
    net = torch.nn.Linear(3, 2)
    whole = {"weight": torch.ones(2, 3), "bias": torch.ones(2), "more": torch.ones(1)}
    fitted = fit(net, whole, "here")
    assert torch.equal(fitted.weight, torch.ones(2, 3))  # type: ignore[arg-type]
    assert not any(parameter.requires_grad for parameter in fitted.parameters())
    with pytest.raises(UsageError, match="here has no weight 'bias'; it is not a checkpoint of Linear"):
        fit(net, {"weight": torch.ones(2, 3)}, "here")
    with pytest.raises(UsageError, match=r"weight 'weight' of here has shape \(3, 2\), but Linear needs \(2, 3\)"):
        fit(net, {**whole, "weight": torch.ones(3, 2)}, "here")
    save_state({"weight": whole["weight"]}, tmp_path / "1.safetensors")
    save_state({"bias": whole["bias"]}, tmp_path / "2.safetensors")
    index = {"weight_map": {"weight": "1.safetensors", "bias": "2.safetensors"}}
    assert set(read_weights(write_json(index, tmp_path / "index.json"))) == {"weight", "bias"}
    (tmp_path / "torn.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(UsageError, match=r"torn\.safetensors cannot be read as safetensors"):
        read_weights(tmp_path / "torn.safetensors")
