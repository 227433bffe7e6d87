"""A test lies where the file lies that it tests, and test modules take nothing from each other."""

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "genalign"
OF_NO_ONE_FILE = ("contracts", "families", "bench", "faults")  # what holds everywhere, ...


def is_of_a_file(path):
    """Whether its name is that of a file of the package, or of one and what of it is tested behind an underscore."""
    words = path.stem.removeprefix("test_").split("_")
    return any((PACKAGE / path.with_name("_".join(words[:k]) + ".py")).is_file() for k in range(1, len(words) + 1))


def test_every_test_is_named_after_the_file_that_it_tests():
    tests = [path.relative_to(TESTS) for path in TESTS.rglob("test_*.py")]
    assert len(tests) > 80
    for path in tests:
        assert path.parts[0] in OF_NO_ONE_FILE or is_of_a_file(path), f"{path} tests no file of that name"


def test_no_test_imports_from_another():
    modules = {path.stem for path in TESTS.rglob("test_*.py")}
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests"):
                lent = modules.intersection([*node.module.split("."), *(alias.name for alias in node.names)])
                assert not lent or path.name == "__main__.py", f"{path} imports from {lent}; move it to tests/helpers"
