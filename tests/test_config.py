"""Layers, shorthands, and errors of the settings."""

import pytest
from pydantic import ValidationError

from selfcorrect.config import Config, all_keys, load_config, override, validate
from selfcorrect.errors import ConfigError


def written(tmp_path, text):
    file = tmp_path / "c.toml"
    file.write_text(text)
    return file


def test_layers(tmp_path):
    file = written(tmp_path, 'model = "smollm2"\nseed = 3\n[train]\nsteps = 7\nproblems_per_step = 5\n')
    c = load_config(file, ["train.steps=9"])
    assert c.train.steps == 9  # command line
    assert (c.train.problems_per_step, c.seed) == (5, 3)  # file
    assert c.model.lora_rank == 16  # the model's preset
    assert c.method == Config().method  # class defaults


def test_the_model_given_last_chooses_the_preset(tmp_path):
    file = written(tmp_path, 'model = "smollm2"\n')
    assert load_config(file, ["model=tiny"]).train == Config().train
    assert load_config(file, ["model=org/other"]).model.lora_rank == 32


def test_a_section_is_set_by_its_name_alone():
    c = load_config(None, ["task=gsm8k", "method=multi_turn", "model=smollm2", "engine=torch"])
    assert (c.task.name, c.method.name, c.model.name, c.engine.name) == ("gsm8k", "multi_turn", "smollm2", "torch")
    assert load_config(None, ["task=gsm8k", "task.path=x"]).task.path == "x"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("train.grad_clip=none", None),
        ("train.grad_clip=1", 1.0),
        ("train.learning_rate=1e-5", 1e-5),
        ("eval.controls=false", False),
        ("task.instruction=Look again, please = yes.", "Look again, please = yes."),
        ('task.instruction="7"', "7"),
        ("eval.problems=null", None),
    ],
)
def test_values_are_toml_else_plain_text(text, value):
    section, key = text.partition("=")[0].split(".")
    assert getattr(getattr(load_config(None, [text]), section), key) == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stepz=3", "unknown setting 'stepz'"),
        ("train.stepz=3", "did you mean train.steps"),
        ("steps=3", "did you mean train.steps"),
        ("alpha=3", "did you mean method.alpha"),
        ("train.temperature=1", "temperature 1"),
        ("train.steps.more=1", "train.steps = {'more': 1}: Input should be a valid integer"),
        ("train=5", "is a section, not a value"),
        ("seed=-1", "seed"),
        ("train.learning_rate=0", "greater than 0"),
        ("method.stage1_share=1", "less than 1"),
        ("eval.attempts=11", "less than or equal to 10"),
        ("task.terms_min=9", "is above task.terms_max"),
        ("train.samples_per_problem=1", "at least 2 samples"),
        ("train.steps=2.5", "integer"),
        ("method.kl_credit=some", "'sequence', 'to_go' or 'token'"),
    ],
)
def test_faults_are_named(text, says):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [text])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_value_that_is_refused_is_told_with_its_default():
    with pytest.raises(ConfigError, match=r"train\.steps = 'many': .*; the default is \d+"):
        load_config(None, ["train.steps=many"])


def test_several_faults_are_told_at_once():
    with pytest.raises(ConfigError, match=r"method\.gamma.*; train\.steps"):
        load_config(None, ["train.steps=0", "method.gamma=7"])


def test_a_config_is_frozen_and_survives_json():
    c = load_config(None, ["seed=5", "method.alpha=3"])
    with pytest.raises(ValidationError):
        c.seed = 6
    assert validate(c.model_dump(mode="json")) == c


def test_override_keeps_what_it_does_not_name():
    c = load_config(None, ["model=smollm2", "seed=5"])
    changed = override(c, ["eval.attempts=3"])
    assert changed.eval.attempts == 3
    assert override(changed, [f"eval.attempts={c.eval.attempts}"]) == c
    with pytest.raises(ConfigError, match="unknown setting"):
        override(c, ["nonsense=1"])


def test_every_setting_can_be_written_as_its_default():
    defaults = Config().model_dump(mode="json")
    for key in all_keys():
        value = defaults
        for part in key.split("."):
            value = value[part]
        text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        assert load_config(None, [f"{key}={text}"]) == Config()


def test_an_unreadable_file_is_named(tmp_path):
    for path, says in ((tmp_path / "none.toml", "does not exist"), (tmp_path, "cannot be read")):
        with pytest.raises(ConfigError, match=says):
            load_config(path)
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(written(tmp_path, "steps = = 3"))
