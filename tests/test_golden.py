"""Whole seeded runs, one per method and option, against stored numbers: a change that moves any method shows here.

The stored numbers are checked to 2 %: sums in another order (threads, processor) move the last digits of a run and no more
in five steps. `python tests/test_golden.py` writes them anew; do that only for a change that is meant to move them, and say
so in CHANGELOG.md.
"""

import json
import tempfile
from pathlib import Path

import pytest

import toy

FILE = Path(__file__).with_name("golden_runs.json")
RUNS = {
    "score": (),
    "multi_turn": ("method=multi_turn",),
    "single_turn": ("method=single_turn",),
    "star D": ("method=star",),
    "star D+": ("method=star", "method.dataset=D+"),
    "pair_sft D": ("method=pair_sft",),
    "pair_sft D+": ("method=pair_sft", "method.dataset=D+"),
    "without Stage I": ("method.stage1_share=0",),
    "without shaping": ("method.alpha=0",),
    "STaR in Stage II": ("method.stage2=star", "train.steps=6"),
    "offline first attempts": ("method.offline_share=1",),
    "gamma 1": ("method.gamma=1",),
    "standardised": ("method.standardise=true", "train.samples_per_problem=4"),
    "scaled": ("method.shaping=scaled",),
    "given r1": ("method.baseline=given_first", "train.samples_per_problem=4"),
    "KL to go": ("method.kl_credit=to_go", "method.beta1=0.2"),
    "KL by token": ("method.kl_credit=token", "method.beta1=0.2"),
    "adaptive beta2": ("method.beta2_target=0.01",),
    "interleaved": ("method.interleave=1", "train.steps=4"),
    "three attempts": ("method.attempts=3",),
    "three attempts, stepwise": ("method.attempts=3", "method.stage1=stepwise"),
    "trees": ("method.branches=2", "train.samples_per_problem=3"),
}


def numbers(overrides):
    """Per step: stage, unshaped rewards, gradient norm, and the loss of a supervised step."""
    with tempfile.TemporaryDirectory() as scratch:
        run, _, progress = toy.run(Path(scratch) / "run", *overrides)
        steps = [[r.stage, r.reward, r.grad_norm, r.loss] for r in toy.step_records(run)]
        return {"steps": steps, "responses": progress.sampled_responses}


@pytest.mark.parametrize("name", RUNS)
def test_a_method_does_what_it_did(name):
    stored, now = json.loads(FILE.read_text())[name], numbers(RUNS[name])
    assert now["responses"] == stored["responses"]
    for (stage, reward, norm, loss), (was_stage, was_reward, was_norm, was_loss) in zip(
        now["steps"], stored["steps"], strict=True
    ):
        assert (stage, reward) == (was_stage, was_reward)
        assert norm == pytest.approx(was_norm, rel=0.02)
        assert loss == (None if was_loss is None else pytest.approx(was_loss, rel=0.02))


def test_no_two_stored_runs_are_the_same():
    stored = json.loads(FILE.read_text())
    assert stored.keys() == RUNS.keys()
    assert len({json.dumps(run["steps"]) for run in stored.values()}) == len(RUNS)


if __name__ == "__main__":
    made = {name: numbers(overrides) for name, overrides in RUNS.items()}
    rows = [f"{json.dumps(name)}: {json.dumps(run)}" for name, run in made.items()]
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")
