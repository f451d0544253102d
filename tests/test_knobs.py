"""Every setting changes something: no key of the config is without an entry here."""

import asyncio
import json
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

import tiny
import toy
from families import FAMILIES
from selfcorrect import experiment
from selfcorrect.config import all_keys, load_config
from selfcorrect.config.sections import UNIONS
from selfcorrect.engines.base import SampleRequest, SamplingParams
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.engines.models import load_chat, resolve_model
from selfcorrect.engines.tinker_engine import client, patience
from selfcorrect.engines.tinker_engine.remote import RemoteFailure
from selfcorrect.engines.torch_engine import TorchEngine
from selfcorrect.engines.torch_engine.vllm_sampler import VllmSampler
from selfcorrect.episodes.play import Play, play
from selfcorrect.episodes.verdict import verdict_turn
from selfcorrect.errors import ConfigError, ModelError
from selfcorrect.experiment import WARMED, Job, prepare, warm_up
from selfcorrect.measuring.evaluate import controls, evaluate, held_out
from selfcorrect.records.run_directory import WarmUpDirectory
from selfcorrect.tasks import graders, make_task
from selfcorrect.trackers import base
from test_experiment import whole

STAGE_1, STAGE_2 = (1, 2), (3, 4, 5)
MANY = ("train.problems_per_step=16", "train.learning_rate=1e-3")
"""So that every iteration of STaR finds a correction, whatever the last digits of sums on this machine."""


JUDGED = ("method=pag", "train.samples_per_problem=6")


@dataclass(frozen=True)
class Trained:
    """A setting that changes the step records of a run of two steps of Stage I and three of Stage II."""

    value: str
    since: tuple[int, ...]
    """The first step whose record differs is one of these; steps before it are bit for bit the same."""
    beside: tuple[str, ...] = ()
    """Other settings, of both runs."""


TRAINED = {
    "seed": Trained("3", (1,)),
    "model.dtype": Trained("bfloat16", (1,)),
    "model.lora_rank": Trained("2", (1,)),
    "model.lora_alpha": Trained("8", (1,), ("model.lora_rank=2",)),
    "method.name": Trained("multi_turn", (1,)),
    "play.attempts": Trained("3", (1,)),
    "method.alpha": Trained("0", (3,)),  # the bonus is Stage II's alone
    "method.shaping": Trained(
        "scaled", (3,), ("train.samples_per_problem=4", "method.branches=1")
    ),  # attempt 1's weights are the same, attempt 2's are not
    "method.baseline": Trained("given_first", (1,), ("train.samples_per_problem=4", "method.branches=1")),
    "method.standardise": Trained("true", (1,), ("train.samples_per_problem=4", "method.branches=1")),
    "method.offline_share": Trained("1", (3,)),  # Stage II's alone
    "method.dataset": Trained("D+", (1,), ("method=star",)),
    "method.train_attempt1": Trained("true", (1,), ("method=star",)),
    "method.beta2_target": Trained("0.01", (1,)),
    "method.stage1": Trained("stepwise", (1,), ("play.attempts=3",)),
    "method.stage2": Trained("star", (3,), ("train.steps=6", "method.stage1_share=0.34", *MANY)),
    "method.interleave": Trained("1", (2,), ("train.steps=4",)),
    "method.branches": Trained("2", (1,), ("train.samples_per_problem=3",)),
    "method.beta1": Trained("0.5", STAGE_1),  # at step 1 the policy is the base: KL is 0 but for rounding
    "method.beta2": Trained("3", STAGE_1),
    "method.gamma": Trained("0.5", (1,)),
    "method.verdict_weight": Trained("0", (1,), JUDGED),
    "method.verdict_beta": Trained("0.5", STAGE_1, JUDGED),
    "method.stop": Trained("false", (1,), JUDGED),
    "method.per_role": Trained("true", (1, 2), JUDGED),
    "method.kl_credit": Trained("token", STAGE_1),
    "method.stage1_share": Trained("0.6", (3,)),
    "train.steps": Trained("10", (3,)),  # Stage I grows with it
    "train.problems_per_step": Trained("3", (1,)),
    "train.samples_per_problem": Trained("3", (1,)),
    "play.max_new_tokens": Trained("5", (1,)),
    "train.learning_rate": Trained("2e-2", (1,)),
    "train.ratio_cap": Trained("1", (1,), ("model.dtype=bfloat16",)),
    "train.ratio_mask": Trained("1.001", (1,), ("model.dtype=bfloat16",)),
    "train.warmup_steps": Trained("2", (1,)),
    "train.adam_beta1": Trained("0.5", (2, 3)),  # Adam's first step is the same whatever its betas
    "train.adam_beta2": Trained("0.5", (2, 3)),
    "train.adam_eps": Trained("10", (2,)),
    "train.weight_decay": Trained("5", (2,)),
    "train.grad_clip": Trained("0.1", (1,)),
}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    made = {}

    def get(*overrides):
        if overrides not in made:
            run, _, _ = toy.run(tmp_path_factory.mktemp("knob") / "run", *overrides)
            made[overrides] = toy.step_records(run)
        return made[overrides]

    return get


