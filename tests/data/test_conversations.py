"""Preferences as public sets write them: messages, transcripts, texts like file names, rows nobody decided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from genalign.data.comparisons import read_comparisons
from genalign.data.preferences import Pairs, find_pairs
from genalign.data.prompts import read_prompts
from genalign.types import UsageError


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write(folder: Path, *rows: dict[str, Any], name: str = "pairs.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs_of(folder: Path, *rows: dict[str, Any]) -> Pairs:
    pairs = find_pairs(write(folder, *rows))
    assert pairs is not None
    return pairs


LABELS = ("label_0", "label_1")
HI = [user("Hi"), bot("Hello"), user("Sum 1 and 2")]
FORMS = {
    "UltraFeedback": {
        "prompt": "Sum 1 and 2",
        "prompt_id": "x",
        "chosen": [user("Sum 1 and 2"), bot("3")],
        "rejected": [user("Sum 1 and 2"), bot("4")],
        "messages": [user("Sum 1 and 2"), bot("3")],
        "score_chosen": 8.0,
        "score_rejected": 2.0,
    },
    "Skywork": {"chosen": [user("Sum 1 and 2"), bot("3")], "rejected": [user("Sum 1 and 2"), bot("4")], "source": "x"},
    "TRL, explicit": {"prompt": [user("Sum 1 and 2")], "chosen": [bot("3")], "rejected": [bot("4")]},
    "TRL, texts after messages": {"prompt": [user("Sum 1 and 2")], "chosen": "3", "rejected": "4"},
    "parts": {
        "chosen": [{"role": "user", "content": [{"type": "text", "text": "Sum 1 and 2"}]}, bot("3")],
        "rejected": [user("Sum 1 and 2"), bot("4")],
    },
    "RLAIF-V": {"question": "Sum 1 and 2", "chosen": "3", "rejected": "4", "ds_name": "x", "idx": 1},
    "plain": {"prompt": "Sum 1 and 2", "chosen": "3", "rejected": "4"},
    "HH": {"chosen": "\n\nHuman: Sum 1 and 2\n\nAssistant: 3", "rejected": "\n\nHuman: Sum 1 and 2\n\nAssistant: 4"},
}


@pytest.mark.parametrize("form", FORMS)
def test_one_turn_in_every_form(tmp_path: Path, form: str) -> None:
    prompts = read_prompts(write(tmp_path, FORMS[form]), "text")
    assert [(prompt.text, dict(prompt.facts), prompt.uid) for prompt in prompts] == [("Sum 1 and 2", {}, 0)]
    assert prompts.pairs is not None
    assert list(prompts.pairs.load([0])["text"].data) == ["3", "4"]
    found = read_comparisons(tmp_path / "pairs.jsonl")
    assert (found.kind, [pair.p for pair in found.pairs]) == ("text", [1.0])


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": [*HI, bot("3")], "rejected": [*HI, bot("4")]},
        {"prompt": "Sum 1 and 2", "chosen": [*HI, bot("3")], "rejected": [*HI, bot("4")]} | {"prompt": HI},
        {"prompt": HI, "chosen": [bot("3")], "rejected": [bot("4")]},
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Sum 1 and 2\n\nAssistant: 3",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Sum 1 and 2\n\nAssistant: 4",
        },
    ],
)
def test_longer_conversations_keep_their_turns(tmp_path: Path, row: dict[str, Any]) -> None:
    """As TRL's extract_prompt has it: what both sides begin with is the prompt."""
    pairs = pairs_of(tmp_path, row)
    (prompt,) = pairs.prompts()
    assert prompt.facts["messages"] == HI
    assert prompt.text == "user: Hi\n\nassistant: Hello\n\nuser: Sum 1 and 2"
    assert list(pairs.load([0])["text"].data) == ["3", "4"]


