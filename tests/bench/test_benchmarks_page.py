"""docs/benchmarks.md has a section for every bench of `make bench`, and is written between its marks alone."""

from __future__ import annotations

from importlib import import_module

import pytest

from tests.bench.__main__ import PAGE, SECTIONS, as_markdown, put


def test_every_bench_has_a_section() -> None:
    page = PAGE.read_text()
    for name, (heading, bench) in SECTIONS.items():
        assert page.index(f"## {heading}\n") < page.index(f"<!-- {name} -->") < page.index(f"<!-- end of {name} -->")
        assert callable(import_module(f"tests.bench.{bench}").main)


def test_a_section_is_replaced_and_nothing_else() -> None:
    page = "# A\n\n<!-- one -->\nold\n<!-- end of one -->\n\n<!-- two -->\nkept\n<!-- end of two -->\n"
    assert put(page, "one", "new") == page.replace("old", "new")
    with pytest.raises(ValueError, match="no marks"):
        put(page, "three", "new")


def test_tables_stay_tables_and_other_lines_are_blocks() -> None:
    printed = "a step\n\n| of | s |\n|---|---|\n| x | 1 |\nratio 2\nof 3\n"
    assert (
        as_markdown(printed)
        == "```text\na step\n```\n\n| of | s |\n|---|---|\n| x | 1 |\n\n```text\nratio 2\nof 3\n```"
    )
