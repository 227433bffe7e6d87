"""Groups of four ranked: kept as the votes of their pairs, all or none, which export, agreement and training read."""

import re
import sqlite3

import pytest

from genalign.data.preferences import find_pairs
from genalign.demo.agreement import agreement, best_places, position_bias
from genalign.demo.deck import BASE_FOURS, BASE_PAIRS, FOUND_FOURS, GROWN_FOURS, Deck
from genalign.demo.exchange import export_pairs, export_seeds, import_pairs
from genalign.demo.found import Found
from genalign.demo.ranking import checked_ranks, ranks_of, samples_of
from genalign.demo.vote import SHARED_EVERY, Booth
from genalign.demo.votes import DATABASE, Votes
from genalign.method.pairs import read_pairs
from genalign.types import UsageError
from tests.demo.conftest import RUN
from tests.demo.voting import DIGESTS, ranking, vote


def token(html):
    return re.search(r'data-pair="(\w+)"', html)[1]


def levels(pairs):
    """(better, worse) by the seeds of tests.demo.voting."""
    return [(pair.chosen_seed - 1000, pair.rejected_seed - 1000) for pair in pairs]


def test_a_ranking_is_the_votes_of_its_pairs(votes):
    given = ranking(votes, [2, 1, 4, 2])
    said = [(one.left.seed - 1000, one.choice, one.right.seed - 1000) for one in given]
    assert said == [
        (10, "right", 20), (10, "left", 30), (10, "tie", 40), (20, "left", 30), (20, "left", 40), (30, "right", 40),
    ]  # fmt: skip
    assert len({one.ranking for one in given}) == 1
    assert ranks_of(given) == [2, 1, 4, 2]
    assert [one.seed for one in samples_of(given)] == [1010, 1020, 1030, 1040]


@pytest.mark.parametrize(
    "ranks", [[1, 2, 3], [0, 1, 2, 3], [1, 2, 3, 5], [1, 2, 3, "4"], [1, 2, 3, True], None, "1234"]
)
def test_places_that_are_no_ranking_are_refused(ranks):
    with pytest.raises(UsageError, match="a place from 1 to 4"):
        checked_ranks(ranks, 4)


def test_a_ranking_is_stored_counted_and_taken_back_as_one(votes):
    first = votes.add(vote(votes))
    stored = votes.add_together(ranking(votes, [1, 2, 3, 4]))
    assert votes.all() == [first, *stored]
    assert votes.count() == votes.count("ada") == 2
    assert votes.undo("ada") == stored
    assert votes.all() == [first]


def test_half_a_ranking_is_never_stored(votes):
    """The last of its rows breaks a rule of the table: then no row is there."""
    from dataclasses import replace

    given = ranking(votes, [1, 2, 3, 4])
    with sqlite3.connect(votes.path) as other:
        other.execute(f"CREATE TRIGGER stop BEFORE INSERT ON votes WHEN NEW.pair = '{given[-1].pair}' "
                      "BEGIN SELECT RAISE(ABORT, 'no'); END")  # fmt: skip
    with pytest.raises(Exception, match="no"):
        votes.add_together([replace(one, at=1.0) for one in given])
    assert votes.all() == []


def test_a_file_of_the_first_version_goes_on(tmp_path):
    """Its table had no column of rankings; votes of it stay as they were."""
    votes = Votes(tmp_path)
    given = votes.add(vote(votes, "right"))
    votes.close()
    with sqlite3.connect(tmp_path / DATABASE) as old:
        old.execute("ALTER TABLE votes DROP COLUMN ranking")
        old.execute("PRAGMA user_version=1")
    again = Votes(tmp_path)
    assert again.all() == [given]
    again.add_together(ranking(again, [1, 1, 1, 2]))
    assert again.count() == 2


def test_training_reads_its_pairs_as_labelled_seeds_without_ties(votes, tmp_path):
    votes.add_together(ranking(votes, [2, 1, 4, 2]))
    assert export_seeds(votes, tmp_path / "seeds.jsonl", DIGESTS) == 5
    (pairs,) = read_pairs(tmp_path / "seeds.jsonl").values()
    assert levels(pairs) == [(20, 10), (10, 30), (20, 30), (20, 40), (40, 30)]


def test_its_pairs_are_exported_and_imported_as_they_were(votes, tmp_path):
    stored = votes.add_together(ranking(votes, [3, 1, 2, 4]))
    assert export_pairs(votes, tmp_path / "out") == 6
    assert len(find_pairs(tmp_path / "out/pairs.jsonl").pairs) == 6
    again = Votes(tmp_path / "again")
    assert import_pairs(again, tmp_path / "out/pairs.jsonl") == 1  # one vote
    assert again.all() == stored


