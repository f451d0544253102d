"""The documentation as a site: built without a warning, opened from disk without a network, linked to the right lines."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

import build_docs
from pages import PAGES, ROOT, blocks, text_of

WIDTHS = ((360, 780), (1600, 1000))
MARGIN_PX = 8
LINE_LINK = re.compile(r'<a href="([^"#]*\.py\.html)#L-0-(\d+)">\s*<code>([\w.]+)</code>')


def in_nav(entry) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in in_nav(part)]


NAV = in_nav(tomllib.loads(text_of(ROOT / "zensical.toml"))["project"]["nav"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "site"
    build_docs.build(out)
    return out


def built(site: Path, page: str) -> Path:
    return site / f"{page.removesuffix('.md')}.html"


def test_every_page_of_docs_is_in_the_navigation():
    written = {p.relative_to(ROOT / "docs").as_posix() for p in PAGES if ROOT / "docs" in p.parents}
    assert written == {page for page in NAV if not page.startswith(build_docs.SOURCES)}


def test_names_of_functions_lead_to_the_lines_that_define_them(site):
    checked = 0
    for file in site.rglob("*.html"):
        for target, number, name in LINE_LINK.findall(file.read_text(encoding="utf-8")):
            page = (file.parent / target).resolve()
            assert f'id="L-0-{number}"' in page.read_text(encoding="utf-8")
            source = ROOT / page.relative_to(site / build_docs.SOURCES).as_posix().removesuffix(".html")
            line = text_of(source).splitlines()[int(number) - 1]
            assert re.match(rf"\s*((async )?def |class )?{name.split('.')[-1]}\b", line), f"{target}:{number} is {line}"
            checked += 1
    links = sum(len(re.findall(r"\[`[\w.]+`\]\([^)]*\.py\)", text_of(page))) for page in PAGES)
    assert checked == links > 100


def test_equations_are_mathml(site):
    for page in PAGES:
        equations = sum(block.language == "math" for block in blocks(text_of(page)))
        if equations:
            shown = built(site, build_docs.site_path(page)).read_text(encoding="utf-8")
            assert len(re.findall("<math ", shown)) == equations
            assert not re.search(
                r"\\[a-z]+", html.unescape(re.sub(r"<[^>]*>", "", re.search("<math .*</math>", shown, re.S)[0]))
            )


def test_no_page_names_anything_to_load_from_elsewhere(site):
    for file in [*site.rglob("*.html"), *site.rglob("*.css")]:
        text = file.read_text(encoding="utf-8")
        loaded = re.findall(r'(?:\bsrc=|<link [^>]*href=|url\()["\']?(?:https?:)?//[^"\'>)]*', text)
        assert not loaded, f"{file.relative_to(site)} loads {loaded[:3]}"


@pytest.mark.browser
@pytest.mark.parametrize("page", NAV)
def test_pages_open_from_disk_without_the_network_and_fit(browser, site, page):
    for width, height in WIDTHS:
        browser.open(built(site, page), width=width, height=height)
        browser.until("document.fonts.status === 'loaded'")
        assert not [r for r in browser.requests if not r.startswith(("file:", "data:"))]
        assert browser.complaints == []
        assert browser.run("document.documentElement.scrollWidth") <= width
        texts = "[...document.querySelectorAll('article :is(p, li, h1, h2, h3, .equation)')]"
        too_wide = f"e.scrollWidth > e.clientWidth + {MARGIN_PX}"  # inline code's padding stands out a little
        assert browser.run(f"{texts}.filter(e => {too_wide}).map(e => e.textContent.slice(0, 80))") == []


@pytest.mark.browser
def test_equations_are_drawn_without_script(browser, site):
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(built(site, "algorithm.md"), width=1600)
        heights = browser.run("[...document.querySelectorAll('math')].map(e => e.getBoundingClientRect().height)")
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
    assert len(heights) > 5 and min(heights) > 15


@pytest.mark.browser
def test_search_works_in_a_page_opened_from_disk(browser, site):
    browser.open(built(site, "index.md"), width=1600)
    browser.run("document.querySelector('.md-search__button').click()")
    browser.until("document.activeElement.tagName !== 'BODY'")
    browser.type("leave-one-out")
    shown = "[document, ...[...document.querySelectorAll('*')].map(e => e.shadowRoot).filter(Boolean)]"
    browser.until(f"{shown}.some(root => /\\d+ results/.test((root.body ?? root).textContent))")
    assert not [r for r in browser.requests if not r.startswith(("file:", "data:"))]


def test_links_that_lead_nowhere_are_not_built(tmp_path, monkeypatch):
    kept = shutil.ignore_patterns(".*", "runs", "build", "site", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, tmp_path / "copy", ignore=kept)
    monkeypatch.setattr(build_docs, "ROOT", tmp_path / "copy")
    page = tmp_path / "copy/docs/index.md"
    begun = text_of(page)
    for link, error in {
        "[gone](gone.md)": LookupError,
        "[`gone`](../src/selfcorrect/types.py)": LookupError,
        "[gone](algorithm.md#gone)": subprocess.CalledProcessError,
    }.items():
        page.write_text(f"{begun}\n{link}\n", encoding="utf-8")
        with pytest.raises(error):
            build_docs.build(tmp_path / "site")
    assert not (tmp_path / "site").exists()
