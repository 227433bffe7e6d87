"""Adapters go into a bare network only."""

import pytest
from peft import LoraConfig

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
