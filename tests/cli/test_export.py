"""Exports, against the matrices they must carry and the programs that must read them."""

import json
import re

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file

from genalign.cli.export import export
from genalign.cli.main import main
from genalign.types import GenalignError, UsageError
from tests.helpers.finished_run import Denoiser, finished_run


@pytest.fixture
def base():
    torch.manual_seed(0)
    return Denoiser()


@pytest.fixture
def run(tmp_path, base):
    return finished_run(tmp_path, base)


def test_comfyui_keys_give_the_same_weights_as_peft(run, base, tmp_path):
    """Oracle: W + alpha / rank * B A, as ComfyUI reads the file, against peft's own merge."""
    path = export(run, "comfyui", tmp_path / "out")
    assert path == tmp_path / "out" / "image-d3po-1.safetensors"
    tensors = load_file(path)
    torch.manual_seed(0)
    merged = PeftModel.from_pretrained(Denoiser(), run / "adapter").merge_and_unload()
    torch.manual_seed(0)
    plain = Denoiser()
    for layer in ("to_q", "to_k"):
        name = f"transformer.block.{layer}"
        a, b, alpha = (tensors.pop(f"{name}.{part}") for part in ("lora_A.weight", "lora_B.weight", "alpha"))
        weight = plain.block[layer].weight + alpha / a.shape[0] * b @ a
        torch.testing.assert_close(weight, merged.block[layer].weight)
        assert not torch.equal(weight, plain.block[layer].weight)
    assert not tensors
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    assert header["reward"] == "image-hybrid"
    assert header["base_model"] == "tiny-model"
    assert re.fullmatch("[0-9a-f]{64}", header["recipe_sha256"])


def test_diffusers_export_has_adapter_card_and_provenance(run, tmp_path):
    out = export(run, "diffusers", tmp_path / "out")
    assert (out / "adapter/adapter_model.safetensors").read_bytes() == (
        run / "adapter/adapter_model.safetensors"
    ).read_bytes()
    assert json.loads((out / "provenance.json").read_text())["method"] == "d3po"
    assert "PeftModel" in (out / "README.md").read_text()
    assert isinstance(PeftModel.from_pretrained(Denoiser(), out / "adapter"), PeftModel)


def damage(run, what):
    if what == "nothing trained":
        (run / "adapter/adapter_model.safetensors").unlink()
    elif what == "corrupt":
        path = run / "adapter/adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-40])
    elif what == "no run":
        (run / "recipe.yaml").unlink()
    elif what == "language model":
        (run.parent / "tiny-model/model_index.json").unlink()
    elif what == "taken":
        (run.parent / "out").mkdir()
        (run.parent / "out" / f"{run.name}.safetensors").write_text("mine")


@pytest.mark.parametrize(
    ("what", "error", "culprit"),
    [
        ("nothing trained", GenalignError, "no adapter/"),
        ("corrupt", GenalignError, "damaged"),
        ("no run", GenalignError, "recipe.yaml"),
        ("language model", UsageError, "not a diffusers pipeline"),
        ("taken", UsageError, "exists already"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_lost(run, capsys, what, error, culprit):
    damage(run, what)
    out = run.parent / "out"
    before = {path: path.read_bytes() for path in run.parent.rglob("*") if path.is_file()}
    assert main(["export", str(run), "--to", "comfyui", "--out", str(out)]) == (2 if error is UsageError else 1)
    said = capsys.readouterr().err
    assert culprit in said
    assert said.count("\n") == 1
    assert {path: path.read_bytes() for path in run.parent.rglob("*") if path.is_file()} == before


def test_unknown_target(run):
    with pytest.raises(UsageError, match="diffusers, comfyui"):
        export(run, "gguf", run.parent / "out")


def test_adapters_of_several_denoisers_are_handed_on_together(run, tmp_path):
    for part in ("transformer", "transformer_2"):
        (run / "adapter" / part).mkdir()
        for file in [file for file in (run / "adapter").iterdir() if file.is_file()]:
            (run / "adapter" / part / file.name).write_bytes(file.read_bytes())
    for file in [file for file in (run / "adapter").iterdir() if file.is_file()]:
        file.unlink()
    dest = export(run, "diffusers", tmp_path / "out")
    for part in ("transformer", "transformer_2"):
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            assert (dest / "adapter" / part / name).read_bytes() == (run / "adapter" / part / name).read_bytes()
    with pytest.raises(UsageError, match="tuned several denoisers, and ComfyUI takes a file of one"):
        export(run, "comfyui", tmp_path / "other")
