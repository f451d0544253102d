"""Where a model's thinking ends and its answer begins."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Parts:
    """A model's text, split into thinking and answer."""

    thinking: str
    """Without its markers; empty where there is none."""
    answer: str
    """What follows the thinking; empty where the thinking never ended."""
    start: int
    """Characters before the answer, markers included."""
    finished: bool = True
    """False: the thinking has no end, so there is no answer."""


@dataclass(frozen=True, slots=True)
class Markers:
    """The pair of texts around a model's thinking."""

    opening: str
    closing: str

    def split(self, text: str, *, opened: bool = False) -> Parts:
        """Split a text after its thinking.

        Thinking is at the start of a text. The first closing marker ends it; blocks that follow directly belong to it
        too. A closing marker without an opening one ends thinking too: some prompts hold the opening marker. Markers
        anywhere else are part of the answer, for example in a program.

        Args:
            text: as the model wrote it, with its markers.
            opened: the prompt holds the opening marker already.
        """
        thoughts: list[str] = []
        rest = text
        inside = opened
        while True:
            began = rest.lstrip().startswith(self.opening)
            head, closed, tail = rest.partition(self.closing)
            if not (inside or began):
                if thoughts or not closed or (self.opening in head and self != HARMONY):
                    break
            elif not closed:
                thoughts.append(rest)
                return Parts(self._plain(thoughts), "", len(text), finished=False)
            thoughts.append(head)
            rest, inside = tail, False
        return Parts(self._plain(thoughts), rest.lstrip("\n") if thoughts else rest, len(text) - len(rest))

    def _plain(self, thoughts: list[str]) -> str:
        plain = (t.lstrip().removeprefix(self.opening) for t in thoughts)
        if self == HARMONY:  # the start of the next message stands before the closing marker
            plain = (t.partition("<|end|>")[0] for t in plain)
        return "\n".join(t.strip() for t in plain).strip()

    def open_in(self, prompt: str) -> bool:
        """Whether a prompt ends with the opening marker, so that the answer starts with thinking."""
        return prompt.rstrip().endswith(self.opening)

    def begun_in(self, header: str) -> str:
        """The thinking that the start of an answer opens and does not close, from the marker on; empty where there is none."""
        _, opening, rest = header.rpartition(self.opening)
        return opening + rest if opening and self.closing not in rest else ""


USUAL = Markers("<think>", "</think>")
"""Used for models whose template names no markers, and for endpoints."""
HARMONY = Markers("<|channel|>analysis<|message|>", "<|channel|>final<|message|>")
KNOWN = (
    USUAL,
    Markers("[THINK]", "[/THINK]"),
    Markers("<|START_THINKING|>", "<|END_THINKING|>"),
    Markers("<|channel>thought", "<channel|>"),
    Markers("◁think▷", "◁/think▷"),
    Markers("<|begin_of_thought|>", "<|end_of_thought|>"),
    HARMONY,
)
"""Pairs of families without tags of the form ``<...think...>``."""
_TAG = re.compile(r"</([\w:.-]*(?:think|thought|reason)[\w:.-]*)>")


def markers_of(template: str) -> Markers | None:
    """The markers that a chat template names; None where it names none."""
    for known in KNOWN:
        if known.closing in template:
            return known
    if "<|channel|>final" in template and "<|channel|>analysis" in template:
        return HARMONY
    tag = _TAG.search(template)
    return Markers(f"<{tag[1]}>", f"</{tag[1]}>") if tag is not None else None
