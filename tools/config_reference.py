"""Writes docs/configuration.md from the config classes: every setting with type, default, presets and meaning.

python tools/config_reference.py
"""

from __future__ import annotations

import ast
import inspect
import tomllib
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from selfcorrect import config

PAGE = Path(__file__).parent.parent / "docs/configuration.md"
PRESETS = Path(config.__file__).parent / "presets"
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
TYPES = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "`none`"}
MORE = {"task": "tasks.md", "method": "algorithm.md", "train": "algorithm.md", "eval": "report.md"}
INTRODUCTION = """\
<!-- Made by tools/config_reference.py from src/selfcorrect/config.py: change that file, then `make docs`. -->

# Configuration

Every setting of a run: {count} of them. Set one on the command line as `section.key=value`:

```sh
selfcorrect train train.steps=100 method.alpha=5 --dry-run
```

or in a TOML file, whose name comes before the settings:

```toml
model = "smollm2"
[train]
steps = 100
```

Later wins: the defaults below, then the model's preset, then the file, then the command line. A section with a `name` may
be set by it alone: `task=gsm8k` is `task.name=gsm8k`. Values are read as TOML, else as plain text; `none` is no value. A
setting that is unknown, out of range, or would be ignored by the method or task is refused before a model loads.
`selfcorrect train --dry-run` prints all settings of a run, resolved.

The defaults are those of the embedded model. Any other model starts from a preset: `smollm2` has its own, all others share
one, a start for one GPU and not a tuned setting. Where a preset differs from the default, it is named. A directory written
by `selfcorrect sft` keeps the preset of the model it came from. Settings that do not fit together are refused by
[`check`](../src/selfcorrect/algorithm/checks.py) and by the classes themselves.
"""


def field_docs(section: type[config.Section]) -> dict[str, str]:
    """The docstring under every field of a class.

    Raises:
        LookupError: a field has none.
    """
    (node,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(node, ast.ClassDef)
    docs = {}
    for field, below in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else None
            docs[field.target.id] = inspect.cleandoc(str(text)) if text else ""
    missing = [name for name, text in docs.items() if not text]
    if missing:
        raise LookupError(f"{section.__name__}: no docstring under {', '.join(missing)}")
    return docs


def type_words(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is Union or isinstance(annotation, type(int | None)):
        return " or ".join(type_words(part) for part in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"any number, comma-separated: each {type_words(get_args(annotation)[0])}"
    return TYPES[annotation]


def bounds_words(field: FieldInfo) -> str:
    found = [(word, getattr(m, name)) for m in field.metadata for name, word in BOUNDS.items() if hasattr(m, name)]
    return " and ".join(f"{word} {limit}" for word, limit in found)


def value_words(value: Any) -> str:
    if value in (None, ()):
        return "`none`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def entry(key: str, field: FieldInfo, doc: str, presets: dict[str, dict[str, Any]]) -> str:
    """One setting as Markdown."""
    section, _, name = key.rpartition(".")
    facts = [" ".join(filter(None, (type_words(field.annotation), bounds_words(field))))]
    facts.append(f"default {value_words(field.default)}")
    for title, values in presets.items():
        preset = values.get(section, {}).get(name, field.default)
        if preset != field.default:
            facts.append(f"{title} {value_words(preset)}")
    return f"### {key}\n\n*{'; '.join(facts)}*\n\n{' '.join(doc.split())}\n"


def page() -> str:
    """The whole page."""
    presets = {
        "smollm2": tomllib.loads((PRESETS / "smollm2.toml").read_text(encoding="utf-8")),
        "other models": tomllib.loads((PRESETS / "language_model.toml").read_text(encoding="utf-8")),
    }
    parts = [INTRODUCTION.format(count=len(config.all_keys()))]
    docs = field_docs(config.Config)
    alone = []
    for name, field in config.Config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, config.Section):
            more = f" More: [{MORE[name]}]({MORE[name]})." if name in MORE else ""
            parts.append(f"## {name}\n\n{docs[name]}{more}\n")
            inner = field_docs(section)
            parts += [entry(f"{name}.{k}", f, inner[k], presets) for k, f in section.model_fields.items()]
        else:
            alone.append(entry(name, field, docs[name], presets))
    return "\n".join([*parts, "## Without a section\n", *alone])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
