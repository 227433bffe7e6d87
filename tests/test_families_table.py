"""The documentation's table of families is the sweep's; where test_families.py ran before, nothing is drawn twice."""

from tests.families_table import CLOSE, OPEN, PAGE, committed, table
from tests.tiny_families import EDIT, MORE, REFUSED
from tests.tiny_pipelines import FAMILIES


def test_the_table_in_the_docs_is_the_sweeps() -> None:
    assert PAGE.read_text().count(OPEN) == PAGE.read_text().count(CLOSE) == 1
    assert committed() == table(), "write it anew: python -m tests.families_table"
    assert len(committed().splitlines()) == 2 + len(FAMILIES) + len(MORE) + len(EDIT) + len(REFUSED)
