"""From graded episodes to training data: token ids with one weight per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from selfcorrect.algorithm.credit import (
    Credit,
    branch_pairs,
    counted_mask,
    group_token_weights,
    tree_token_weights,
    zero_variance,
)
from selfcorrect.types import Attempt, BoolArray, Datum, Episode, FloatArray

NestedLogprobs = Sequence[Sequence[Sequence[FloatArray]]]
"""Per problem, episode and sequence (in the order of ``sequences``): log-probs in nats, shape [T]."""


@dataclass(frozen=True, slots=True)
class Sequenced:
    """One token sequence of an episode and where its sampled attempts lie. Satisfies the engine's ``Scored``."""

    tokens_T: np.ndarray
    sampled_T: np.ndarray
    logprobs_T: FloatArray
    spans: tuple[tuple[int, int, int], ...]
    """(attempt index, first position, end position) of each sampled attempt in this sequence."""


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What the weights were made from; one number per attempt."""

    zero_variance_share_K: tuple[float, ...]
    """Share of groups whose verdicts at this attempt are all equal."""
    skipped_groups_K: tuple[int, ...]
    """Groups left with fewer than two known returns because the verifier failed."""
    kl_K: tuple[float | None, ...]
    """Mean over the sampled attempts of the KL estimate to the reference, in nats; None where all were given."""


def sequences(episode: Episode) -> list[Sequenced]:
    """Lay an episode out as few token sequences as possible, with every sampled token in exactly one.

    An attempt whose prompt extends the previous attempt's prompt and answer goes into the same sequence.

    Raises:
        ValueError: a sampled attempt has no token ids or log-probs (a text-only endpoint): it cannot be trained on.
    """
    out: list[Sequenced] = []
    tokens: list[int] = []
    spans: list[tuple[int, int, int]] = []
    logprobs: dict[int, float] = {}

    def close() -> None:
        if spans:
            sampled_T = np.zeros(len(tokens), dtype=bool)
            logprobs_T = np.zeros(len(tokens))
            for _, start, end in spans:
                sampled_T[start:end] = True
            logprobs_T[list(logprobs)] = list(logprobs.values())
            out.append(Sequenced(np.array(tokens, dtype=np.int64), sampled_T, logprobs_T, tuple(spans)))

    for k, attempt in enumerate(episode.attempts):
        if attempt.source == "given":
            continue
        prompt, answer, lps = _trainable(attempt)
        if tuple(tokens) != prompt[: len(tokens)]:
            close()
            tokens, spans, logprobs = [], [], {}
        tokens = [*prompt, *answer]
        spans.append((k, len(prompt), len(tokens)))
        logprobs.update(zip(range(len(prompt), len(tokens)), lps, strict=True))
    close()
    return out


def _trainable(attempt: Attempt) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
    if attempt.prompt_ids is None or attempt.token_ids is None or attempt.logprobs is None:
        raise ValueError(
            "an attempt without token ids or log-probs cannot be trained on: sample it from a training engine"
        )
    return attempt.prompt_ids, attempt.token_ids, attempt.logprobs


def policy_gradient_data(
    groups: Sequence[Sequence[Episode]],
    reference_logprobs: NestedLogprobs,
    credit: Credit,
    policy_logprobs: NestedLogprobs | None = None,
) -> tuple[list[Datum], BatchReport]:
    """Token weights of a whole step: REINFORCE with a leave-one-out baseline per attempt.

    The denominator is the number of episodes played in the step, fixed: groups that teach nothing are counted in. A tree
    is one episode.

    Args:
        groups: ``groups[b][g]``: the episodes of problem b.
        reference_logprobs: the reference policy's.
        credit: the stage's numbers.
        policy_logprobs: the same of the current policy by the trainer's own pass, for the KL terms; None takes the
            sampler's, which is right where both agree to rounding.

    Returns:
        The data (weights already divided by the number of episodes), and a report.
    """
    episodes_played = sum(len(group) for group in groups)
    n_attempts = len(credit.reward_weights_K)
    data: list[Datum] = []
    reports: list[_GroupReport] = []
    for b, group in enumerate(groups):
        laid_out = [sequences(episode) for episode in group]
        policy = [[s.logprobs_T for s in seqs] for seqs in laid_out] if policy_logprobs is None else policy_logprobs[b]
        logratios = [
            _logratios(seqs, current, reference, len(episode.attempts))
            for episode, seqs, current, reference in zip(group, laid_out, policy, reference_logprobs[b], strict=True)
        ]
        rewards_GK = np.stack([e.rewards_K for e in group])
        valid_GK = np.stack([e.valid_K for e in group])
        branched = len(group[0].attempts) > n_attempts  # a tree: several second attempts
        weights = (tree_token_weights if branched else group_token_weights)(rewards_GK, valid_GK, logratios, credit)
        reports.append((_tree_report if branched else _group_report)(rewards_GK, valid_GK, logratios, credit))
        for seqs, sample_weights in zip(laid_out, weights, strict=True):
            data += [_datum(s, sample_weights, 1.0 / episodes_played) for s in seqs]
    return data, BatchReport(
        tuple(sum(r.zero_variance_K[k] for r in reports) / len(groups) for k in range(n_attempts)),
        tuple(sum(r.skipped_K[k] for r in reports) for k in range(n_attempts)),
        tuple(_mean_kl(reports, groups, k) for k in range(n_attempts)),
    )


def _mean_kl(reports: Sequence[_GroupReport], groups: Sequence[Sequence[Episode]], k: int) -> float | None:
    sampled = sum(e.attempts[k].source == "sampled" for group in groups for e in group)
    return sum(r.kl_K[k] for r in reports) / sampled if sampled else None


@dataclass(frozen=True, slots=True)
class _GroupReport:
    """One problem's part of the report, one number per attempt."""

    zero_variance_K: list[float]
    skipped_K: list[int]
    kl_K: list[float]
    """Summed over episodes, in nats."""


