"""`make table`: its cells, what it keeps of a run, and that interrupted work goes on."""

import json
from pathlib import Path

import pytest
import torch
from numpy.random import default_rng as random

from genalign import build, load_recipe
from genalign.cli import table, table_cells, table_pages
from genalign.cli.table_cells import IMAGE, MUSIC, RULE, VARIANTS, VIDEO, Cell
from genalign.files.shipped import shipped
from genalign.lab.world import BACKGROUNDS, place, render
from genalign.types import Media, Track, UsageError
from tests.helpers.hub_models import stand_in

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
    found = table_cells.cells()
    names = [cell.name for cell in found]
    assert len(set(names)) == len(names)
    recipes = {path.stem for path in shipped("pipelines").glob("image-*.yaml")}
    assert {cell.recipe for cell in found if cell.medium == IMAGE} == recipes
    assert sum(cell.recipe == "image-d3po" and cell.variant is None for cell in found) == 3
    assert {"image-d3po-rule-seed-0", "image-flow-grpo-clip-seed-0"} < set(names)


def test_video_rows_are_cells_of_the_same_table_three_seeds_for_the_papers_four():
    found = [cell for cell in table_cells.cells() if cell.medium == VIDEO]
    three = {cell.row for cell in found if cell.seed == 2}
    of_beta = "video-flow-dpo, time-dependent beta"
    assert three == {"video-sft", "video-flow-rwr", "video-flow-dpo", of_beta}
    assert sum(cell.row in three for cell in found) == 12
    assert all((cell.seed == 0) or cell.row in three for cell in found)
    assert {"video-nft-seed-0", "video-flow-dpo-time-seed-1", "video-nrg-ta-4-seed-0"} < {cell.name for cell in found}
    assert not any("wan" in cell.name for cell in found)


@pytest.mark.parametrize("recipe", VARIANTS)
def test_what_a_variant_changes_is_another_recipe_and_what_it_is_called_by(recipe):
    plain = load_recipe(recipe).resolved()
    for variant in VARIANTS[recipe]:
        changed = load_recipe(recipe, variant.changes).resolved()
        assert changed != plain
        assert {key.split("=")[0].split(".")[0] for key in variant.changes} == {
            key for key in plain if plain[key] != changed[key]
        }


def test_a_video_cell_is_scored_by_the_three_aspects_beside_its_reward():
    words = Cell("video-flow-dpo", 1).overrides(Path("runs"))
    assert 'eval.rewards=["video-reward.yaml"]' in words
    assert "train.seed=1" in words
    fitted = next(variant for variant in VARIANTS["video-flow-dpo"] if variant.name == "fitted")
    assert not any(
        word.startswith("eval.rewards") for word in Cell("video-flow-dpo", 0, fitted).overrides(Path("runs"))
    )


def test_video_rows_show_win_rates_whose_seeds_widen_the_interval():
    """Against the sum of squares written out: bootstrap half-width 3 points, wins of 60, 62 and 64 in 100."""
    seeds = []
    for k in range(3):
        wins = 0.60 + 0.02 * k
        aspect = {"before": 0.0, "after": 0.1, "delta": 0.1, "ci95": [0, 0.2], "wins": wins}
        aspect |= {"wins95": [wins - 0.03, wins + 0.03], "name": "tiny-video-reward/TA"}
        judge = {**ROW["metrics"]["judge"], "name": "moves-judge/all_facts"}
        seeds.append({**ROW, "metrics": {"TA": aspect, "judge": judge}})
    done = {f"video-sft-seed-{k}": row for k, row in enumerate(seeds)}
    half = (3.0**2 + (4.30 * 2.0 / 3**0.5) ** 2) ** 0.5
    mark = "<!-- table of {}, written by `make table` -->\nold\n<!-- end of table -->\n"
    page = "".join(mark.format(what) for what in ("all video", "the best video", "sft", "all"))
    of_video, best, own, images, _ = table_pages.filled(page, done).split("<!-- end of table -->")
    row = f"| sft | 3 | - | - | 62.0% ({62 - half:.1f} to {62 + half:.1f}) | - | - | 40.0% -> 50.0% (+6.0 to +14.0) |"
    assert row in of_video
    assert "| recipe | seeds | VQ wins | MQ wins | TA wins | its reward, held-out prompts |" in of_video
    assert "Not measured yet on these models: flow-dpo-seed-0, flow-dpo-time-seed-0, flow-rwr-seed-0" in of_video
    assert "| `video-sft` | 3 | 40.0% | 50.0% | +6.0 to +14.0 points | 1.5 |" in best
    assert row in own
    assert "| sft |" not in images


def test_an_interval_of_a_share_stays_between_none_and_all():
    two = [{"wins": 0.60, "wins95": [0.57, 0.63]}, {"wins": 0.84, "wins95": [0.81, 0.87]}]
    assert table_pages._won(two) == "72.0% (0.0 to 100.0)"  # Student's half-width of two seeds is 152 points


def test_seeds_are_one_row_and_their_spread_widens_the_interval():
    """Against the sum of squares written out: bootstrap half-width 4 points, seeds' deltas 8, 10, 12 points."""
    seeds = []
    for shift in (-0.02, 0.0, 0.02):
        judge = ROW["metrics"]["judge"]
        moved = {"before": 0.4, "after": 0.5 + shift, "delta": 0.1 + shift, "ci95": [e + shift for e in judge["ci95"]]}
        seeds.append({**ROW, "metrics": {"judge": moved}})
    text = table_pages.rendered({f"image-d3po-seed-{k}": row for k, row in enumerate(seeds)})
    half = (4.0**2 + (4.30 * 2.0 / 3**0.5) ** 2) ** 0.5
    assert f"40.0% -> 50.0% ({10 - half:+.1f} to {10 + half:+.1f})" in text
    assert sum(line.startswith("|") for line in text.splitlines()) == 6
    assert "Not measured yet on these models: dragon-frechet-seed-0, flow-dpo-seed-0" in text
    assert "| held-out judge at guidance | 1 | 2.5 |\n|---|---|---|\n| d3po | 40.0% -> 50.0% | 30.0% -> 25.0% |" in text
    assert "| d3po | 3 |" in text


