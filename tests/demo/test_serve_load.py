"""Fifty pages draw at once: exactly so many wait as the queue holds, the others are refused, and no more samples are
alive at a time than one page asks for. And a server that is killed while somebody votes."""

import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from genalign.demo.deck import BASE_FOURS, BASE_PAIRS
from genalign.demo.votes import Votes
from tests.contracts.tree import ROOT
from tests.demo.conftest import SMALL

gradio = pytest.importorskip("gradio", reason="gradio is not installed")

from genalign.demo import draw as draw_module  # noqa: E402
from genalign.demo.serve import WAITING  # noqa: E402
from tests.helpers.pages import number_of, served  # noqa: E402

PAGES, EACH = 50, 2  # pages, and samples that each of them asks for
PATIENCE = 300


class Gate:
    """Stands in for `sample`: lets nobody through before it is opened, and counts the samples that are alive."""

    def __init__(self, sample):
        self.sample, self.reached, self.opened = sample, threading.Event(), threading.Event()
        self.alive = self.peak = self.drawn = 0

    def __call__(self, *args, **settings):
        self.reached.set()
        assert self.opened.wait(PATIENCE)
        for one in self.sample(*args, **settings):
            self.drawn += 1
            self.alive += 1
            self.peak = max(self.peak, self.alive)
            weakref.finalize(one.media, self.gone)
            yield one

    def gone(self):
        self.alive -= 1


def test_of_fifty_draws_at_once_each_is_answered_or_refused_and_memory_is_bounded(tmp_path, monkeypatch):
    page, address = served(tmp_path)
    number, drawing = number_of(address, "go"), ["base", "a bus above a rocket", 0, EACH, 0, 0, False]

    def ask(k):
        body = {"data": drawing, "fn_index": number, "session_hash": f"page{k}"}
        return httpx.post(f"{address}/gradio_api/queue/join", json=body, timeout=PATIENCE)

    def answer(k):
        with httpx.stream("GET", f"{address}/gradio_api/queue/data?session_hash=page{k}", timeout=PATIENCE) as events:
            return "".join(events.iter_text())

    try:
        assert ask("warm").status_code == 200
        assert '"success":true' in answer("warm")  # the model is loaded
        gate = Gate(draw_module.sample)
        monkeypatch.setattr(draw_module, "sample", gate)
        assert ask(0).status_code == 200
        assert gate.reached.wait(PATIENCE)  # one is drawn, and stands still
        with ThreadPoolExecutor(PAGES) as pool:
            codes = list(pool.map(lambda k: ask(k).status_code, range(1, PAGES)))
        assert (codes.count(200), codes.count(503)) == (WAITING, PAGES - 1 - WAITING)
        gate.opened.set()
        taken = [0, *(k for k, code in enumerate(codes, start=1) if code == 200)]
        answers = [answer(k) for k in taken]
        assert all('"success":true' in text and "data:image/png;base64," in text for text in answers)
        assert gate.drawn == EACH * (WAITING + 1)
        assert gate.peak == EACH  # those of one page, however many wait
        assert gate.alive == 0
    finally:
        page.close()


class Voter:
    """A page of a server in a process of its own, as its script talks to it."""

    def __init__(self, folder):
        words = [sys.executable, "-m", "genalign", "demo", "image-d3po", *SMALL, "--port", "0"]
        words += ["--runs", str(folder / "runs"), "--votes", str(folder / "votes")]
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        line = next((line for line in self.process.stdout if line.startswith("genalign demo at ")), "")
        assert line, "the page did not start"
        self.address = line.split()[3].rstrip("/")

    def call(self, name, data, event=None):
        body = {"data": data, "fn_index": number_of(self.address, name), "session_hash": "page", "event_data": event}
        answer = httpx.post(f"{self.address}/gradio_api/run/predict", json=body, timeout=PATIENCE)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"][0]

    def vote(self, html, kind, choice, ranks=None):
        (token,) = re.findall(r'data-pair="(\w+)"', html)
        return self.call("vote", ["ada", kind], {"choice": choice, "pair": token, "ranks": ranks})


@pytest.mark.timeout(600)
def test_a_server_that_is_killed_keeps_every_vote_that_its_page_confirmed(tmp_path):
    first = Voter(tmp_path)
    try:
        html, confirmed = first.call("show", ["ada", BASE_PAIRS]), 0
        for choice in ("left", "right", "tie"):
            html = first.vote(html, BASE_PAIRS, choice)
            confirmed += f"stored: {choice}" in html
        html = first.call("show", ["ada", BASE_FOURS])
        confirmed += "stored: ranking" in first.vote(html, BASE_FOURS, "rank", [2, 1, 3, 4])
    finally:
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
    assert confirmed == 4
    votes = Votes(tmp_path / "votes")
    assert [vote.choice for vote in votes.all()[:3]] == ["left", "right", "tie"]
    assert votes.count("ada") == 4
    assert all(votes.place(side).is_file() for vote in votes.all() for side in (vote.left, vote.right))
