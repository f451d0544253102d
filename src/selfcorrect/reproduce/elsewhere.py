"""Targets that another command measures. The one place where `reproduce` calls it: name -> a function of the choice.

A function takes the ``Choice``, measures what is missing below ``choice.out``, writes its outputs there and returns
the files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from selfcorrect.reproduce.choice import Choice

ELSEWHERE: dict[str, Callable[[Choice], list[Path]]] = {}
