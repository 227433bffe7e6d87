"""The tables of classes in docs/language.md, as the sweep finds them. `python -m tests.families.language_table`.

What a row says is proved in test_language_families.py, whose policies are asked here.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.helpers.language_policies import ALL, asked, rolled
from tests.helpers.tiny_readers import READERS

PAGE = Path(__file__).parents[2] / "docs" / "language.md"
OPEN, CLOSE = "<!-- written by python -m tests.families.language_table -->", "<!-- the end of that -->"
HEAD = "| class of transformers | reads | rows are written |\n|---|---|---|\n"
WORDS = {
    "shared": "in one batch, siblings' prompt computed once",
    "padded": "in one batch",
    "equal": "in batches of equal length",
    "alone": "one by one",
}


def rows() -> list[tuple[str, str, str]]:
    """(class, media that its processor read here, how its rows are sampled)."""
    found = []
    for name in ALL:
        media = sorted(READERS[name].media) if name in READERS else []
        of = rolled(name, media[0] if media else "text")[0]
        way = of.sampler.way(of._encode(asked(media[0] if media else "text"), 0))
        found.append((type(of.model).__name__, ", ".join(["text", *media]), WORDS[way]))
    return sorted(found)


def table() -> str:
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows())


def committed() -> str:
    """The table that stands on the page."""
    return PAGE.read_text().split(f"{OPEN}\n")[1].split(CLOSE)[0]


def main() -> None:
    text, written = PAGE.read_text(), f"{OPEN}\n{table()}{CLOSE}"
    PAGE.write_text(re.sub(f"{re.escape(OPEN)}.*?{re.escape(CLOSE)}", lambda _: written, text, flags=re.DOTALL))


if __name__ == "__main__":
    main()
