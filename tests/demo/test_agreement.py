"""Agreement against the tables of Krippendorff (2011), position bias against the binomial's own sum."""

from dataclasses import replace
from math import comb

import pytest

from genalign.demo.agreement import agreement, krippendorff_alpha, position_bias
from genalign.demo.votes import Candidate, Vote

# Four observers and twelve units, "." where one said nothing; section C of the paper gives alpha = 0.743.
OBSERVERS = [
    "123321412...",
    "1233224125.3",
    ".3332342251.",
    "12332441251.",
]


def test_alpha_is_that_of_the_paper():
    units = [[value for value in unit if value != "."] for unit in zip(*OBSERVERS, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_alpha_of_two_observers_is_that_of_the_paper():
    """Section B: twelve units, two values, alpha = 0.095 for the ten units of section A's binary data."""
    first, second = "0100000010", "1110010000"
    assert krippendorff_alpha([list(unit) for unit in zip(first, second, strict=True)]) == pytest.approx(
        0.095, abs=5e-4
    )


def test_alpha_of_nothing_and_of_one_value():
    assert krippendorff_alpha([["a"], []]) is None
    assert krippendorff_alpha([["a", "a"], ["a", "a"]]) == 1.0


def given(annotator, choice, pair=0, swapped=False):
    sides = [Candidate(f"{pair}a.png"), Candidate(f"{pair}b.png")]
    left, right = reversed(sides) if swapped else sides
    return Vote(f"prompt {pair}", left, right, choice, annotator, 1.0)


def test_sides_do_not_matter_for_agreement():
    votes = [
        given("ada", "left"),
        given("bob", "right", swapped=True),
        given("ada", "right", 1),
        given("bob", "left", 1),
    ]
    found = agreement(votes)
    assert (found.shared, found.equal) == (2, 0.5)


def test_the_same_sample_of_different_pairs_is_not_one_category():
    """All agree, now on the one and now on the other sample: agreement is perfect, and not by chance."""
    votes = [given(name, choice, pair) for pair, choice in enumerate(("left", "right")) for name in ("ada", "bob")]
    assert agreement(votes).alpha == 1.0
    assert agreement([*votes, given("ada", "left", 2), given("bob", "right", 2)]).alpha < 1


def test_a_skipped_pair_is_no_judgement_and_the_last_vote_counts():
    votes = [given("ada", "left"), given("bob", "skip")]
    assert agreement(votes).shared == 0
    assert agreement([*votes, given("bob", "right"), given("bob", "left")]).equal == 1.0


@pytest.mark.parametrize(("left", "right"), [(8, 2), (5, 5), (0, 6)])
def test_position_bias_is_the_binomials(left, right):
    votes = [given("ada", "left", n) for n in range(left)] + [given("ada", "right", n) for n in range(right)]
    n, far = left + right, abs(left - right)
    p = sum(comb(n, k) for k in range(n + 1) if abs(2 * k - n) >= far) / 2**n
    found = position_bias([*votes, given("ada", "tie"), replace(given("ada", "left"), seconds=None)])
    assert (found.left, found.decided) == (left, n)
    assert found.p == pytest.approx(p)


def test_no_vote_has_no_bias():
    assert position_bias([given("ada", "tie")]) is None
