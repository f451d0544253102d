"""Layers, shorthands, and errors of the settings."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from selfcorrect.config import Config, all_keys, default_of, load_config, override, readers, validate
from selfcorrect.config.sections import UNIONS
from selfcorrect.errors import ConfigError, RunError
from selfcorrect.records.run_directory import RunDirectory


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
    ("raw", "value"),
    [
        *((word, False) for word in ("false", "False", "NO", "off", '"False"')),
        *((word, True) for word in ("true", "True", "yes", "On")),
        *(("high", "high"), ("0", 0), ('["no"]', ["no"]), ("none", None), ("offline", "offline")),
    ],
)
def test_words_of_yes_and_no_are_booleans_of_a_template(raw, value):
    found = load_config(None, [f"model.template_kwargs.x={raw}"]).model.template_kwargs["x"]
    assert (found, type(found)) == (value, type(value))


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
        ("model.template_kwargs={think=False}", "write model.template_kwargs.enable_thinking=false"),
        ("model.template_kwargs=off", "write model.template_kwargs.enable_thinking=false"),
        ('model.think_markers=["<a>"]', """write model.think_markers='["<think>", "</think>"]'"""),
        ("model.think_markers=<a>", "write model.think_markers="),
        ("model.think_markers=[1, 2]", "write model.think_markers="),
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
    for key in all_keys():
        section, _, name = key.partition(".")
        kinds = readers(key)
        for kind in kinds or [None]:
            value = default_of(key, None if name == "name" else kind)
            text = value if isinstance(value, str) else json.dumps(value)
            chosen = [] if kind is None or name == "name" else [f"{section}={kind}", "model.lora_rank=8"]
            assert load_config(None, [*chosen, f"{key}={text}"]) == load_config(None, chosen)


# --- methods, tasks and engines -------------------------------------------------------------------------------------

READ = {
    "method": {
        "score": "alpha shaping beta1 beta2 beta2_target gamma kl_credit baseline standardise offline_share dataset "
        "train_attempt1 stage1 stage2 interleave branches stage1_share",
        "multi_turn": "beta1 gamma kl_credit baseline standardise offline_share branches",
        "single_turn": "beta1 kl_credit standardise",
        "star": "dataset train_attempt1",
        "pair_sft": "dataset train_attempt1",
        "pag": "beta1 kl_credit standardise alpha verdict_weight verdict_beta verdict_instruction stop per_role",
        "thinktwice": "beta1 kl_credit standardise",
        "self_refine": "",
    },
    "engine": {
        "torch": "sampler sampler_memory_gb drafts device tokens_per_microbatch tokens_per_sampling_batch "
        "deterministic threads gradient_checkpointing",
        "tinker": "base_url timeout_s wait_s",
    },
}
"""What these read, as a promise to users. A new method or engine needs no row."""
KINDS = [(section, kind) for section in READ for kind in readers(f"{section}.name")]


def read_by(section, kind):
    return {key.partition(".")[2] for key in all_keys() if key.startswith(f"{section}.") and kind in readers(key)}


def test_the_methods_and_engines_read_what_was_promised():
    for section, rows in READ.items():
        assert {kind: read_by(section, kind) - {"name"} for kind in rows} == {
            k: set(v.split()) for k, v in rows.items()
        }


@pytest.mark.parametrize(("section", "kind"), KINDS)
def test_a_method_or_engine_has_the_settings_that_it_reads_and_refuses_the_others(section, kind):
    read = read_by(section, kind)
    c = load_config(None, [f"{section}={kind}", "model.lora_rank=8"])
    assert type(getattr(c, section)).model_fields.keys() == read
    for name in {name for c in UNIONS[section] for name in c.model_fields} - read:
        with pytest.raises(
            ConfigError, match=rf"{section}\.{name} = 1 would be ignored by {section}={kind}; drop it, or use "
        ):
            load_config(None, [f"{section}={kind}", "model.lora_rank=8", f"{section}.{name}=1"])


def test_a_setting_that_is_not_read_is_refused_with_all_that_read_it():
    *some, last = readers("method.branches")
    assert {"score", "multi_turn"} <= {*some, last}
    with pytest.raises(ConfigError, match=rf"by method=star; drop it, or use method={', '.join(some)} or {last}$"):
        load_config(None, ["method=star", "method.branches=2"])
    with pytest.raises(ConfigError, match=r"by task=gsm8k; drop it, or use task=mbpp_repair$"):
        load_config(None, ["task=gsm8k", "task.first_attempts=f.jsonl"])


@pytest.mark.parametrize(("text", "names"), [("method=dpo", "score, multi_turn"), ("engine=vllm", "torch, tinker")])
def test_an_unknown_method_or_engine_is_refused_with_those_there_are(text, names):
    with pytest.raises(ConfigError, match=rf"\.name = '\w+' is not an? \w+; take one of: {names}"):
        load_config(None, [text])


@pytest.mark.parametrize(
    ("settings", "way_out"),
    [
        (("method.alpha=0", "method.shaping=scaled"), "set method.alpha above 0"),
        (("method.stage1_share=0", "method.interleave=2"), "set method.stage1_share above 0"),
        (("method.dataset=D+",), "method.stage2=star"),
        (("method=multi_turn", "method.branches=2", "method.baseline=given_first"), "set method.branches=1"),
        (("task=own", "task.verifier=math", "task.accept_risk=x"), "set task.verifier=code"),
        (("engine.sampler_memory_gb=2",), "set engine.sampler=vllm"),
        (("engine.sampler=vllm", "engine.tokens_per_sampling_batch=9"), "set engine.sampler=native"),
        (("engine.sampler=vllm", "engine.drafts=true"), "set engine.sampler=native"),
        (("engine=tinker", "model.lora_rank=2", "model.dtype=bfloat16"), "use engine=torch"),
        (("model.lora_alpha=8",), "set model.lora_rank"),
    ],
)
def test_a_setting_that_another_switches_off_is_refused(settings, way_out):
    with pytest.raises(ConfigError, match=rf"would be ignored .*; drop it, or .*{way_out}"):
        load_config(None, settings)


def test_a_preset_may_hold_what_the_chosen_engine_does_not_read():
    c = load_config(None, ["model=smollm2", "engine=tinker"])
    assert "tokens_per_microbatch" not in c.engine.model_dump()
    assert load_config(None, ["model=smollm2"]).engine.tokens_per_microbatch == 1024


def test_a_new_task_method_or_engine_keeps_what_it_reads_of_the_old_one():
    c = load_config(
        None, ["task=mbpp", "task.path=data", "task.eval_split=validation", "method.beta1=0.5", "method.alpha=3"]
    )
    changed = override(c, ["task=gsm8k", "method=multi_turn", "engine=tinker", "model.lora_rank=4"])
    assert changed.task.model_dump() == {"name": "gsm8k", "instruction": None, "shown_as": "assistant", "path": "data"}
    assert (changed.method.beta1, changed.engine.name) == (0.5, "tinker")
    with pytest.raises(ConfigError, match="would be ignored by method=multi_turn"):
        override(c, ["method=multi_turn", "method.alpha=4"])


def test_a_task_of_a_user_may_read_every_setting_of_a_task():
    c = load_config(None, ["task=module:make", "task.largest=50", "task.path=x", "task.verifier=math"])
    assert (c.task.largest, c.task.path, c.task.verifier) == (50, "x", "math")


# --- play, and names of earlier versions ----------------------------------------------------------------------------


def test_an_evaluation_plays_as_many_attempts_as_training_unless_told_otherwise():
    assert load_config(None, ["play.attempts=3"]).eval.attempts == 3
    assert load_config(None, ["play.attempts=3", "eval.attempts=none"]).eval.attempts == 3
    assert load_config(None, ["play.attempts=3", "eval.attempts=5"]).eval.attempts == 5
    c = load_config(None, ["play.attempts=3"])
    assert override(c, ["play.attempts=4"]).eval.attempts == 4
    assert override(load_config(None, ["eval.attempts=5"]), ["play.attempts=4"]).eval.attempts == 5
    with pytest.raises(ConfigError, match=r"^play\.attempts = 11: [^;]*; the default is 2$"):
        load_config(None, ["play.attempts=11"])


@pytest.mark.parametrize(
    ("text", "new"), [("method.attempts=3", "play.attempts=3"), ("train.max_new_tokens=9", "play.max_new_tokens=9")]
)
def test_a_renamed_setting_is_refused_with_its_new_name(tmp_path, text, new):
    section, _, line = text.partition(".")
    for given in ((None, [text]), (written(tmp_path, f"[{section}]\n{line}\n"), [])):
        with pytest.raises(ConfigError, match=rf"was renamed to {new.partition('=')[0]}; write {new}"):
            load_config(*given)


OLD = {
    "score": (["play.attempts=3", "play.max_new_tokens=99", "eval.attempts=2"], {}),
    "multi_turn": (
        ["method=multi_turn", "play.attempts=3", "play.max_new_tokens=99", "eval.attempts=2"],
        {"method": {"name": "multi_turn"}},
    ),
    "own": (
        ["task=own", "task.path=d", "play.attempts=3", "play.max_new_tokens=99", "eval.attempts=2"],
        {"task": {"name": "own", "path": "d"}},
    ),
    "tinker": (
        [
            "engine=tinker",
            "model=smollm2",
            "engine.wait_s=5",
            "play.attempts=3",
            "play.max_new_tokens=99",
            "eval.attempts=2",
            "train.steps=200",
            "train.problems_per_step=64",
            "train.samples_per_problem=8",
            "train.learning_rate=3e-4",
            "train.warmup_steps=10",
            "train.checkpoint_every=20",
            "eval.problems=2000",
        ],
        {
            "model": {"name": "smollm2", "dtype": "bfloat16", "lora_rank": 16},
            "engine": {"name": "tinker", "wait_s": 5.0, "tokens_per_microbatch": 1024},
        },
    ),
}


def old_shape(changes):
    """A config.json as versions before the section ``play`` wrote it: every setting of every method, task and engine."""
    values = json.loads((Path(__file__).parent / "data" / "config_without_play.json").read_text())
    for section, moved in changes.items():
        values[section] |= moved
    return values


@pytest.mark.parametrize("name", OLD)
def test_a_run_of_an_earlier_version_opens_with_the_settings_it_had(tmp_path, name):
    settings, changes = OLD[name]
    (tmp_path / "config.json").write_text(json.dumps(old_shape(changes)))
    assert RunDirectory.open(tmp_path).config == load_config(None, settings)


def test_a_run_of_an_earlier_version_with_a_setting_that_was_never_read_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(old_shape({"method": {"name": "star", "alpha": 3.0}})))
    with pytest.raises(RunError, match=r"config\.json .*method\.alpha = 3\.0 would be ignored by method=star"):
        RunDirectory.open(tmp_path)


def test_a_new_run_stores_what_its_method_reads(tmp_path):
    c = load_config(None, ["method=multi_turn", f"run_dir={tmp_path / 'run'}"])
    RunDirectory.create(c)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["method"].keys() == {"name", *READ["method"]["multi_turn"].split()}
    assert stored["play"] == {"attempts": 2, "max_new_tokens": 16}
    assert RunDirectory.open(tmp_path / "run").config == c


def test_an_unreadable_file_is_named(tmp_path):
    for path, says in ((tmp_path / "none.toml", "does not exist"), (tmp_path, "cannot be read")):
        with pytest.raises(ConfigError, match=says):
            load_config(path)
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(written(tmp_path, "steps = = 3"))