def test_agreement_is_that_of_its_pairs_and_sides_of_pairs_alone(votes):
    ada, bob = ranking(votes, [1, 2, 3, 4]), ranking(votes, [1, 2, 4, 3], annotator="bob")
    found = agreement([*ada, *bob])
    assert (found.shared, found.equal) == (6, pytest.approx(5 / 6))
    assert position_bias([*ada, *bob]) is None
    assert position_bias([*ada, vote(votes, "right")]).decided == 1


def test_where_the_best_one_stood_is_counted(votes):
    given = [([1, 2, 3, 4], "a"), ([4, 3, 2, 1], "b"), ([2, 3, 4, 1], "c"), ([1, 1, 3, 4], "d"), (None, "e")]
    assert best_places(one for ranks, name in given for one in ranking(votes, ranks, annotator=name)) == {0: 1, 3: 2}


# ---- on the page ----------------------------------------------------------------------------------------------------


def test_four_siblings_of_one_prompt_are_ranked(models, deck, votes):
    booth = Booth(deck, votes)
    html = booth.show("page", "ada", BASE_FOURS)
    assert re.findall(r'data-choice="place" data-keys="(\d)"', html) == ["1", "2", "3", "4"]
    shown = booth._shown["page"]
    assert len({one.file for one in shown.samples}) == 4
    assert len({one.seed >> 16 for one in shown.samples}) == 1
    booth.vote("page", "ada", BASE_FOURS, "rank", token(html), [3, 1, 2, 4])
    stored = votes.all()
    assert samples_of(stored) == list(shown.samples)
    assert ranks_of(stored) == [3, 1, 2, 4]
    assert {one.prompt for one in stored} == {shown.prompt.text}
    with models.drawing("base") as source:
        digests = source.policy.digest()
    assert export_seeds(votes, votes.folder / "seeds.jsonl", digests) == 6


def test_a_ranking_that_is_taken_back_stands_as_it_stood(deck, votes):
    booth = Booth(deck, votes)
    html = booth.show("page", "ada", BASE_FOURS)
    before = booth._shown["page"]
    booth.vote("page", "ada", BASE_FOURS, "tie", token(html))
    assert {one.choice for one in votes.all()} == {"tie"}
    html = booth.undo("page", "ada", BASE_FOURS)
    assert "taken back: ranking" in html
    assert booth._shown["page"].samples == before.samples
    booth.vote("page", "ada", BASE_FOURS, "skip", token(html))
    assert {one.choice for one in votes.all()} == {"skip"}


@pytest.mark.parametrize("choice", ["left", "right", "both"])
def test_a_choice_between_two_is_none_between_four(deck, votes, choice):
    booth = Booth(deck, votes)
    html = booth.show("page", "ada", BASE_FOURS)
    with pytest.raises(UsageError, match="choose one of rank, tie, skip"):
        booth.vote("page", "ada", BASE_FOURS, choice, token(html))
    with pytest.raises(UsageError, match="rank them again"):
        booth.vote("page", "ada", BASE_FOURS, "rank", token(html), [1, 2])
    assert votes.count() == 0


def test_rankings_of_others_are_ranked_and_pairs_of_others_are_compared(deck, votes):
    booth = Booth(deck, votes)
    for kind in (BASE_FOURS, BASE_PAIRS):
        html = booth.show("one", "ada", kind)
        booth.vote("one", "ada", kind, "tie", token(html))
    for kind, size in ((BASE_FOURS, 4), (BASE_PAIRS, 2)):
        html = booth.show(kind, "bob", kind)
        for _ in range(SHARED_EVERY - 1):
            html = booth.vote(kind, "bob", kind, "tie", token(html))
        files = {one.file for one in booth._shown[kind].samples}
        given = next(rows for rows in (votes.all()[:6], votes.all()[6:7]) if len(samples_of(rows)) == size)
        assert files == {one.file for one in samples_of(given)}


def test_a_runs_fours_are_drawn_by_the_run(models, deck):
    group = deck.take(f"{GROWN_FOURS} {RUN}")
    assert {one.source for one in group.samples} == {RUN}
    assert len({one.model for one in group.samples}) == 1


def test_fours_of_a_folder_need_four_pictures_of_a_prompt(models, votes, tmp_path):
    from PIL import Image

    files = []
    for level in range(5):
        Image.new("RGB", (8, 8), (level,) * 3).save(tmp_path / f"{level}.png")
        files.append(Found(tmp_path / f"{level}.png", "a star", level))
    deck = Deck(models, votes, seed=0, pictures={"a star": files, "a cat": files[:2]})
    group = deck.take(FOUND_FOURS)
    assert (group.prompt.text, len({one.seed for one in group.samples})) == ("a star", 4)
    assert FOUND_FOURS not in Deck(models, votes, seed=0, pictures={"a cat": files[:3]}).kinds()
