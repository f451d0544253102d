"""Pretraining of small bases from recipes."""

from __future__ import annotations

from dataclasses import replace

import torch

from selfcorrect.reproduce.bases import EMBEDDED, pretrain, rare, skills_name

SHORT = {"steps_sums": 2, "steps_skills": 2, "steps_habits": 2, "batch": 8, "hidden": 16, "layers": 1, "heads": 2}


def weights(recipe, skills=None):
    return pretrain(recipe, skills)[0].state_dict()


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_bases_that_share_their_skills_are_those_made_in_one_go(tmp_path):
    one, other = (replace(rare(fix=f), **SHORT) for f in (0.0, 1.0))
    assert skills_name(one) == skills_name(other) != skills_name(replace(one, seed=2))
    file = tmp_path / skills_name(one)
    assert same(weights(one, file), weights(one))
    assert same(weights(other, file), weights(other))  # from the file that the first one wrote
    assert not same(weights(one), weights(other))


def test_the_seed_decides_the_weights():
    recipe = replace(EMBEDDED["tiny"], **SHORT)
    assert same(weights(recipe), weights(recipe))
    assert not same(weights(recipe), weights(replace(recipe, seed=1)))