def test_the_prompt_is_the_one_that_trl_extracts(tmp_path: Path) -> None:
    data_utils = pytest.importorskip("trl.data_utils")
    for row in (FORMS["Skywork"], {"chosen": [*HI, bot("3")], "rejected": [*HI, bot("4")]}):
        theirs = data_utils.extract_prompt({"chosen": row["chosen"], "rejected": row["rejected"]})
        (prompt,) = pairs_of(tmp_path, row).prompts()
        assert prompt.facts.get("messages", [user(prompt.text)]) == theirs["prompt"]


def test_a_system_turn_is_kept(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be short"}
    (prompt,) = pairs_of(
        tmp_path, {"prompt": "x", "chosen": [system, user("x"), bot("3")], "rejected": [system, user("x"), bot("4")]}
    ).prompts()
    assert prompt.facts["messages"] == [system, user("x")]


def test_equal_answers_prefer_nothing(tmp_path: Path) -> None:
    """HH-RLHF and UltraFeedback have such rows; they are left out and counted."""
    same = {"chosen": [user("x"), bot("3")], "rejected": [user("x"), bot("3")]}
    pairs = pairs_of(tmp_path, FORMS["Skywork"], same)
    assert (len(pairs.pairs), pairs.ties) == (1, 1)
    pairs = pairs_of(tmp_path, FORMS["plain"], {"prompt": "x", "chosen": "3", "rejected": "3"})
    assert (len(pairs.pairs), pairs.ties) == (1, 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {
                "chosen": [user("x"), bot("3"), user("y"), bot("4")],
                "rejected": [user("x"), bot("2"), user("y"), bot("5")],
            },
            "line 1 of .* has answers that part before their last message",
        ),
        ({"chosen": [bot("3")], "rejected": [bot("4")]}, "line 1 of .* has no prompt before its answers"),
        (
            {"chosen": [user("x"), {"role": "assistant", "content": None}], "rejected": [user("x"), bot("4")]},
            "line 1 of .* has a message that is not text",
        ),
        (
            {
                "chosen": [{"role": "user", "content": [{"type": "image"}]}, bot("3")],
                "rejected": [{"role": "user", "content": [{"type": "image"}]}, bot("4")],
            },
            "line 1 of .* has a message that is not text",
        ),
    ],
)
def test_conversations_that_cannot_be_read(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        pairs_of(tmp_path, row)
    assert "\n" not in str(refused.value)


def parts(*given: str) -> list[dict[str, Any]]:
    """The parts of a message: words, and "image" for a picture."""
    return [{"type": "image", "text": None} if one == "image" else {"type": "text", "text": one} for one in given]


def user_parts(content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"role": "user", "content": content}


def seen(question: list[dict[str, Any]], *more: dict[str, Any], **row: Any) -> dict[str, Any]:
    """A row of TRL's form with pictures (rlaif-v_formatted and others)."""
    chosen, rejected = ([{"role": "assistant", "content": parts(text)}] for text in ("1", "2"))
    return {"prompt": [user_parts(question), *more], "chosen": chosen, "rejected": rejected, **row}


def test_messages_with_parts_for_pictures_bring_these(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    pairs = pairs_of(tmp_path, seen(parts("image", "image", "how many?"), images=["a.png", "b.png"]))
    (prompt,) = pairs.prompts()
    assert prompt.text == "how many?"
    assert prompt.media is not None
    assert len(prompt.media["image"]) == 2
    assert pairs.load([0])["text"].data == ["1", "2"]
    row = {"prompt": [user_parts(parts("image", "how many?"))], "images": ["a.png"]}
    asked = read_prompts(write(tmp_path, row, name="asked.jsonl"))
    assert asked.rows[0].text == "how many?"
    assert asked.rows[0].media is not None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (seen(parts("image", "how many?")), r"writes 1 pictures into .* brings 0 under 'image"),
        (seen(parts("image", "image", "a?"), images=["a.png"]), r"writes 2 pictures into .* brings 1 under 'image"),
        (seen(parts("how many?", "image"), images=["a.png"]), "has a picture behind words"),
        (seen(parts("how many?"), bot("two"), user_parts(parts("image", "now?")), images=["a.png"]),
         "has a picture behind words"),
        (seen([{"type": "image", "image": "a.png"}, *parts("how many?")], images=["a.png"]), "inside a message"),
    ],
)  # fmt: skip
def test_pictures_that_would_move_or_go_missing_are_refused(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    with pytest.raises(UsageError, match=message):
        pairs_of(tmp_path, row)
    with pytest.raises(UsageError, match=message):
        read_prompts(write(tmp_path, {key: row[key] for key in ("prompt", "images") if key in row}, name="asked.jsonl"))


# ---- what the samples are -------------------------------------------------------------------------------------------


def test_one_answer_like_a_file_name_is_a_text(tmp_path: Path) -> None:
    """By all values of the columns, never by one: the others are no names of pictures."""
    rows = [
        {"prompt": "which file?", "chosen": "star.png", "rejected": "It is cat.png"},
        {"prompt": "and why?", "chosen": "because", "rejected": "sun.jpg"},
    ]
    found = read_comparisons(write(tmp_path, *rows))
    assert found.kind == "text"
    assert list(found.load([0, 1])[1]["text"].data) == ["star.png", "It is cat.png"]


def test_the_reader_decides_where_it_is_known(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "which file?", "chosen": "star.png", "rejected": "cat.png"})
    assert read_comparisons(path, "text").kind == "text"
    assert read_comparisons(path).kind == "image"
    assert read_comparisons(path, "image").kind == "image"