def test_finished_cells_are_kept_a_changed_one_is_done_again_and_old_rows_go(tmp_path, monkeypatch):
    done = []
    for module in (table, table_pages):
        monkeypatch.setattr(module, "shipped", lambda room, *parts: tmp_path.joinpath(room, *parts))
        monkeypatch.setattr(module, "cells", lambda: [Cell("image-a"), Cell("image-b")])
    monkeypatch.setattr(Cell, "digest", lambda cell: digests[cell.name])
    monkeypatch.setattr(table, "measure", lambda cell, work: done.append(cell.name) or {**ROW, "digest": cell.digest()})
    (tmp_path / "assets").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("no marks\n")
    (tmp_path / "docs" / "results.md").write_text(
        f"before\n{table_pages.MARKS[0]}\nold\n{table_pages.MARKS[1]}\nafter\n"
    )
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
    text = table_pages.filled(page + page.replace("the best", "sft awm"), done)
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
    assert table_pages.filled(text, done) == text
    with pytest.raises(UsageError, match="bfo"):
        table_pages.filled(page.replace("the best", "bfo"), done)


@pytest.mark.timeout(300)
def test_a_cell_is_a_run_of_its_recipe(tmp_path, monkeypatch):
    small = ["train.steps=1", "data.prompts_per_step=2", "method.group=2", "policy.sampler.steps=3"]
    small += ["policy.sampler.sigmas=null"]
    small += ["policy.sampler.kernel=cps", "policy.sampler.noise=0.5", "policy.sampler.window_start=null"]
    small += ["policy.sampler.window=1", "eval.count=2", "eval.steps=2", "eval.guidance=[1.0]"]
    monkeypatch.setattr(table_cells, "TRAINING_PROMPTS", 3)
    given = Cell.overrides
    monkeypatch.setattr(Cell, "overrides", lambda cell, work: [*given(cell, work), *small])
    row = table.measure(Cell("image-d3po", 1, RULE), tmp_path)
    assert (row["steps"], row["prompts"], row["samples"]) == (1, 2, 4)
    assert set(row["metrics"]) == {"reward", "judge", "vendi", "reward_learnt", "judge_learnt"}
    assert row["metrics"]["reward_learnt"]["name"] == "scene_facts/total on 3 training prompts"
    assert row["metrics"]["judge"]["name"] == "judge/all_facts"
    assert "seed: 1" in next(Path(tmp_path).glob("*/recipe.yaml")).read_text()


@pytest.mark.timeout(300)
def test_a_video_cell_is_a_run_of_its_recipe_on_the_shipped_model(tmp_path, monkeypatch):
    """Here on a model of its size that nobody trained: win rates of the three aspects beside the held-out judge."""
    small = ["train.steps=1", "data.prompts_per_step=1", "method.group=2", "policy.batch_size=2", "eval.count=2"]
    small += stand_in(load_recipe("video-flow-dpo").policy, tmp_path / "model")
    monkeypatch.setattr(table_cells, "TRAINING_PROMPTS", 2)
    monkeypatch.setattr(Cell, "digest", lambda cell: "another")
    given = Cell.overrides
    monkeypatch.setattr(Cell, "overrides", lambda cell, work: [*given(cell, work), *small])
    of_beta = VARIANTS["video-flow-dpo"][0]
    row = table.measure(Cell("video-flow-dpo", 2, of_beta), tmp_path)
    assert (row["steps"], row["prompts"], row["samples"]) == (1, 2, 2)
    assert set(row["metrics"]) == {"reward", "VQ", "MQ", "TA", "judge", "reward_learnt", "judge_learnt"}
    assert row["metrics"]["judge"]["name"] == VIDEO.judge
    assert row["metrics"]["TA"]["name"] == "tiny-video-reward/TA"
    assert row["metrics"]["TA"]["wins"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert row["metrics"]["reward"]["name"] == "moves/total"
    resolved = next(Path(tmp_path).glob("*/recipe.yaml")).read_text()
    assert "seed: 2" in resolved
    assert "beta_schedule: time" in resolved


@pytest.mark.timeout(300)
def test_a_music_cell_is_a_run_of_its_recipe_on_the_shipped_model(tmp_path, monkeypatch):
    """Here on a model of its size that nobody trained: per-song win rates beside the held-out judge."""
    small = ["train.steps=1", "data.prompts_per_step=1", "method.group=2", "policy.batch_size=2", "eval.count=2"]
    small += ["train.monitor.count=2", *stand_in(load_recipe("music-nft").policy, tmp_path / "model")]
    monkeypatch.setattr(table_cells, "TRAINING_PROMPTS", 2)
    monkeypatch.setattr(Cell, "digest", lambda cell: "another")
    given = Cell.overrides
    monkeypatch.setattr(Cell, "overrides", lambda cell, work: [*given(cell, work), *small])
    row = table.measure(Cell("music-nft"), tmp_path)
    assert {"reward", "frechet-per-song", "judge", "judge_learnt"} <= set(row["metrics"])
    assert row["metrics"]["judge"]["name"] == MUSIC.judge
    assert row["metrics"]["frechet-per-song"]["wins"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    page = table_pages.filled(f"{table_pages.MARKS[0].replace('all', 'all music')}\n{table_pages.MARKS[1]}", {})
    assert "per-song FAD wins" in page
    assert "VQ wins" not in page


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
