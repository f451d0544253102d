"""The report in a real browser: it works, stays silent, asks the network for nothing, and no transcript can act in it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

import made_runs as made
from selfcorrect.report import write_report

pytestmark = pytest.mark.browser

PAIRS = "[...document.querySelectorAll('#list article')]"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Reports by name: every state that a run can be in."""
    tmp = tmp_path_factory.mktemp("runs")
    going = made.begin(tmp / "going")
    made.train(going, steps=7)
    runs = {
        "finished": [made.finished(tmp / "run")],
        "two": [tmp / "run", made.finished(tmp / "second", "seed=1")],
        "begun": [made.begin(tmp / "begun").path],
        "going": [going.path],
        "hostile": [made.hostile(tmp / "hostile")],
    }
    for name, paths in runs.items():
        write_report(paths, tmp / f"{name}.html")
    return {name: tmp / f"{name}.html" for name in runs}


def choose(browser, field, value):
    browser.run(f"{field}.value = {value!r}; {field}.dispatchEvent(new Event('change'))")


def search(browser, text):
    browser.run(f"search.value = {json.dumps(text)}; search.dispatchEvent(new Event('input'))")


def status(browser):
    return browser.run("document.getElementById('status').textContent")


def ids(browser):
    return browser.run(f"{PAIRS}.map(a => a.querySelector('h3').textContent)")


