"""The tab Vote: pairs that training can draw again, blind, each vote on the pair that was on screen."""

import re
from collections import Counter

import pytest
import torch
from PIL import Image

from genalign.demo.deck import BASE_FOURS, BASE_PAIRS, GROWN_PAIRS, MIXED_PAIRS, Deck
from genalign.demo.vote import SHARED_EVERY, Booth, annotator_name
from genalign.demo.votes import Vote, Votes
from genalign.types import UsageError
from tests.demo.conftest import RUN
from tests.demo.voting import candidate


@pytest.fixture
def booth(deck, votes):
    return Booth(deck, votes)


def token(html):
    return re.search(r'data-pair="(\w+)"', html)[1]


def levels(votes, candidate):
    with Image.open(votes.place(candidate)) as image:
        return torch.tensor(list(image.convert("RGB").tobytes()))


def test_a_pair_is_what_training_draws_again_from_its_seeds(models, deck, votes):
    pair = deck.take(BASE_PAIRS)
    with models.drawing("base") as source:
        policy = source.policy
        with policy.weights("reference"):
            again = policy.rollout([pair.prompt], 2, [pair.samples[0].seed, pair.samples[1].seed]).media["image"].data
        assert (pair.samples[0].model, pair.samples[0].sampler) == tuple(
            policy.digest()[key] for key in ("model", "sampler")
        )
    for row, sample in enumerate(pair.samples):
        drawn = (again[row].float().clamp(0, 1) * 255).round().permute(1, 2, 0).flatten()
        assert (drawn - levels(votes, sample)).abs().max() <= 1  # of another batch, in bfloat16


def test_samples_of_a_pair_are_siblings(deck):
    pair = deck.take(BASE_PAIRS)
    assert pair.samples[0].seed >> 16 == pair.samples[1].seed >> 16
    assert pair.samples[0].file != pair.samples[1].file


def test_a_runs_pairs_are_drawn_by_another_model(models, deck):
    base, grown = deck.take(BASE_PAIRS), deck.take(f"{GROWN_PAIRS} {RUN}")
    assert grown.samples[0].model == grown.samples[1].model != base.samples[0].model
    assert grown.samples[0].source == RUN


def test_base_against_run_is_one_seed_of_both(deck, votes):
    pair = deck.take(f"{MIXED_PAIRS} {RUN}")
    assert pair.samples[0].seed == pair.samples[1].seed
    assert (pair.samples[0].source, pair.samples[1].source) == ("", RUN)
    assert pair.samples[0].model != pair.samples[1].model


def test_pairs_of_nothing_are_refused(deck):
    for kind in ("two of ../elsewhere", "base against nothing", "anything"):
        with pytest.raises(UsageError, match="there are no pairs"):
            deck.take(kind)


def test_a_vote_is_stored_on_the_pair_that_was_shown(booth, votes):
    html = booth.show("page", "ada", BASE_PAIRS)
    shown = booth._shown["page"]
    after = booth.vote("page", "ada", BASE_PAIRS, "right", token(html))
    (found,) = votes.all()
    assert found.decided == shown.samples[::-1]
    assert (found.prompt, found.annotator) == (shown.prompt.text, "ada")
    assert found.seconds >= 0
    assert dict(found.facts) == dict(shown.prompt.facts)
    assert token(after) != token(html)
    assert '<b class="mine">1</b> by you, 1 in all' in after


def test_a_key_pressed_twice_votes_once(booth, votes):
    first = token(booth.show("page", "ada", BASE_PAIRS))
    booth.vote("page", "ada", BASE_PAIRS, "left", first)
    again = booth.vote("page", "ada", BASE_PAIRS, "left", first)
    assert votes.count() == 1
    assert "look again" in again


def test_what_is_shown_stays_until_somebody_votes_or_asks_for_something_else(booth):
    """A list that is opened and closed again asks for the same once more."""
    first = token(booth.show("page", "ada", BASE_PAIRS))
    assert token(booth.show("page", "ada", BASE_PAIRS)) == first
    other = token(booth.show("page", "bob", BASE_PAIRS))
    assert other != first
    fours = token(booth.show("page", "bob", BASE_FOURS))
    assert fours != other
    booth.close("page")
    assert token(booth.show("page", "bob", BASE_FOURS)) != fours


def test_the_page_does_not_tell_the_sides_apart(booth):
    html = booth.show("page", "ada", f"{MIXED_PAIRS} {RUN}")
    assert RUN not in html
    assert not re.search(r"\bbase\b(?!64)", html)


