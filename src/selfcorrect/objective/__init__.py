"""The algorithm: from verdicts and log-ratios to one weight per sampled token. Pure; no models, no I/O.

Read ``credit.py`` from top to bottom: each function is one equation of the method. ``losses.py`` (torch) holds the
two losses an engine applies to those weights; it is not imported here, so that reading a config stays instant.
"""

from selfcorrect.objective.credit import (
    Baseline,
    Credit,
    KlCredit,
    adapted_scale,
    attempt_returns,
    branch_pairs,
    counted_mask,
    given_first_advantages,
    group_token_weights,
    kl_per_token_credit,
    leave_one_out_advantages,
    shaping_bonus,
    standardised,
    tree_token_weights,
    zero_variance,
)

__all__ = [
    "Baseline",
    "Credit",
    "KlCredit",
    "adapted_scale",
    "attempt_returns",
    "branch_pairs",
    "counted_mask",
    "given_first_advantages",
    "group_token_weights",
    "kl_per_token_credit",
    "leave_one_out_advantages",
    "shaping_bonus",
    "standardised",
    "tree_token_weights",
    "zero_variance",
]
