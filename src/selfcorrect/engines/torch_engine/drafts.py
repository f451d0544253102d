"""Drafts: the tokens that an answer will probably take next, read from an earlier attempt in its own prompt.

The sampler checks several of them in one pass. It keeps a token only if it draws the same one at that position, so a
draft changes how fast an answer comes, but not what it says. Every decision here depends on tokens only, never on a
clock.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

import numpy as np

LONGEST, SHORTEST = 4, 2
"""Numbers of latest tokens by which an answer finds its place in the prompt; the longest match is used."""
MOST_DRAFTED = 16
"""Tokens that one row drafts for one pass."""
LEAST_CHANCE = 0.25
"""A draft token that is less likely to be right than this is not tried, however cheap it is."""
FORGET = 0.9
"""With each new token, the evidence of earlier ones is multiplied by this."""
LOST, FOLLOWING = 0, 1


class Draft:
    """Follows one answer through its prompt, and remembers how often the prompt predicted the next token.

    It also predicts tokens that are not drafted. So it learns at no cost, and drafts nothing if the model rewrites
    everything.

    Args:
        prompt_ids: of the answer, with all earlier attempts.
        answer_ids: its tokens so far.
        stop_ids: tokens that end an answer; nothing is drafted after one.
    """

    def __init__(self, prompt_ids: Sequence[int], answer_ids: Sequence[int], stop_ids: Set[int]) -> None:
        self._prompt, self._stop_ids = prompt_ids, stop_ids
        self._bytes = np.asarray(prompt_ids, dtype=np.int32).tobytes()
        self._recent = [*prompt_ids[-LONGEST:], *answer_ids][-LONGEST:]
        self._state = LOST
        """Whether the last prediction held."""
        self._held, self._tried = [0.8, 1.6], [2.0, 2.0]
        """Of the predictions made in each state; to begin with, as if two had been made, of which 40 and 80 % held."""
        self._place = self._found(0)
        """Position in the prompt of the next token, if the answer follows the prompt."""

    def observe(self, token: int) -> None:
        """Note the answer's next token."""
        self._recent = [*self._recent[1 - LONGEST :], token]
        if self._place is None or self._place >= len(self._prompt):
            self._place = self._found(0)
            return
        predicted, was = self._prompt[self._place], self._state
        holds = predicted == token
        self._held[was] = FORGET * self._held[was] + holds
        self._tried[was] = FORGET * self._tried[was] + 1
        self._state = FOLLOWING if holds else LOST
        if holds or (was == FOLLOWING and predicted not in self._stop_ids):
            self._place += 1  # after one wrong token, it may have been replaced by another
        else:
            self._place = self._found(self._place)

    def propose(self, most: int, worth: float) -> tuple[list[int], float]:
        """Tokens to check in the next pass, and how many of them are expected to be right.

        Args:
            most: largest number of tokens.
            worth: a token must be right with more than this probability to be worth its place in the pass.
        """
        drafted: list[int] = []
        expected, chance, state = 0.0, 1.0, self._state
        start = len(self._prompt) if self._place is None else self._place
        for token in self._prompt[start : start + min(most, MOST_DRAFTED)]:
            chance *= self._held[state] / self._tried[state]
            if chance <= worth:
                break
            drafted.append(token)
            expected += chance
            state = FOLLOWING
            if token in self._stop_ids:
                break
        return drafted, expected

    def _found(self, after: int) -> int | None:
        """The position after an occurrence of the latest tokens: the first one from ``after`` on if there is one, else
        the last."""
        whole = len(self._bytes) - 4  # an occurrence at the very end has no next token
        for n in range(min(LONGEST, len(self._recent)), SHORTEST - 1, -1):
            wanted = np.asarray(self._recent[-n:], dtype=np.int32).tobytes()
            at = self._bytes.find(wanted, 4 * after, whole) if after else -1
            while at >= 0 and at % 4:
                at = self._bytes.find(wanted, at + 1, whole)
            if at < 0:
                at = self._bytes.rfind(wanted, 0, whole)
            while at >= 0 and at % 4:
                at = self._bytes.rfind(wanted, 0, at + 4 * n - 1)
            if at >= 0:
                return at // 4 + n
        return None


def plan(drafts: Sequence[Draft | None], most: Sequence[int], pass_cost: float) -> list[list[int]]:
    """The draft of every row for the next pass, chosen to make the pass cheapest per token that it yields.

    A pass over n tokens costs ``pass_cost`` + n, in tokens. A draft token is worth its place if its probability to be
    right is above the tokens that the pass yields per unit of cost without it.

    Args:
        drafts: None for a row without one.
        most: tokens that each row may draft.
        pass_cost: the fixed cost of a pass, in tokens.
    """
    rows = len(drafts)
    given, fed = float(rows), float(rows)
    proposals: list[tuple[list[int], float]] = []
    for _ in range(2):  # what others draft makes the pass better, so a second look drops some of the drafts
        worth = max(LEAST_CHANCE, given / (pass_cost + fed))
        proposals = [d.propose(n, worth) if d is not None else ([], 0.0) for d, n in zip(drafts, most, strict=True)]
        given = rows + sum(expected for _, expected in proposals)
        fed = rows + sum(len(drafted) for drafted, _ in proposals)
    return [drafted for drafted, _ in proposals]
