"""Builds the documentation site: docs/ as HTML that opens from disk and needs no network.

    python tools/build_docs.py [--out site]

Pages link to source files. The site has a page for each linked file, because it opens from disk. If the text of a link
is the name of a function or class, the link leads to the line that defines it, looked up at build time. Equations
(fences named ``math``, LaTeX) become MathML. Warnings are errors.
"""

from __future__ import annotations

import argparse
import ast
import functools
import gc
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(?P<before>\[(?P<label>[^\]]*)\]\()(?P<target>[^)\s]+)\)")
NAME = re.compile(r"`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)`")
MATH = re.compile(r"^```math\n(.*?)^```$", re.M | re.S)
FENCED = re.compile(r"(^```.*?^```$)", re.M | re.S)
IMAGE = re.compile(r'\bsrc="([^"]+)"')
SOURCES = "repository"
"""Directory of the site for files that are outside docs/."""
LEXERS = {
    ".py": "python",
    ".toml": "toml",
    ".json": "json",
    ".j2": "jinja",
    ".css": "css",
    ".js": "js",
    ".html": "html",
}


def line_of(source: str, dotted: str) -> int:
    """The line of a module's text that defines a function, class or constant, or (dotted) a member of a class.

    Raises:
        LookupError: the text defines no such name.
    """
    body = _statements(source)
    line = 0
    for name in dotted.split("."):
        found = _definition(body, name)
        if found is None:
            raise LookupError(f"no {dotted}")
        line, body = found.lineno, getattr(found, "body", [])
    return line


@functools.cache
def _statements(source: str) -> list[ast.stmt]:
    """The statements of a module's text, parsed once.

    The garbage collector is off meanwhile. Up to Python 3.11.8 a finaliser that parses, such as one that prints a
    traceback, makes ``ast.parse`` raise ``SystemError`` (CPython's gh-106905).
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(source).body
    finally:
        if collecting:
            gc.enable()


def _definition(body: list[ast.stmt], name: str) -> ast.stmt | None:
    for node in body:
        named = [node.name] if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else []
        if isinstance(node, ast.Assign):
            named = [t.id for t in node.targets if isinstance(t, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            named = [node.target.id]
        if name in named:
            return node
    return None


def site_path(path: Path) -> str:
    """The page of a file or directory of the repository, relative to the root of the site's sources."""
    relative = path.relative_to(ROOT).as_posix()
    if relative.startswith("docs/"):
        return relative.removeprefix("docs/")
    if path.is_dir():
        return f"{SOURCES}/{relative}/index.md"
    return f"{SOURCES}/{relative}" if path.suffix == ".md" else f"{SOURCES}/{relative}.md"


class Site:
    """The sources of the site: pages with rewritten links and equations, and a page for each file that they link to."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._wanted: list[Path] = []

    def write(self) -> None:
        shutil.copytree(ROOT / "docs", self._directory, ignore=shutil.ignore_patterns("*.md"))
        for page in [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*.md"))]:
            self._put(page, self._page(page))
        done: set[Path] = set()
        while todo := [path for path in self._wanted if path not in done]:
            for path in dict.fromkeys(todo):
                done.add(path)
                self._put(path, self._listing(path) if path.is_dir() else _source_page(path))

    def _put(self, path: Path, text: str) -> None:
        file = self._directory / site_path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def _page(self, page: Path) -> str:
        parts = FENCED.split(page.read_text(encoding="utf-8"))
        for i, part in enumerate(parts):
            if i % 2:
                parts[i] = MATH.sub(lambda found: _mathml(found[1]), part)
            else:
                parts[i] = IMAGE.sub(lambda found: f'src="{self._target(page, found[1], None)}"', part)
                parts[i] = LINK.sub(
                    lambda found: found["before"] + self._target(page, found["target"], found["label"]) + ")", parts[i]
                )
        return "".join(parts)

    def _target(self, page: Path, target: str, label: str | None) -> str:
        """A link's target in the site. Notes links to source files, so that these files get a page."""
        if re.match(r"\w+:|#", target):
            return target
        name, hash_mark, anchor = target.partition("#")
        path = (page.parent / name).resolve()
        if not path.exists():
            raise LookupError(f"{page.relative_to(ROOT)} links to {target}, which does not exist")
        where = site_path(path)
        if where.startswith(SOURCES) and path.suffix != ".md":
            self._wanted.append(path)
            defined = NAME.fullmatch(label or "")
            if defined and path.suffix == ".py":
                hash_mark, anchor = "#", anchor_of(line_of(path.read_text(encoding="utf-8"), defined[1]))
        here = posixpath.dirname(site_path(page))
        return posixpath.relpath(where, here or ".") + hash_mark + anchor

    def _listing(self, directory: Path) -> str:
        files = sorted(p for p in directory.iterdir() if p.suffix in LEXERS)
        self._wanted += files
        lines = [f"- [{p.name}]({p.name}.md)" for p in files]
        return _front(directory) + "\n".join(lines) + "\n"


def anchor_of(line: int) -> str:
    """The id of a line on a source page."""
    return f"L-0-{line}"


def _front(path: Path) -> str:
    return f"---\nsearch:\n  exclude: true\n---\n\n# {path.relative_to(ROOT)}\n\n"


def _source_page(path: Path) -> str:
    text = path.read_text(encoding="utf-8").rstrip("\n")
    fence = "`" * (3 + max((len(run) for run in re.findall(r"`{3,}", text)), default=0))
    return f'{_front(path)}{fence} {{.{LEXERS.get(path.suffix, "text")} linenums="1"}}\n{text}\n{fence}\n'


def _mathml(latex: str) -> str:
    from latex2mathml.converter import convert

    return f'<div class="equation">{convert(latex.strip(), display="block")}</div>'


def build(out: Path) -> None:
    """Build the site into ``out``, which is replaced.

    Raises:
        LookupError: a link leads to nothing.
        subprocess.CalledProcessError: the generator failed or warned.
    """
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        shutil.copy(ROOT / "zensical.toml", work)
        Site(work / "docs").write()
        zensical = Path(sys.executable).with_name("zensical")
        subprocess.run([zensical, "build", "--strict"], cwd=work, check=True)
        if out.exists():
            shutil.rmtree(out)
        shutil.copytree(work / "site", out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="directory of the site; replaced")
    build(parser.parse_args().out)