def test_sides_are_shuffled(booth):
    kind, sides = f"{MIXED_PAIRS} {RUN}", Counter()
    for _ in range(24):
        html = booth.show("page", "ada", kind)
        sides[booth._shown["page"].samples[0].source] += 1
        booth.vote("page", "ada", kind, "tie", token(html))
    assert set(sides) == {"", RUN}  # by chance one in eight million runs of this test has one side only


def test_undo_shows_the_same_pair_on_the_same_sides(booth, votes):
    html = booth.show("page", "ada", BASE_PAIRS)
    before = booth._shown["page"]
    booth.vote("page", "ada", BASE_PAIRS, "left", token(html))
    html = booth.undo("page", "ada", BASE_PAIRS)
    after = booth._shown["page"]
    assert after.samples == before.samples
    assert votes.count() == 0
    booth.vote("page", "ada", BASE_PAIRS, "right", token(html))
    assert [vote.choice for vote in votes.all()] == ["right"]
    assert "no vote to take back" in booth.undo("page", "bob", BASE_PAIRS)


def test_some_pairs_are_shown_to_several_annotators(booth, votes):
    for page, name, count in (("one", "ada", 3), ("two", "bob", 2 * SHARED_EVERY)):
        html = booth.show(page, name, BASE_PAIRS)
        for _ in range(count):
            html = booth.vote(page, name, BASE_PAIRS, "left", token(html))
    judged = Counter(vote.pair for vote in votes.all())
    assert sum(count == 2 for count in judged.values()) == 2
    assert "2 pairs judged by several" in booth.figures()


def test_a_vote_that_is_none_is_refused(booth, votes):
    first = token(booth.show("page", "ada", BASE_PAIRS))
    with pytest.raises(UsageError, match="'both' is no vote"):
        booth.vote("page", "ada", BASE_PAIRS, "both", first)
    assert votes.count() == 0


@pytest.mark.parametrize("name", ["", "   ", "x" * 41])
def test_a_name_that_is_none_is_refused(booth, name):
    with pytest.raises(UsageError, match="your name has"):
        booth.show("page", name, BASE_PAIRS)


def test_a_name_is_kept_without_its_spaces():
    assert annotator_name("  Ada \n Lovelace ") == "Ada Lovelace"


def test_html_in_a_prompt_is_text_on_the_ballot(models, votes, booth):
    from dataclasses import replace

    html = booth.show("page", "ada", BASE_PAIRS)
    booth.vote("page", "ada", BASE_PAIRS, "left", token(html))
    (given,) = votes.all()
    votes.add(replace(given, prompt="<script>alert(1)</script>${1}", annotator="<b>bob</b>", at=2.0))
    html = booth.undo("other", "<b>bob</b>", BASE_PAIRS)
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_a_deck_of_a_seed_is_the_same_again(models, votes, tmp_path):
    first, again = (Deck(models, votes, seed=3).take(BASE_PAIRS) for _ in range(2))
    assert first == again != Deck(models, votes, seed=4).take(BASE_PAIRS)


def test_a_missing_sample_is_a_sentence(booth, votes):
    from genalign.types import GenalignError

    html = booth.show("page", "ada", BASE_PAIRS)
    booth.vote("page", "ada", BASE_PAIRS, "left", token(html))
    votes.place(votes.all()[0].left).unlink()
    with pytest.raises(GenalignError, match="is missing from the folder of votes"):
        booth.undo("page", "ada", BASE_PAIRS)


def test_votes_by_two_pages_are_all_kept(booth, tmp_path, votes):
    import threading

    def page(name):
        html = booth.show(name, name, BASE_PAIRS)
        for _ in range(10):
            html = booth.vote(name, name, BASE_PAIRS, "left", token(html))

    threads = [threading.Thread(target=page, args=(name,)) for name in ("ada", "bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [Votes(votes.folder).count(name) for name in ("ada", "bob")] == [10, 10]


def test_html_in_names_is_text_in_what_the_votes_say(booth, votes):
    base, tuned = candidate(votes, 10), candidate(votes, 20, source="<script>run</script>")
    votes.add(Vote("a star", base, tuned, "right", "<b>ada</b>", 1.0))
    html = booth.figures()
    assert "<script" not in html
    assert "&lt;script&gt;run&lt;/script&gt; preferred to the base in 1 of 1" in html
