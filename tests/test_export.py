"""Exports and the model card, against the matrices they must carry and the programs that must read them."""

import json
import re

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from genalign.cli.export import export
from genalign.cli.main import main
from genalign.evaluation.card import loading, reward_name, write_card
from genalign.files.shipped import shipped
from genalign.types import GenalignError, UsageError

RANK, ALPHA = 4, 6.0


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.ModuleDict({"to_q": nn.Linear(8, 8), "to_k": nn.Linear(8, 8)})

    def forward(self, x):
        return self.block["to_q"](x) * self.block["to_k"](x)


@pytest.fixture
def base():
    torch.manual_seed(0)
    return Denoiser()


@pytest.fixture
def run(tmp_path, base):
    """A finished run of a pipeline whose denoiser is `base`; peft itself writes the adapter."""
    folder, model = tmp_path / "image-d3po-1", tmp_path / "tiny-model"
    model.mkdir()
    (model / "model_index.json").write_text(
        json.dumps({"_class_name": "X", "transformer": ["diffusers", "Y"], "vae": [None, None]})
    )
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["to_q", "to_k"], init_lora_weights=False)
    torch.manual_seed(1)
    get_peft_model(base, config).save_pretrained(folder / "adapter")
    recipe = {"policy": {"model": str(model)}, "method": {"name": "d3po"}, "reward": "/x/image-hybrid.yaml"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


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
        name = f"diffusion_model.block.{layer}"
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


def test_card_shows_the_loader_that_fits(run, tmp_path):
    assert 'pipe.transformer = PeftModel.from_pretrained(pipe.transformer, "adapter")' in loading(run)
    save_file({"x": torch.zeros(1)}, run / "adapter/pytorch_lora_weights.safetensors")
    assert 'pipe.load_lora_weights("adapter")' in loading(run)
    assert 'base = "tiny-model"  # a local folder' in loading(run)
    assert "from_pretrained(base, vae=None)" in loading(run)
    (run / "adapter/pytorch_lora_weights.safetensors").unlink()
    (tmp_path / "tiny-model/model_index.json").unlink()
    assert "AutoModelForCausalLM" in loading(run)
    compile(loading(run), "card", "exec")


def test_card_has_no_path_of_the_machine_and_no_page_that_does_not_exist(run, tmp_path):
    text = write_card(run).read_text()
    assert str(tmp_path) not in text
    assert "pypi.org" not in text
    assert "http" not in text


@pytest.mark.parametrize(
    ("model", "name", "line"),
    [
        ("owner/some-model", "owner/some-model", 'base = "owner/some-model"'),
        ("/h/hub/models--owner--some-model/snapshots/0a1b2c", "owner/some-model", 'base = "owner/some-model"'),
        ("tiny-flow", "tiny-flow", 'base = shipped("assets", "tiny-flow")'),
        (str(shipped("assets", "tiny-sd")), "tiny-sd", 'base = shipped("assets", "tiny-sd")'),
    ],
)
def test_card_names_the_model_as_a_reader_gets_it(run, model, name, line):
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"policy": {"model": model}}))
    text = write_card(run).read_text()
    assert yaml.safe_load(text.split("---")[1])["base_model"] == name
    assert line in text
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    if "shipped" in line:  # it really is there
        scope: dict = {}
        exec("\n".join(part for part in code.splitlines() if "shipped" in part), scope)
        assert (scope["base"] / "config.json").is_file() or (scope["base"] / "model_index.json").is_file()


def test_card_plays_sounds_and_leaves_texts_to_the_report(run):
    folder = run / "samples/step-1"
    folder.mkdir(parents=True)
    (folder / "base-0.wav").write_bytes(b"RIFF1")
    (folder / "tuned-0.wav").write_bytes(b"RIFF2")
    row = {"prompt": "a tone", "seed": 1, "base": "base-0.wav", "tuned": "tuned-0.wav", "medium": "audio"}
    (folder / "grid.jsonl").write_text(json.dumps(row) + "\n")
    assert write_card(run).read_text().count("<audio ") == 2
    del row["medium"]
    (folder / "grid.jsonl").write_text(json.dumps(row) + "\n")
    assert "## Samples" not in write_card(run).read_text()


def test_card_tells_model_method_reward_and_numbers(run):
    metric = {"before": 0.4, "after": 0.6, "delta": 0.2, "ci95": [0.1, 0.3], "held_out": True}
    sides = {side: {"best": best, "metrics": {}, "failed": {}} for side, best in (("before", 3.0), ("after", 2.0))}
    sweep = {"guidance": [2.0, 3.0], "steps": 10, "headline": "judge/all_facts", "weights": "policy", **sides}
    (run / "eval.json").write_text(
        json.dumps({"prompts": 512, "seeds": [0], "metrics": {"judge/all_facts": metric}, "sweep": sweep})
    )
    text = write_card(run).read_text()
    assert yaml.safe_load(text.split("---")[1])["base_model"] == "tiny-model"
    assert "| judge/all_facts (held-out) | 0.4000 | 0.6000 | +0.2000 | +0.1000 to +0.3000 |" in text
    assert "guidance 3 before and 2 after" in text


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("/a/b/image-hybrid.yaml", "image-hybrid"),
        ("/a/rules.py:facts", "rules.py:facts"),
        (None, "labelled pairs"),
        ({"use": "clip", "model": "x"}, "clip"),
        ({"use": "clip", "name": "likeness"}, "likeness"),
        ({"sum": [{"use": "clip"}, {"use": "x.py:f", "weight": 2.0}]}, "sum(clip, x.py:f)"),
        (
            {"hybrid": {"rule": {"use": "r.py:f"}, "model": {"use": "clip"}, "mode": "confidence"}},
            "hybrid(r.py:f, clip)",
        ),
    ],
)
def test_reward_names(spec, name):
    assert reward_name(spec) == name


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
        ("language model", UsageError, "no diffusers pipeline"),
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
