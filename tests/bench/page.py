"""How long the page of `genalign demo` lets its user wait, in a real browser: for the first picture, and for a vote.

`python -m tests.bench.page` stores 10,000 votes (`--stored`), starts the page of `image-d3po` on them in a process of
its own, opens it five times, and votes on forty pairs by keyboard at the pace of somebody who looks at each for a
second. Printed are medians and the longest: seconds from opening the page (its server is up) to its first picture, and
milliseconds from the key to the confirmed vote with the next pair beside it, as the page's own clock tells them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from genalign.demo.votes import Votes
from tests.demo.voting import vote

OPENED, VOTED = 5, 40
LOOKED = 1000  # ms at each pair
# presses a key, and resolves to the milliseconds until a ballot with another pair says that the vote is stored
VOTE = """key => new Promise(resolve => {
    const ballot = () => document.querySelector('.ballot'), before = ballot().dataset.pair, begun = performance.now();
    const look = () => {
        const said = ballot()?.querySelector('.note')?.innerText, next = ballot()?.dataset.pair !== before;
        next && /^stored/.test(said) ? resolve(performance.now() - begun) : requestAnimationFrame(look);
    };
    ballot().dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
    look();
})"""


def fill(folder: Path, count: int) -> None:
    """A store that holds so many votes, as pages left them."""
    votes = Votes(folder)
    for number in range(count):
        votes.add(vote(votes, "left", annotator=f"annotator {number % 7}", prompt=f"prompt {number % 500}"))
    votes.close()


def measure(folder: Path, stored: int) -> dict[str, list[float]]:
    """Seconds to the first picture and milliseconds to a confirmed vote, one number for each that was taken."""
    from tests.helpers.browser import CHROMIUM, Visit, started, sync_api

    fill(folder / "votes", stored)
    pages = started(folder, ["image-d3po"])
    address = next(pages)
    waits: dict[str, list[float]] = {"first picture, s": [], "a vote, ms": []}
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for _ in range(OPENED):
            begun = time.monotonic()
            visit = Visit(browser, address)
            visit.page.wait_for_selector("#drawn img")
            waits["first picture, s"].append(time.monotonic() - begun)
            visit.page.wait_for_selector("#drawn .scores.judge")
            visit.page.close()
        visit = Visit(browser, address)
        visit.open("Vote")
        visit.page.wait_for_selector(".ballot img")
        for number in range(VOTED):
            visit.page.wait_for_timeout(LOOKED)
            waits["a vote, ms"].append(visit.page.evaluate(VOTE, ("ArrowLeft", "ArrowRight")[number % 2]))
        browser.close()
    pages.close()
    votes = Votes(folder / "votes")
    assert votes.count() == stored + VOTED
    votes.close()
    return waits


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--stored", type=int, default=10_000)
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, taken in measure(Path(folder), settings.stored).items():
            print(f"{name}: median {statistics.median(taken):.3g}, longest {max(taken):.3g}, of {len(taken)}")


if __name__ == "__main__":
    main()
