"""YAML as people mean it: the core schema of YAML 1.2, duplicate keys, and every example that the project shows."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from genalign.files.settings import apply_override, changed_key, parse_yaml, read_yaml, write_yaml
from genalign.reward import build_reward
from genalign.types import UsageError

ROOT = Path(__file__).parents[2]

# YAML 1.2.2, section 10.3.2, "Tag Resolution": its own table of regular expressions, in its order.
TABLE = (
    (r"null | Null | NULL | ~", None),
    (r"true | True | TRUE | false | False | FALSE", bool),
    (r"[-+]? [0-9]+", int),
    (r"0o [0-7]+", int),
    (r"0x [0-9a-fA-F]+", int),
    (r"[-+]? ( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?", float),
    (r"[-+]? ( \.inf | \.Inf | \.INF )", float),
    (r"\.nan | \.NaN | \.NAN", float),
)

WORDS = (
    *("null", "Null", "NULL", "~", "nUll", "none", "None"),
    *("true", "True", "TRUE", "false", "False", "FALSE", "tRue", "yes", "Yes", "no", "NO", "on", "On", "off", "y", "n"),
    *("0", "-0", "+12", "010", "08", "0o17", "0o8", "-0o7", "0x1F", "0xg", "0b11", "1_000", "12:30", "190:20:30"),
    *("1.", ".5", "-.5", "+1.5", "1e3", "1E-3", "1.5e+3", "1e-4", ".5e1", "1.2.3e4", "1e", "e1", "+.e1", "1,5", "."),
    *(".inf", "-.Inf", "+.INF", "inf", ".nan", ".NaN", "-.nan", "nan", "NaN", "2001-12-14", "2001-12-14 21:59:43"),
    *("=", "<<", "a<<", "1 2", "v1", "0o", "0x", "1e5x"),
)


def expected(word: str) -> type | None:
    """What the specification makes of a plain scalar: a type, None for null; text where nothing fits."""
    for pattern, kind in TABLE:
        if re.fullmatch(pattern, word, re.VERBOSE):
            return kind
    return str


@pytest.mark.parametrize("word", WORDS)
def test_a_plain_scalar_is_what_the_core_schema_says(word: str) -> None:
    kind, value = expected(word), parse_yaml(f"key: {word}", "text")["key"]
    assert value is None if kind is None else type(value) is kind
    if kind is str:
        assert value == word


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("+12", 12),
        ("1e-4", 1e-4),
        (".5e1", 5.0),
        ("-.Inf", -math.inf),
        ("TRUE", True),
        ("False", False),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2001-12-14", "2001-12-14"),
    ],
)
def test_values_by_hand(word: str, value: object) -> None:
    assert parse_yaml(f"key: {word}", "text") == {"key": value}


def test_an_empty_value_is_null_and_a_quoted_one_is_text() -> None:
    assert parse_yaml("a:\nb: ''\nc: '1'\nd: \"on\"", "text") == {"a": None, "b": "", "c": "1", "d": "on"}


def test_the_key_on_reaches_the_sandbox(tmp_path: Path) -> None:
    """As README and image-hybrid.yaml write it; a YAML 1.1 reader makes the key a boolean."""
    (tmp_path / "rule.py").write_text("def light(image):\n    return image.mean((1, 2, 3))\n")
    for place in ("inline", "process", "sandbox"):
        (tmp_path / f"{place}.yaml").write_text(f"use: rule.py:light\nrun: {{on: {place}}}\n")
        assert build_reward(f"{place}.yaml", tmp_path).name == "light"
    (tmp_path / "wrong.yaml").write_text("use: rule.py:light\nrun: {on: mars}\n")
    with pytest.raises(UsageError, match="cannot run on 'mars'"):
        build_reward("wrong.yaml", tmp_path)


def test_anchors_and_merge_keys() -> None:
    text = "one: &one {a: 1, b: 2}\ntwo: {<<: *one, b: 3}\nthree: {<<: [*one, {c: 4}]}\nfour: *one"
    plain = parse_yaml(text, "text")
    assert plain["two"] == {"a": 1, "b": 3}
    assert plain["three"] == {"a": 1, "b": 2, "c": 4}
    assert plain["four"] == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "'a'"),
        ("train:\n  steps: 1\n  seed: 0\n  steps: 2\n", 4, "'steps'"),
        ("{a: 1, 'a': 2}", 1, "'a'"),
        ("1: a\n0x1: b\n", 2, "1"),
        ("x: &x {a: 1}\ny:\n  <<: *x\n  b: 1\n  b: 2\n", 5, "'b'"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path: Path, text: str, line: int, key: str) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=rf"twice\.yaml is not YAML, line {line}: the key {key} stands in line \d"):
        read_yaml(path)


@pytest.mark.parametrize(
    "text",
    ["a: [", "!!int x", "!!float 1:x", "!!timestamp 99", "!!python/object/apply:os.system [ls]", "a: \x01", "{[a]: 1}"],
)
def test_what_is_not_yaml_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"bad\.yaml is not YAML") as refused:
        read_yaml(path)
    assert "\n" not in str(refused.value)


def test_a_broken_number_in_a_reward_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "tilted.yaml").write_text("use: sharpness\nhalf: 1.2.3e4\n")
    with pytest.raises(UsageError, match=r"do not fit it: .*'1\.2\.3e4'"):
        build_reward("tilted.yaml", tmp_path)
    assert parse_yaml("half: 1.2.3e4", "text") == {"half": "1.2.3e4"}


@pytest.mark.parametrize("word", [*WORDS, "", "é", "a: b", "# no comment", "two\nlines", "\ufeff", "\u2028"])
def test_what_is_written_reads_back_in_both_versions(word: str) -> None:
    plain = {"keys": {word: [word, {"deep": word}]}, "numbers": [1e-5, 1e16, -3, math.inf, True, None]}
    text = write_yaml(plain)
    assert parse_yaml(text, "text") == plain
    assert yaml.safe_load(text) == plain  # YAML 1.1, by PyYAML


def test_overrides_read_the_same_yaml() -> None:
    plain: dict[str, Any] = {}
    for override in ("reward.run.on=process", "train.learning_rate=1e-4", "a.b=yes", "a.c=[1, 0o10]", "d=null"):
        apply_override(plain, override)
    assert plain == {
        "reward": {"run": {"on": "process"}},
        "train": {"learning_rate": 1e-4},
        "a": {"b": "yes", "c": [1, 8]},
        "d": None,
    }
    with pytest.raises(UsageError, match=r"the value of override 'a=\{b: 1, b: 2\}' is not YAML"):
        apply_override({}, "a={b: 1, b: 2}")


# ---- every example that is shown ------------------------------------------------------------------------------------


def mappings(text: str) -> list[str]:
    """Every outermost {key: ...} of a text, braces balanced; JSON's and Python's, whose keys are quoted, are others."""
    found, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        if letter == "{":
            start = place if depth == 0 else start
            depth += 1
        elif letter == "}" and depth:
            depth -= 1
            if depth == 0 and re.match(r"\{\s*[a-z_]\w*: ", text[start:]):
                found.append(text[start : place + 1])
    return found


def shown() -> list[tuple[str, str]]:
    """Flow mappings and fenced blocks of README and docs, and flow mappings in comments of recipes and reward files."""
    examples = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        examples += [(page.name, block) for block in re.findall(r"```ya?ml\n(.*?)```", text, re.DOTALL)]
        for span in re.findall(r"`([^`\n]+)`", text):
            examples += [(page.name, mapping) for mapping in mappings(span)]
    for file in sorted([*(ROOT / "rewards").glob("*.yaml"), *(ROOT / "pipelines").glob("*.yaml")]):
        for line in file.read_text(encoding="utf-8").splitlines():
            comment = line.partition("#")[2]
            examples += [(file.name, mapping) for mapping in mappings(comment)]
    return [(where, text) for where, text in examples if "..." not in text]


def keys_of(plain: Any) -> list[Any]:
    if isinstance(plain, list):
        return [key for item in plain for key in keys_of(item)]
    if not isinstance(plain, dict):
        return []
    return [*plain, *(key for item in plain.values() for key in keys_of(item))]


def test_every_example_loads() -> None:
    examples = shown()
    assert len(examples) >= 8
    assert "image-algebra.yaml" in {where for where, _ in examples}
    for where, text in examples:
        plain = parse_yaml(text, where)
        assert plain, (where, text)
        assert not [key for key in keys_of(plain) if isinstance(key, bool)], (where, text)


def test_shipped_files_have_no_value_that_the_versions_read_differently() -> None:
    """What finished cells of assets/table.json depend on: apart from 1e-4, which 1.1 calls text, both agree."""
    for file in [*(ROOT / "rewards").glob("*.yaml"), *(ROOT / "pipelines").glob("*.yaml")]:
        text = file.read_text(encoding="utf-8")
        dotted = re.sub(r"(?<=[ \[])(\d)e-(\d+)", r"\1.0e-\2", text)
        assert repr(yaml.safe_load(dotted)) == repr(parse_yaml(text, file)), file.name


# ---- what changed ---------------------------------------------------------------------------------------------------


def test_changed_key_names_the_first_difference_and_skips_what_may_change() -> None:
    old = {"a": {"b": 1, "c": [1, 2]}, "d": None}
    assert changed_key(old, {"a": {"c": [1, 2], "b": 1}, "d": None}) is None
    assert changed_key(old, {"a": {"b": 2, "c": [1, 2]}, "d": None}) == "a.b (was 1, is 2)"
    assert changed_key(old, {"a": {"b": 2, "c": [1, 2]}, "d": None}, free=("a.b",)) is None
    assert changed_key(old, {"a": {"b": 1}, "d": None}) == "a.c (was [1, 2], is None)"
    assert changed_key(old, {"a": 3, "d": 4}, free=("a",)) == "d (was None, is 4)"


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {sum: {b: *a}}"])
def test_what_is_part_of_itself_is_refused_and_what_is_shared_is_read(text):
    with pytest.raises(UsageError, match=r"^F is not YAML: Circular reference"):
        parse_yaml(text, "F")
    assert parse_yaml("a: &a [1, .nan]\nb: *a\n1: *a", "F").keys() == {"a", "b", 1}
