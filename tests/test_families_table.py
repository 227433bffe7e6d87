"""The README's table of families is what the sweep finds; where test_families.py ran before, nothing is drawn twice."""

from tests.families_table import CLOSE, OPEN, README, committed, table
from tests.tiny_families import EDIT, MORE, REFUSED
from tests.tiny_pipelines import FAMILIES


def test_the_table_in_the_readme_is_the_sweeps() -> None:
    assert README.read_text().count(OPEN) == README.read_text().count(CLOSE) == 1
    assert committed() == table(), "write it anew: python -m tests.families_table"
    assert len(committed().splitlines()) == 2 + len(FAMILIES) + len(MORE) + len(EDIT) + len(REFUSED)
