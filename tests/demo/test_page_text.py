"""The page of a language model in a real browser: texts appear while they are written, and are voted on."""

import pytest

from genalign.demo.votes import Votes
from tests.helpers.browser import Visit, browser, pytestmark, started  # noqa: F401
from tests.helpers.tiny_language import save_tiny_language


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("demo-text")


@pytest.fixture(scope="module")
def address(place):
    model = save_tiny_language(place / "model")
    words = ["text-dpo", f"policy.model={model}", "policy.system=null", "policy.max_new_tokens=24", "eval.count=2"]
    yield from started(place, words)


def test_texts_are_drawn_and_voted_on(browser, address, place):  # noqa: F811
    visit = Visit(browser, address)
    visit.page.wait_for_selector("#drawn blockquote")
    visit.page.get_by_label("Samples").first.fill("3")
    visit.page.keyboard.press("Tab")
    visit.page.click("#draw-go")
    visit.page.wait_for_function("document.querySelectorAll('#drawn blockquote').length === 3")
    visit.page.wait_for_function("!document.querySelector('#drawn .progress')")
    assert len(set(visit.page.locator("#drawn blockquote").all_inner_texts())) > 1  # each from its own seed
    assert visit.page.get_by_label("Guidance").count() == 0
    visit.page.get_by_label("Greedy").check()
    visit.page.click("#draw-go")
    visit.page.wait_for_function(
        "new Set([...document.querySelectorAll('#drawn blockquote')].map(one => one.innerText)).size === 1"
        " && !document.querySelector('#drawn .progress')"
    )
    visit.open("Vote")
    visit.page.wait_for_selector(".ballot blockquote")
    visit.press("ArrowRight")
    assert [vote.choice for vote in Votes(place / "votes").all()] == ["right"]
    assert not visit.wrong
    visit.page.close()
