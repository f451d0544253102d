"""A step's episodes as token sequences, and those sequences as training data: token ids with one weight per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfcorrect.algorithm.credit import Credit
from selfcorrect.algorithm.trees import tree_token_weights
from selfcorrect.algorithm.verdicts import per_role, verdict_token_weights
from selfcorrect.algorithm.weights import GroupWeights, group_token_weights
from selfcorrect.types import BoolArray, Datum, Episode, FloatArray, IntArray

AttemptValues = Sequence[Sequence[Sequence[FloatArray]]]
"""``values[b][g][k]``: one number per sampled token of attempt k in episode g of problem b; empty for one not sampled."""


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One token sequence of an episode, and where its sampled attempts lie. Satisfies the engine's ``Scored``."""

    tokens_T: IntArray
    sampled_T: BoolArray
    logprobs_T: FloatArray
    """Sampling log-probs in nats on sampled positions; 0 elsewhere."""
    spans: tuple[tuple[int, int, int], ...]
    """(attempt index, first position, end position) of each sampled attempt in this sequence."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A step's episodes as token sequences. Made once, right after play; log-probs, weights and data all read it."""

    groups: Sequence[Sequence[Episode]]
    """``groups[b][g]``: the episodes of problem b."""
    sequences: tuple[TokenSequence, ...]
    """The sequences of all episodes, in the order of ``groups``."""
    owners: tuple[tuple[int, int], ...]
    """(b, g) of the episode of every sequence."""

    def by_attempt(self, logprobs: Sequence[FloatArray]) -> AttemptValues:
        """Split the log-probs of every sequence (shape [T] each) by attempt."""
        values: list[list[list[FloatArray]]] = [
            [[np.zeros(0)] * len(e.attempts) for e in group] for group in self.groups
        ]
        for (b, g), sequence, logprobs_T in zip(self.owners, self.sequences, logprobs, strict=True):
            for k, start, end in sequence.spans:
                values[b][g][k] = logprobs_T[start:end]
        return values


@dataclass(frozen=True, slots=True)
class BatchReport:
    """Numbers behind a step's weights; one per attempt."""

    zero_variance_share_K: tuple[float, ...]
    """Share of groups whose verdicts at this attempt are all equal."""
    skipped_groups_K: tuple[int, ...]
    """Groups left with fewer than two known returns because the verifier failed."""
    kl_K: tuple[float | None, ...]
    """Mean over the sampled attempts of the KL estimate to the reference, in nats; None where all were given."""


def sequences(episode: Episode) -> list[TokenSequence]:
    """Lay an episode out as few token sequences as possible, with every sampled token in exactly one.

    An attempt whose prompt extends the previous attempt's prompt and answer goes into the same sequence.

    Raises:
        ValueError: a sampled attempt has no token ids or log-probs (a text-only endpoint): it cannot be trained on.
    """
    out: list[TokenSequence] = []
    tokens: list[int] = []
    spans: list[tuple[int, int, int]] = []
    logprobs: dict[int, float] = {}

    def close() -> None:
        if spans:
            sampled_T = np.zeros(len(tokens), dtype=bool)
            logprobs_T = np.zeros(len(tokens))
            sampled_T[list(logprobs)] = True
            logprobs_T[list(logprobs)] = list(logprobs.values())
            out.append(TokenSequence(np.array(tokens, dtype=np.int64), sampled_T, logprobs_T, tuple(spans)))

    for k, attempt in enumerate(episode.attempts):
        if attempt.source != "sampled":
            continue
        if attempt.prompt_ids is None or attempt.token_ids is None or attempt.logprobs is None:
            raise ValueError(
                "an attempt without token ids or log-probs cannot be trained on: sample it from a training engine"
            )
        if tuple(tokens) != attempt.prompt_ids[: len(tokens)]:
            close()
            tokens, spans, logprobs = [], [], {}
        tokens = [*attempt.prompt_ids, *attempt.token_ids]
        spans.append((k, len(attempt.prompt_ids), len(tokens)))
        logprobs.update(zip(range(len(attempt.prompt_ids), len(tokens)), attempt.logprobs, strict=True))
    close()
    return out


