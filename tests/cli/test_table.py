"""`make table`: its cells, what it keeps of a run, and that interrupted work goes on."""

import json
from pathlib import Path

import pytest
import torch
from numpy.random import default_rng as random

from genalign import build, load_recipe
from genalign.cli import table
from genalign.files.shipped import shipped
from genalign.lab.world import BACKGROUNDS, place, render
from genalign.types import Media, Track, UsageError

ROW = {
    "train_seconds": 90,
    "samples": 1280,
    "calls": 3840,
    "metrics": {
        "reward": {"before": 0.5, "after": 0.6, "delta": 0.1, "ci95": [0.05, 0.15]},
        "judge": {"before": 0.40, "after": 0.50, "delta": 0.10, "ci95": [0.06, 0.14]},
    },
    "sweep": {"guidance": [1.0, 2.5], "before": [0.4, 0.3], "after": [0.5, 0.25]},
}


def test_every_image_recipe_has_a_cell_and_no_name_comes_twice():
    names = [cell.name for cell in table.cells()]
    assert len(set(names)) == len(names)
    recipes = {path.stem for path in shipped("pipelines").glob("image-*.yaml")}
    assert {cell.recipe for cell in table.cells()} == recipes
    assert sum(cell.recipe == "image-d3po" and cell.reward is None for cell in table.cells()) == 3


def test_seeds_are_one_row_and_their_spread_widens_the_interval():
    """Against the sum of squares written out: bootstrap half-width 4 points, seeds' deltas 8, 10, 12 points."""
    seeds = []
    for shift in (-0.02, 0.0, 0.02):
        judge = ROW["metrics"]["judge"]
        moved = {"before": 0.4, "after": 0.5 + shift, "delta": 0.1 + shift, "ci95": [e + shift for e in judge["ci95"]]}
        seeds.append({**ROW, "metrics": {"judge": moved}})
    text = table.rendered({f"image-d3po-seed-{k}": row for k, row in enumerate(seeds)})
    half = (4.0**2 + (4.30 * 2.0 / 3**0.5) ** 2) ** 0.5
    assert f"40.0% -> 50.0% ({10 - half:+.1f} to {10 + half:+.1f})" in text
    assert sum(line.startswith("|") for line in text.splitlines()) == 6
    assert "Not measured yet on these models: dragon-frechet-seed-0, flow-dpo-seed-0" in text
    assert "| held-out judge at guidance | 1 | 2.5 |\n|---|---|---|\n| d3po | 40.0% -> 50.0% | 30.0% -> 25.0% |" in text
    assert "| d3po | 3 |" in text


