"""A test lies where the file lies that it tests, and test modules take nothing from each other."""

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "genalign"
OF_NO_ONE_FILE = ("contracts", "families", "bench")  # what holds everywhere, pipelines of diffusers, costs


def test_every_test_is_named_after_the_file_that_it_tests():
    tests = [path.relative_to(TESTS) for path in TESTS.rglob("test_*.py")]
    assert len(tests) > 80
    for path in tests:
        tested = PACKAGE / path.with_name(path.name.removeprefix("test_"))
        assert path.parts[0] in OF_NO_ONE_FILE or tested.is_file(), f"{path} tests no file of that name"


def test_no_test_imports_from_another():
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests"):
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
                lent = any((path.parent / f"{name}.py").is_file() for name in names if name.startswith("test_"))
                assert not lent or path.name == "__main__.py", f"{path} imports {names}; move it to tests/helpers"