@pytest.mark.parametrize("key", TRAINED)
def test_a_setting_of_training_changes_the_steps_it_should(records, key):
    knob = TRAINED[key]
    before, after = records(*knob.beside), records(*knob.beside, f"{key}={knob.value}")
    different = [a.step for a, b in zip(before, after, strict=False) if a != b]
    assert different, f"{key} changed nothing"
    assert different[0] in knob.since


def checkpoints(run):
    return sorted(int(p.name.removeprefix("step-")) for p in (run.path / "checkpoints").iterdir())


def probe_checkpoint_every(tmp):
    run, _, _ = toy.run(tmp / "run", "train.checkpoint_every=1", "train.keep_checkpoints=10")
    assert checkpoints(run) == [0, 1, 2, 3, 4, 5]


def probe_keep_checkpoints(tmp):
    for keep in (1, 2):
        run, _, progress = toy.run(tmp / f"run{keep}", "train.checkpoint_every=1", f"train.keep_checkpoints={keep}")
        assert set(checkpoints(run)) == {5, 5 - keep + 1, progress.best_step}


def probe_best_window(tmp):
    runs = [
        toy.run(tmp / str(w), f"train.best_window={w}", "method=multi_turn", "train.checkpoint_every=1")[0]
        for w in (1, 5)
    ]
    last = next([r.reward[-1] for r in toy.step_records(run)] for run in runs)
    windows = [[r.window_reward for r in run.records() if r.kind == "checkpoint"][-1] for run in runs]
    assert windows == [pytest.approx(last[-1]), pytest.approx(np.mean(last))]


def probe_log_problems(tmp):
    for n in (0, 3):
        run, _, _ = toy.run(tmp / str(n), f"train.log_problems_per_step={n}")
        lines = run.episodes_file.read_text().splitlines() if run.episodes_file.exists() else []
        assert len(lines) == 5 * 2 * n  # steps x samples x problems


def probe_run_dir(tmp):
    assert load_config(None, [f"run_dir={tmp / 'x'}"]).resolved_run_dir == tmp / "x"
    named = load_config(None, ["seed=4", "method=multi_turn"]).resolved_run_dir
    assert named.as_posix() == "runs/tiny-arithmetic-multi_turn-s4"


def probe_model_name(tmp):
    model = tiny.save_model(tmp / "m")
    task = ["task.terms_min=5", "play.max_new_tokens=40"]
    assert prepare(load_config(None, [f"model={model}", *task])).resolved.path_or_id == str(model)
    with pytest.raises(ModelError, match="does not exist"):
        prepare(load_config(None, [f"model={tmp / 'none'}", *task]))


