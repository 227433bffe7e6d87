"""Two ranks, one rank and gradient accumulation are the same training, through the real launcher."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from genalign.cli.main import main
from genalign.files.shipped import shipped
from genalign.run.launcher import TWO_RANKS, check_launcher
from genalign.types import UsageError
from tests.helpers.tiny_recipe import write_recipe

# Four prompts of two samples: micro-batches of four rows on one rank and on each of two.
SECTIONS: dict[str, Any] = {
    "policy": {"batch_size": 4, "sampler": {"kernel": "ddim", "noise": 1.0, "steps": 2, "guidance": 1.0}},
    "data": {"prompts_per_step": 4},
    "method": {"name": "flow-grpo", "group": 2, "kl_beta": 0.1, "updates_per_rollout": 1},
    "train": {"steps": 3, "learning_rate": 1e-3, "checkpoint_every": 3, "sample_every": 99, "ema": 0.5},
    "eval": None,
}


def launch(
    recipe: Path, out: Path, *words: str, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch", *words, "-m", "genalign", "train"]
    plain = {k: v for k, v in os.environ.items() if k not in ("MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK")}
    return subprocess.run(
        [*command, str(recipe), "--out", str(out)],
        env={**plain, "OMP_NUM_THREADS": "1", **(environ or {})},
        capture_output=True,
        text=True,
        timeout=600,
    )


def trained(out: Path) -> dict[str, torch.Tensor]:
    folder = out / "checkpoint-3"
    return {
        f"{part}/{name}": tensor
        for part in ("adapter", "ema")
        for name, tensor in load_file(folder / f"{part}.safetensors").items()
    }


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_two_ranks_one_rank_and_accumulation_train_alike(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, **SECTIONS)
    words = TWO_RANKS.partition("accelerate launch ")[2].partition(" -m genalign")[0].split()
    done = launch(recipe, tmp_path / "two", *words, "--main_process_port", "0", environ={"ACCELERATE_USE_CPU": "true"})
    assert done.returncode == 0, done.stderr[-3000:]
    states = load_file(tmp_path / "two" / "checkpoint-3" / "random.safetensors")
    assert {name.partition("/")[0] for name in states} == {"0", "1"}, "two ranks must have run"

    assert main(["train", str(recipe), "--out", str(tmp_path / "one")]) == 0
    assert main(["train", str(recipe), "--out", str(tmp_path / "whole"), "policy.batch_size=8"]) == 0
    two, one, whole = (trained(tmp_path / name) for name in ("two", "one", "whole"))
    assert furthest(two, one) < 1e-6
    assert furthest(whole, one) < 1e-6
    assert max(tensor.abs().max().item() for name, tensor in one.items() if "lora_B" in name) > 1e-3  # it moved


def test_split_weights_through_the_launcher(tmp_path: Path) -> None:
    """As pipelines/accelerate/ has it; with an evaluation, and three prompts a step, for two ranks."""
    more = {"train": {**SECTIONS["train"], "backend": "fsdp2"}, "data": {"prompts_per_step": 3}}
    evaluated = {"prompts": "exam.txt", "count": 3, "guidance": [1.0, 2.0], "steps": 2}
    recipe = write_recipe(tmp_path, **{**SECTIONS, **more, "eval": evaluated})
    words = ("--config_file", str(shipped("pipelines", "accelerate", "ranks.yaml")))
    done = launch(recipe, tmp_path / "two", *words, environ={"ACCELERATE_USE_CPU": "true"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert "one process" not in done.stderr
    assert main(["train", str(recipe), "--out", str(tmp_path / "one")]) == 0
    assert furthest(trained(tmp_path / "two"), trained(tmp_path / "one")) < 1e-6
    both = [json.loads((tmp_path / name / "eval.json").read_text())["metrics"] for name in ("one", "two")]
    for name, one in both[0].items():
        assert both[1][name]["after"] == pytest.approx(one["after"], abs=1e-5)


def test_a_launcher_that_starts_one_process_is_caught(tmp_path: Path) -> None:
    done = launch(write_recipe(tmp_path, **SECTIONS), tmp_path / "out", "--num_processes", "2", "--cpu")
    assert done.returncode != 0
    sentence = next(line for line in done.stderr.splitlines() if line.startswith("genalign: "))
    assert "started a single process" in sentence
    assert TWO_RANKS in sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("environ", "processes"),
    [
        ({"WORLD_SIZE": "2"}, None),
        ({"WORLD_SIZE": "two", "RANK": "0"}, None),
        ({"WORLD_SIZE": "2", "RANK": "0"}, 1),
        ({"MASTER_PORT": "29500", "ACCELERATE_MIXED_PRECISION": "no"}, None),
    ],
)
def test_what_the_launcher_says_must_be_what_runs(environ: dict[str, str], processes: int | None) -> None:
    with pytest.raises(UsageError, match="for two ranks on a CPU run ACCELERATE_USE_CPU=true accelerate launch"):
        check_launcher(environ, processes)


@pytest.mark.parametrize(
    ("environ", "name"),  # as `accelerate launch` 1.15 writes them
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "FSDP"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, "DeepSpeed"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "a parallelism config"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "mixed precision"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "torch.compile"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "gradient accumulation"),
        ({"ACCELERATE_GRADIENT_CLIPPING": "1.0"}, "gradient clipping"),
    ],
)
def test_what_accelerate_was_asked_for_and_is_not_done_is_refused(environ: dict[str, str], name: str) -> None:
    cure = (
        "train.backend=fsdp2"
        if name in ("FSDP", "DeepSpeed")
        else "launch without it|set |policy.batch_size|launch with"
    )
    with pytest.raises(UsageError, match=f"asked for {name} .*, which has no effect: .*({cure})"):
        check_launcher({"ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2", "RANK": "0", **environ})


def test_fsdp_through_the_launcher_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    words = ("--use_fsdp", "--fsdp_version", "2", "--num_processes", "2", "--num_machines", "1")
    done = launch(Path("image-nft"), tmp_path / "out", *words, "--mixed_precision", "no", "--main_process_port", "0")
    assert done.returncode != 0
    assert "genalign: the launcher was asked for FSDP (ACCELERATE_USE_FSDP=true), which has no effect" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("environ", "processes"),
    [
        ({}, 1),
        ({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"}, 1),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_PORT": "1"}, 2),
    ],
)
def test_honest_launchers_pass(environ: dict[str, str], processes: int) -> None:
    check_launcher(environ)
    check_launcher(environ, processes)