def _group_report(
    rewards_GK: FloatArray, valid_GK: BoolArray, logratios: Sequence[Sequence[FloatArray]], credit: Credit
) -> _GroupReport:
    counted_GK = counted_mask(valid_GK, credit.alpha, credit.gamma, credit.baseline)
    columns = range(rewards_GK.shape[1])
    return _GroupReport(
        [float(zero_variance(rewards_GK[:, k], counted_GK[:, k])) for k in columns],
        [int(counted_GK[:, k].sum() < 2) for k in columns],
        [sum(float(sample[k].sum()) for sample in logratios) for k in columns],
    )


def _tree_report(
    rewards_GM: FloatArray, valid_GM: BoolArray, logratios: Sequence[Sequence[FloatArray]], credit: Credit
) -> _GroupReport:
    """The second attempts of each first one are a baseline group of their own."""
    first = _group_report(rewards_GM[:, :1], valid_GM[:, :1], logratios, replace(credit, alpha=0.0))
    seconds = [
        _group_report(branch_pairs(r), branch_pairs(v), [(tree[0], t) for t in tree[1:]], credit)
        for r, v, tree in zip(rewards_GM, valid_GM, logratios, strict=True)
    ]
    branches = rewards_GM.shape[1] - 1
    return _GroupReport(
        [first.zero_variance_K[0], sum(s.zero_variance_K[1] for s in seconds) / len(seconds)],
        [first.skipped_K[0], sum(s.skipped_K[1] for s in seconds)],
        [first.kl_K[0], sum(s.kl_K[1] for s in seconds) / branches],
    )


def last_attempt_from(
    groups: Sequence[Sequence[Episode]], earlier: NestedLogprobs, last: NestedLogprobs
) -> list[list[list[FloatArray]]]:
    """Reference log-probs where the last attempt is measured against another policy than the earlier ones."""
    out: list[list[list[FloatArray]]] = []
    for group, earlier_group, last_group in zip(groups, earlier, last, strict=True):
        out.append([])
        for episode, ours, theirs in zip(group, earlier_group, last_group, strict=True):
            merged = [logprobs_T.copy() for logprobs_T in ours]
            for seq, into, source in zip(sequences(episode), merged, theirs, strict=True):
                for k, start, end in seq.spans:
                    if k == len(episode.attempts) - 1:
                        into[start:end] = source[start:end]
            out[-1].append(merged)
    return out


def _logratios(
    seqs: Sequence[Sequenced], policy: Sequence[FloatArray], reference: Sequence[FloatArray], n_attempts: int
) -> list[FloatArray]:
    """lp - ref of the sampled tokens of each attempt; empty for a given attempt."""
    out: list[FloatArray] = [np.zeros(0) for _ in range(n_attempts)]
    for seq, policy_T, reference_T in zip(seqs, policy, reference, strict=True):
        for k, start, end in seq.spans:
            out[k] = policy_T[start:end] - reference_T[start:end]
    return out


def _datum(seq: Sequenced, weights_K: Sequence[FloatArray], scale: float) -> Datum:
    weights_T = np.zeros(len(seq.tokens_T))
    for k, start, end in seq.spans:
        weights_T[start:end] = weights_K[k] * scale
    return Datum(seq.tokens_T, weights_T, seq.logprobs_T, seq.sampled_T)
