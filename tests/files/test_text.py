"""Text files of others: byte-order marks, line ends, separators inside strings, other encodings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genalign.data.prompts import read_prompts
from genalign.files.text import Line, lines_of, parse_row, read_lines, read_text
from genalign.types import UsageError

SEPARATORS = ("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e")  # where str.splitlines also cuts


def test_lines_end_as_on_any_system_and_nowhere_else() -> None:
    text = "one\r\ntwo\n\n  \rthree" + "".join(SEPARATORS) + "end\n"
    assert [(line.number, line.text) for line in lines_of(text)] == [
        (1, "one"),
        (2, "two"),
        (5, "three" + "".join(SEPARATORS) + "end"),
    ]


@pytest.mark.parametrize("separator", SEPARATORS)
def test_a_separator_inside_a_prompt_stays_there(tmp_path: Path, separator: str) -> None:
    prompt = f"two{separator}stars"
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n", encoding="utf-8")
    (tmp_path / "p.txt").write_text(f"{prompt}\r\none sun\r\n", encoding="utf-8", newline="")
    rows = [json.dumps({"prompt": prompt, "chosen": prompt, "rejected": "no"}, ensure_ascii=False)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows), encoding="utf-8")
    assert json.loads((tmp_path / "p.jsonl").read_text(encoding="utf-8")) == {"prompt": prompt}
    if separator >= " ":  # JSON forbids the others unescaped
        assert [row.text for row in read_prompts(tmp_path / "p.jsonl")] == [prompt]
    assert [row.text for row in read_prompts(tmp_path / "p.txt")] == [prompt, "one sun"]


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl"])
def test_a_byte_order_mark_is_not_part_of_the_first_prompt(tmp_path: Path, name: str) -> None:
    text = "two stars\r\n" if name == "p.txt" else '{"prompt": "two stars"}\r\n'
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [row.text for row in read_prompts(tmp_path / name)] == ["two stars"]


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl"])
@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("latin-1", r"line 2 of .*p\.\w+ is not UTF-8 \(byte 0xe9\); save the file as UTF-8"),
        ("cp1252", r"line 2 of .*p\.\w+ is not UTF-8"),
        ("utf-16", r"p\.\w+ is not UTF-8 text, but UTF-16"),
        ("utf-16-le", r"p\.\w+ is not UTF-8 text, but UTF-16"),
    ],
)
def test_another_encoding_is_named(tmp_path: Path, name: str, encoding: str, message: str) -> None:
    rows = ["a cat", "a caf\u00e9"]
    lines = rows if name == "p.txt" else [json.dumps({"prompt": row}, ensure_ascii=False) for row in rows]
    (tmp_path / name).write_bytes("\n".join(lines).encode(encoding))
    with pytest.raises(UsageError, match=message) as refused:
        read_prompts(tmp_path / name)
    assert "\n" not in str(refused.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*absent\.txt: No such file"):
        read_text(tmp_path / "absent.txt")
    with pytest.raises(UsageError, match="cannot read"):
        read_lines(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[1]", "is not a JSON object"), ("[" * 100_000, "is not JSON .it is nested too deeply")],
)
def test_a_line_that_is_not_a_row(tmp_path: Path, text: str, message: str) -> None:
    (line,) = lines_of(text)
    with pytest.raises(UsageError, match=rf"line 1 of x\.jsonl {message}"):
        parse_row(line, "x.jsonl", "write an object a line")


def test_half_a_character_in_json_is_named_and_a_whole_one_is_read() -> None:
    """A surrogate alone is no character (Unicode 15, section 3.8); the two halves of U+1F600 are d83d and de00."""
    whole = Line(3, r'{"prompt": "a \ud83d\ude00", "facts": {"b": "\\ud83d"}}')
    assert parse_row(whole, "p.jsonl", "") == {"prompt": "a \U0001f600", "facts": {"b": r"\ud83d"}}
    for text in (r'{"prompt": "\ud83d"}', r'{"prompt": "x", "facts": {"\uDE00": 1}}', r'{"prompt": "\ude00\ud83d"}'):
        with pytest.raises(UsageError, match=r"^line 3 of p.jsonl has half a character \(\\ud[8e]"):
            parse_row(Line(3, text), "p.jsonl", "")
