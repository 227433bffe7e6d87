"""Adapters go into a bare network only."""

import json
from pathlib import Path

import pytest
from peft import LoraConfig
from safetensors import safe_open

from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.settings import PolicySettings, Sampler
from genalign.types import UsageError
from tests.helpers.tiny_pipelines import FAMILIES, stable_diffusion_3


def settings() -> PolicySettings:
    return PolicySettings(model="tiny", sampler=Sampler(kernel="cps", steps=2))


@pytest.mark.parametrize("name", ["default", "default_0", "mine"])
def test_a_lora_that_is_there_already_is_refused(name: str) -> None:
    """diffusers' load_lora_weights calls it default_0; peft's own functions default."""
    pipeline = stable_diffusion_3()
    pipeline.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), adapter_name=name)
    with pytest.raises(UsageError, match=r"holds a LoRA already .*unload it"):
        DiffusionPolicy(pipeline, settings())
    pipeline.transformer.unload_lora()
    DiffusionPolicy(pipeline, settings())


@pytest.mark.parametrize(("name", "part"), [("stable-diffusion", "unet"), ("flux", "transformer")])
def test_fused_projections_are_refused(name: str, part: str) -> None:
    pipeline = FAMILIES[name].build()
    getattr(pipeline, part).fuse_qkv_projections()
    with pytest.raises(UsageError, match="fused attention projections"):
        DiffusionPolicy(pipeline, settings())
    getattr(pipeline, part).unfuse_qkv_projections()
    DiffusionPolicy(pipeline, settings())


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_a_scale_of_the_adapter_among_the_call_arguments_is_refused(scale: float) -> None:
    call = {"joint_attention_kwargs": {"scale": scale}}
    with pytest.raises(UsageError, match=r"policy.call.joint_attention_kwargs scales the trained adapter"):
        DiffusionPolicy(stable_diffusion_3(), settings().model_copy(update={"call": call}))


def test_equal_adapters_are_equal_bytes(tmp_path: Path) -> None:
    """Neither the order of a set, which is another one in each process, nor that of a header's texts is written."""
    policy = DiffusionPolicy(stable_diffusion_3(), settings())
    for k in range(8):
        policy.save_adapter(tmp_path / str(k))
    names = sorted(file.name for file in (tmp_path / "0").iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors", "pytorch_lora_weights.safetensors"]
    for name in names:
        assert len({(tmp_path / str(k) / name).read_bytes() for k in range(8)}) == 1
    targets = json.loads((tmp_path / "0" / names[0]).read_text())["target_modules"]
    assert targets == sorted(targets)
    assert len(targets) > 6  # of which one order in 5040 is the sorted one
    with safe_open(tmp_path / "0" / names[2], framework="pt") as file:
        about = json.loads(file.metadata()["lora_adapter_metadata"])
    assert about["transformer.target_modules"] == targets
