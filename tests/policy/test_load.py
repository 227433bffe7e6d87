"""Folders as people have them: saved under a LoRA, incomplete, of a variant, a part of a pipeline."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from genalign.policy import load_policy, modalities_of
from genalign.types import UsageError
from tests.helpers import sound_policies
from tests.helpers.diffusion import PROMPTS, settings
from tests.helpers.tiny_pipelines import FAMILIES, stable_diffusion_3
from tests.helpers.tiny_sounds import SOUNDS

TEXT = "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "model"
    stable_diffusion_3().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def sentence(folder: Path) -> str:
    with pytest.raises(UsageError) as error:
        load_policy(settings(), folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_pipeline_saved_while_a_lora_was_loaded(tmp_path: Path) -> None:
    pipeline = stable_diffusion_3()
    pipeline.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    pipeline.save_pretrained(tmp_path / "model")
    assert "saved while a LoRA was loaded" in sentence(tmp_path / "model")
    assert "fuse_lora" in sentence(tmp_path / "model")


@pytest.mark.parametrize(
    "part", ["text_encoder/model", "transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model"]
)
def test_weights_that_are_missing_are_never_drawn_at_random(folder: Path, part: str) -> None:
    file = folder / f"{part}.safetensors"
    tensors = load_file(file)
    name = sorted(name for name in tensors if name.endswith("weight"))[0]
    save_file({key: value for key, value in tensors.items() if key != name}, file, metadata={"format": "pt"})
    assert name.split(".")[-2] in sentence(folder)
    assert part.split("/")[0] in sentence(folder)


def test_weights_of_a_variant_alone_are_loaded_and_said(folder: Path, saved: Path) -> None:
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    with pytest.warns(UserWarning, match="variant 'fp16'"):
        policy = load_policy(settings(), folder)
    wanted = load_policy(settings(), saved).generate(PROMPTS[:1], [3])["image"].data
    assert torch.equal(policy.generate(PROMPTS[:1], [3])["image"].data, wanted)


def test_where_some_parts_are_plain_files_only_the_others_are_of_the_variant(folder: Path, saved: Path) -> None:
    file = folder / TEXT
    file.rename(file.with_suffix(".fp16.safetensors"))
    with pytest.warns(UserWarning, match="variant 'fp16'"):
        policy = load_policy(settings(), folder)
    wanted = load_policy(settings(), saved).generate(PROMPTS[:1], [3])["image"].data
    assert torch.equal(policy.generate(PROMPTS[:1], [3])["image"].data, wanted)


def test_variants_that_differ_from_part_to_part_are_one_sentence(folder: Path) -> None:
    for part, variant in ((TEXT, "fp16"), ("vae/diffusion_pytorch_model.safetensors", "non_ema")):
        (folder / part).rename((folder / part).with_suffix(f".{variant}.safetensors"))
    assert "no one variant of the weights is complete" in sentence(folder)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_part_of_a_pipeline_is_called_that(folder: Path, part: str) -> None:
    for refused in (lambda: load_policy(settings(), folder / part), lambda: modalities_of(folder / part)):
        with pytest.raises(UsageError, match="is a part of a pipeline") as error:
            refused()
        assert str(folder) in str(error.value)


def test_a_part_alone_is_called_that_by_its_class(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "transformer", tmp_path / "alone")
    with pytest.raises(UsageError, match=r"SD3Transformer2DModel.* which holds a model_index\.json"):
        modalities_of(tmp_path / "alone")


def test_a_folder_loads_the_text_encoders_that_diffusers_loads(tmp_path: Path) -> None:
    """Bit for bit, of every kind of text encoder in the sweep's first families."""
    import diffusers

    for name in ("sana", "qwen-image", "pixart-sigma"):
        FAMILIES[name].build().save_pretrained(tmp_path / name)
        ours = load_policy(settings(name), tmp_path / name).pipeline.text_encoder.state_dict()
        plain = diffusers.DiffusionPipeline.from_pretrained(tmp_path / name).text_encoder.state_dict()
        assert ours.keys() == plain.keys()
        assert all(torch.equal(ours[key], plain[key]) for key in plain)
        assert json.loads((tmp_path / name / "model_index.json").read_text())


def test_a_scheduler_that_its_pipeline_exchanges_is_named(tmp_path: Path) -> None:
    """diffusers' LongCat pipeline takes no other than Euler's, without a word: findings/."""
    from diffusers import FlowMatchHeunDiscreteScheduler

    pipeline = SOUNDS["longcat-audio"].build()
    pipeline.save_pretrained(tmp_path / "own")
    pipeline.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    pipeline.save_pretrained(tmp_path / "other")
    asked = sound_policies.settings("longcat-audio")
    with pytest.warns(UserWarning, match="FlowMatchEulerDiscreteScheduler in place of the FlowMatchHeunDiscrete"):
        load_policy(asked, tmp_path / "other")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        load_policy(asked, tmp_path / "own")
    assert not [each for each in said if "in place of" in str(each.message)]
