"""The store of votes: confirmed is kept, two may write at once, a foreign file is refused in a sentence."""

import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from genalign.demo.votes import DATABASE, Votes
from genalign.types import GenalignError, UsageError
from tests.contracts.tree import ROOT
from tests.demo.voting import candidate, picture, vote


@pytest.fixture
def votes(tmp_path):
    found = Votes(tmp_path / "votes")
    yield found
    found.close()


def voter(folder, annotator, count):
    words = [sys.executable, "-m", "tests.demo.voting", str(folder), annotator, str(count)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": "."})


def test_a_vote_comes_back_as_it_was_given(votes):
    given = votes.add(vote(votes, "right", facts={"background": "pink"}))
    assert votes.all() == [given]
    assert given.at > 1.7e9
    chosen, rejected = given.decided
    assert (chosen.seed, rejected.seed) == (1020, 1010)


@pytest.mark.parametrize("choice", ["tie", "skip"])
def test_a_tie_and_a_skipped_pair_prefer_nothing(votes, choice):
    assert vote(votes, choice).decided is None


def test_a_sample_is_named_by_its_content(votes):
    from PIL import Image

    first, again, other = (votes.keep(picture(level), 0) for level in (10, 10, 11))
    assert first == again != other
    with Image.open(votes.media / first) as image:
        assert image.getextrema() == ((10, 10),) * 3
    assert sorted(path.name for path in votes.media.iterdir()) == sorted({first, other})


def test_the_pair_is_the_same_on_either_side(votes):
    one, other = vote(votes, left=10, right=20), vote(votes, left=20, right=10)
    assert one.pair == other.pair != vote(votes, left=20, right=10, prompt="one star").pair


def test_undo_takes_back_the_annotators_own_last_vote(votes):
    first, _, mine = (votes.add(vote(votes, annotator=name)) for name in ("ada", "bob", "ada"))
    assert votes.undo("ada") == [mine]
    assert votes.undo("ada") == [first]
    assert votes.undo("ada") == []
    assert votes.count() == votes.count("bob") == 1


def test_an_imported_vote_is_not_undone(votes):
    votes.add(vote(votes, seconds=None))
    assert votes.undo("ada") == []


def test_a_pair_that_others_judged_is_offered_once(votes):
    given = votes.add(vote(votes, annotator="ada"))
    assert votes.unseen("ada") == []
    assert votes.unseen("bob") == [given]
    votes.add(vote(votes, annotator="bob", left=20, right=10))
    assert votes.unseen("bob") == []


def test_no_confirmed_vote_is_lost_by_kill_9(tmp_path):
    process = voter(tmp_path, "ada", 100_000)
    seen = [process.stdout.readline() for _ in range(50)]
    process.send_signal(signal.SIGKILL)
    seen += process.stdout.readlines()
    process.wait()
    confirmed = {int(line) for line in seen if line.endswith("\n")}
    assert len(confirmed) >= 50
    kept = {int(one.prompt.removeprefix("prompt ")) for one in Votes(tmp_path).all()}
    assert confirmed <= kept <= confirmed | {max(confirmed) + 1}  # one may have been stored and not yet confirmed


def test_two_writers_at_once_store_every_vote(tmp_path):
    processes = [voter(tmp_path, name, 150) for name in ("ada", "bob")]
    assert [process.communicate()[0].count("\n") for process in processes] == [150, 150]
    votes = Votes(tmp_path)
    assert [votes.count(name) for name in ("ada", "bob")] == [150, 150]
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_another_file_in_the_place_of_the_votes_is_refused(tmp_path):
    (tmp_path / DATABASE).write_text("this is no database, and long enough to be read as a header" * 20)
    with pytest.raises(GenalignError, match=r"votes\.sqlite is no file of votes"):
        Votes(tmp_path)


def test_votes_of_a_later_version_are_refused(tmp_path):
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        connection.execute("PRAGMA user_version=9")
    with pytest.raises(UsageError, match="of version 9"):
        Votes(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="choose another folder with --votes"):
        Votes(tmp_path / "file")


def test_a_name_that_leads_out_of_the_folder_is_refused(votes):
    from dataclasses import replace

    with pytest.raises(UsageError, match="is not a file below"):
        votes.place(replace(candidate(votes, 10), file="../votes.sqlite"))