def lay_out(groups: Sequence[Sequence[Episode]]) -> Layout:
    """Lay out all episodes of a step.

    Raises:
        ValueError: as ``sequences``.
    """
    laid = [((b, g), s) for b, group in enumerate(groups) for g, e in enumerate(group) for s in sequences(e)]
    return Layout(groups, tuple(s for _, s in laid), tuple(owner for owner, _ in laid))


def last_attempt_from(earlier: AttemptValues, last: AttemptValues) -> AttemptValues:
    """Reference log-probs that take the last attempt from one policy and the earlier attempts from another."""
    pairs = [zip(*groups, strict=True) for groups in zip(earlier, last, strict=True)]
    return [[[*held_K[:-1], base_K[-1]] for held_K, base_K in group] for group in pairs]


def policy_gradient_data(
    layout: Layout, reference: AttemptValues, credit: Credit, policy: AttemptValues | None = None
) -> tuple[list[Datum], BatchReport]:
    """Token weights of a whole step: REINFORCE with a leave-one-out baseline per attempt.

    The denominator is the number of episodes played in the step. It is fixed: groups without a gradient are counted
    too. A tree is one episode.

    Args:
        layout: the step's episodes.
        reference: log-probs of the reference policy, in nats.
        credit: the stage's numbers.
        policy: log-probs of the current policy by the trainer's own pass, for the KL terms. None takes the sampler's
            log-probs, which is right if both agree to rounding.

    Returns:
        The data, one datum per sequence of the layout, with weights divided by the number of episodes; and a report.
    """
    if policy is None:
        policy = layout.by_attempt([s.logprobs_T for s in layout.sequences])
    n_attempts = len(credit.reward_weights_K)
    weighted = []
    for group, current, base in zip(layout.groups, policy, reference, strict=True):
        logratios = [[p - r for p, r in zip(*pair, strict=True)] for pair in zip(current, base, strict=True)]
        weighted.append(_weights(group, logratios, credit))
    if credit.per_role:
        weighted = per_role(weighted, credit)

    episodes = [e for group in layout.groups for e in group]
    data = []
    for (b, g), sequence in zip(layout.owners, layout.sequences, strict=True):
        weights_T = np.zeros(len(sequence.tokens_T))
        for k, start, end in sequence.spans:
            weights_T[start:end] = weighted[b].weights[g][k] * (1.0 / len(episodes))
        data.append(Datum(sequence.tokens_T, weights_T, sequence.logprobs_T, sequence.sampled_T))

    sampled_K = [sum(e.attempts[k].source == "sampled" for e in episodes) for k in range(n_attempts)]
    return data, BatchReport(
        tuple(sum(w.zero_variance_K[k] for w in weighted) / len(weighted) for k in range(n_attempts)),
        tuple(sum(w.skipped_K[k] for w in weighted) for k in range(n_attempts)),
        tuple(sum(w.kl_K[k] for w in weighted) / n if n else None for k, n in enumerate(sampled_K)),
    )


def _weights(group: Sequence[Episode], logratios: Sequence[Sequence[FloatArray]], credit: Credit) -> GroupWeights:
    """Of one problem's episodes: with verdict turns, as trees, or as plain chains of attempts."""
    rewards_GK, valid_GK = np.stack([e.rewards_K for e in group]), np.stack([e.valid_K for e in group])
    if credit.verdicts:
        return verdict_token_weights(rewards_GK, valid_GK, np.stack([e.played_K for e in group]), logratios, credit)
    weigh = tree_token_weights if len(group[0].attempts) > len(credit.reward_weights_K) else group_token_weights
    return weigh(rewards_GK, valid_GK, logratios, credit)