def probe_revision(tmp):
    model = tiny.save_model(tmp / "m")
    with pytest.raises(ConfigError, match="would be ignored"):  # a Hub's revision, asked of a directory
        prepare(load_config(None, [f"model={model}", "model.revision=v2"]))


def probe_trust_remote_code(tmp):
    seen = []
    original = transformers.AutoConfig.from_pretrained

    def spy(*args, trust_remote_code, **kwargs):
        seen.append(trust_remote_code)
        return original(*args, **kwargs)

    model = tiny.save_model(tmp / "m")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.AutoConfig, "from_pretrained", spy)
        for value in ("false", "true"):
            seen.clear()
            settings = [f"model={model}", f"model.trust_remote_code={value}", "play.max_new_tokens=40"]
            prepare(load_config(None, settings))
            assert set(seen) == {value == "true"}


def probe_task_name(tmp):
    assert make_task(load_config(None, ["task=gsm8k"]).task).name == "gsm8k"
    with pytest.raises(ConfigError, match="not a task"):
        make_task(load_config(None, ["task=chess"]).task)


def probe_task_path(tmp):
    (tmp / "train.jsonl").write_text('{"question": "1+1?", "answer": "it is #### 2"}\n')
    task = make_task(load_config(None, ["task=gsm8k", f"task.path={tmp}"]).task)
    assert [p.question for p in task.problems("train")] == ["1+1?"]


def probe_terms(tmp):
    task = make_task(load_config(None, ["task.terms_min=3", "task.terms_max=4"]).task)
    assert {len(p.meta["numbers"]) for p in task.problems("test")} == {3, 4}


def probe_form(tmp):
    task = make_task(
        load_config(None, ["task.asks=sum", "task.largest=50", "task.terms_min=3", "task.terms_max=3"]).task
    )
    numbers = [n for p in task.problems("test") for n in p.meta["numbers"]]
    assert max(numbers) == 50
    assert task.problems("test")[0].question.startswith("What is ") and "digit" not in task.problems("test")[0].question


def countdown(*settings):
    return make_task(load_config(None, ["task=countdown", *settings]).task)


def probe_numbers(tmp):
    problems = countdown("task.numbers_min=4", "task.numbers_max=5", "task.largest_number=50").problems("test")
    assert {len(p.meta["numbers"]) for p in problems} == {4, 5}
    assert max(n for p in problems for n in p.meta["numbers"]) == 50


def probe_pick(tmp):
    task = countdown("task.pick=all", "task.numbers_max=4", "task.operations=+-")
    problem = task.problems("test")[0]
    assert problem.question.endswith("each used once, with + -.")
    assert max(p.meta["target"] for p in task.problems("test")) <= 99


def probe_demonstrations(tmp):
    task = countdown("task.wrong_share=1", "task.demonstrated_attempts=1")
    answers = [answers for _, answers in islice(task.demonstrations(0), 10)]
    assert all(len(a) == 1 and a[0].endswith(", no") for a in answers)


def probe_system_message(tmp):
    task = countdown("task.system_message=Be brief.")
    assert task.first_messages(task.problems("test")[0])[0] == {"role": "system", "content": "Be brief."}


def probe_options(tmp):
    factors = "task=examples.own_task.factors:make"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent.parent)
        task = make_task(load_config(None, [factors, "task.options.largest=70"]).task)
    assert max(p.meta["product"] for p in task.problems("test")) > 60 * 60


def probe_dataset(tmp):
    with pytest.MonkeyPatch.context() as patch:
        factory = SimpleNamespace(DATASETS={"chess": None})
        patch.setitem(sys.modules, "reasoning_gym", SimpleNamespace(factory=factory))
        with pytest.raises(ConfigError, match=r"task.dataset = 'ches' .* did you mean chess\?"):
            make_task(load_config(None, ["task=reasoning_gym", "task.dataset=ches"]).task)