def test_finished_cells_are_kept_a_changed_one_is_done_again_and_old_rows_go(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(table, "shipped", lambda room, *parts: tmp_path.joinpath(room, *parts))
    monkeypatch.setattr(table, "cells", lambda: [table.Cell("image-a"), table.Cell("image-b")])
    monkeypatch.setattr(table.Cell, "digest", lambda cell: digests[cell.name])
    monkeypatch.setattr(table, "measure", lambda cell, work: done.append(cell.name) or {**ROW, "digest": cell.digest()})
    (tmp_path / "assets").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("no marks\n")
    (tmp_path / "docs" / "results.md").write_text(f"before\n{table.MARKS[0]}\nold\n{table.MARKS[1]}\nafter\n")
    digests = {"image-a-seed-0": "1", "image-b-seed-0": "1"}
    table.main([])
    table.main([])
    assert done == ["image-a-seed-0", "image-b-seed-0"]
    digests["image-b-seed-0"] = "2"
    table.main([])
    assert done[2:] == ["image-b-seed-0"]
    assert set(json.loads((tmp_path / "assets" / "table.json").read_text())) == set(digests)
    page = (tmp_path / "docs" / "results.md").read_text()
    assert (tmp_path / "README.md").read_text() == "no marks\n"
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "old" not in page
    assert (
        "| b | 1 | - | 0.5 -> 0.6 (+0.05 to +0.15) | - | 40.0% -> 50.0% (+6.0 to +14.0) | - | 1,280 | 3,840 | 1.5 |"
        in page
    )
    digests["image-a-seed-0"] = "2"
    table.main(["image-b"])
    assert set(json.loads((tmp_path / "assets" / "table.json").read_text())) == {"image-b-seed-0"}
    assert "| a |" not in (tmp_path / "docs" / "results.md").read_text()


def test_the_best_are_those_whose_interval_begins_highest_and_a_mark_names_its_rows():
    """Gains in points: awm +8 (+2 to +14), nft +6 (+4 to +8), sft +1 (-1 to +3); the subject's is another judge's."""
    gains = {"image-awm": (0.08, 0.02, 0.14), "image-nft": (0.06, 0.04, 0.08), "image-sft": (0.01, -0.01, 0.03)}
    gains["image-subject"] = (0.4, 0.3, 0.5)
    done = {}
    for name, (delta, *interval) in gains.items():
        judge = {"before": 0.5, "after": 0.5 + delta, "delta": delta, "ci95": interval}
        judge["name"] = "subject_drawn" if "subject" in name else "judge/all_facts"
        done[f"{name}-seed-0"] = {**ROW, "metrics": {"judge": judge}}
    page = "<!-- table of the best, written by `make table` -->\nold\n<!-- end of table -->\n"
    text = table.filled(page + page.replace("the best", "sft awm"), done)
    best, some = text.split("<!-- end of table -->")[:2]
    assert [line.split("|")[1].strip() for line in best.splitlines() if "points" in line] == [
        "`image-nft`",
        "`image-awm`",
        "`image-sft`",
    ]
    assert "| `image-nft` | 1 | 50.0% | 56.0% | +4.0 to +8.0 points | 1.5 |" in best
    assert "| awm | 1 | - | - | - | 50.0% -> 58.0% (+2.0 to +14.0) | - | 1,280 | 3,840 | 1.5 |" in some
    assert "nft" not in some
    assert "old" not in text
    assert table.filled(text, done) == text
    with pytest.raises(UsageError, match="bfo"):
        table.filled(page.replace("the best", "bfo"), done)


@pytest.mark.timeout(300)
def test_a_cell_is_a_run_of_its_recipe(tmp_path, monkeypatch):
    small = ["train.steps=1", "data.prompts_per_step=2", "method.group=2", "policy.sampler.steps=3"]
    small += ["policy.sampler.sigmas=null"]
    small += ["policy.sampler.kernel=cps", "policy.sampler.noise=0.5", "policy.sampler.window_start=null"]
    small += ["policy.sampler.window=1", "eval.count=2", "eval.steps=2", "eval.guidance=[1.0]"]
    monkeypatch.setattr(table, "TRAINING_PROMPTS", 3)
    given = table.Cell.overrides
    monkeypatch.setattr(table.Cell, "overrides", lambda cell, work: [*given(cell, work), *small])
    row = table.measure(table.Cell("image-d3po", 1, "rule"), tmp_path)
    assert (row["steps"], row["prompts"], row["samples"]) == (1, 2, 4)
    assert set(row["metrics"]) == {"reward", "judge", "vendi", "reward_learnt", "judge_learnt"}
    assert row["metrics"]["reward_learnt"]["name"] == "scene_facts/total on 3 training prompts"
    assert row["metrics"]["judge"]["name"] == "judge/all_facts"
    assert "seed: 1" in next(Path(tmp_path).glob("*/recipe.yaml")).read_text()


@pytest.mark.parametrize("which", ["reward", "reward_learnt"])
def test_the_base_is_as_diverse_as_the_world_so_that_vendi_alone_has_nothing_to_teach(which):
    """True scenes of the prompts that image-dragon-vendi is measured on, a background drawn where none is told."""
    cell = json.loads((shipped("assets") / "table.json").read_text())["image-dragon-vendi-seed-0"]
    built = build(load_recipe("image-dragon-vendi"))
    rows, rng, pictures = (built.data if which == "reward_learnt" else built.eval_prompts).rows[:512], random(0), []
    for row in rows:
        facts = {**row.facts, "background": row.facts["background"] or rng.choice(list(BACKGROUNDS))}
        pictures.append(torch.from_numpy(render(place(facts, rng), rng)).permute(2, 0, 1).float())
    scores = built.reward(rows, Media(image=Track(torch.stack(pictures))), torch.arange(len(rows)))
    assert float(scores.total.mean()) == pytest.approx(cell["metrics"][which]["before"], abs=0.15)
