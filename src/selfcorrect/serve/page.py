"""The server's web page: one static page that talks to this server only."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from importlib import resources

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

DIFF_GOES_HERE = "/* word_diff.js */\n"


@functools.cache
def page_text() -> str:
    """The HTML, with the word diff that it shares with the report."""
    package = resources.files("selfcorrect")
    diff = package.joinpath("assets/word_diff.js").read_text(encoding="utf-8")
    return package.joinpath("serve/page.html").read_text(encoding="utf-8").replace(DIFF_GOES_HERE, diff)


@functools.cache
def content_security_policy() -> str:
    """Nothing but the page's own script and style, by their hashes; requests to this server only."""

    def hashes(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page_text(), re.S)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in found)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    )


async def page(_request: Request) -> Response:
    headers = {
        "content-security-policy": content_security_policy(),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return HTMLResponse(page_text(), headers=headers)
