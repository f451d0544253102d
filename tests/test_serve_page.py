"""The page of the server in a real browser."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from selfcorrect.episodes.play import Reply
from selfcorrect.serve.app import Limits
from served import Scripted, serving

HOSTILE = (
    "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\"> \u202eabc \x1b[31m \x00 "
)
FIRST = f"{HOSTILE}\nThe sum is 15, so the last digit is 5."
SECOND = f"{HOSTILE}\nThe sum is 14, so the last digit is 4. " + "x" * 20_000
KEY = "a-key-of-this-test-0123"

pytestmark = [pytest.mark.browser]


@pytest.fixture(scope="module")
def page(browser):
    return browser


def ask(page, text):
    """By keyboard alone: the problem has the focus, which autofocus gives it only with the first frame."""
    page.until("document.activeElement.id === 'problem'")
    page.type(text)
    page.press("Enter", ctrl=True)


def finished(page):
    page.until("document.getElementById('status').textContent.startsWith('Finished')")


def test_attempts_come_as_text_with_the_changes_marked(page, tmp_path):
    with serving(Scripted((FIRST, SECOND)), model="tiny <b>") as (url, _):
        page.open(url)
        page.until("document.getElementById('model').textContent === 'tiny <b>'")
        ask(page, "What is the last digit of 4+7+3?")
        finished(page)
        first, second = page.run("[...document.querySelectorAll('pre')].map((p) => p.textContent)")
        shown = HOSTILE.replace("\u202e", "[U+202E]").replace("\x1b", "[U+001B]").replace("\0", "[U+0000]")
        assert first == f"{shown}\nThe sum is 15, so the last digit is 5."
        assert page.run("[...document.querySelectorAll('del')].map((e) => e.childNodes[1].data)") == ["15", "5"]
        added = page.run("[...document.querySelectorAll('ins')].map((e) => e.childNodes[1].data)")
        assert added[:2] == ["14", "4"] and added[2].startswith(" xxx")
        assert second.startswith(shown) and page.run("document.title") == "selfcorrect"
        assert page.run("document.querySelectorAll('pre script, pre img').length") == 0
        for width, dark in ((360, False), (1600, True)):
            page.size(width, 900, dark=dark)
            assert page.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
            page.screenshot(Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"page-{width}.png")
        assert page.complaints == []
        assert {
            r.rpartition("/")[0].removesuffix("/v1").removesuffix("/v1/chat")
            for r in page.requests
            if r.startswith("http")
        } == {url}


def test_a_line_of_a_megabyte_and_half_a_pair_are_shown_and_do_no_harm(page):
    first, second = (f"half \ud83d of a pair, \u2067mirrored\u2069 {c * 1_000_000} end" for c in "xy")
    with serving(Scripted((first, second))) as (url, _):
        page.open(url, width=360)
        ask(page, HOSTILE)
        finished(page)
        texts = page.run("[...document.querySelectorAll('pre')].map((p) => p.textContent)")
        assert all(t.startswith("half � of a pair, [U+2067]mirrored[U+2069] ") and t.endswith(" end") for t in texts)
        assert [len(t) > 1_000_000 for t in texts] == [True, True]
        assert page.run("document.querySelectorAll('del').length") == 1
        for width in (360, 1600):
            page.size(width, 900)
            assert page.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert page.complaints == [] and page.run("document.title") == "selfcorrect"


def test_a_refusal_is_shown_with_its_words(page):
    class Refusing(Scripted):
        async def answer(self, prompts, keys, *, continued):
            return [Reply("", "refused", fault="I will not \u202e.") for _ in keys]

    with serving(Refusing()) as (url, _):
        page.open(url)
        ask(page, "q")
        finished(page)
        notes = page.run("[...document.querySelectorAll('article p')].map((p) => p.textContent)")
        assert len(notes) == 1 and notes[0].endswith(" s, refused: I will not [U+202E].")
        assert page.complaints == []


def test_faults_are_said_and_a_key_is_asked_for(page):
    with serving(Scripted(), key=KEY, limits=Limits()) as (url, _):
        page.open(url)
        page.until("document.activeElement.id === 'key'")
        assert "needs its API key" in page.run("document.getElementById('status').textContent")
        page.type(KEY)
        page.run("document.getElementById('problem').focus()")
        ask(page, "q")
        finished(page)
        assert page.run("document.querySelectorAll('article').length") == 2