def own_task(tmp, *settings):
    for split in ("train", "validation", "test"):
        (tmp / f"{split}.jsonl").write_text(f'{{"question": "{split}?", "answer": "1/2"}}\n')
    return make_task(load_config(None, ["task=own", f"task.path={tmp}", "task.verifier=exact", *settings]).task)


def probe_eval_split(tmp):
    for split in ("test", "validation"):
        task = own_task(tmp, f"task.eval_split={split}")
        assert [p.question for p in task.problems("test")] == [f"{split}?"]


def probe_verifier(tmp):
    for verifier, verdict in (("exact", "wrong"), ("math", "correct")):
        task = own_task(tmp, f"task.verifier={verifier}")
        assert task.grade(task.problems("test")[0], "Final answer: 0.5", truncated=False).verdict == verdict


def probe_prompt(tmp):
    task = own_task(tmp, "task.prompt=Think: {question}")
    assert task.first_messages(task.problems("test")[0])[0]["content"] == "Think: test?"


def probe_first_attempts(tmp):
    row = {"text": "f", "code": "def f(): return 1", "test_list": ["assert f() == 1"]}
    for split, ids in (("prompt", (2, 3, 4)), ("test", (11,))):
        (tmp / f"{split}.jsonl").write_text("".join(json.dumps({**row, "task_id": i}) + "\n" for i in ids))
    for program in ("def f(): return 2", "def f(): return 3"):
        (tmp / "given.jsonl").write_text(json.dumps({"task_id": 11, "attempt": program}))
        settings = ["task=mbpp_repair", f"task.path={tmp}", f"task.first_attempts={tmp / 'given.jsonl'}"]
        task = make_task(load_config(None, settings).task)
        assert program in task.first_answers(task.problems("test")[0])[0]


def probe_accept_risk(tmp):
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            graders, "CodeGrader", lambda **settings: asked.append(settings) or SimpleNamespace(close=lambda: None)
        )
        graders.code_grader.cache_clear()
        make_task(load_config(None, ["task=humaneval", "task.accept_risk=mine"]).task).get_ready(training=False)
    graders.code_grader.cache_clear()
    assert asked == [{"trust_forgeable": True, "accept_risk": "mine"}]


def probe_instruction(tmp):
    task = make_task(load_config(None, ["task.instruction=Think twice."]).task)
    assert task.instruction == "Think twice."
    e = toy.engine(toy.config(tmp))
    ((episode,),) = asyncio.run(play(e, task, task.problems("test")[:1], Play(2, 1, 4, 0.0, ("s",))))
    assert "Think twice." in e.chat.tokenizer.decode(episode.attempts[1].prompt_ids)


def probe_verdict_instruction(tmp):
    e, task = toy.engine(toy.config(tmp)), toy.Toy()
    c = load_config(None, ["method=pag", "method.verdict_instruction=Correct or wrong?"])
    how = Play(2, 1, 4, 0.0, ("v",), **verdict_turn(c))
    ((episode,),) = asyncio.run(play(e, task, task.problems("test")[:1], how))
    assert "Correct or wrong?" in e.chat.tokenizer.decode(episode.attempts[1].prompt_ids)


def sampled_batches(settings):
    e = tiny.engine(**settings)
    sizes = []
    run = e._sampler._run_batch
    e._sampler._run_batch = lambda rows, *rest: sizes.append(len(rows)) or run(rows, *rest)
    requests = [SampleRequest((10, 11, 12), (i,)) for i in range(6)]
    asyncio.run(e.sample(requests, SamplingParams(5)))
    return sizes


def probe_sampling_batch(tmp):
    assert sampled_batches({}) == [6]
    assert sampled_batches({"tokens_per_sampling_batch": 16}) == [2, 2, 2]  # 16 slots hold two rows of 3 + 5


def probe_deterministic(tmp):
    engines = [tiny.engine(deterministic=value) for value in (None, True, False)]
    assert [e.info.deterministic for e in engines] == [True, True, False]


