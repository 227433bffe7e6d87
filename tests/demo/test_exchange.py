"""Votes as files: read by the package's own readers of preferences and of labelled seeds, and imported again."""

import json
import zipfile
from dataclasses import replace

import pytest
from PIL import Image

from genalign.data.preferences import find_pairs
from genalign.demo.exchange import export_pairs, export_seeds, import_file, import_pairs, unpack
from genalign.demo.votes import Votes
from genalign.method.pairs import read_pairs
from genalign.types import UsageError
from tests.demo.voting import DIGESTS, vote


@pytest.fixture
def votes(tmp_path):
    found = Votes(tmp_path / "votes")
    found.add(vote(found, "right", left=10, right=20))
    found.add(vote(found, "left", left=30, right=40, annotator="bob", facts={"background": "pink"}))
    found.add(vote(found, "tie", left=50, right=60))
    found.add(vote(found, "skip", left=70, right=80))
    yield found
    found.close()


def test_exported_pairs_are_read_as_a_preference_set(votes, tmp_path):
    assert export_pairs(votes, tmp_path / "out") == 2
    found = find_pairs(tmp_path / "out/pairs.jsonl")
    levels = [[round(float(row.mean()) * 255) for row in found.load([number])["image"]] for number in range(2)]
    assert levels == [[20, 10], [30, 40]]  # the preferred one first
    assert [pair.user for pair in found.pairs] == ["ada", "bob"]


def test_exported_media_are_the_samples_bit_for_bit(votes, tmp_path):
    export_pairs(votes, tmp_path / "out")
    row = json.loads((tmp_path / "out/pairs.jsonl").read_text().splitlines()[0])
    with Image.open(tmp_path / "out" / row["chosen"]) as image:
        assert image.getextrema() == ((20, 20),) * 3


def test_labelled_seeds_name_the_better_one_first(votes, tmp_path):
    assert export_seeds(votes, tmp_path / "seeds.jsonl", DIGESTS) == 2
    (first,), (second,) = ([pair] for pairs in read_pairs(tmp_path / "seeds.jsonl").values() for pair in pairs)
    assert (first.chosen_seed, first.rejected_seed) == (1020, 1010)
    assert (second.chosen_seed, second.rejected_seed) == (1030, 1040)
    assert {"model": first.model, "sampler": first.sampler} == DIGESTS


def test_votes_on_another_model_are_no_labelled_seeds_of_this_one(votes, tmp_path):
    with pytest.raises(UsageError, match=r"2 are about other samples"):
        export_seeds(votes, tmp_path / "seeds.jsonl", {**DIGESTS, "model": "other"})
    assert not (tmp_path / "seeds.jsonl").exists()


def test_what_was_exported_is_imported_as_it_was(votes, tmp_path):
    export_pairs(votes, tmp_path / "out")
    again = Votes(tmp_path / "again")
    assert import_pairs(again, tmp_path / "out/pairs.jsonl") == 2
    assert again.all() == [one for one in votes.all() if one.decided]
    assert import_pairs(again, tmp_path / "out/pairs.jsonl") == 0  # each vote once, however often it is imported


def test_pairs_of_others_are_imported(tmp_path):
    for level in (10, 20):
        Image.new("RGB", (8, 8), (level,) * 3).save(tmp_path / f"{level}.png")
    (tmp_path / "set.jsonl").write_text(json.dumps({"prompt": "a star", "chosen": "10.png", "rejected": "20.png"}))
    votes = Votes(tmp_path / "votes")
    assert import_pairs(votes, tmp_path / "set.jsonl", "crowd") == 1
    (found,) = votes.all()
    chosen, _ = found.decided
    assert (found.annotator, found.seconds, found.prompt) == ("crowd", None, "a star")
    with Image.open(votes.place(chosen)) as image:
        assert image.getextrema() == ((10, 10),) * 3


def test_nothing_to_export_is_said(tmp_path):
    votes = Votes(tmp_path / "votes")
    votes.add(vote(votes, "tie"))
    with pytest.raises(UsageError, match="vote first"):
        export_pairs(votes, tmp_path / "out")


def test_an_earlier_export_is_not_overwritten(votes, tmp_path):
    export_pairs(votes, tmp_path / "out")
    with pytest.raises(UsageError, match="already holds"):
        export_pairs(votes, tmp_path / "out")


def archive(path, entries):
    with zipfile.ZipFile(path, "w") as made:
        for name, text in entries.items():
            made.writestr(name, text)
    return path


def test_an_archive_is_unpacked_and_imported(votes, tmp_path):
    export_pairs(votes, tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "out.zip", "w") as made:
        for file in (tmp_path / "out").rglob("*.*"):
            made.write(file, file.relative_to(tmp_path))
    again = Votes(tmp_path / "again")
    assert import_pairs(again, unpack(tmp_path / "out.zip", tmp_path / "unpacked")) == 2


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"../pairs.jsonl": "{}"}, "leads elsewhere"),
        ({"/etc/pairs.jsonl": "{}"}, "leads elsewhere"),
        ({"pairs.jsonl": "{}", "run.py": "print()"}, "neither pairs.jsonl nor a medium"),
        ({"a.png": ""}, "should hold one pairs.jsonl, and has 0"),
    ],
)
def test_archives_that_are_refused(tmp_path, entries, sentence):
    with pytest.raises(UsageError, match=sentence):
        unpack(archive(tmp_path / "sent.zip", entries), tmp_path / "unpacked")
    assert not list(tmp_path.rglob("*.py"))


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "sent.zip").write_text("no archive")
    with pytest.raises(UsageError, match=r"sent\.zip is no \.zip that can be read"):
        unpack(tmp_path / "sent.zip", tmp_path / "unpacked")


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("genalign.demo.exchange.UNPACKED", 100)
    with pytest.raises(UsageError, match="send it in parts"):
        unpack(archive(tmp_path / "sent.zip", {"pairs.jsonl": "x" * 101}), tmp_path / "unpacked")


def test_two_equal_samples_are_no_pair(tmp_path):
    votes = Votes(tmp_path / "votes")
    one = vote(votes)
    votes.add(replace(one, right=one.left))
    with pytest.raises(UsageError, match="vote first"):
        export_pairs(votes, tmp_path / "out")


@pytest.mark.parametrize("name", ["pairs.exe", "pairs.png", "pairs", "pairs.zip.py"])
def test_a_file_of_another_kind_is_refused(votes, tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UsageError, match=r"is neither a \.zip of pairs nor a \.jsonl"):
        import_file(votes, tmp_path / name, "ada")


def test_rows_that_are_no_pairs_are_refused(votes, tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a star"}\n')
    with pytest.raises(UsageError, match="holds no pairs"):
        import_file(votes, tmp_path / "pairs.jsonl", "ada")
