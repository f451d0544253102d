"""Results as JSON and back: frozen dataclasses of numbers, estimates, lists, and further such dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from selfcorrect.measuring.intervals import Estimate


def plain(value: Any) -> Any:
    """What strict JSON can hold. Fields that a comparison leaves out are not stored."""
    if isinstance(value, Estimate):
        return value.to_json()
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return dict(value)
    return plain_record(value) if is_dataclass(value) else value


def plain_record(record: Any) -> dict[str, Any]:
    """``plain`` of a dataclass."""
    return {f.name: plain(getattr(record, f.name)) for f in fields(record) if f.compare}


def loaded(value: Any) -> Any:
    """The inverse of ``plain``, up to dataclasses, which stay dicts. An estimate is what has a ``kind``."""
    if isinstance(value, Mapping):
        return Estimate.from_json(value) if "kind" in value else dict(value)
    return tuple(loaded(item) for item in value) if isinstance(value, list | tuple) else value


def loaded_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of one flat record."""
    return {name: loaded(value) for name, value in data.items()}