@pytest.mark.parametrize("width", [360, 1600])
@pytest.mark.parametrize("name", ["finished", "two", "begun", "going", "hostile"])
def test_it_opens_silently_and_fits(browser, pages, name, width):
    browser.open(pages[name], width=width)
    assert browser.complaints == []
    assert browser.requests == [pages[name].as_uri()]
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    wide = browser.run(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, .unseen, .skip')"
        " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == []
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("!!document.querySelector('h1').textContent.trim()")


def axe_script() -> Path:
    found = importlib.util.find_spec("axe_core_python")
    if found is None or found.origin is None:
        pytest.skip("axe-core-python is not installed; it comes with the dev extra")
    return Path(found.origin).parent / "axe.min.js"


@pytest.mark.parametrize(
    ("name", "dark"), [("finished", False), ("finished", True), ("begun", False), ("hostile", True)]
)
def test_axe_finds_no_fault(browser, pages, name, dark):
    """Names, labels, order of headings, contrast and the rest that axe-core knows of."""
    script = axe_script().read_text(encoding="utf-8")
    browser.open(pages[name], dark=dark)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    browser.run(script + "; null")
    found = browser.run(
        "axe.run().then(r => r.violations.map(v => v.id + ': ' + v.nodes.map(n => n.html.slice(0, 120)).join(' | ')))"
    )
    assert found == []


def test_axe_can_find_a_fault(browser, pages):
    browser.open(pages["finished"])
    browser.run("document.querySelector('label[for=search]').remove()")
    browser.run(axe_script().read_text(encoding="utf-8") + "; null")
    assert browser.run("axe.run('#filters').then(r => r.violations.map(v => v.id))") == ["label"]


def test_charts_tables_and_fields_have_names(browser, pages):
    browser.open(pages["two"])
    named = "e => (e.getAttribute('aria-label') || '').length > 20"
    assert browser.run(f"[...document.querySelectorAll('svg.chart')].every({named})")
    assert browser.run("document.querySelectorAll('svg.chart').length") == 18  # 5 curves, 2 flows, edits, levels; twice
    assert browser.run("[...document.querySelectorAll('table')].every(t => t.caption.textContent.trim())")
    assert browser.run("[...document.querySelectorAll('figure')].every(f => f.querySelector('table'))")
    assert browser.run("[...document.querySelectorAll('select, input')].every(e => e.labels.length == 1)")
    assert browser.run("['header', 'main', 'nav', 'h1'].every(s => document.querySelector(s))")


def test_filters_change_the_list(browser, pages):
    browser.open(pages["finished"])
    assert status(browser) == "40 found. This page holds 40 of 40 episodes."
    assert len(ids(browser)) == 8
    options = browser.run("[...tag.options].map(o => o.value + '=' + o.textContent)")
    assert "fixed=Fixed (28 of 28 on this page)" in options and "=All (40 of 40 on this page)" in options
    choose(browser, "tag", "broken")
    assert sorted(ids(browser)) == ["test-00004", "test-00024"]
    assert browser.run(f"{PAIRS}.every(a => a.querySelector('h4').textContent == 'Trained: broken')")
    choose(browser, "tag", "cut")
    assert sorted(ids(browser)) == ["test-00005", "test-00025"]
    assert "cut by the token cap" in browser.run(f"{PAIRS}[0].textContent")
    choose(browser, "source", "base")
    assert status(browser).startswith("40 found") and browser.run("tag.value") == ""
    choose(browser, "tag", "copied")
    assert status(browser).startswith("40 found")
    choose(browser, "source", "training")
    assert "step" in browser.run(f"{PAIRS}[0].textContent")


def test_search_finds_text_of_questions_and_answers(browser, pages):
    browser.open(pages["finished"])
    search(browser, "WHAT IS 17 +")
    assert ids(browser) == ["test-00017"]
    search(browser, "checked, the sum is 20")
    assert ids(browser) == ["test-00019"]
    search(browser, "nobody wrote this")
    assert ids(browser) == [] and status(browser).startswith("0 found")
    search(browser, "")
    assert status(browser).startswith("40 found")


def test_pages_turn_by_keyboard(browser, pages):
    browser.open(pages["finished"])
    first = ids(browser)
    browser.run("next.focus()")
    browser.press("Enter")
    second = ids(browser)
    assert not set(first) & set(second) and browser.run("where.textContent") == "page 2 of 5"
    browser.run("previous.focus()")
    browser.press(" ")
    assert ids(browser) == first and browser.run("previous.disabled")


def test_everything_is_reached_by_tab(browser, pages):
    browser.open(pages["finished"])
    seen = []
    for _ in range(60):
        browser.press("Tab")
        seen.append(browser.run("document.activeElement.id || document.activeElement.tagName"))
    assert seen[0] == "A" and browser.run("document.querySelector('.skip').textContent") == "Skip to the results"
    assert {"source", "tag", "search", "next", "SUMMARY"} <= set(seen)
    browser.run("search.focus()")
    browser.type("What is 17 +")
    assert ids(browser) == ["test-00017"]


def test_the_diff_marks_what_changed(browser, pages):
    browser.open(pages["finished"])
    search(browser, "What is 7 +")
    marks = "(i, mark) => [...document.querySelectorAll('#list .attempt')[i].querySelectorAll(mark)].map(e => e.textContent)"
    # trained: "the sum is 8", then "checked, the sum is 8"; base: the same twice
    assert browser.run(f"({marks})(0, 'del')") == [] and browser.run(f"({marks})(1, 'ins')") == ["checked, "]
    assert browser.run(f"({marks})(2, 'del, ins')") == browser.run(f"({marks})(3, 'del, ins')") == []
    assert "repeats the previous attempt" in browser.run("document.querySelectorAll('#list .attempt')[3].textContent")
    search(browser, "What is 6 +")  # "the sum is 6", then "checked, the sum is 7"
    assert browser.run(f"({marks})(0, 'del')") == ["6"] and browser.run(f"({marks})(1, 'ins')") == ["checked, ", "7"]
    texts = browser.run("[...document.querySelectorAll('#list .side:first-of-type pre')].map(e => e.textContent)")
    assert texts == ["the sum is 6", "checked, the sum is 7"]  # marks add nothing to the text


def test_hostile_transcripts_are_shown_and_do_nothing(browser, pages):
    browser.open(pages["hostile"])
    title = browser.run("document.title")
    assert title == "hostile: selfcorrect report"
    shown = ""
    for _ in range(4):
        shown += browser.run("document.getElementById('list').textContent")
        browser.run("document.getElementById('next').click()")
    for name in ("script", "end of data", "comment", "image", "template"):
        assert made.HOSTILE[name] in shown
    assert "\u241b[31mred" in shown and "before\u2400after" in shown and "half ⟨U+D83D⟩ of" in shown
    assert "⟨U+202E⟩gnirts" in shown and "\u202e" not in browser.run("document.body.textContent")
    assert "characters in the middle not shown" in shown and "996,810" in shown
    search(browser, "onerror")
    assert len(ids(browser)) >= 1
    assert browser.run("document.title") == title
    assert browser.run("document.querySelectorAll('script').length") == 2
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.complaints == [] and browser.requests == [pages["hostile"].as_uri()]


def test_the_policy_stops_what_escaping_would_miss(browser, pages):
    """The second lock: markup that did get in must still not run or load."""
    browser.open(pages["begun"])
    browser.run(
        "document.body.insertAdjacentHTML('beforeend', '<img src=\"https://example.invalid/x.png\" onerror=\"document.title=1\">')"
    )
    browser.run(
        "{ const s = document.createElement('script'); s.textContent = 'document.title = 2'; document.body.append(s) }"
    )
    browser.run("new Promise(done => setTimeout(done, 100))")
    assert browser.run("document.title") == "begun: selfcorrect report"
    assert sum("Content Security Policy" in c for c in browser.complaints) >= 2
