"""The command line on a tiny random model: what every verb writes and prints, and a run that is killed and resumed."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from genalign.cli.main import main
from genalign.run.recipe import load_recipe
from genalign.training.checkpoint import load_checkpoint
from tests.helpers.tiny_recipe import image_model, write_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three steps with evaluation."""
    folder = tmp_path_factory.mktemp("run")
    recipe = write_recipe(folder, train={"checkpoint_every": 2})
    assert main(["train", str(recipe), "train.seed=3", "--out", str(folder / "out")]) == 0
    return folder / "out"


def test_a_run_folder_holds_what_it_should(run: Path) -> None:
    wanted = ("recipe.yaml", "metrics.jsonl", "eval.json", "report.html", "README.md", "adapter/adapter_config.json")
    for name in (*wanted, "samples/step-2/grid.png", "samples/step-3/grid.png", "checkpoint-2", "checkpoint-3"):
        assert (run / name).exists(), name
    assert load_recipe(run / "recipe.yaml").train.seed == 3
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["ratio/mean"] == 1.0
    assert rows[0]["kl"] == 0.0
    result = json.loads((run / "eval.json").read_text())
    assert result["prompts"] == 3
    assert result["sweep"]["guidance"] == [1.0, 2.0]
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_the_console_says_one_line_a_step(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path, eval=None, train={"steps": 2})
    assert main(["train", str(recipe), "--out", str(tmp_path / "out")]) == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(lines) == 2
    for word in ("step 1/2", "reward ", "std ", "kl ", "clip ", "s/step "):
        assert word in lines[0]
    assert "eta " in lines[0]


def test_the_default_run_folder_is_named_after_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, eval=None, train={"steps": 1})
    recipe = recipe.rename(tmp_path / "evening.yaml")
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(recipe)]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    time.strptime(folder.name, "evening-%Y%m%d-%H%M%S")
    assert main(["train", str(recipe), "train.resume=latest", "train.steps=2"]) == 0
    assert (folder / "checkpoint-2").is_dir()
    assert f"resuming from runs/{folder.name}/checkpoint-1" in capfd.readouterr().err


def test_a_plan_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path, train={"steps": 7})
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["train", str(recipe), "--plan", "method.updates_per_rollout=2", "train.staleness=1"]) == 0
    assert sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts) == before
    printed, _, counts = capsys.readouterr().out.partition("\n\n")
    assert yaml.safe_load(printed)["train"]["steps"] == 7
    told = {line[:17].strip(): line[17:].strip() for line in counts.splitlines()}
    assert told["samples"].startswith("8 a step, of 2 prompts")
    assert told["optimizer steps"] == "14 in 7 steps"
    calls = 8 * 3 + 8 * 2 * 2  # 3 denoising steps; the 2 noisy ones (the last adds no noise) with adapter and reference
    assert told["model calls"].startswith(f"{calls} a step, {7 * calls} in all")
    assert float(told["memory"].split()[0]) > 10
    assert " s a step" in told["time"]
    assert told["staleness"].startswith("1: a step is scored while the next one is sampled, before its update")


# ---- sample, score, eval, export ------------------------------------------------------------------------------------


