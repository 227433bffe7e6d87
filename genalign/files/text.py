"""Text files that somebody else wrote: UTF-8 with or without a byte-order mark, lines that end as on any system."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from genalign.types import UsageError

LINE_END = re.compile(r"\r\n|\n|\r")  # str.splitlines also cuts at U+2028 and others, which JSON may hold
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
UTF16 = (b"\xff\xfe", b"\xfe\xff")


class Line(NamedTuple):
    """A line that is not blank, without its end, and its number in the file, from 1."""

    number: int
    text: str


def decode_text(blob: bytes, where: Path | str) -> str:
    """The text of a file's bytes, without a byte-order mark.

    Raises:
        UsageError: it is not UTF-8 (the line of the first wrong byte is named).
    """
    if blob.startswith(UTF16) or b"\0" in blob:
        raise UsageError(f"{where} is not UTF-8 text, but UTF-16 or not text at all; save it as UTF-8")
    try:
        return blob.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = len(LINE_END.split(blob[: error.start].decode("latin-1")))
        raise UsageError(
            f"line {number} of {where} is not UTF-8 (byte 0x{blob[error.start]:02x}); save the file as UTF-8, for "
            f"example by iconv -f latin1 -t utf-8"
        ) from error


def read_text(path: Path) -> str:
    """The whole text of a file.

    Raises:
        UsageError: missing, unreadable, or not UTF-8.
    """
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    return decode_text(blob, path)


def lines_of(text: str) -> list[Line]:
    """The lines of a text that are not blank."""
    return [Line(number, line) for number, line in enumerate(LINE_END.split(text), 1) if line.strip()]


def read_lines(path: Path) -> list[Line]:
    """The lines of a text file that are not blank.

    Raises:
        UsageError: as `read_text`.
    """
    return lines_of(read_text(path))


def parse_row(line: Line, path: Path | str, shape: str) -> dict[str, Any]:
    """The JSON object that a line of a .jsonl file is; `shape`, what to write instead, ends the sentence about others.

    Raises:
        UsageError: not JSON, not an object, or a text with half a character in it.
    """
    try:
        row: Any = json.loads(line.text)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "it is nested too deeply"
        raise UsageError(f"line {line.number} of {path} is not JSON ({reason}); {shape}") from error
    if not isinstance(row, dict):
        raise UsageError(f"line {line.number} of {path} is not a JSON object; {shape}")
    if SURROGATE.search(line.text):  # two of them are a character, one alone can be neither encoded nor tokenized
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise UsageError(f"line {line.number} of {path} has half a character ({half}); write it whole") from error
    return row
