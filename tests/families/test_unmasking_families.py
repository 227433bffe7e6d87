"""Every class of diffusion language models that docs/text.md lists: a step of each method, and given answers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from genalign.cli.main import main
from tests.contracts.tree import ROOT
from tests.helpers.unmasking_policies import MAKERS, folder, policy

METHODS = {
    "grpo": {"name": "grpo", "group": 3},
    "dpo": {"name": "dpo", "group": 3},
    "kto": {"name": "kto", "group": 3},
    "vrpo": {"name": "vrpo", "group": 3, "draws": 2},
    "sft": {"name": "sft", "group": 3, "draws": 2},
    "awm": {"name": "awm", "group": 3, "draws": 2, "kl_beta": 0.0},
}
MASKS_ALONE = ("vrpo", "sft", "awm")
RULE = """
from genalign.reward import reward

@reward
def varied(text):
    return [float(len(set(said.split()))) for said in text]
"""


def trained(where: Path, kind: str, method: str = "grpo", /, **more) -> int:
    (where / "rule.py").write_text(RULE)
    (where / "prompts.jsonl").write_text('{"prompt": "a red star"}\n{"prompt": "two cat left of the dog"}\n')
    recipe = {
        "policy": {
            "model": str(folder(kind)), "lora": {"rank": 2}, "max_new_tokens": 12, "batch_size": 4,
            "sampler": {"steps": 3, "noise": 0.5},
        },
        "data": {"prompts": str(where / "prompts.jsonl"), "prompts_per_step": 2},
        "reward": "rule.py:varied",
        "method": METHODS[method],
        "train": {"steps": 1, "learning_rate": 0.05},
    }  # fmt: skip
    recipe = {key: value for key, value in {**recipe, **more}.items() if value is not None}
    (where / "own.yaml").write_text(yaml.safe_dump(recipe))
    return main(["train", str(where / "own.yaml"), "--out", str(where / "out")])


@pytest.mark.parametrize(
    ("kind", "method"), [(k, m) for k in MAKERS for m in METHODS if k == "masks" or m not in MASKS_ALONE]
)
def test_a_step_changes_the_adapter(kind, method, tmp_path, capsys):
    assert trained(tmp_path, kind, method) == 0, capsys.readouterr().err
    own = policy(folder(kind))
    before = {name: value.clone() for name, value in own.adapter.state_dict().items()}
    own.load_adapter(tmp_path / "out" / "adapter")
    assert any(not torch.equal(before[name], value) for name, value in own.adapter.state_dict().items())
    (row,) = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    assert row["reward"] >= 0


@pytest.mark.parametrize("method", MASKS_ALONE)
def test_noise_on_a_canvas_has_no_masked_likelihood_and_one_sentence_says_so(method, tmp_path, capsys):
    assert trained(tmp_path, "canvas", method) != 0
    assert "has no mask, so answers have no masked likelihood" in capsys.readouterr().err


def test_what_needs_squared_errors_says_so_in_one_sentence(tmp_path, capsys):
    nft = {"method": {"name": "nft", "group": 3}, "train": {"steps": 1, "ema": 0.9}}
    assert trained(tmp_path, "masks", **nft) != 0
    assert "method nft needs squared errors" in capsys.readouterr().err


def test_given_answers_are_preferred_without_a_reward(tmp_path, capsys):
    rows = [
        {"prompt": "a red star", "chosen": "star", "rejected": "cat cat"},
        {"prompt": "a", "chosen": "me", "rejected": "no"},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"prompts": str(tmp_path / "pairs.jsonl"), "prompts_per_step": 2}
    assert trained(tmp_path, "masks", "vrpo", data=data, reward=None) == 0, capsys.readouterr().err
    (row,) = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    assert row["loss"] == pytest.approx(0.6931, abs=1e-3)


def test_the_page_lists_the_classes_that_are_swept():
    page = (ROOT / "docs" / "text.md").read_text()
    listed = re.findall(r"^\| `?(\w+)`? \| (?:masks|noise)", page, re.MULTILINE)
    assert sorted(listed) == sorted(type(policy(folder(kind)).model).__name__ for kind in MAKERS)
