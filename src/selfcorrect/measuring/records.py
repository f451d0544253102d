"""Conversion of results to JSON and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, ConfigDict, PlainSerializer, TypeAdapter, ValidationError

from selfcorrect.errors import DataError

Number = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(lambda value: None if math.isnan(value) else value),
]
"""A float in strict JSON, which has no nan: null stands for it."""


class Storable:
    """A base of frozen dataclasses that are stored as JSON."""

    __slots__ = ()
    __pydantic_config__ = ConfigDict(extra="forbid")
    NAME: ClassVar[str]
    """The name of such a value in error messages, e.g. ``evaluation``."""

    def to_json(self) -> dict[str, Any]:
        """A dict that strict JSON can hold."""
        stored: dict[str, Any] = _adapter(type(self)).dump_python(self, mode="json")
        return stored

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; fields that it leaves out keep their defaults.

        Raises:
            DataError: a field is missing, unknown or of another type.
        """
        try:
            value: Self = _adapter(cls).validate_python(data)
        except ValidationError as error:
            found = error.errors()[0]
            where = ".".join(map(str, found["loc"])) or "the whole"
            raise DataError(
                f"This is not a stored {cls.NAME} ({where}: {found['msg']}). Its fields are not those that this version "
                "writes. Measure again, or read the file with the version that wrote it."
            ) from error
        return value


_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def _adapter(kind: type) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]
