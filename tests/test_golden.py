"""Whole seeded runs, one per method and option, against stored numbers: a change that moves any method shows here.

The stored numbers are checked to 0.5 %: sums in another order (threads, processor, passes) move the last digits of a run
and no more in a few gentle steps. `python tests/test_golden.py --regenerate NAME...` writes the runs of these names, keys of
`RUNS`, and no other file; `--regenerate` alone writes all. Overwrite numbers only for a change that is meant to move them, and
say so in CHANGELOG.md.
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest

import toy
from selfcorrect.reproduce.rows import ROWS

STORED = Path(__file__).parent / "golden"
TOLERANCE = 0.005
"""Relative, of gradient norms and losses. Stages, rewards and counts are exact."""
MORE = {
    "tree": ("method=score", "method.branches=3", "train.samples_per_problem=4"),
    "branches and groups": ("method.branches=2", "train.samples_per_problem=3"),
    "adaptive beta2": ("method.beta2_target=0.01", "seed=1"),  # seed 0 has a draw that the last bit decides
    "interleaved": ("method.interleave=1", "train.steps=4"),
    "three attempts": ("play.attempts=3",),
    "three attempts, stepwise": ("play.attempts=3", "method.stage1=stepwise"),
    "pag": ("method=pag", "train.samples_per_problem=6"),
    "pag, always revising": ("method=pag", "train.samples_per_problem=6", "method.stop=false", "method.per_role=true"),
    "thinktwice": ("method=thinktwice", "train.steps=6"),
}
"""Options beside the rows of `reproduce`, by the name of the run: "three attempts" is in three_attempts.json."""
BESIDE = {
    "stage2_star": ("train.steps=6",),
    "literal": ("train.samples_per_problem=4",),
    "multi_turn_literal": ("train.samples_per_problem=4",),
    "given_r1": ("train.samples_per_problem=4",),
    "standardised": ("train.samples_per_problem=4",),
    "kl_to_go": ("method.beta1=0.2",),
    "kl_token": ("method.beta1=0.2",),
}
"""What a row needs on the toy task to differ from plain SCoRe."""
RUNS = {
    **{key: (*row.settings, *BESIDE.get(key, ())) for key, row in ROWS.items() if row.kind == "trained"},
    **MORE,
}


GENTLE = ("train.learning_rate=0.003", "train.adam_eps=1.0")
"""With Adam's own epsilon the first updates are signs of gradients, and a sign turns with the last digit of a sum."""


def file_of(name):
    return STORED / f"{name.replace(', ', '_').replace(' ', '_')}.json"


def numbers(overrides):
    """Per step: stage, unshaped rewards, gradient norm, and the loss of a supervised step; with the responses sampled."""
    with tempfile.TemporaryDirectory() as scratch:
        run, _, progress = toy.run(Path(scratch) / "run", *GENTLE, *overrides)
        steps = [
            {"stage": r.stage, "reward": r.reward, "kl": r.kl, "grad_norm": r.grad_norm, "loss": r.loss}
            for r in toy.step_records(run)
        ]
        return {"settings": list(overrides), "responses": progress.sampled_responses, "steps": steps}


def _known(values):
    """Without the None of attempts that were all given."""
    return [value for value in values if value is not None]


@pytest.mark.parametrize("name", RUNS)
def test_a_method_does_what_it_did(name):
    stored, now = json.loads(file_of(name).read_text()), numbers(RUNS[name])
    settings = [
        s.replace("method.attempts", "play.attempts") for s in stored["settings"]
    ]  # its name when they were stored
    assert now["settings"] == settings and now["responses"] == stored["responses"]
    for step, was in zip(now["steps"], stored["steps"], strict=True):
        assert (step["stage"], step["reward"]) == (was["stage"], was["reward"])
        assert step["grad_norm"] == pytest.approx(was["grad_norm"], rel=TOLERANCE)
        assert [k is None for k in step["kl"]] == [k is None for k in was["kl"]]
        assert _known(step["kl"]) == pytest.approx(_known(was["kl"]), rel=TOLERANCE, abs=1e-4)
        assert step["loss"] == (None if was["loss"] is None else pytest.approx(was["loss"], rel=TOLERANCE))


def test_every_stored_run_is_checked_and_no_two_are_the_same():
    assert {file.name for file in STORED.iterdir()} == {file_of(name).name for name in RUNS}
    steps = [json.dumps(json.loads(file_of(name).read_text())["steps"]) for name in RUNS]
    assert len(set(steps)) == len(RUNS)


def regenerate(names):
    """Writes the files of these runs. Touches no other file."""
    STORED.mkdir(exist_ok=True)
    for name in names:
        text = json.dumps(numbers(RUNS[name]), indent=1) + "\n"
        file_of(name).write_text(text)


def test_regenerating_a_run_writes_its_file_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "STORED", tmp_path)
    monkeypatch.setitem(globals(), "numbers", list)
    (tmp_path / "score.json").write_text("kept")
    regenerate(["three attempts"])
    assert {file.name for file in tmp_path.iterdir()} == {"score.json", "three_attempts.json"}
    assert (tmp_path / "score.json").read_text() == "kept"


if __name__ == "__main__":
    flag, *chosen = sys.argv[1:] or [""]
    if flag != "--regenerate" or not set(chosen) <= RUNS.keys():
        sys.exit(
            "python tests/test_golden.py --regenerate [NAME...]: overwrite the stored numbers of these runs, or of all, with those "
            f"of the present code; the names: {', '.join(RUNS)}"
        )
    regenerate(chosen or RUNS)
