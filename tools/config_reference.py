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
from selfcorrect.config import Config, all_keys, default_of, readers
from selfcorrect.config.section import Section
from selfcorrect.config.sections import SECTIONS, UNIONS
from selfcorrect.config.tasks import ImportedTaskConfig

PAGE = Path(__file__).parent.parent / "docs/configuration.md"
PRESETS = Path(config.__file__).parent.parent / "presets"
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
TYPES = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    type(None): "`none`",
    dict[str, Any]: "settings",
}
FOLLOWS = {"eval.attempts": "`play.attempts`"}
"""Settings whose default is the value of another."""
MORE = {"task": "tasks.md", "method": "algorithm.md", "train": "algorithm.md", "eval": "report.md"}
INTRODUCTION = """\
<!-- Made by tools/config_reference.py from the classes in src/selfcorrect/config: change them, then `make docs`. -->

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
setting that is unknown or out of range is refused before a model loads, and so is one that the chosen task, method or
engine does not read. `selfcorrect train --dry-run` prints all settings of a run, resolved, and its stages.

The defaults are those of the embedded model. Any other model starts from a preset: `smollm2` has its own, all others share
one, a start for one GPU and not a tuned setting. Where a preset differs from the default, it is named. A directory written
by `selfcorrect sft` keeps the preset of the model it came from. Settings that do not fit together are refused by
[`check`](../src/selfcorrect/algorithm/checks.py) and by the classes themselves.
"""


def field_docs(section: type[Section]) -> dict[str, str]:
    """The docstring under every field that a class declares itself.

    Raises:
        LookupError: a field has none. The name of a union's members is described once, in the first of them.
    """
    (node,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(node, ast.ClassDef)
    docs = {}
    for field, below in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else None
            docs[field.target.id] = inspect.cleandoc(str(text)) if text else ""
    missing = [name for name, text in docs.items() if not text and name != "name"]
    if missing:
        raise LookupError(f"{section.__name__}: no docstring under {', '.join(missing)}")
    return {name: text for name, text in docs.items() if text}


def section_entries(section: str, presets: dict[str, dict[str, Any]]) -> list[str]:
    """Every setting of a section as Markdown, those of all its classes in the order of the first that has each."""
    classes = SECTIONS[section]
    docs: dict[str, str] = {}
    for base in dict.fromkeys(base for c in classes for base in c.__mro__ if issubclass(base, Section)):
        docs = field_docs(base) | docs
    fields = {name: field for c in reversed(classes) for name, field in c.model_fields.items()}
    keys = [key.partition(".")[2] for key in all_keys() if key.startswith(f"{section}.")]
    return [entry(f"{section}.{name}", fields[name], docs[name], presets) for name in keys]


def union_table(section: str) -> str:
    """Which member of a union reads which settings."""
    common = set.intersection(*(set(c.model_fields) for c in UNIONS[section]))
    rows = [f"| {section} | settings of its own |\n|---|---|"]
    for name in readers(f"{section}.name"):
        keys = [key for key in all_keys() if key.startswith(f"{section}.") and key.partition(".")[2] not in common]
        read = [f"[`{k.partition('.')[2]}`](#{k.replace('.', '')})" for k in keys if name in readers(k)]
        rows.append(f"| `{name}` | {', '.join(read) or 'none'} |")
    if section == "task":
        read = [f"[`{key}`](#task{key})" for key in ImportedTaskConfig.model_fields if key not in {*common, "options"}]
        rows.append(f"| `package.module:make` | its own as `options`, and any of these: {', '.join(read)} |")
    return "\n".join(rows) + "\n"


def type_words(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is Union or isinstance(annotation, type(int | None)):
        return " or ".join(type_words(part) for part in get_args(annotation))
    if get_origin(annotation) is dict:
        return "names with values"
    if get_origin(annotation) is tuple and Ellipsis not in get_args(annotation):
        return f"{len(get_args(annotation))} values: each {type_words(get_args(annotation)[0])}"
    if get_origin(annotation) is tuple:
        return f"any number, comma-separated: each {type_words(get_args(annotation)[0])}"
    return TYPES[annotation]


def bounds_words(field: FieldInfo) -> str:
    found = [(word, getattr(m, name)) for m in field.metadata for name, word in BOUNDS.items() if hasattr(m, name)]
    return " and ".join(f"{word} {limit}" for word, limit in found)


def value_words(value: Any) -> str:
    if value in (None, (), {}):
        return "`none`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def entry(key: str, field: FieldInfo, doc: str, presets: dict[str, dict[str, Any]]) -> str:
    """One setting as Markdown."""
    section, _, name = key.rpartition(".")
    default = default_of(key)
    if section in UNIONS and name == "name":
        facts = ["one of " + ", ".join(f"`{n}`" for n in readers(key)) + (", or text" if section == "task" else "")]
    else:
        facts = [" ".join(filter(None, (type_words(field.annotation), bounds_words(field))))]
    facts.append(f"default {FOLLOWS.get(key, value_words(default))}")
    if section in UNIONS and len(read_by := readers(key)) < len(readers(f"{section}.name")):
        facts.append(f"read by {', '.join(f'`{n}`' for n in read_by)}")
    for title, values in presets.items():
        preset = values.get(section, {}).get(name, default)
        if preset != default:
            facts.append(f"{title} {value_words(preset)}")
    return f"### {key}\n\n*{'; '.join(facts)}*\n\n{' '.join(doc.split())}\n"


def page() -> str:
    """The whole page."""
    presets = {
        "smollm2": tomllib.loads((PRESETS / "smollm2.toml").read_text(encoding="utf-8")),
        "other models": tomllib.loads((PRESETS / "language_model.toml").read_text(encoding="utf-8")),
    }
    parts = [INTRODUCTION.format(count=len(all_keys()))]
    docs = field_docs(Config)
    for name in SECTIONS:
        more = f" More: [{MORE[name]}]({MORE[name]})." if name in MORE else ""
        parts.append(f"## {name}\n\n{docs[name]}{more}\n")
        parts += [union_table(name)] if name in UNIONS else []
        parts += section_entries(name, presets)
    alone = [
        entry(name, field, docs[name], presets) for name, field in Config.model_fields.items() if name not in SECTIONS
    ]
    return "\n".join([*parts, "## Without a section\n", *alone])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