def probe_threads(tmp):
    before = torch.get_num_threads()
    try:
        assert [tiny.engine(threads=n).info.threads for n in (1, 2)] == [1, 2]
    finally:
        torch.set_num_threads(before)


def probe_drafts(tmp):
    for settings, drafts in (([], True), (["engine.drafts=false"], False), (["model.dtype=bfloat16"], False)):
        c = load_config(None, settings)
        assert tiny.engine(dtype=getattr(torch, c.model.dtype), drafts=c.engine.drafts)._sampler._drafts is drafts


def probe_microbatch(tmp):
    for budget, passes in ((16_384, 1), (20, 3)):
        e = tiny.engine(tokens_per_microbatch=budget)
        seen = []
        back = e._scorer.backward
        e._scorer.backward = lambda batch, loss, seen=seen, back=back: (
            seen.append(len(batch.index)) or back(batch, loss)
        )
        data = [_datum() for _ in range(6)]
        e.forward_backward(data, "cross_entropy")
        assert len(seen) == passes and sum(seen) == 6


def _datum():
    from selfcorrect.types import Datum

    on = np.arange(10) > 0
    return Datum(np.arange(10) + 5, on * 0.1, np.zeros(10), on)


def probe_gradient_checkpointing(tmp):
    gradients, passes = [], []
    for saving in (False, True):
        e = tiny.engine(gradient_checkpointing=saving)
        calls = []
        layer = e._base.model.layers[0].mlp
        layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        e.forward_backward([_datum()], "cross_entropy")
        gradients.append(e.gradients())
        passes.append(len(calls))
    assert passes == [1, 2]  # run again in the backward pass
    assert all(gradients[0][n].equal(gradients[1][n]) for n in gradients[0])


def probe_device(tmp):
    from selfcorrect.engines.torch_engine.engine import _pick_device

    assert _pick_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        assert _pick_device("auto").type == "cpu"
        with pytest.raises(ModelError, match="no CUDA device"):
            _pick_device("cuda")


def probe_engine_name(tmp):
    with pytest.raises(ConfigError, match=r"engine\.name"):
        load_config(None, ["engine=vllm"])
    for name, folder in (("torch", "torch_engine"), ("tinker", "tinker_engine")):
        asked = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(experiment, "_tinker_engine", lambda *_a, asked=asked: asked.append("tinker_engine"))
            patch.setattr(TorchEngine, "from_config", lambda *_a, asked=asked, **_k: asked.append("torch_engine"))
            c = load_config(None, [f"engine={name}", "model.lora_rank=2"])
            experiment.make_engine(SimpleNamespace(config=c, resolved=None, chat=None))
        assert asked == [folder]


def vllm_started_with(tmp, *settings):
    """What the sampler is started with, as far as the real one is not needed for it."""
    asked = []

    class Started(Exception):
        pass

    def start(*args):
        asked.append(args)
        raise Started

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selfcorrect.engines.torch_engine.engine.require_vllm", lambda: None)
        patch.setattr(VllmSampler, "start", start)
        model = tiny.save_model(tmp)
        c = load_config(None, [f"model={model}", "model.dtype=float32", "engine.device=cpu", *settings])
        with nullcontext() if c.engine.sampler == "native" else pytest.raises(Started):
            TorchEngine.from_config(resolve_model(str(model)), ChatFormat(tiny.tokenizer()), c.model, c.engine)
    return asked


def probe_sampler(tmp):
    assert not vllm_started_with(tmp / "native", "engine.sampler=native")
    ((directory, dtype, device, _, _, vocabulary, _),) = vllm_started_with(tmp / "vllm", "engine.sampler=vllm")
    assert (str(directory), dtype, device.type) == (str(tmp / "vllm"), "float32", "cpu")
    assert vocabulary == len(tiny.tokenizer())


def probe_sampler_memory(tmp):
    for gigabytes in (1.5, 4.0):
        settings = ["engine.sampler=vllm", f"engine.sampler_memory_gb={gigabytes}"]
        ((_, _, _, memory, *_),) = vllm_started_with(tmp / str(gigabytes), *settings)
        assert memory == gigabytes


