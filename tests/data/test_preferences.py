"""Pairs of pictures: every layout that is understood, every fault in one sentence, and a run that learns from them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from genalign.cli.main import main
from genalign.data.preferences import find_pairs
from genalign.data.prompts import read_prompts
from genalign.files.places import data_path
from genalign.media.image import save_png, to_pil
from genalign.run.build import build
from genalign.run.recipe import load_recipe
from genalign.types import GenalignError, UsageError
from tests.helpers.tiny_recipe import write_recipe

LEVELS = {"a.png": 0.9, "b.png": 0.2, "c.png": 0.6, "d.png": 0.4}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name, level in LEVELS.items():
        save_png(torch.full((3, 6, 8 if name == "d.png" else 6), level), tmp_path / name)
    return tmp_path


def write(folder: Path, *rows, name: str = "pairs.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def png(level: float) -> bytes:
    file = io.BytesIO()
    to_pil(torch.full((3, 6, 6), level)).save(file, format="PNG")
    return file.getvalue()


def levels(pairs, *numbers: int) -> list[float]:
    """Brightness of the winner and the loser of each pair."""
    return [round(float(image.mean()), 2) for image in pairs.load(numbers)["image"].data]


GOOD = {"prompt": "a bird", "chosen": "a.png", "rejected": "b.png"}
PICK = {"caption": "a bird", "jpg_0": "a.png", "jpg_1": "b.png", "label_0": 1.0, "label_1": 0.0}
HPD = {"prompt": "a bird", "image_path": ["a.png", "b.png"], "human_preference": [0, 1]}


# ---- layouts --------------------------------------------------------------------------------------------------------


def test_chosen_and_rejected_in_a_file(pictures):
    path = write(pictures, GOOD, "", {"prompt": "two cats", "chosen": "c.png", "rejected": "d.png"})
    prompts = read_prompts(path)
    assert [(prompt.text, prompt.uid) for prompt in prompts] == [("a bird", 0), ("two cats", 1)]
    assert levels(prompts.pairs, 1, 0) == [0.6, 0.4, 0.9, 0.2]
    assert [tuple(image.shape) for image in prompts.pairs.load([1])["image"].data] == [(3, 6, 6), (3, 6, 8)]
    assert prompts.pairs.ties == 0
    assert len(prompts.digest) == 64


def test_pick_a_pic(pictures):
    rows = [
        PICK,
        {**PICK, "label_0": 0.5, "label_1": 0.5},
        {**PICK, "label_0": 0.0, "label_1": 1.0},
        {**PICK, "are_different": False},
        {**PICK, "has_label": False, "label_0": None, "label_1": None},
    ]
    prompts = read_prompts(write(pictures, *rows))
    assert prompts.pairs.ties == 3
    assert [prompt.text for prompt in prompts] == ["a bird"] * 2
    assert levels(prompts.pairs, 0, 1) == [0.9, 0.2, 0.2, 0.9]


def test_hpdv2(pictures):
    four = {"prompt": "four", "image_path": list(LEVELS), "rank": [2, 1, 4, 2]}
    prompts = read_prompts(write(pictures, HPD, {**HPD, "human_preference": [1, 1]}))
    assert levels(prompts.pairs, 0) == [0.2, 0.9]
    assert prompts.pairs.ties == 1
    ranked = find_pairs(write(pictures, four))
    expected = {
        (LEVELS[better], LEVELS[worse])
        for i, better in enumerate(LEVELS)
        for j, worse in enumerate(LEVELS)
        if four["rank"][i] < four["rank"][j]
    }
    found = levels(ranked, *range(len(ranked.pairs)))
    assert set(zip(found[::2], found[1::2], strict=True)) == expected
    assert len(ranked.pairs) == len(expected) == 5
    assert ranked.ties == 1


def test_a_folder_with_one_list(pictures):
    write(pictures, GOOD, name="mine.jsonl")
    assert levels(find_pairs(pictures), 0) == [0.9, 0.2]
    write(pictures, {**GOOD, "chosen": "c.png"}, name="metadata.jsonl")  # what datasets' folders of images have
    assert levels(find_pairs(pictures), 0) == [0.6, 0.2]


TABLES = {
    "trl": {"prompt": ["x", "y"], "chosen": [png(0.9), png(0.6)], "rejected": [png(0.2), png(0.4)]},
    "pick": {
        "caption": ["x", "tie", "y"],
        "jpg_0": [png(0.9), png(0.9), png(0.4)],
        "jpg_1": [png(0.2), png(0.2), png(0.6)],
        "label_0": [1.0, 0.5, 0.0],
        "label_1": [0.0, 0.5, 1.0],
    },
}


@pytest.mark.parametrize("layout", TABLES)
@pytest.mark.parametrize("form", ["saved", "splits", "parquet", "images"])
def test_a_table_of_the_datasets_library(tmp_path, layout, form, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    table, folder = datasets.Dataset.from_dict(TABLES[layout]), tmp_path / "table"
    if form == "images":
        for name in {"chosen", "rejected", "jpg_0", "jpg_1"} & set(TABLES[layout]):
            table = table.cast_column(name, datasets.Image())
    if form == "parquet":
        folder.mkdir()
        table.to_parquet(str(folder / "0.parquet"))
    else:
        (datasets.DatasetDict(train=table) if form == "splits" else table).save_to_disk(str(folder))
    prompts = read_prompts(folder)
    assert [prompt.text for prompt in prompts] == ["x", "y"]
    assert levels(prompts.pairs, 1, 0) == [0.6, 0.4, 0.9, 0.2]
    assert prompts.pairs.ties == (layout == "pick")
    assert read_prompts(folder).digest == prompts.digest


def test_prompts_without_pictures_stay_prompts(tmp_path):
    plain = write(tmp_path, {"prompt": "two stars", "facts": {"count": 2}})
    assert read_prompts(plain).pairs is None
    labelled = write(tmp_path, {"prompt": "p", "chosen_seed": 1, "rejected_seed": 2, "model": "m", "sampler": "s"})
    assert read_prompts(labelled).pairs is None
    (tmp_path / "p.txt").write_text("one\n")
    assert read_prompts(tmp_path / "p.txt").pairs is None


# ---- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, {**GOOD, "rejected": "z.png"}], "line 2 of .* names the picture 'z.png', which is not in"),
        (
            [GOOD, {**GOOD, "rejected": "a.png"}],
            r"line 2 of .* prefers a picture to an equal one \(a.png\); mend or drop the line",
        ),
        ([GOOD, {**GOOD, "chosen": "a2.png", "rejected": "a.png"}], "line 2 of .* prefers a picture to an equal one"),
        ([GOOD, {**GOOD, "chosen": None}], "line 2 of .* has no path of a picture under 'chosen'"),
        ([GOOD, "{not json"], "line 2 of .* is not JSON"),
        ([GOOD, "[1]"], "line 2 of .* is not a JSON object"),
        ([GOOD, {"prompt": "p", "chosen": "a.png"}], "line 2 of .* lacks 'rejected'; mend or drop the line"),
        ([GOOD, {**GOOD, "prompt": " "}], "line 2 of .* has no text as its prompt"),
        ([{**PICK, "label_0": 0.5, "label_1": 0.5}], "prefers nothing: 1 of its 1 rows are ties"),
        ([{**PICK, "label_0": None}], r"line 1 of .* prefers by \[None, 0.0\], which are not all numbers"),
        ([{**HPD, "human_preference": [1]}], "line 1 of .* has not one human_preference for each picture"),
        ([{**HPD, "image_path": ["a.png", "z.png"]}], "line 1 of .* names the picture 'z.png'"),
        ([{"prompt": "p", "image_path": ["a.png"], "rank": [1]}], "has not one rank for each picture"),
    ],
)
def test_a_bad_row_is_one_sentence(pictures, rows, message):
    (pictures / "a2.png").write_bytes((pictures / "a.png").read_bytes())
    with pytest.raises(UsageError, match=message) as refused:
        read_prompts(write(pictures, *rows))
    assert "\n" not in str(refused.value)


def test_a_file_that_is_no_picture_is_named_when_it_is_drawn(pictures):
    (pictures / "b.png").write_text("words")
    pairs = find_pairs(write(pictures, GOOD))
    with pytest.raises(UsageError, match=r"b\.png cannot be read as a picture"):
        pairs.load([0])


def test_a_table_without_a_picture_is_named_when_it_is_drawn(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"prompt": ["x", "y"], "chosen": [png(0.9), None], "rejected": [png(0.2), b"words"]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "table"))
    pairs = find_pairs(tmp_path / "table")
    assert levels(pairs, 0) == [0.9, 0.2]
    with pytest.raises(UsageError, match=r"row 2 of .* has no picture under 'chosen'"):
        pairs.load([1])


def test_folders_without_pairs(tmp_path, pictures):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match=r"holds no \.jsonl files and no table .*each file into a \.txt of its name"):
        read_prompts(empty)
    write(empty, {"prompt": "only words"})
    with pytest.raises(UsageError, match="has the columns prompt, of no form that genalign knows"):
        read_prompts(empty)
    write(empty, GOOD, name="second.jsonl")
    with pytest.raises(UsageError, match=r"holds 2 \.jsonl files .*name one of them$"):
        read_prompts(empty)


def test_columns_that_nobody_knows(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"prompt": ["x"], "winner": ["a"]}).save_to_disk(str(tmp_path / "table"))
    with pytest.raises(UsageError, match="has the columns prompt, winner, of no form that genalign knows"):
        read_prompts(tmp_path / "table")


def test_a_dataset_of_the_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name, split):
        asked.append((name, split))
        if name != "somebody/pairs":
            raise ConnectionError("no network")
        return datasets.Dataset.from_dict(TABLES["trl"])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert data_path("somebody/pairs", tmp_path) == "somebody/pairs"
    for name in ("emojiworld/trian.jsonl", "data/test_prompts_en.csv", "data/pairs.parquet", "words/all.txt"):
        assert data_path(name, tmp_path) == tmp_path / name
    assert levels(read_prompts("somebody/pairs").pairs, 0) == [0.9, 0.2]
    with pytest.raises(GenalignError, match=r"'nobody/nothing' is not a file or folder here .* \(no network\)"):
        read_prompts("nobody/nothing")
    assert asked == [("somebody/pairs", "train"), ("nobody/nothing", "train")]


@pytest.mark.parametrize("name", ["musiccaps.csv", "musiccaps.jsonl", "google/MusicCaps"])
def test_musiccaps_are_prompts(tmp_path, name, monkeypatch):
    """Its public columns, from its file, as lines, and by its id."""
    captions = ["A flute, softly.", 'A "band", loud']
    row = {"ytid": "-0Gj8-vB1q4", "start_s": 30, "end_s": 40, "audioset_positive_labels": "/m/0140xf"}
    row |= {"aspect_list": "['soft']", "author_id": 4, "is_balanced_subset": False, "is_audioset_eval": True}
    rows = [{**row, "caption": caption} for caption in captions]
    path = tmp_path / name
    if name.endswith(".csv"):
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets, "load_dataset", lambda name, split: datasets.Dataset.from_list(rows))
    prompts = read_prompts(name if "/" in name else path)
    assert [prompt.text for prompt in prompts] == captions
    assert prompts.pairs is None
    if name.endswith(".csv"):
        path.write_text("ytid,caption\nx, \n")
        with pytest.raises(UsageError, match=r"row 1 of .*musiccaps.csv has no text under 'caption'"):
            read_prompts(path)


def test_pairs_of_sounds_in_a_table_of_the_datasets_library(tmp_path, monkeypatch):
    """A column of sounds is not decoded by the library, whose decoder may be missing, and keeps its rate."""
    datasets, soundfile = pytest.importorskip("datasets"), pytest.importorskip("soundfile")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    held = {}
    for name, level in (("chosen", 0.5), ("rejected", 0.25)):
        soundfile.write(tmp_path / f"{name}.wav", np.full(400, level, np.float32), 8000)
        held[name] = [{"bytes": (tmp_path / f"{name}.wav").read_bytes(), "path": None}]
    table = datasets.Dataset.from_dict({"prompt": ["x"], **held})
    for name in held:
        table = table.cast_column(name, datasets.Audio())
    table.save_to_disk(str(tmp_path / "table"))
    heard = read_prompts(tmp_path / "table", "audio").pairs.load([0])["audio"]
    assert heard.rate == 8000
    assert [round(float(row.mean()), 2) for row in heard.data] == [0.5, 0.25]


def test_the_library_is_asked_for_only_where_it_is_needed(pictures, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    assert len(read_prompts(write(pictures, GOOD))) == 1
    with pytest.raises(UsageError, match=r"pip install 'genalign\[datasets\]'"):
        read_prompts("somebody/pairs")


# ---- recipes --------------------------------------------------------------------------------------------------------


def recipe_on(folder: Path, **sections) -> Path:
    made = {"data": {"prompts": "pairs.jsonl", "prompts_per_step": 2}, "reward": None, "eval": None}
    method = {"name": "flow-dpo", "beta": 100.0, "group": 4, "kl_beta": None}
    path = write_recipe(folder, **{**made, "method": method, **sections})
    path.write_text(path.read_text().replace("  kl_beta: null\n", ""))
    return path


def test_a_recipe_without_a_reward_learns_from_the_pictures_of_its_data(pictures):
    write(pictures, GOOD, {**GOOD, "prompt": "another"}, {**GOOD, "prompt": "third", "chosen": "c.png"})
    built = build(load_recipe(recipe_on(pictures)))
    assert built.method.needs == {"forward", "reference", "pairs"}
    assert built.method.pictures.rows_together == 4
    online = build(load_recipe(recipe_on(pictures, reward="rules.py:bright")))
    assert online.method.needs == {"forward", "reference", "rollout", "reward"}


def test_a_folder_of_pairs_is_found_from_any_folder(pictures):
    write(pictures, GOOD, GOOD)
    path = recipe_on(pictures / "recipes", data={"prompts": "..", "prompts_per_step": 2})
    resolved = load_recipe(path).resolved()
    assert resolved["data"]["prompts"] == str(pictures.resolve())
    assert len(build(load_recipe(path)).data) == 2


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"method": {"name": "nft"}}, "nft does not learn from given pictures; .*diffusion-dpo, flow-dpo"),
        ({"data": {"prompts": "prompts.txt"}}, "flow-dpo needs a reward, .*, or 'chosen' and 'rejected' to"),
        ({"method": {"name": "nft"}, "reward": "rules.py:bright", "train": {"ema": None}}, r"train\.ema is null"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_weight_loads(pictures, sections, message):
    write(pictures, GOOD, GOOD)
    path = recipe_on(
        pictures,
        **{**sections, "method": {"group": 4, "kl_beta": None, **sections.get("method", {"name": "flow-dpo"})}},
    )
    with pytest.raises(UsageError, match=message):
        build(load_recipe(path))


def test_a_language_model_has_no_forward_process(pictures):
    (pictures / "words").mkdir()
    (pictures / "words" / "config.json").write_text("{}")
    path = recipe_on(pictures, reward="rules.py:bright", data={"prompts": "prompts.txt"}, policy={"model": "words"})
    with pytest.raises(UsageError, match=r"flow-dpo needs the forward process .* words writes text; take dpo"):
        build(load_recipe(path))


def test_a_run_on_given_pictures_goes_on_where_it_was_killed(pictures):
    """Through the command line, on a random pipeline: no rollout, log 2 at first, and k + k steps are 2k steps."""
    write(pictures, GOOD, {**GOOD, "prompt": "another", "rejected": "c.png"}, {**GOOD, "prompt": "third"})
    path = str(recipe_on(pictures))
    assert main(["train", path, "train.steps=4", "--out", str(pictures / "whole")]) == 0
    assert main(["train", path, "train.steps=2", "--out", str(pictures / "parts")]) == 0
    assert main(["train", path, "train.steps=4", "--resume", str(pictures / "parts")]) == 0
    rows = [json.loads(line) for line in (pictures / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(0.6931472, rel=1e-6)
    assert rows[0]["calls"] == 2 * 2 * 4 * 2  # pairs, their samples, draws, policy and reference
    assert rows[-1]["loss"] != rows[0]["loss"]
    assert "reward" not in rows[0]
    adapters = [(pictures / run / "adapter" / "adapter_model.safetensors").read_bytes() for run in ("whole", "parts")]
    assert adapters[0] == adapters[1]
