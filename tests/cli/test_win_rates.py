"""The table of who wins by which reward: exact intervals against published figures, resumption, a run end to end."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import beta

from genalign.cli import win_rates
from genalign.cli.main import main as genalign
from genalign.cli.win_rates import BLOCK, KEPT, TARGET, main, measured, table
from genalign.evaluation.intervals import exact_win_rate
from genalign.files.shipped import shipped
from genalign.reward import build_reward
from genalign.reward.scores import all_valid
from genalign.types import Media, Prompt, Track
from tests.helpers.tiny_sounds import SOUNDS
from tests.helpers.toy_policy import ToyReward


@pytest.mark.parametrize(("wins", "p", "low"), [(253, 1.5835e-5, 0.56146), (256, 4.1534e-6, 0.56869)])
def test_exact_figures_are_those_of_the_papers_listening_test(wins: int, p: float, low: float) -> None:
    """DRAGON's 60.24% and 60.95% of 420 votes; its bound is one-sided, ours the two-sided one by beta quantiles."""
    before, after = np.zeros(420), np.where(np.arange(420) < wins, 1.0, -1.0)
    found = exact_win_rate(before, after)
    assert found is not None
    assert found["rate"] == pytest.approx(wins / 420)
    assert found["p"] == pytest.approx(p, rel=1e-4)
    assert beta.ppf(0.05, wins, 421 - wins) == pytest.approx(low, abs=1e-5)
    bounds = beta.ppf(0.025, wins, 421 - wins), beta.ppf(0.975, wins + 1, 420 - wins)
    assert found["ci95"] == pytest.approx(bounds, abs=1e-9)


def test_ties_count_half_and_leave_the_interval() -> None:
    found = exact_win_rate(np.array([0.0, 0, 0, 1, np.nan]), np.array([1.0, 2, 0, 0, 5]))
    assert found is not None
    assert (found["rate"], found["untied"]) == (2.5 / 4, 3)
    assert exact_win_rate(np.array([1.0, np.nan]), np.array([1.0, 2.0])) is None


def test_the_table_by_hand() -> None:
    run = {"before": {"a": [0.0] * 10, TARGET: [0.0] * 10}, "after": {"a": [1.0] * 5 + [-1.0] * 5, TARGET: [1.0] * 10}}
    lines = table({"one": run}).splitlines()
    assert lines[2] == "| one | 100.0% | 10 | 69.2% to 100.0% | 0.00098 |"
    assert "Mean over the runs' own rewards: 100.00% of 1 runs." in lines
    assert lines[-3:] == ["| run | a | better by |", "|---|---|---|", "| one | 50% | 0 of 1 |"]


class Level(ToyReward):
    """The mean of a sound."""

    needs = frozenset({"audio"})

    def __call__(self, prompts: Any, media: Media, group: Any = None) -> Any:
        return all_valid(self.aspects, media["audio"].data.mean((1, 2))[:, None])


class OfSets(Level):
    looks_at = "batch"


class Rising:
    """Draws louder with its adapter, and counts what it draws."""

    guided = False

    def __init__(self) -> None:
        self.drawn: list[str] = []
        self.which = "policy"

    def weights(self, which: str) -> Any:
        self.which = which
        return torch.no_grad()

    def generate(self, prompts: Any, seeds: Any, guidance: Any = None, steps: Any = None) -> Media:
        self.drawn.append(self.which)
        noise = torch.stack([torch.rand(1, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        return Media(audio=Track(noise / 2 + 0.25 * (self.which == "policy"), 8000.0))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Path], Rising]:
    policy, folders = Rising(), [tmp_path / "one", tmp_path / "two"]
    for k, folder in enumerate(folders):
        (folder / "adapter").mkdir(parents=True)
        (folder / "adapter" / "adapter_model.safetensors").write_bytes(bytes([k]))
    settings = SimpleNamespace(count=70, guidance=[1.0], steps=None, seeds=[0])
    recipe = SimpleNamespace(eval=settings, policy=SimpleNamespace(model="toy"))
    prompts = [Prompt(f"p{k}", uid=k) for k in range(80)]
    built = SimpleNamespace(recipe=recipe, eval_prompts=prompts, reward=Level(), policy=policy)
    monkeypatch.setattr(win_rates, "load_run", lambda run, device: built)
    return folders, policy


def test_a_run_is_scored_once_and_the_base_for_all(runs: tuple[list[Path], Rising]) -> None:
    (one, two), policy = runs
    rewards = {"level": Level(), "sets": OfSets()}
    first = measured(one, rewards)
    assert policy.drawn == ["reference"] * 3 + ["policy"] * 3
    assert [len(first["after"][name]) for name in ("level", "sets", TARGET)] == [70, 70 // BLOCK, 70]
    assert np.mean(first["after"]["level"][:BLOCK]) == pytest.approx(first["after"]["sets"][0], abs=1e-6)
    assert measured(one, rewards) == first == json.loads((one / KEPT).read_text())
    assert len(policy.drawn) == 6
    second = measured(two, rewards, [first])  # another adapter, the same base
    assert policy.drawn[6:] == ["policy"] * 3
    assert second["before"] == first["before"]
    (one / "adapter" / "adapter_model.safetensors").write_bytes(b"trained on")
    assert measured(one, rewards)["digest"] != first["digest"]
    assert len(policy.drawn) == 15


def test_the_shipped_list_has_twenty_rewards_of_sound_alone(tmp_path: Path) -> None:
    for name in ("music-twenty.yaml", "music-per-song.yaml", "melody_rules.py", "melody_exemplars.py"):
        few = shipped("rewards", name).read_text().replace("count=256", "count=16")
        (tmp_path / name).write_text(few)
    parts = build_reward("music-twenty.yaml", tmp_path).parts  # type: ignore[attr-defined]
    assert len({part.name for part in parts}) == 20
    assert {need for part in parts for need in part.needs} == {"audio", "facts.voices"}
    assert sum(part.looks_at == "batch" for part in parts) == 8


def test_a_run_of_a_pipeline_of_sound_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    SOUNDS["longcat-audio"].build().save_pretrained(tmp_path / "model")
    for name in ("train", "eval"):
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} {letter}\n" for letter in "abcd"))
    recipe = {
        "policy": {"model": "model", "batch_size": 4, "call": SOUNDS["longcat-audio"].call, "sampler": {"steps": 2}},
        "data": {"prompts": "train.txt", "prompts_per_step": 2},
        "reward": {"use": "clipping"},
        "method": {"name": "nft", "group": 2},
        "train": {"steps": 1, "ema": 0.5},
        "eval": {"prompts": "eval.txt", "guidance": [1.0]},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    assert genalign(["train", "mine.yaml", "eval.count=2", "--out", "run"]) == 0
    (tmp_path / "many.yaml").write_text(
        yaml.safe_dump({"sum": [{"use": "clicks"}, {"use": "set", "model": "mel", "measure": "vendi"}]})
    )
    main(["run", "--rewards", "many.yaml", "--out", "table.md"])
    text = (tmp_path / "table.md").read_text()
    assert text in capsys.readouterr().out
    assert "| run | clicks | vendi | better by |" in text
    kept = json.loads((tmp_path / "run" / KEPT).read_text())
    assert [len(kept["after"][name]) for name in ("clicks", "vendi", TARGET)] == [2, 0, 2]
