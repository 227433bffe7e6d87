"""Folders of diffusion language models, and what is said of those that do not load."""

import json
import shutil
from pathlib import Path

import pytest

from genalign.policy import load_policy
from genalign.policy.settings import Lora, PolicySettings
from genalign.policy.unmasking import load_unmasking
from genalign.policy.unmasking.form import MasksInText
from genalign.policy.unmasking.policy import UnmaskingPolicy
from genalign.types import GenalignError, UsageError
from tests.helpers.unmasking_policies import folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return shutil.copytree(folder("masks"), tmp_path / "own")


def settings(**more):
    return PolicySettings(model="own", max_new_tokens=8, lora=Lora(rank=2), **more)


def test_the_block_length_is_the_scheduler_s_unless_a_recipe_says_otherwise(own):
    assert load_unmasking(settings(), own).form == MasksInText(2, 8)
    assert load_unmasking(settings(call={"block_length": 5}), own).form == MasksInText(2, 5)


def test_a_model_of_code_of_its_own_is_not_run(own):
    index = json.loads((own / "model_index.json").read_text())
    (own / "model_index.json").write_text(json.dumps({**index, "model": ["modeling_llada2", "LLaDA2MoeModelLM"]}))
    with pytest.raises(UsageError, match="loads components of diffusers and transformers only"):
        load_unmasking(settings(), own)


def test_a_pipeline_around_a_canvas_is_read_by_its_model(tmp_path):
    """DiffusionGemmaPipeline of diffusers 0.42.1 does not run with transformers 5.24."""
    shutil.copytree(folder("canvas"), tmp_path / "model")
    index = {"_class_name": "DiffusionGemmaPipeline", "model": ["transformers", "DiffusionGemmaForBlockDiffusion"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match=r"a pipeline around a model that writes on a canvas.*copy .*model to"):
        load_policy(settings(), tmp_path)
    copied = shutil.copytree(tmp_path / "model", tmp_path / "copied" / "gemma")
    assert isinstance(load_policy(settings(), copied), UnmaskingPolicy)


def test_a_pipeline_that_was_saved_without_its_tokenizer(own):
    shutil.rmtree(own / "tokenizer")
    with pytest.raises(UsageError, match="has no tokenizer/"):
        load_unmasking(settings(), own)


def test_a_tokenizer_without_a_mask(own):
    path = own / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["mask_token"]
    path.write_text(json.dumps(config))
    with pytest.raises(UsageError, match="no mask token"):
        load_unmasking(settings(), own)


def test_corrupt_weights(own):
    (own / "model" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(GenalignError, match=r"corrupt|does not load"):
        load_unmasking(settings(), own)


def test_an_adapter_cannot_be_merged_first(own):
    with pytest.raises(UsageError, match=r"policy\.merged"):
        load_unmasking(settings(merged="adapter"), own)
