"""Layers of settings, resolved into one ``Config``. Later layers win.

    class defaults < the model's preset (presets/<model>.toml) < a TOML file < key=value

A section that has a ``name`` may be set by it alone: ``model=smollm2`` is ``model.name=smollm2``.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from selfcorrect.config.methods import MultiAttemptConfig
from selfcorrect.config.section import Section
from selfcorrect.config.sections import SECTIONS, UNIONS, Config, all_keys, default_of, names_of, readers
from selfcorrect.config.tasks import ImportedTaskConfig
from selfcorrect.errors import ConfigError

SHIPPED = ("tiny", "tiny-rare")
"""Models of 0.1 M parameters that ship with the package; tools/make_tiny.py made them."""
PRESET_MARKER = "selfcorrect_preset.txt"
"""File in a model directory that names the preset its settings start from."""

RENAMED = {"method.attempts": "play.attempts", "train.max_new_tokens": "play.max_new_tokens"}

HINTS = {
    "temperature": "training samples at temperature 1 with no top-p or top-k: the log-probs must be those of the sampling "
    "distribution (the paper samples at T = 1 too). For an evaluation use eval.temperature.",
    "top_p": "training samples at temperature 1 with no top-p or top-k; there is no setting for it.",
    "top_k": "training samples at temperature 1 with no top-p or top-k; there is no setting for it.",
    "lr": "did you mean train.learning_rate?",
    "learning_rate": "did you mean train.learning_rate?",
    "batch_size": "a step plays train.problems_per_step problems, train.samples_per_problem times each.",
    "steps": "did you mean train.steps?",
}


def load_config(file: Path | None = None, overrides: Iterable[str] = ()) -> Config:
    """Resolve all layers into one frozen config.

    Args:
        file: a TOML file with the sections of ``Config``, or None.
        overrides: ``section.key=value`` or ``section=name``; a value is read as TOML, else as a plain string.

    Raises:
        ConfigError: unknown key, wrong type, out of range, or settings in conflict; the message names the way out.
    """
    user: dict[str, Any] = {}
    if file is not None:
        try:
            user = tomllib.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(
                f"config file {file} does not exist; give the path of a TOML file, or key=value settings"
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"config file {file} is not valid TOML: {error}; correct that line") from None
        except OSError as error:
            raise ConfigError(
                f"config file {file} cannot be read: {error.strerror}; check the path and its permissions"
            ) from None
    for key in user.keys() & SECTIONS.keys():
        if not isinstance(user[key], dict) and "name" in SECTIONS[key][0].model_fields:
            user[key] = {"name": user[key]}
    for text in overrides:
        _apply_override(user, text)
    _refuse_unknown(user)
    preset = _preset(str(user.get("model", {}).get("name", default_of("model.name"))))
    config = validate(_merge(_fitting(preset, user), user))
    _refuse_unread(config, user)
    return config


def override(config: Config, overrides: Iterable[str]) -> Config:
    """A resolved config with some settings changed.

    A new task, method or engine keeps only those settings of the old one that it reads.

    Args:
        config: e.g. that of a finished run.
        overrides: as for ``load_config``.

    Raises:
        ConfigError: as ``load_config``.
    """
    given: dict[str, Any] = {}
    for text in overrides:
        _apply_override(given, text)
    base = config.model_dump()
    _refuse_unknown(given, base)
    if config.eval.attempts == config.play.attempts:  # where both agree, one follows the other
        base["eval"]["attempts"] = None
    m = config.method
    if isinstance(m, MultiAttemptConfig) and m.branches == m.fitting_branches(
        config.play.attempts, config.train.samples_per_problem
    ):
        base["method"]["branches"] = None
    return validate(_merge(_fitting(base, given), given))


def validate(values: Mapping[str, Any]) -> Config:
    """Build a ``Config`` from nested values, with one-paragraph errors.

    Raises:
        ConfigError: as ``load_config``.
    """
    _refuse_unknown(values)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e) for e in error.errors())) from None


def restore(values: Mapping[str, Any]) -> Config:
    """The config of a ``config.json``, written by this version or by an earlier one.

    Earlier versions stored every setting of every task, method and engine. Settings that the chosen one does not read
    are dropped if they have their default value or that of the model's preset.

    Raises:
        ConfigError: as ``load_config``.
    """
    new = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for old, renamed in RENAMED.items():
        (section, key), (target, name) = old.split("."), renamed.split(".")
        if isinstance(new.get(section), dict) and key in new[section]:
            new.setdefault(target, {})[name] = new[section].pop(key)
    model = new.get("model")
    preset = _preset(str(model.get("name"))) if isinstance(model, dict) else {}
    known = set(all_keys())
    for section in UNIONS:
        stored = new.get(section)
        if not isinstance(stored, dict):
            continue
        fields = _member(section, stored.get("name")).model_fields
        for key in [key for key in stored if key not in fields and f"{section}.{key}" in known]:
            default = default_of(f"{section}.{key}")
            if stored[key] in (default, preset.get(section, {}).get(key, default)):
                del stored[key]
    return validate(new)


def _member(section: str, name: Any = None) -> type[Section]:
    """The class of a section. In a union it is the class of that name, else the default."""
    classes = SECTIONS[section]
    if section not in UNIONS or name is None:
        return classes[0]
    names = {n: c for c in classes for n in names_of(c)}
    if isinstance(name, str) and name in names:
        return names[name]
    if section == "task" and isinstance(name, str):
        return ImportedTaskConfig
    article = "an" if section == "engine" else "a"
    raise ConfigError(f"{section}.name = {name!r} is not {article} {section}; take one of: {', '.join(names)}")


def _fitting(below: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """A lower layer without settings that the class chosen by a higher layer does not read."""
    out = dict(below)
    for section in UNIONS.keys() & below.keys():
        fields = _member(section, top.get(section, {}).get("name", below[section].get("name"))).model_fields
        out[section] = {key: value for key, value in below[section].items() if key in fields}
    return out


def _refuse_unread(config: Config, user: Mapping[str, Any]) -> None:
    """Refuse settings that other settings switch off, if the user wrote them. A preset may contain them."""
    tinker, sampler = config.engine.name == "tinker", getattr(config.engine, "sampler", None)
    no_adapters = config.model.lora_rank == 0
    for key, is_unread, reason, way_out in (
        ("model.dtype", tinker, "engine=tinker: the server decides", "use engine=torch"),
        ("model.lora_alpha", no_adapters, "model.lora_rank=0: there are no adapters", "set model.lora_rank"),
        ("engine.sampler_memory_gb", sampler == "native", "engine.sampler=native", "set engine.sampler=vllm"),
        ("engine.tokens_per_sampling_batch", sampler == "vllm", "engine.sampler=vllm", "set engine.sampler=native"),
        ("engine.drafts", sampler == "vllm", "engine.sampler=vllm", "set engine.sampler=native"),
    ):
        section, name = key.split(".")
        if is_unread and name in user.get(section, {}):
            value = getattr(getattr(config, section), name)
            if value != default_of(key):
                raise ConfigError(f"{key} = {value!r} would be ignored with {reason}; drop it, or {way_out}")


def _preset(model: str) -> dict[str, Any]:
    """Preset of an embedded model, or of any other language model. The class defaults are those of ``tiny``.

    A directory written by `selfcorrect sft` keeps the preset of its original model.
    """
    name = preset_name(model)
    if name == "tiny":
        return {}
    return tomllib.loads(resources.files("selfcorrect").joinpath(f"presets/{name}.toml").read_text(encoding="utf-8"))


def preset_name(model: str) -> str:
    """``tiny``, ``smollm2`` or ``language_model``."""
    marker = Path(model) / PRESET_MARKER
    name = marker.read_text(encoding="utf-8").strip() if marker.is_file() else model
    if name in SHIPPED:
        return "tiny"
    return name if name == "smollm2" else "language_model"


def _apply_override(values: dict[str, Any], text: str) -> None:
    key, equals, raw = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"setting {text!r} is not of the form key=value; write for example train.steps=100")
    path = key.strip().split(".")
    if len(path) == 1 and path[0] in SECTIONS and "name" in SECTIONS[path[0]][0].model_fields:
        path.append("name")
    node = values
    for part in path[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"setting {text!r}: {part!r} is not a section; write section.key=value")
    raw = raw.strip()
    if raw in ("none", "None", "null"):
        node[path[-1]] = None
        return
    try:
        node[path[-1]] = tomllib.loads(f"v = {raw}")["v"]
    except tomllib.TOMLDecodeError:
        node[path[-1]] = raw


def _refuse_unknown(values: Mapping[str, Any], below: Mapping[str, Any] | None = None) -> None:
    """Refuse a key that is not a setting, or not one of the chosen task, method or engine (named in ``values``, else in
    ``below``)."""
    for key, value in values.items():
        if key not in Config.model_fields:
            raise ConfigError(f"unknown setting {key!r}: {_suggest(key)}")
        if key not in SECTIONS:
            continue
        if not isinstance(value, Mapping):
            keys = ", ".join(dict.fromkeys(name for c in SECTIONS[key] for name in c.model_fields))
            raise ConfigError(f"{key!r} is a section, not a value; set one of: {keys}")
        chosen = value.get("name", below[key].get("name") if below else None)
        member = _member(key, chosen)
        for name in value:
            full = f"{key}.{name}"
            if name in member.model_fields:
                continue
            if full in RENAMED:
                raise ConfigError(f"{full} was renamed to {RENAMED[full]}; write {RENAMED[full]}={value[name]}")
            if member is ImportedTaskConfig:
                raise ConfigError(
                    f"{full} is no setting of a task from an import path; write {key}.options.{name}={value[name]} if its "
                    "function has a parameter of that name"
                )
            if not (others := readers(full)):
                raise ConfigError(f"unknown setting {full!r}: {_suggest(name, f'{key}.')}")
            *some, last = others
            raise ConfigError(
                f"{full} = {value[name]!r} would be ignored by {key}={chosen or member.model_fields['name'].default}; drop it, or use "
                f"{key}={' or '.join(filter(None, (', '.join(some), last)))}"
            )


def _suggest(key: str, prefix: str = "") -> str:
    if key in HINTS:
        return HINTS[key]
    known = all_keys()
    close = difflib.get_close_matches(f"{prefix}{key}", known, n=3) or [k for k in known if k.endswith(f".{key}")]
    if close:
        return f"did you mean {' or '.join(close)}?"
    return "see every setting with `selfcorrect train --dry-run`."


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _explain(error: Any) -> str:
    path = [part for part in error["loc"] if isinstance(part, str)]  # a number counts the entries of a list
    member: type[Section] | None = None
    if path and path[0] in UNIONS:
        member = next((c for c in UNIONS[path[0]] if path[1:2] and path[1] in names_of(c)), None)
        del path[1:2]  # pydantic's name of the member
    if ".".join(path[:2]) in all_keys():
        del path[2:]  # one of the types that a setting may have
    where, message = ".".join(path), str(error["msg"]).removeprefix("Value error, ")
    if where == "train.samples_per_problem":
        return (
            f"train.samples_per_problem = {error['input']!r} is refused: the leave-one-out baseline needs at least "
            "2 samples of each problem; use 4 or more"
        )
    if where not in all_keys():  # a check between settings: its message names them
        return message
    name = where.partition(".")[2]
    default = member.model_fields[name].default if member and name in member.model_fields else default_of(where)
    return f"{where} = {error['input']!r}: {message}; the default is {default!r}"
