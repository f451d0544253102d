"""One run that must learn: the real task, the shipped model, Stage I almost only, about two minutes."""

import numpy as np
import pytest

import tiny
from selfcorrect.config import load_config
from selfcorrect.experiment import make_engine, prepare, run_experiment
from selfcorrect.records.lines import StepRecord
from selfcorrect.records.run_directory import RunDirectory


@pytest.mark.slow
def test_score_learns_to_correct_and_keeps_the_first_attempt(tmp_path):
    settings = [
        "train.steps=90",
        "method.stage1_share=0.9",
        "eval.problems=600",
        "seed=1000",
        f"run_dir={tmp_path / 'run'}",
    ]
    job = prepare(load_config(None, settings))
    run = RunDirectory.create(job.config)
    outcome = run_experiment(job, run, make_engine(job), tiny.Silent())
    base, final = outcome.evaluations["base"].summary, outcome.evaluations["final"].summary
    # over exploration and reporting seeds the gain after Stage I was 10 points or more on the training reward
    assert final.accuracy(2).value - base.accuracy(2).value > 0.05
    assert final.accuracy(1).value - base.accuracy(1).value > -0.1
    steps = [r for r in run.records() if isinstance(r, StepRecord)]
    gain = np.mean([r.reward[1] for r in steps[-10:]]) - np.mean([r.reward[1] for r in steps[:10]])
    assert gain > 0.1
    assert max(abs(r.kl[0]) for r in steps if r.stage == "stage1") < 0.5