def tinker_settings(*settings):
    return load_config(None, ["engine=tinker", "model.lora_rank=2", *settings]).engine


def probe_base_url(tmp):
    for url in ("http://127.0.0.1:9", "http://127.0.0.1:10"):
        with pytest.raises(RemoteFailure, match=url), pytest.MonkeyPatch.context() as patch:
            patch.setattr(client, "require_client", lambda hosted: None)
            client.connect(tinker_settings(f"engine.base_url={url}").base_url, 5.0)


def probe_timeout(tmp):
    for seconds, passes in ((0.01, False), (5, True)):
        limit = tinker_settings(f"engine.timeout_s={seconds}").timeout_s
        with nullcontext() if passes else pytest.raises(TimeoutError):
            assert client._bounded(lambda: time.sleep(0.3) or "done", limit) == "done"


def probe_wait(tmp):
    for seconds, tries in ((0, 1), (1.5, 2)):
        made = []

        def busy(made=made):
            made.append(1)
            raise RemoteFailure("full", full=True)

        with pytest.raises(RemoteFailure):
            patience.waited(busy, lambda f: f.full, "a place", tinker_settings(f"engine.wait_s={seconds}").wait_s)
        assert len(made) == tries


def measured(tmp, *overrides):
    c = toy.config(tmp, *overrides)
    task = toy.Toy()
    problems = held_out(task, c.eval.problems)
    return evaluate(toy.engine(c), task, problems, c.eval, 4)


def probe_eval_problems(tmp):
    assert len(measured(tmp).episodes) == 6
    assert len(measured(tmp, "eval.problems=none").episodes) == 12


def probe_eval_attempts(tmp):
    assert {len(e.attempts) for e in measured(tmp, "eval.attempts=3").episodes} == {3}


def probe_eval_temperature(tmp):
    greedy, warm = measured(tmp), measured(tmp, "eval.temperature=1.0")
    assert [e.attempts[0].text for e in greedy.episodes] != [e.attempts[0].text for e in warm.episodes]


def probe_eval_samples(tmp):
    episodes = measured(tmp, "eval.samples=3", "eval.temperature=1").episodes
    assert len(episodes) == 18
    with pytest.raises(ConfigError, match="repeat the same greedy answer"):
        toy.config(tmp, "eval.samples=3")


def probe_eval_controls(tmp):
    for value in (True, False):
        outcome = whole(tmp / str(value), f"eval.controls={str(value).lower()}")
        names = {r.name for r in outcome.run.records() if r.kind == "eval"}
        controls_of_it = {f"{model}-{how}" for model in ("base", "final") for how in ("swapped", "given-wrong")}
        assert names == {"base", "final"} | (controls_of_it if value else set())


def losses(tmp, *overrides):
    out = tmp / " ".join(overrides).replace("=", " ")
    run, _ = toy.warm(out, "sft.steps=2", "sft.examples_per_step=3", *overrides)
    return [r.loss for r in toy.step_records(run)]


def probe_sft_steps(tmp):
    assert len(losses(tmp, "sft.steps=3")) == 3


def probe_sft_examples(tmp):
    assert losses(tmp) != losses(tmp, "sft.examples_per_step=4")


def probe_sft_rate(tmp):
    slow, fast = losses(tmp), losses(tmp, "sft.learning_rate=1e-2")
    assert slow[0] == fast[0] and fast[1] < slow[1]


def probe_sft_eval_problems(tmp):
    for n in (0, 4):
        out = tmp / str(n)
        c = toy.config(WarmUpDirectory.of(out), "sft.steps=1", f"sft.eval_problems={n}")
        job = Job(c, toy.Toy(), resolve_model("tiny"), None, 0)
        summary = warm_up(job, WarmUpDirectory.create(c), toy.engine(c), toy.Watcher())
        assert (summary and summary.n_problems) == (n or None) and (out / WARMED).exists() == (n > 0)


