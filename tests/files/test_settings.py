"""Settings of YAML files: what changed between two of them."""

from genalign.files.settings import changed_key


def test_changed_key_names_the_first_difference_and_skips_what_may_change() -> None:
    old = {"a": {"b": 1, "c": [1, 2]}, "d": None}
    assert changed_key(old, {"a": {"c": [1, 2], "b": 1}, "d": None}) is None
    assert changed_key(old, {"a": {"b": 2, "c": [1, 2]}, "d": None}) == "a.b (was 1, is 2)"
    assert changed_key(old, {"a": {"b": 2, "c": [1, 2]}, "d": None}, free=("a.b",)) is None
    assert changed_key(old, {"a": {"b": 1}, "d": None}) == "a.c (was [1, 2], is None)"
    assert changed_key(old, {"a": 3, "d": 4}, free=("a",)) == "d (was None, is 4)"
