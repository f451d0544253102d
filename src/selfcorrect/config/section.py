"""What all classes of settings share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, validate_default=True)


class Named(Section):
    """A member of one of the unions."""

    name: str

    def refuse_ignored(self, section: str, rules: Iterable[tuple[bool, tuple[str, ...], str]]) -> Self:
        """Refuse settings that other settings of the section switch off, if they differ from their defaults.

        Args:
            section: for the message.
            rules: whether the rule holds, the settings that are then not read, and the way out.

        Raises:
            ValueError: one of them would be ignored.
        """
        for holds, names, way_out in rules:
            for name in names if holds else ():
                value = getattr(self, name)
                if value != type(self).model_fields[name].default:
                    raise ValueError(
                        f"{section}.{name} = {value!r} would be ignored by {section}={self.name}; drop it, or {way_out}"
                    )
        return self