def probe_trackers(tmp):
    def module(path):
        return SimpleNamespace(
            make=lambda: SimpleNamespace(name=path.split(".")[-1], start=print, log=print, finish=print)
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base.importlib, "import_module", module)
        made = base.make_trackers(load_config(None, ["trackers=wandb,tensorboard"]).trackers)
    assert [tracker.name for tracker in made] == ["wandb", "tensorboard"]


def probe_template_kwargs(tmp):
    asked = [{"role": "user", "content": "q"}]
    shown = {}
    for value in ("true", "false"):
        c = family_config(tmp, "Qwen3", "model.history=keep", f"model.template_kwargs.enable_thinking={value}")
        chat = load_chat(resolve_model(c.model.name), c)
        shown[value] = chat.tokenizer.decode(chat.prompt_ids(asked))
    assert shown["false"] == shown["true"] + "<think>\n\n</think>\n\n"


def probe_history(tmp):
    seconds = {}
    for history in ("keep", "strip"):
        c = family_config(tmp, "Qwen3", f"model.history={history}")
        chat = load_chat(resolve_model(c.model.name), c)
        answer = chat.answer_ids("<think>hm</think>4")
        seconds[history] = chat.tokenizer.decode(
            chat.extend(chat.begin([{"role": "user", "content": "q"}]), answer, "?").ids
        )
    assert "hm" in seconds["keep"] and "hm" not in seconds["strip"]
    with pytest.raises(ModelError, match=r"model\.history=keep"):
        c = family_config(tmp, "Qwen3")
        load_chat(resolve_model(c.model.name), c)


def probe_think_markers(tmp):
    c = family_config(tmp, "Llama 3", 'model.think_markers=["<a>", "</a>"]')
    chat = load_chat(resolve_model(c.model.name), c)
    assert chat.parts((), chat.answer_ids("<a>hm</a>4")).answer == "4"


def probe_shown_as(tmp):
    for shown_as in ("assistant", "user", "document"):
        c = family_config(tmp, "Llama 3", f"task.shown_as={shown_as}")
        chat = load_chat(resolve_model(c.model.name), c)
        second = chat.extend(chat.begin([{"role": "user", "content": "q"}]), chat.answer_ids("4"), "?")
        text = chat.tokenizer.decode(second.ids)
        assert text.count("assistant") == (2 if shown_as == "assistant" else 1)
        assert ("<document>" in text, "I have this answer" in text) == (shown_as == "document", shown_as == "user")


def family_config(tmp, name, *settings):
    """Settings with a directory that holds a family's tokenizer and a tiny config."""
    path = tmp / name.replace(" ", "-")
    if not path.exists():
        tiny.save_model(path)
        FAMILIES[name].tokenizer().save_pretrained(path)
    return load_config(None, [f"model={path}", *settings])


