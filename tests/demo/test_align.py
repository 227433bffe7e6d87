"""The tab Align: a training of its own process on the votes, stopped, found again by another page, and resumed."""

import json
import re
import sqlite3
import time
from dataclasses import replace

import pytest

from genalign.demo.align import Alignment, progress
from genalign.demo.deck import BASE_PAIRS, Deck
from genalign.demo.draw import drawing
from genalign.demo.exchange import PAIRS
from genalign.demo.models import Models
from genalign.demo.votes import Vote, Votes
from genalign.demo.works import Work
from genalign.method.pairs import read_pairs
from genalign.training.metrics import METRICS, read_rows
from genalign.types import UsageError
from tests.demo.conftest import SMALL
from tests.helpers.tiny_language import save_tiny_language


def wait(alignment, name, wanted):
    for _ in range(1200):
        found = alignment.state(name)
        if wanted(found):
            return found
        assert found.state != "stopped", (found.run / "train.log").read_text()
        time.sleep(0.1)
    raise AssertionError((found.run / "train.log").read_text())


@pytest.mark.timeout(600)
def test_votes_train_a_run_which_is_stopped_and_resumed_by_another_page(models, deck, votes, tmp_path):
    models = Models("image-d3po", SMALL, tmp_path / "runs")
    for choice in ("left", "right", "tie", "left", "left"):
        pair = deck.take(BASE_PAIRS)
        votes.add(Vote(pair.prompt.text, *pair.samples, choice, "ada", 1.0, dict(pair.prompt.facts)))
    first = Alignment(models, votes)
    run = first.start("d3po", 3)
    pairs = [pair for found in read_pairs(run / PAIRS).values() for pair in found]
    wanted = [vote.decided for vote in votes.all() if vote.decided]
    assert [(one.chosen_seed, one.rejected_seed) for one in pairs] == [(a.seed, b.seed) for a, b in wanted]
    with pytest.raises(UsageError, match="still trains"):
        first.start("d3po", 3)
    wait(first, run.name, lambda found: found.step >= 1)
    during = [votes.add(replace(one, at=2.0 + k)) for k, one in enumerate(votes.all())]  # a page beside the training
    again = Alignment(models, votes)  # the page after a restart of its server
    assert again.state(run.name).state == "training"
    again.stop(run.name)
    stopped = first.state(run.name)
    assert (stopped.state, stopped.steps) == ("stopped", 3)
    assert 1 <= stopped.step <= 3
    assert run.name not in models.names()
    again.resume(run.name)
    wait(again, run.name, lambda found: found.state == "finished")
    assert [row["step"] for row in read_rows(run / METRICS)] == [1, 2, 3]
    with sqlite3.connect(votes.path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert votes.all()[5:] == during
    assert run.name in models.names()
    html = progress(again.state(run.name))
    assert re.search(r"finished(?: early, at|,) step \d of 3", html)
    assert re.search(r"<svg.*rewards/accuracies", html, re.DOTALL)
    assert '<img alt="base beside tuned at the same seeds"' in html
    assert json.loads((run / "eval.json").read_text())["prompts"] == 4
    for do, sentence in ((again.stop, "nothing to stop"), (again.resume, "only a stopped run goes on")):
        with pytest.raises(UsageError, match=sentence):
            do(run.name)


@pytest.mark.timeout(300)
def test_a_language_model_is_aligned_by_votes_on_its_texts(tmp_path):
    model = save_tiny_language(tmp_path / "model")
    small = [f"policy.model={model}", "policy.system=null", "policy.max_new_tokens=6", "data.prompts_per_step=2"]
    models, votes = Models("text-dpo", small, tmp_path / "runs"), Votes(tmp_path / "votes")
    deck = Deck(models, votes, seed=0)
    for choice in ("left", "right", "left"):
        pair = deck.take(BASE_PAIRS)
        assert votes.place(pair.samples[0]).read_text() != votes.place(pair.samples[1]).read_text()
        votes.add(Vote(pair.prompt.text, *pair.samples, choice, "ada", 1.0, dict(pair.prompt.facts)))
    alignment = Alignment(models, votes)
    assert alignment.methods() == ["dpo"]
    run = alignment.start("dpo", 2)
    wait(alignment, run.name, lambda found: found.state == "finished")
    assert [row["step"] for row in read_rows(run / METRICS)] == [1, 2]
    assert "<blockquote>" in list(drawing(models, Work(), run.name, pair.prompt.text, 0, 1, 0, 0))[-1]


def test_without_votes_nothing_starts_and_nothing_is_left(models, votes):
    before = sorted(models.runs.iterdir())
    with pytest.raises(UsageError, match="vote on samples of this model first"):
        Alignment(models, votes).start("d3po", 2)
    assert sorted(models.runs.iterdir()) == before


def test_votes_whose_digest_no_longer_fits_are_refused(models, deck, votes):
    pair = deck.take(BASE_PAIRS)
    sides = (replace(one, model="0" * 64) for one in pair.samples)
    votes.add(Vote(pair.prompt.text, *sides, "left", "ada", 1.0))
    with pytest.raises(UsageError, match=r"\(1 are about other samples\)"):
        Alignment(models, votes).start("d3po", 2)


@pytest.mark.parametrize(("method", "steps"), [("d3po", 0), ("d3po", 10**6), ("grpo", 2), ("", 2)])
def test_a_training_that_cannot_be_is_refused(models, votes, method, steps):
    with pytest.raises(UsageError):
        Alignment(models, votes).start(method, steps)


@pytest.mark.parametrize("name", ["../x", "", "tuned-run"])
def test_what_is_no_training_of_a_page_is_neither_stopped_nor_resumed(models, votes, name):
    for do in (Alignment(models, votes).stop, Alignment(models, votes).resume):
        with pytest.raises(UsageError, match="there is no training"):
            do(name)
