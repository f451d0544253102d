"""Names for people, of evaluations and of methods: one set for tables, reports and model cards."""

from __future__ import annotations

CONTROLS = {"swapped": "attempt 1 swapped", "given-wrong": "wrong attempt 1 given"}
"""By what the name of a control's evaluation ends in: ``final-swapped``."""
METHODS = {
    "score": "SCoRe",
    "multi_turn": "multi-turn RL",
    "single_turn": "single-turn RL",
    "pag": "PAG",
    "thinktwice": "ThinkTwice",
    "star": "STaR",
    "pair_sft": "Pair-SFT",
    "self_refine": "Self-Refine",
}
"""By ``method.name``."""


def model_and_control(evaluation: str) -> tuple[str, str]:
    """The model that an evaluation is of, and the label of its control; empty for the plain evaluation.

    >>> model_and_control("final-swapped")
    ('final', 'attempt 1 swapped')
    """
    model, _, control = evaluation.partition("-")
    return model, CONTROLS.get(control, control)
