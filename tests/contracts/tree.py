"""docs/tree.md: every file of the package and what it is. `python -m tests.contracts.tree` writes it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "genalign"
PAGE = ROOT / "docs" / "tree.md"
HEAD = """# Files

Every file of the package, with the first sentence of its docstring. Written by `python -m tests.contracts.tree`.
"""
OTHER = {"py.typed": "says that the package is typed (PEP 561)"}


def files() -> list[Path]:
    """Every file of the package, relative to the root; what Python compiled is left out."""
    found = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return sorted(path.relative_to(ROOT) for path in found)


def sentence(path: Path) -> str:
    """The first sentence of a module's docstring, as one line of a Markdown table.

    Raises:
        ValueError: it has none.
    """
    if path.suffix != ".py":
        return OTHER.get(path.name, "data")
    if not path.read_text().strip():
        return "empty"
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    if not docstring:
        raise ValueError(f"{path} has no docstring; write one sentence that says what the file is for")
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    first = re.split(r"(?<=[^.][.])\s", paragraph)[0].rstrip(".")
    return first.replace("|", "\\|")


def tree() -> str:
    """The page: one table a folder, the package's own files first."""
    folders: dict[Path, list[Path]] = {}
    for path in files():
        folders.setdefault(path.parent, []).append(path)
    sections = [HEAD]
    for folder, inside in sorted(folders.items()):
        rows = "".join(f"| `{path.name}` | {sentence(ROOT / path)} |\n" for path in inside)
        sections.append(f"## {folder.as_posix()}/\n\n| file | what it is |\n|---|---|\n{rows}")
    return "\n".join(sections)


if __name__ == "__main__":
    PAGE.write_text(tree())
