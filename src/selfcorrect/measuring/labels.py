"""Names of evaluations and methods for people: the same in tables, reports and model cards."""

from __future__ import annotations

CONTROLS = {"swapped": "attempt 1 swapped", "given-wrong": "wrong attempt 1 given"}
"""Label of each control, by the suffix of its evaluation's name: ``final-swapped``."""
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
"""Label of each method, by ``method.name``."""


def model_and_control(evaluation: str) -> tuple[str, str]:
    """The model that was evaluated, and the label of the control; the label of a plain evaluation is empty.

    >>> model_and_control("final-swapped")
    ('final', 'attempt 1 swapped')
    """
    model, _, control = evaluation.partition("-")
    return model, CONTROLS.get(control, control)