def sampled(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def pixels(out: Path) -> torch.Tensor:
    return torch.stack([torch.frombuffer(bytearray(Image.open(out / row["file"]).tobytes()), dtype=torch.uint8)
                        for row in sampled(out)])  # fmt: skip


def test_sample_tells_what_a_writer_made_of_the_prompt(tmp_path: Path) -> None:
    assert main(["sample", "image-parrot", "a star", "--steps", "1", "--out", str(tmp_path / "drawn")]) == 0
    (row,) = sampled(tmp_path / "drawn")
    assert row["prompt"] == "a star"
    assert re.search(r"star.* background", row["told"])


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["sample", "tiny-flow", "a", "--steps", "-1", "--out", "new"], "--steps is -1; it must be at least 1"),
        (["sample", "./nowhere", "a", "--out", "new"], "there is no model folder './nowhere'; check the path"),
        (["score", "rules.py", "--media", "x.txt", "--prompt", "a"], "name one of them, as rules.py:FUNCTION"),
        (["score", "empty.yaml", "--media", "x.txt", "--prompt", "a"], "empty.yaml is empty; write a reward into it"),
    ],
)
def test_a_wrong_word_is_answered_by_one_sentence_before_weights_load(
    words: list[str], wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty.yaml", "x.txt"):
        Path(name).write_text("")
    assert main(words) == 2
    printed = capsys.readouterr()
    assert wanted in printed.err
    assert printed.err.count("\n") == 1
    assert not Path("new").exists()


def test_a_misspelt_reward_file_of_a_shipped_recipe_is_not_compared_with_recipes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "image-nft", "reward=zzzz.yaml", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "image-hybrid.yaml" in error
    assert "image-nft.yaml" not in error


@pytest.mark.parametrize("source", ["tiny-flwo", "./nowhere", "tiny-flow"])
def test_samples_that_exist_are_never_overwritten(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not by a misspelt source, nor by a right one: labels refer to a picture's name and to its row's digests."""
    index, picture = tmp_path / "samples.jsonl", tmp_path / "00000.png"
    index.write_text('{"file": "00000.png", "prompt": "a"}\n')
    picture.write_bytes(b"drawn before")
    assert main(["sample", source, "b", "--steps", "1", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert index.read_text() == '{"file": "00000.png", "prompt": "a"}\n'
    assert picture.read_bytes() == b"drawn before"


def test_samples_of_a_plain_model_are_those_of_plain_diffusers(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    words = ["--seed", "5", "--n", "2", "--guidance", "2.5", "--steps", "3", "--out", str(tmp_path / "s")]
    assert main(["sample", str(image_model()), "a cat", *words]) == 0
    rows = sampled(tmp_path / "s")
    assert rows == [
        {"file": "00000.png", "prompt": "a cat", "facts": {}, "seed": 5},
        {"file": "00001.png", "prompt": "a cat", "facts": {}, "seed": 6},
    ]
    pipeline = StableDiffusionPipeline.from_pretrained(image_model(), safety_checker=None)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    images = pipeline(["a cat"] * 2, guidance_scale=2.5, num_inference_steps=3, generator=generators).images
    theirs = torch.stack([torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in images])
    assert (pixels(tmp_path / "s").int() - theirs.int()).abs().max() <= 1


def test_samples_of_a_run_carry_its_adapter_unless_base_is_asked_for(run: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "facts": {"answer": 1}}\n{"prompt": "b"}\n')
    common = ["--prompts", str(tmp_path / "p.jsonl"), "--seed", "1", "--steps", "3", "--guidance", "1"]
    for name, words in (("run", [str(run)]), ("base", [str(run), "--base"]), ("model", [str(image_model())])):
        assert main(["sample", *words, *common, "--out", str(tmp_path / name)]) == 0
    assert [row["facts"] for row in sampled(tmp_path / "run")] == [{"answer": 1}, {}]
    assert torch.equal(pixels(tmp_path / "base"), pixels(tmp_path / "model"))
    assert not torch.equal(pixels(tmp_path / "run"), pixels(tmp_path / "base"))


def test_score_prints_what_the_rule_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_recipe(tmp_path)
    files = []
    for level in (0, 51, 255):
        files.append(str(tmp_path / f"{level}.png"))
        Image.new("RGB", (16, 16), (level,) * 3).save(files[-1])
    assert main(["score", f"{tmp_path / 'rules.py'}:bright", "--media", *files, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["file"] for row in rows] == files
    assert [row["bright"] for row in rows] == pytest.approx([0, 0.2, 1])
    assert [row["total"] for row in rows] == pytest.approx([0, 0.2, 1])
    (tmp_path / "facts.jsonl").write_text(
        "\n".join(json.dumps({"prompt": "x", "facts": {"answer": k}}) for k in range(3))
    )
    words = ["--media", *files, "--prompts", str(tmp_path / "facts.jsonl")]
    assert main(["score", f"{tmp_path / 'rules.py'}:knows", *words]) == 0
    assert "2.0000" in capsys.readouterr().out


def test_eval_measures_a_finished_run_again(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((run / "eval.json").read_text())
    assert main(["eval", str(run), "--json", "--reward", "sharpness"]) == 0
    rows = {row.pop("metric"): row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert rows["bright"] == before["metrics"]["bright"]
    assert any(name.startswith("sharpness") for name in rows)


def test_export_writes_where_it_is_told(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--to", "diffusers", "--out", str(tmp_path / "lora")]) == 0
    assert any((tmp_path / "lora").rglob("*.safetensors"))


# ---- ls, cp, help ---------------------------------------------------------------------------------------------------


def test_what_ls_prints_cp_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, some in (("recipes", "image-d3po"), ("rewards", "scene_rules.py"), ("methods", "flow-grpo")):
        assert main(["ls", kind]) == 0
        assert some in [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert main(["cp", "image-d3po", str(tmp_path)]) == 0
    assert load_recipe(tmp_path / "image-d3po.yaml").method.name == "d3po"
    assert main(["cp", "scene_rules.py", str(tmp_path / "mine.py")]) == 0
    assert (tmp_path / "mine.py").is_file()
    assert main(["cp", "image-d3po", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["cp", "image-d3pp", str(tmp_path)]) == 2
    assert "did you mean 'image-d3po'?" in capsys.readouterr().err


def test_help_and_ls_import_nothing_heavy() -> None:
    code = (
        "import sys\nfrom genalign.cli.main import main\n"
        "try: main({!r})\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    for words in (["--help"], ["train", "--help"], ["ls", "recipes"]):
        done = subprocess.run([sys.executable, "-c", code.format(words)], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "False"


# ---- killed at a random moment --------------------------------------------------------------------------------------


def test_a_run_killed_by_sigkill_resumes_bit_for_bit(tmp_path: Path) -> None:
    steps = 8
    recipe = write_recipe(tmp_path, eval=None, train={"steps": steps, "checkpoint_every": 1, "sample_every": 99})
    assert main(["train", str(recipe), "--out", str(tmp_path / "whole")]) == 0

    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "genalign", "train", str(recipe), "--out", str(killed)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    waited = time.monotonic()
    while not (killed / f"checkpoint-{random.randint(1, 3)}").is_dir():
        assert process.poll() is None
        assert time.monotonic() - waited < 300
        time.sleep(0.01)
    time.sleep(random.random() / 4)  # any moment will do: in a rollout, in an update, in the middle of a write
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it did not get to its end

    assert main(["train", str(recipe), "--resume", str(killed)]) == 0
    whole, resumed = (load_checkpoint(folder / f"checkpoint-{steps}") for folder in (tmp_path / "whole", killed))
    assert set(whole.parts) == {"adapter", "ema", "optimizer", "random", "reward"} == set(resumed.parts)
    for part, tensors in whole.parts.items():
        assert tensors.keys() == resumed.parts[part].keys()
        for name, tensor in tensors.items():
            other = resumed.parts[part][name]
            assert torch.equal(tensor.nan_to_num(), other.nan_to_num()), f"{part}/{name} differs after the kill"
    assert whole.state == resumed.state
    logs = [
        [json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()]
        for f in (tmp_path / "whole", killed)
    ]
    for one, other in zip(*logs, strict=True):
        assert {k: v for k, v in one.items() if "time" not in k and "perf" not in k} == {
            k: v for k, v in other.items() if "time" not in k and "perf" not in k
        }


def test_a_port_that_cannot_be_is_refused_before_anything_is_served(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve-reward", "image-rule", "--port", "99999"]) == 2
    shown = capsys.readouterr()
    assert "--port is 99999; it must lie in 0..65535" in shown.err
    assert shown.out == ""