@pytest.mark.parametrize(
    "labels",
    [
        {"label_0": 0, "label_1": 0},
        {"label_0": 0.0, "label_1": 0.0, "has_label": True},
        {"label_0": 0.5, "label_1": 0.5},
    ],
)
def test_a_pick_a_pic_row_that_nobody_decided(tmp_path: Path, labels: dict[str, Any]) -> None:
    from PIL import Image

    for name, level in (("a.png", 200), ("b.png", 20)):
        Image.new("RGB", (4, 4), (level,) * 3).save(tmp_path / name)
    row = {"caption": "x", "jpg_0": "a.png", "jpg_1": "b.png"}
    pairs = pairs_of(tmp_path, {**row, "label_0": 1, "label_1": 0}, {**row, **labels})
    assert (len(pairs.pairs), pairs.ties) == (1, 1)
    assert read_comparisons(tmp_path / "pairs.jsonl").pairs[0].p == 1.0
    with pytest.raises(UsageError, match="prefers nothing"):
        find_pairs(write(tmp_path, {**row, **labels}))


@pytest.mark.parametrize("label", [None, "first", float("nan")])
def test_labels_that_are_not_numbers(tmp_path: Path, label: object) -> None:
    row = {"caption": "x", "jpg_0": "a.png", "jpg_1": "b.png", "label_0": label, "label_1": 1}
    with pytest.raises(UsageError, match=r"line 1 of .* prefers by \[.*\], which are not all numbers"):
        find_pairs(write(tmp_path, row))


def test_a_table_of_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.Dataset.from_list([FORMS["UltraFeedback"]] * 2).save_to_disk(str(tmp_path / "table"))
    pairs = find_pairs(tmp_path / "table", "text")
    assert pairs is not None
    assert [prompt.text for prompt in pairs.prompts()] == ["Sum 1 and 2"] * 2
    assert list(pairs.load([1])["text"].data) == ["3", "4"]


@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet"])
def test_other_files_of_pairs_train_too(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pairs{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps([FORMS["plain"]]))
    elif suffix == ".csv":
        path.write_bytes(b"\xef\xbb\xbfprompt,chosen,rejected\r\nSum 1 and 2,3,4\r\n")
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist([FORMS["plain"]]), path)
    pairs = read_prompts(path, "text").pairs
    assert pairs is not None
    assert list(pairs.load([0])["text"].data) == ["3", "4"]
