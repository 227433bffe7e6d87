"""The page of `genalign demo` in a real browser: Debian's Chromium, driven by playwright, whose own are not needed.

With SCREENSHOTS=FOLDER the pictures of docs/demo.md, and its film, are written there.
"""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.contracts.tree import ROOT

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; apt-get install chromium"),
    pytest.mark.timeout(900),
]
SIZE = {"width": 1280, "height": 860}
PATIENCE = 120_000  # ms, of a machine that does other work as well
SCREENSHOTS = os.environ.get("SCREENSHOTS")
STEPS = 24 if SCREENSHOTS else 2
FILM = []  # frames, and how long each is shown, in ms


def started(place, recipe):
    """The address of a page of this recipe in a process of its own, which then ends."""
    words = [sys.executable, "-m", "genalign", "demo", *recipe, "--port", "0"]
    process = subprocess.Popen(
        [*words, "--runs", str(place / "runs"), "--votes", str(place / "votes")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        line = next((line for line in process.stdout if line.startswith("genalign demo at ")), "")
        assert line, "the page did not start"
        yield line.split()[3]
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
    if FILM:
        frames, times = zip(*FILM, strict=True)
        film = {"save_all": True, "append_images": frames[1:], "duration": times, "loop": 0, "quality": 55, "method": 6}
        frames[0].save(Path(SCREENSHOTS) / "film.webp", minimize_size=True, **film)


class Visit:
    """A page, what it asked the network for, and what went wrong in it."""

    def __init__(self, browser, address):
        self.address, self.asked, self.wrong = address, [], []
        self.page = browser.new_page(viewport=SIZE)
        self.page.set_default_timeout(PATIENCE)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: self.wrong.append(dialog.message))
        self.page.goto(address)

    def open(self, tab):
        self.page.get_by_role("tab", name=tab).click()

    def press(self, key):
        """Vote by a key, and wait until the next pair is there."""
        before = self.page.get_attribute(".ballot", "data-pair")
        self.page.keyboard.press(key)
        self.page.wait_for_function("before => document.querySelector('.ballot')?.dataset.pair !== before", arg=before)

    def shoot(self, name):
        """A picture of the page, which must show something."""
        picture = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        assert len(picture.getcolors(1 << 24)) > 500
        if SCREENSHOTS:
            picture.save(Path(SCREENSHOTS) / f"{name}.webp", quality=82, method=6)
            self.frame(1800)

    def frame(self, shown=700):
        """A frame of the film, for `shown` ms."""
        if SCREENSHOTS:
            picture = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
            FILM.append((picture.resize((864, 580), Image.Resampling.LANCZOS), shown))

    def choose(self, label, name):
        """Choose an option of a list, by typing it."""
        field = self.page.locator(f"{label} input").first
        field.click()
        field.fill(name)
        self.page.get_by_role("option", name=name, exact=True).click()
