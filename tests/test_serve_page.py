"""The page of the server in a real browser."""

from __future__ import annotations

import pytest

from browser import CHROMIUM, browser
from selfcorrect.serve.app import Limits
from served import Scripted, serving

HOSTILE = (
    "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\"> \u202eabc \x1b[31m \x00 "
)
FIRST = f"{HOSTILE}\nThe sum is 15, so the last digit is 5."
SECOND = f"{HOSTILE}\nThe sum is 14, so the last digit is 4. " + "x" * 20_000
KEY = "a-key-of-this-test-0123"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


def ask(page, text):
    """By keyboard alone: the problem has the focus."""
    page.type(text)
    page.press("Enter", 13, modifiers=2)


def finished(page):
    page.until("document.getElementById('status').textContent.startsWith('Finished')")


def test_attempts_come_as_text_with_the_changes_marked(page, tmp_path):
    with serving(Scripted((FIRST, SECOND)), model="tiny <b>") as (url, _):
        page.open(url)
        page.until("document.getElementById('model').textContent === 'tiny <b>'")
        ask(page, "What is the last digit of 4+7+3?")
        finished(page)
        first, second = page.js("[...document.querySelectorAll('pre')].map((p) => p.textContent)")
        shown = HOSTILE.replace("\u202e", "[U+202E]").replace("\x1b", "[U+001B]").replace("\0", "[U+0000]")
        assert first == f"{shown}\nThe sum is 15, so the last digit is 5."
        assert page.js("[...document.querySelectorAll('del')].map((e) => e.childNodes[1].data)") == ["15,", "5."]
        added = page.js("[...document.querySelectorAll('ins')].map((e) => e.childNodes[1].data)")
        assert added[0] == "14," and added[1].startswith("4. xxx")
        assert second.startswith(shown) and page.js("document.title") == "selfcorrect"
        assert page.js("document.querySelectorAll('pre script, pre img').length") == 0
        for width, scheme in ((360, "light"), (1600, "dark")):
            page.size(width, 900, scheme)
            assert page.js("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
            page.screenshot(tmp_path / f"page-{width}.png")
        assert page.console == []
        assert {
            r.rpartition("/")[0].removesuffix("/v1").removesuffix("/v1/chat")
            for r in page.requested
            if r.startswith("http")
        } == {url}


def test_faults_are_said_and_a_key_is_asked_for(page):
    with serving(Scripted(), key=KEY, limits=Limits()) as (url, _):
        page.open(url)
        page.until("document.activeElement.id === 'key'")
        assert "needs its API key" in page.js("document.getElementById('status').textContent")
        page.type(KEY)
        page.js("document.getElementById('problem').focus()")
        ask(page, "q")
        finished(page)
        assert page.js("document.querySelectorAll('article').length") == 2