PROBES = {
    "model.template_kwargs": probe_template_kwargs,
    "model.history": probe_history,
    "model.think_markers": probe_think_markers,
    "task.shown_as": probe_shown_as,
    "trackers": probe_trackers,
    "train.checkpoint_every": probe_checkpoint_every,
    "train.keep_checkpoints": probe_keep_checkpoints,
    "train.best_window": probe_best_window,
    "train.log_problems_per_step": probe_log_problems,
    "run_dir": probe_run_dir,
    "model.name": probe_model_name,
    "model.revision": probe_revision,
    "model.trust_remote_code": probe_trust_remote_code,
    "task.name": probe_task_name,
    "task.path": probe_task_path,
    "task.terms_min": probe_terms,
    "task.terms_max": probe_terms,
    "task.asks": probe_form,
    "task.largest": probe_form,
    "task.options": probe_options,
    "task.dataset": probe_dataset,
    "task.pick": probe_pick,
    "task.operations": probe_pick,
    "task.numbers_min": probe_numbers,
    "task.numbers_max": probe_numbers,
    "task.largest_number": probe_numbers,
    "task.wrong_share": probe_demonstrations,
    "task.demonstrated_attempts": probe_demonstrations,
    "task.system_message": probe_system_message,
    "task.instruction": probe_instruction,
    "method.verdict_instruction": probe_verdict_instruction,
    "task.eval_split": probe_eval_split,
    "task.verifier": probe_verifier,
    "task.prompt": probe_prompt,
    "task.first_attempts": probe_first_attempts,
    "task.accept_risk": probe_accept_risk,
    "engine.name": probe_engine_name,
    "engine.base_url": probe_base_url,
    "engine.timeout_s": probe_timeout,
    "engine.wait_s": probe_wait,
    "engine.sampler": probe_sampler,
    "engine.sampler_memory_gb": probe_sampler_memory,
    "engine.drafts": probe_drafts,
    "engine.device": probe_device,
    "engine.deterministic": probe_deterministic,
    "engine.threads": probe_threads,
    "engine.tokens_per_microbatch": probe_microbatch,
    "engine.tokens_per_sampling_batch": probe_sampling_batch,
    "engine.gradient_checkpointing": probe_gradient_checkpointing,
    "eval.problems": probe_eval_problems,
    "eval.attempts": probe_eval_attempts,
    "eval.temperature": probe_eval_temperature,
    "eval.samples": probe_eval_samples,
    "eval.controls": probe_eval_controls,
    "sft.steps": probe_sft_steps,
    "sft.examples_per_step": probe_sft_examples,
    "sft.learning_rate": probe_sft_rate,
    "sft.eval_problems": probe_sft_eval_problems,
}


@pytest.mark.parametrize("key", PROBES)
def test_a_setting_does_what_it_says(tmp_path, key):
    PROBES[key](tmp_path)


def test_no_setting_is_without_a_test():
    """A task's own settings are tested with the task, in its file of tests."""
    untested = set(all_keys()) - TRAINED.keys() - PROBES.keys()
    assert not [key for key in untested if not key.startswith("task.")]
    assert TRAINED.keys() | PROBES.keys() <= set(all_keys())
    assert not TRAINED.keys() & PROBES.keys()


def test_a_reader_can_look_through_the_settings_of_a_run():
    """Those of one task and one method; unions may grow, what everybody meets should not."""
    sections = [key for key in all_keys() if key.partition(".")[0] not in ("task", "method")]
    assert len(sections) <= 60
    assert all(len(c.model_fields) <= 20 for name in ("task", "method") for c in UNIONS[name])


def test_a_single_problem_has_no_other_to_swap_with(tmp_path):
    c = toy.config(tmp_path)
    e, task = toy.engine(c), toy.Toy()
    plain = evaluate(e, task, held_out(task, 1), c.eval, 4, name="base")
    assert "base-swapped" not in [found.name for found in controls(e, task, plain, c.eval, 4)]


def test_controls_measure_swapped_and_wrong_first_attempts(tmp_path):
    c = toy.config(tmp_path)
    e, task = toy.engine(c), toy.Toy()
    plain = evaluate(e, task, held_out(task, 6), c.eval, 4, name="base")
    swapped, wrong = controls(e, task, plain, c.eval, 4)
    own = {ep.problem.id: ep.attempts[0].token_ids for ep in plain.episodes}
    level = {ep.problem.id: ep.problem.level for ep in plain.episodes}
    for ep in swapped.episodes:
        givers = [i for i, ids in own.items() if ids == ep.attempts[0].token_ids]
        assert ep.attempts[0].source == "given" and any(i != ep.problem.id for i in givers)
        assert level[ep.problem.id] in {level[i] for i in givers}
    assert all(not ep.attempts[0].correct for ep in wrong.episodes)
    assert wrong.episodes and {ep.problem.id for ep in wrong.episodes} <= own.keys()
