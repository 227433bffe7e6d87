"""A run folder of an earlier version still loads, evaluates, resumes and exports.

tests/fixtures/old-run was written by `genalign train image-d3po` at commit 1c458d5: two steps of tiny-flow. That
version wrote the full path of a shipped model into recipe.yaml, where today its name stands; both forms must work.
eval.json was written by that version's `genalign eval` on the weights that tiny-flow has today.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from genalign.cli.main import main
from genalign.files.shipped import shipped
from genalign.run.folder import load_run

FIXTURE = Path(__file__).parent.parent / "fixtures" / "old-run"
AS_IT_WAS_TRAINED = [
    "policy.lora={rank: 2, alpha: 4.0}",
    "policy.sampler.steps=6",
    "policy.sampler.sigmas=[1, 0.668, 0.45, 0.28, 0.14, 0.05]",
    "policy.sampler.noise_block=4",
    "data.prompts_per_step=4",
    "method.group=2",
    "train.checkpoint_every=1",
    "train.keep_checkpoints=1",
    "train.sample_every=99",
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy, with the model by its full path, as that version wrote it."""
    return copied(tmp_path / "old-run", str(shipped("assets", "tiny-flow").resolve()))


def copied(to: Path, model: str) -> Path:
    shutil.copytree(FIXTURE, to)
    recipe = yaml.safe_load((to / "recipe.yaml").read_text())
    recipe["policy"]["model"] = model
    (to / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return to


def test_it_loads_and_its_adapter_is_the_one_that_was_saved(run: Path) -> None:
    built = load_run(run)
    assert built.recipe.resolved()["policy"]["model"] == "tiny-flow"
    saved = load_file(FIXTURE / "adapter" / "adapter_model.safetensors")
    trained = built.policy.named_trainable()
    assert {f"base_model.model.{name}" for name in trained} == set(saved)
    for name, parameter in trained.items():
        assert torch.equal(parameter, saved[f"base_model.model.{name}"])


def test_its_evaluation_repeats_what_was_measured_then(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    then = json.loads((run / "eval.json").read_text())
    (run / "eval.json").unlink()
    assert main(["eval", str(run)]) == 0
    now = json.loads((run / "eval.json").read_text())
    assert now["metrics"].keys() == then["metrics"].keys()
    for name, row in then["metrics"].items():
        assert now["metrics"][name]["held_out"] == row["held_out"]
        for when in ("before", "after"):  # 16 prompts in bfloat16: another processor may round one picture otherwise
            assert now["metrics"][name][when] == pytest.approx(row[when], abs=0.05)
    assert "hybrid" in capsys.readouterr().out
    assert (run / "report.html").is_file()


@pytest.mark.parametrize(
    ("by", "model"), [("the shipped recipe", str(shipped("assets", "tiny-flow").resolve())), ("its own", "tiny-flow")]
)
def test_it_goes_on_where_it_was(by: str, model: str, tmp_path: Path) -> None:
    run = copied(tmp_path / "old-run", model)
    written = (run / "metrics.jsonl").read_text()
    recipe, more = ("image-d3po", AS_IT_WAS_TRAINED) if by == "the shipped recipe" else (str(run / "recipe.yaml"), [])
    assert main(["train", recipe, *more, "train.steps=3", "eval=null", "--resume", str(run)]) == 0
    metrics = (run / "metrics.jsonl").read_text()
    assert metrics.startswith(written)
    assert [json.loads(line)["step"] for line in metrics.splitlines()] == [1, 2, 3]
    moments = load_file(run / "checkpoint-3" / "optimizer.safetensors")
    counts = [tensor.item() for name, tensor in moments.items() if name.endswith("/step")]
    assert counts
    assert set(counts) == {3.0}
    before, after = load_file(FIXTURE / "checkpoint-2" / "adapter.safetensors"), run / "checkpoint-3"
    moved = load_file(after / "adapter.safetensors")
    assert max((moved[name] - before[name]).abs().max().item() for name in before) > 1e-4
    assert yaml.safe_load((run / "recipe.yaml").read_text())["policy"]["model"] == "tiny-flow"


def test_another_recipe_is_still_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "image-d3po", *AS_IT_WAS_TRAINED, "policy.model=tiny-sd", "--resume", str(run)]
    assert main(words) == 2
    assert "the recipe changed at policy.model (was 'tiny-flow', is 'tiny-sd')" in capsys.readouterr().err


def test_it_exports(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--to", "diffusers", "--out", str(tmp_path / "out")]) == 0
    for name in ("adapter_model.safetensors", "pytorch_lora_weights.safetensors"):
        assert (tmp_path / "out" / "adapter" / name).read_bytes() == (FIXTURE / "adapter" / name).read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "DiffusionPipeline.from_pretrained(" in card  # a shipped model is known by its name
    assert "pipe.load_lora_weights" in card
    assert main(["export", str(run), "--to", "comfyui", "--out", str(tmp_path / "comfyui")]) == 0
