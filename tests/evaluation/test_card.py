"""The model card: the loader that fits, the model, method, reward and numbers."""

import json

import pytest
import torch
import yaml
from safetensors.torch import save_file

from genalign.evaluation.card import loading, reward_name, write_card
from genalign.files.shipped import shipped
from tests.helpers.finished_run import Denoiser, finished_run


@pytest.fixture
def base():
    torch.manual_seed(0)
    return Denoiser()


@pytest.fixture
def run(tmp_path, base):
    return finished_run(tmp_path, base)


def test_card_shows_the_loader_that_fits(run, tmp_path):
    assert 'pipe.transformer = PeftModel.from_pretrained(pipe.transformer, "adapter")' in loading(run)
    save_file({"x": torch.zeros(1)}, run / "adapter/pytorch_lora_weights.safetensors")
    assert 'pipe.load_lora_weights("adapter")' in loading(run)
    assert 'base = "tiny-model"  # local when' in loading(run)
    assert "from_pretrained(base, vae=None)" in loading(run)
    (run / "adapter/pytorch_lora_weights.safetensors").unlink()
    (tmp_path / "tiny-model/model_index.json").unlink()
    assert "AutoModelForCausalLM" in loading(run)
    compile(loading(run), "card", "exec")


def test_card_loads_the_adapter_of_each_denoiser(run, tmp_path):
    index = tmp_path / "tiny-model/model_index.json"
    kinds = json.loads(index.read_text())
    index.write_text(json.dumps({**kinds, "transformer_2": kinds["transformer"]}))
    for part in ("transformer", "transformer_2"):
        (run / "adapter" / part).mkdir()
        (run / "adapter" / part / "adapter_config.json").write_text("{}")
    for part in ("transformer", "transformer_2"):
        assert f'pipe.{part} = PeftModel.from_pretrained(pipe.{part}, "adapter/{part}")' in loading(run)
    assert '"adapter")' not in loading(run)


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
