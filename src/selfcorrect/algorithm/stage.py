"""A stage: a number of training steps with one objective. ``stages.py`` has the paper's stages, ``variants.py`` changes
them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from selfcorrect.algorithm.credit import Credit
from selfcorrect.algorithm.imitation import Demonstrations, Imitation
from selfcorrect.types import BASE, LossName

STAR_ITERATIONS = 3
"""Number of iterations, as in the paper."""


@dataclass(frozen=True, slots=True)
class Alternating:
    """Several rows that take turns, one step each, without an end in between: the optimiser continues. The rows of one
    round play the same problems."""

    rows: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """A number of training steps with one objective. The first five fields are the paper's; the others have
    defaults."""

    name: str
    title: str
    """For people: shown in progress and tables."""
    steps: int
    samples_per_problem: int
    objective: Credit | Alternating | Imitation | Demonstrations
    """Credit: reinforce fresh episodes. Alternating: so too, by several rows in turn. Imitation: collect episodes before the first step, and imitate what was kept.
    Demonstrations: imitate a task's own answers."""
    freeze: str | None = None
    """Name of the snapshot that is taken of the policy when the stage begins. In a run's first stage this is the
    base."""
    earlier_reference: str = BASE
    """Snapshot that the KL of all attempts but the last is measured against. It is not the base in later parts of a
    stepwise Stage I. The last attempt is always compared with the base."""
    offline_share: float = 0.0
    """Share of each step's problems whose first attempts are stored answers of the base."""
    branches: int = 1
    """Second attempts per first attempt."""
    beta2: float = 0.0
    """The part of the KL weights of all but the last attempt that ``kl_target`` adapts."""
    kl_target: float | None = None
    """KL in nats at which an adaptive beta2 keeps the held attempts; None: beta2 is fixed."""

    @property
    def loss(self) -> LossName:
        return "importance_sampling" if isinstance(self.objective, Credit | Alternating) else "cross_entropy"

    @property
    def attempts(self) -> int:
        """Attempts played per episode, verdict turns left out."""
        o = self.objective
        if isinstance(o, Alternating):
            return max(row.attempts for row in o.rows)
        return len(o.reward_weights_K) - len(o.verdicts) if isinstance(o, Credit) else o.attempts

    @property
    def responses(self) -> int:
        """The most responses that the whole stage samples for one problem per step, summed over the steps."""
        o = self.objective
        if isinstance(o, Alternating):
            return sum(row.responses for row in o.rows) * (self.steps // len(o.rows))
        verdicts = len(o.verdicts) if isinstance(o, Credit) else 0
        per_episode = self.attempts + verdicts if self.branches == 1 else 1 + self.branches
        return self.steps * self.samples_per_problem * per_episode


def shares(steps: int, parts: int) -> list[int]:
    """Split the steps into equal parts; the first parts take the remainder."""
    return [steps // parts + (i < steps % parts) for i in range(parts)]


def star_iterations(stage: Stage) -> list[Stage]:
    """Split a stage of STaR into its iterations. Each collects as many episodes as RL would play in the same steps."""
    return [
        replace(
            stage,
            name=f"{stage.name}{i}",
            title=f"{stage.title}, iteration {i} of {STAR_ITERATIONS}",
            steps=steps,
            freeze=stage.freeze if i == 1 else None,
        )
        for i, steps in enumerate(shares(stage.steps, STAR_ITERATIONS), 1)
    ]
