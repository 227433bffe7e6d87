"""The page in a real browser: draw, vote 20 pairs by keyboard, reload and find them, train on them, compare, inspect.

Debian's Chromium, driven by playwright (whose own browsers are not needed). With SCREENSHOTS=FOLDER the pictures of
docs/demo.md, and its film, are written there.
"""

import pytest

from genalign.demo.ranking import ranks_of
from genalign.demo.votes import Votes
from genalign.method.pairs import read_pairs
from tests.demo.conftest import SMALL
from tests.helpers.browser import PATIENCE, SCREENSHOTS, STEPS, Visit, browser, pytestmark, started  # noqa: F401

VOTES = 20
KEYS = {"ArrowLeft": "left", "ArrowRight": "right", "ArrowDown": "tie", "s": "skip"}
PRESSED = [key for key in ("ArrowLeft", "ArrowRight", "ArrowLeft", "ArrowDown", "s") for _ in range(4)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def address(place):
    yield from started(place, ["image-d3po", *SMALL])


@pytest.fixture(scope="module")
def voted(browser, address):  # noqa: F811
    """Twenty pairs voted on by keyboard, which every test of votes begins with."""
    found = Visit(browser, address)
    found.open("Vote")
    found.page.wait_for_selector(".ballot img")
    for number, key in enumerate(PRESSED):
        found.press(key)
        if number < 4:
            found.frame()
    found.page.close()


@pytest.fixture
def visit(browser, address):  # noqa: F811
    found = Visit(browser, address)
    yield found
    outside = [url for url in found.asked if not url.startswith((address, "data:", "blob:"))]
    assert not outside
    assert not found.wrong
    found.page.close()


def test_the_page_draws_by_itself_and_asks_nobody_else(visit):
    visit.page.wait_for_selector("#drawn .card")
    visit.frame()
    visit.page.wait_for_selector("#drawn .scores.judge")
    assert visit.page.locator("#drawn .card").count() == 4
    visit.shoot("draw")


def test_html_in_a_prompt_is_shown_as_text_and_not_run(visit):
    hostile = '<img src=x onerror="window.run=1"> <script>window.run=2</script> ${window.run=3} {{this}}'
    visit.page.wait_for_selector("#drawn .scores.judge")
    visit.page.fill("#draw-prompt input", hostile)
    visit.page.keyboard.press("Enter")
    visit.page.click("#draw-go")
    visit.page.wait_for_function("text => document.querySelector('#drawn .prompt')?.innerText === text", arg=hostile)
    visit.page.wait_for_selector("#drawn img")
    assert visit.page.evaluate("window.run") is None


def test_a_search_shows_its_curve_and_ends_when_it_is_cancelled(visit):
    visit.page.wait_for_selector("#drawn .scores.judge")
    visit.page.click("#search button")
    visit.page.get_by_label("random").check()
    visit.page.click("#search-go")
    visit.page.wait_for_selector("#drawn table")  # of the budget that the page begins with
    assert visit.page.locator("#drawn .strip img").count() >= 3
    visit.page.evaluate("window.scrollTo(0, 0)")
    visit.shoot("search")
    visit.page.fill("#search input[type=number]", "200")
    visit.page.keyboard.press("Tab")
    visit.page.click("#search-go")
    visit.page.wait_for_selector("#drawn .progress")
    visit.page.click("#draw-cancel")
    visit.page.wait_for_function("document.querySelector('#drawn')?.innerText.startsWith('cancelled')")
    visit.page.click("#draw-go")  # and the model is free for the next drawing
    visit.page.wait_for_selector("#drawn .scores.judge")


def test_objectives_guide_the_samples(visit):
    visit.page.wait_for_selector("#drawn .scores.judge")
    visit.page.click("#guide button")
    visit.page.wait_for_function("document.querySelectorAll('#guide .objective').length === 4")
    visit.page.click("#guide-go")
    visit.page.wait_for_function("document.querySelectorAll('#drawn .scores.judge').length === 8")
    assert visit.page.locator("#drawn figcaption", has_text="guided | plain").count() == 4
    visit.page.evaluate("window.scrollTo(0, 0)")
    visit.shoot("guide")
    before = visit.page.inner_html("#drawn .card")
    visit.page.locator("#guide .objective input[type=range]").first.focus()
    visit.page.keyboard.press("End")  # a slider that is let go draws anew
    visit.page.locator("#guide .objective input[type=range]").first.dispatch_event("pointerup")
    visit.page.wait_for_function("before => document.querySelector('#drawn .card')?.innerHTML !== before", arg=before)


def test_twenty_pairs_are_voted_on_by_keyboard_and_found_after_a_reload(visit, place, voted):
    votes = Votes(place / "votes")
    assert [vote.choice for vote in votes.all()] == [KEYS[key] for key in PRESSED]
    visit.open("Vote")
    visit.page.wait_for_selector(".ballot img")
    visit.press("u")
    assert "taken back: skip" in visit.page.inner_text(".ballot .note")
    visit.press("ArrowRight")
    visit.page.reload()
    visit.open("Vote")
    visit.page.wait_for_selector(".ballot img")
    assert f"{VOTES} by you, {VOTES} in all" in visit.page.inner_text(".ballot .note")
    visit.page.click("#votes-say button")
    visit.page.wait_for_function("/20 votes by 1 annotator/.test(document.querySelector('#figures')?.innerText)")
    visit.shoot("vote")


def test_groups_of_four_are_ranked_by_keyboard(visit, place, voted):
    visit.open("Vote")
    visit.page.wait_for_selector(".ballot img")
    visit.choose("#pairs", "four of the base")
    visit.page.wait_for_selector(".ballot.group img")
    visit.page.locator(".ballot").focus()
    visit.frame()
    for key in ("3", "1", "3", "=", "4"):  # a sample has one place, however often its number is pressed
        visit.page.keyboard.press(key)
        visit.frame()
    visit.page.wait_for_function("/^3 > 1 = 4 > 2$/.test(document.querySelector('.ballot .order')?.innerText)")
    assert visit.page.locator(".ballot .rank").all_inner_texts() == ["2", "4", "1", "2"]
    visit.shoot("rank")
    visit.press("Enter")
    votes = Votes(place / "votes")
    stored = votes.all()[-6:]
    assert ranks_of(stored) == [2, 4, 1, 2]
    for key in ("1", "2", "Backspace", "3"):
        visit.page.keyboard.press(key)
    visit.page.wait_for_function("/^1 > 3 > 2 = 4$/.test(document.querySelector('.ballot .order')?.innerText)")
    visit.page.get_by_role("button", name="sample 4").click()  # and by mouse
    visit.page.wait_for_function("/^1 > 3 > 4 > 2$/.test(document.querySelector('.ballot .order')?.innerText)")
    visit.press("Enter")
    assert ranks_of(votes.all()[-6:]) == [1, 4, 2, 3]
    for _ in range(2):
        visit.press("u")
    assert "taken back: ranking" in visit.page.inner_text(".ballot .note")
    assert votes.count() == VOTES


def test_a_name_is_remembered(visit, place, voted):
    visit.open("Vote")
    visit.page.wait_for_selector(".ballot img")
    visit.page.fill("#annotator textarea, #annotator input", "ada")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_function(f"/^0 by you, {VOTES}/.test(document.querySelector('.ballot .note')?.innerText)")
    visit.page.keyboard.press("Tab")
    visit.page.wait_for_timeout(500)
    visit.page.reload()
    visit.open("Vote")
    visit.page.wait_for_function("document.querySelector('#annotator textarea, #annotator input')?.value === 'ada'")
    visit.press("ArrowLeft")
    assert [vote.annotator for vote in Votes(place / "votes").all()] == ["me"] * VOTES + ["ada"]
    visit.press("u")


def test_a_key_in_a_field_is_no_vote(visit, place):
    before = Votes(place / "votes").count()
    visit.open("Vote")
    visit.page.wait_for_selector(".ballot img")
    visit.page.click("#annotator textarea, #annotator input")
    for key in ("ArrowLeft", "s", "u", "t"):
        visit.page.keyboard.press(key)
    visit.page.wait_for_timeout(500)
    assert Votes(place / "votes").count() == before


def test_pairs_are_exported_and_imported_by_another_page(visit, place, voted, tmp_path):
    visit.open("Vote")
    visit.page.click("#votes-say button")
    visit.page.click("#export")
    with visit.page.expect_download() as download:
        visit.page.locator("#exported a[download]").first.click()
    download.value.save_as(tmp_path / "pairs.zip")
    visit.page.set_input_files("#import input[type=file], input[type=file]", tmp_path / "pairs.zip")
    visit.page.wait_for_function("/0 new votes/.test(document.querySelector('#moved')?.innerText)")
    assert Votes(place / "votes").count() == VOTES
    visit.page.click("#export-seeds")
    visit.page.wait_for_selector("#exported a[download='seeds.jsonl']")
    with visit.page.expect_download() as download:
        visit.page.locator("#exported a[download]").first.click()
    download.value.save_as(tmp_path / "seeds.jsonl")
    decided = [vote for vote in Votes(place / "votes").all() if vote.decided]
    assert sum(map(len, read_pairs(tmp_path / "seeds.jsonl").values())) == len(decided) > 10


def test_votes_train_an_adapter_which_is_compared_and_inspected(visit, place, voted):
    visit.open("Align")
    visit.page.fill("#align-steps input[type=number]", str(STEPS))
    visit.page.keyboard.press("Tab")
    visit.page.click("#align-start")
    visit.page.wait_for_function("/has begun/.test(document.querySelector('#align-said')?.innerText)")
    visit.page.reload()  # the training goes on, and is found again
    visit.open("Align")
    if SCREENSHOTS:
        visit.page.wait_for_selector("#aligned svg", timeout=4 * PATIENCE)
        visit.frame()
    visit.page.wait_for_function(
        f"/finished( early, at|,) step \\d+ of {STEPS}/.test(document.querySelector('#aligned')?.innerText)",
        timeout=4 * PATIENCE,
    )
    visit.page.wait_for_selector("#aligned svg")
    visit.shoot("align")
    (run,) = (place / "runs").iterdir()
    visit.open("Draw")
    visit.choose("#draw-model", run.name)
    visit.page.click("#draw-go")
    visit.page.wait_for_selector("#drawn .compare")
    visit.page.wait_for_function("document.querySelectorAll('#drawn .scores.judge').length === 8")
    slider = visit.page.locator("#drawn .compare input").first
    slider.focus()
    for number in range(10):
        visit.page.keyboard.press("ArrowRight")
        if number % 3 == 0:
            visit.frame(200)
    assert visit.page.locator("#drawn .stack").first.evaluate("one => one.style.getPropertyValue('--cut')") == "60%"
    visit.shoot("compare")
    visit.open("Inspect")
    visit.page.wait_for_selector("#inspected .report table")
    visit.shoot("inspect")
    steps = visit.page.locator("#field-train-steps").locator("textarea, input").first
    steps.fill("few")
    visit.page.wait_for_function("/steps/.test(document.querySelector('#inspect-verdict .error')?.innerText)")
    visit.frame()
    steps.fill("3")
    visit.page.wait_for_function("/3 steps, 1 change/.test(document.querySelector('#inspect-verdict')?.innerText)")
    visit.frame()
    visit.page.click("#inspect-extremes")
    visit.page.wait_for_function("document.querySelectorAll('#extremes .card').length === 8", timeout=4 * PATIENCE)
    visit.shoot("extremes")


@pytest.mark.parametrize("tab", ["Draw", "Vote", "Align", "Inspect"])
def test_axe_finds_no_serious_fault(visit, tab):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    visit.page.wait_for_selector("#drawn .scores.judge")
    visit.open(tab)
    visit.page.wait_for_timeout(1500)
    found = axe.Axe().run(visit.page).response["violations"]
    serious = {
        one["id"]: [node["html"][:160] for node in one["nodes"]]
        for one in found
        if one["impact"] in ("serious", "critical")
    }
    assert not serious
