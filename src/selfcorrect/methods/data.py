"""From graded episodes to training data: token ids with one weight per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfcorrect.objective import Credit, counted_mask, group_token_weights, zero_variance
from selfcorrect.types import Attempt, Datum, Episode, FloatArray

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
    kl_K: tuple[float, ...]
    """Mean over episodes of the attempt's KL estimate to the reference, in nats."""


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

    The denominator is the number of episodes played in the step, fixed: groups that teach nothing are counted in.

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
    zero = np.zeros(n_attempts)
    skipped = np.zeros(n_attempts, dtype=int)
    kl_K = np.zeros(n_attempts)
    for b, group in enumerate(groups):
        laid_out = [sequences(episode) for episode in group]
        policy = [[s.logprobs_T for s in seqs] for seqs in laid_out] if policy_logprobs is None else policy_logprobs[b]
        logratios = [
            _logratios(seqs, current, reference, n_attempts)
            for seqs, current, reference in zip(laid_out, policy, reference_logprobs[b], strict=True)
        ]
        rewards_GK = np.stack([e.rewards_K for e in group])
        valid_GK = np.stack([e.valid_K for e in group])
        weights = group_token_weights(rewards_GK, valid_GK, logratios, credit)
        counted_GK = counted_mask(valid_GK, credit.alpha, credit.gamma, credit.baseline)
        for k in range(n_attempts):
            zero[k] += zero_variance(rewards_GK[:, k], counted_GK[:, k])
            skipped[k] += counted_GK[:, k].sum() < 2
            kl_K[k] += sum(float(sample[k].sum()) for sample in logratios)
        for seqs, sample_weights in zip(laid_out, weights, strict=True):
            data += [_datum(s, sample_weights, 1.0 / episodes_played) for s in seqs]
    report = BatchReport(
        tuple((zero / len(groups)).tolist()), tuple(skipped.tolist()), tuple((kl_K / episodes_played).tolist())
    )
    return data, report


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
