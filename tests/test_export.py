"""``selfcorrect export``: a directory that plain libraries load, with the answers of our engine, and its card."""

from __future__ import annotations

import ast
import asyncio
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from markdown_it import MarkdownIt
from safetensors.torch import load_file

import made_runs
import tiny
from selfcorrect.config import load_config
from selfcorrect.engines.models import resolve_model
from selfcorrect.engines.torch_engine import TorchEngine
from selfcorrect.episodes.play import Play, play
from selfcorrect.errors import ConfigError, DataError, EndpointError, RunError
from selfcorrect.experiment import load_kept, make_engine, prepare, run_experiment
from selfcorrect.measuring.evaluate import held_out
from selfcorrect.measuring.metrics import summarise
from selfcorrect.records.lines import AlarmRecord
from selfcorrect.records.run_directory import RunDirectory
from selfcorrect.sharing import export_run
from selfcorrect.sharing.hub import check_push, push
from selfcorrect.sharing.markdown import code, code_block, plain
from selfcorrect.sharing.weights import Weights, write_weights
from selfcorrect.tasks.arithmetic import INSTRUCTION
from selfcorrect.types import Attempt

TINY = Path(resolve_model("tiny").path_or_id)
QUICK = (
    "model=tiny",
    "train.steps=3",
    "train.problems_per_step=4",
    "train.samples_per_problem=4",
    "train.learning_rate=3e-3",
    "train.warmup_steps=0",
    "eval.problems=12",
    "eval.controls=false",
    "engine.device=cpu",
)
LORA = ("model.lora_rank=4",)
BFLOAT16 = ("model.dtype=bfloat16",)
GENERATE = """
import json, sys
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, GenerationConfig

for job in json.load(sys.stdin):
    kind = AutoPeftModelForCausalLM if job["form"] == "adapter" else AutoModelForCausalLM
    model = kind.from_pretrained(job["path"], dtype=getattr(torch, job["dtype"]))
    model.generation_config = GenerationConfig.from_pretrained(job["path"])
    answers = []
    for prompt in job["prompts"]:
        ids = torch.tensor([prompt])
        written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=16)
        answers.append(written[0, len(prompt):].tolist())
    print(json.dumps(answers))
assert "selfcorrect" not in sys.modules
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """``trained(*settings)`` -> directory of a finished run of the embedded model; each made once."""
    made: dict[tuple[str, ...], Path] = {}

    def get(*settings):
        if settings not in made:
            path = tmp_path_factory.mktemp("run") / "run"
            config = load_config(None, [*QUICK, *settings, f"run_dir={path}"])
            job = prepare(config)
            run_experiment(job, RunDirectory.create(config), make_engine(job), tiny.Silent())
            made[settings] = path
        return made[settings]

    return get


def played(path):
    """Our engine on the kept checkpoint, and its two-turn greedy episodes, a problem at a time as ``generate`` has it."""
    run = RunDirectory.open(path)
    job = prepare(run.config)
    engine = make_engine(job)
    load_kept(run, engine)
    how = Play(2, 1, run.config.play.max_new_tokens, 0.0, ("export",))
    return engine, [asyncio.run(play(engine, job.task, [p], how))[0][0] for p in held_out(job.task, 12)]


def lead(engine, prompt, ours, theirs):
    """By how many nats our engine prefers its token where two answers part; 0 for equal answers."""
    if ours == theirs:
        return 0.0
    at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    start = (*prompt, *ours[:at])
    both = [np.array([*start, token]) for token in (ours[at], theirs[at])]
    scored = [SimpleNamespace(tokens_T=ids, sampled_T=np.arange(len(ids)) == len(start)) for ids in both]
    mine, other = (float(lp[-1]) for lp in engine.logprobs(scored, "current"))
    return mine - other


def fresh_process(*arguments, **options):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


FORMS = {
    "full float32": ((), None, "full"),
    "merged float32": (LORA, None, "merged"),
    "adapter float32": (LORA, False, "adapter"),
    "full bfloat16": (BFLOAT16, None, "full"),
    "adapter bfloat16": ((*LORA, *BFLOAT16), False, "adapter"),
}
A_STEP_OF_BFLOAT16 = 0.125
"""Distance of neighbours among bfloat16 numbers of 16 to 32, where the largest logits of this model are."""


@dataclass(frozen=True)
class Exported:
    weights: Weights
    url: str | None
    path: Path
    engine: TorchEngine
    attempts: list[Attempt]
    """Both of each episode, one after the other."""
    question: str
    """Of the first episode."""
    elsewhere: list[tuple[int, ...]]
    """What plain libraries answer to the attempts' prompts, in a process that never saw this package."""


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """Every form of ``FORMS``; one fresh process answers for all of them."""
    out, ours, jobs = tmp_path_factory.mktemp("out"), {}, []
    for name, (settings, merge, _) in FORMS.items():
        path = out / name.replace(" ", "-")
        weights, url = export_run(trained(*settings), path, merge=merge)
        engine, episodes = played(trained(*settings))
        assert any(e.attempts[0].token_ids != e.attempts[1].token_ids for e in episodes)
        attempts = [a for e in episodes for a in e.attempts]
        ours[name] = weights, url, path, engine, attempts, episodes[0].problem.question
        prompts = [a.prompt_ids for a in attempts]
        jobs.append({"path": str(path), "form": weights.form, "dtype": weights.dtype, "prompts": prompts})
    said = fresh_process("-c", GENERATE, input=json.dumps(jobs)).splitlines()
    answers = [[tuple(ids) for ids in json.loads(line)] for line in said]
    return {name: Exported(*known, theirs) for (name, known), theirs in zip(ours.items(), answers, strict=True)}


@pytest.mark.parametrize("name", FORMS)
def test_plain_libraries_give_the_same_greedy_tokens_in_a_fresh_process(exported, name):
    """Exactly in float32. In bfloat16 a sum depends on how it is split: answers may part where two tokens are level."""
    x = exported[name]
    assert (x.weights.form, x.url) == (FORMS[name][2], None)
    if x.weights.dtype == "float32":
        assert x.elsewhere == [a.token_ids for a in x.attempts]
    pairs = zip(x.attempts, x.elsewhere, strict=True)
    assert max(lead(x.engine, a.prompt_ids, a.token_ids, theirs) for a, theirs in pairs) <= A_STEP_OF_BFLOAT16


@pytest.mark.parametrize("name", ["merged float32", "adapter float32"])
def test_the_code_on_the_card_runs_and_answers_like_our_engine(exported, name):
    x = exported[name]
    (snippet,) = re.findall(r"^```python\n(.*?)^```", (x.path / "README.md").read_text(), re.M | re.S)
    snippet = snippet.replace("Write your problem here.", x.question)
    assert fresh_process("-c", snippet, cwd=x.path) == "".join(f"{a.text}\n" for a in x.attempts[:2])


def test_merging_into_bfloat16_rounds_once_and_says_how_much(trained, tmp_path):
    run, out = trained(*LORA, *BFLOAT16), tmp_path / "out"
    weights, _ = export_run(run, out)
    base, merged = load_file(TINY / "model.safetensors"), load_file(out / "model.safetensors")
    adapter = load_file(run / "model" / "adapter_model.safetensors")
    scale = 32.0 / 4  # lora_alpha / rank
    lost = update = 0.0
    for a in (name for name in adapter if name.endswith("lora_A.weight")):
        name = a.removeprefix("base_model.model.").replace("lora_A.", "")
        delta = scale * adapter[a.replace("lora_A", "lora_B")] @ adapter[a]
        exact = base[name].bfloat16().float() + delta
        assert merged[name].dtype == torch.bfloat16
        # half a step of bfloat16 is at most 2^-8 of a number; a little more, for sums in another order
        assert torch.allclose(merged[name].float(), exact, rtol=1.01 * 2**-8, atol=1e-7)
        lost += float((merged[name].float() - exact).square().sum())
        update += float(delta.square().sum())
    assert weights.rounded == pytest.approx((lost / update) ** 0.5, rel=1e-3)
    assert 0.01 < weights.rounded < 1
    assert f"changed the weights by {weights.rounded:.1%} of the norm" in (out / "README.md").read_text()


def with_settings(run, section, **values):
    """The run with some settings changed in its config.json."""
    config = json.loads((run / "config.json").read_text())
    config[section] |= values
    (run / "config.json").write_text(json.dumps(config))
    return run


def test_a_bases_own_generation_defaults_stay_behind(trained, tmp_path):
    """A repetition penalty of the base's would make the exported model answer otherwise than measured."""
    model = shutil.copytree(TINY, tmp_path / "base")
    (model / "generation_config.json").write_text(json.dumps({"repetition_penalty": 5.0, "eos_token_id": 2}))
    run = with_settings(shutil.copytree(trained(*LORA), tmp_path / "run"), "model", name=str(model))
    export_run(run, tmp_path / "out")
    said = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert {k: v for k, v in said.items() if k != "transformers_version"} == {"eos_token_id": 2, "pad_token_id": 0}


def test_an_engine_exports_no_generation_defaults_of_the_base(tmp_path):
    model = tiny.random_model()
    model.generation_config.update(top_k=1, temperature=0.01, do_sample=True, repetition_penalty=5.0)
    tiny.TorchEngine(model, tiny.ChatFormat(tiny.tokenizer()), tiny.TorchEngineConfig(device="cpu")).export(tmp_path)
    said = json.loads((tmp_path / "generation_config.json").read_text())
    assert {k: v for k, v in said.items() if k != "transformers_version"} == {"eos_token_id": 4, "pad_token_id": 0}


# --- the card ------------------------------------------------------------------------------------------------------


def card_of(run, out, **options):
    export_run(run, out, **options)
    return ModelCard.load(out / "README.md")


@pytest.fixture
def finished(tmp_path):
    """``finished(*settings)`` -> a made-up finished run whose model directory is that of the embedded model."""

    def make(*settings):
        run = made_runs.finished(tmp_path / "run", *settings)
        shutil.copytree(TINY, run / "model")
        return run

    return make


def test_the_card_says_what_the_records_say(finished, tmp_path):
    card = card_of(finished("method.alpha=7"), tmp_path / "out")
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["selfcorrect", "self-correction", "score"],
    }
    base, trained = (line for line in card.text.splitlines() if line.startswith(("| base", "| trained")))
    # made_runs.held_out: problems 0, 4, 8, ... of 40 are right at first (25 %); the base copies. Of the trained model's
    # second attempts every 8th problem copies too: 5 right ones; 4 and 24 break, 5 and 25 stay wrong. Right in the end:
    # 10 - 2 of those right at first, and 30 - 2 of those wrong.
    summary = summarise(made_runs.held_out(trained=True))
    first = summary.revisions[0]
    assert [e.value for e in (summary.accuracy(2), first.i_to_c, first.c_to_i)] == [36 / 40, 28 / 40, 2 / 40]
    cells = [summary.accuracy(1), summary.accuracy(2), first.delta, first.i_to_c, first.c_to_i]
    texts = [e.text(sign=e is first.delta) for e in cells]
    assert [c.strip() for c in trained.split("|")[2:-1]] == [*texts, "40", "1"]
    assert base.split("|")[4].strip().startswith("+0.0")
    for said in (
        "Percent of 40 held-out problems",
        "training run, seed 0",
        "step 19 of 20, by training reward",
        "asks for another.\n\nThese are the whole weights",  # and no word of a verdict
        "| sequences trained on per step | 16 |",  # of the records, whatever the settings would make of it
        "100 responses, 2,000 tokens",
        "method.alpha = 7.0",
        "```sh\nselfcorrect train\n```",
        "step 10, copying: the last attempt repeats the one before",
        "not recorded new tokens per attempt at most",  # the made-up evaluation lacks it
        f"instruction = {INSTRUCTION!r}",
    ):
        assert said in card.text, said


def test_what_is_not_known_is_left_out_and_what_the_user_says_is_taken(finished, tmp_path):
    run = finished()
    silent = card_of(run, tmp_path / "a")
    assert silent.data.license is None and silent.data.base_model is None
    told = card_of(run, tmp_path / "b", base_model="owner/base", license="mit")
    assert (told.data.license, told.data.base_model) == ("mit", "owner/base")
    assert "The model `owner/base`" in told.text


def test_the_licence_is_that_of_the_bases_own_card(finished, tmp_path):
    base = shutil.copytree(TINY, tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: gemma\n---\n# Base\n")
    assert card_of(finished(f"model={base}"), tmp_path / "out").data.license == "gemma"


def test_data_and_base_of_the_hub_are_named_and_measured_in_the_header(finished, tmp_path):
    run = finished("task=gsm8k", "model=owner/base", "model.lora_rank=0")
    card = card_of(run, tmp_path / "out")
    assert (card.data.base_model, card.data.datasets) == ("owner/base", ["openai/gsm8k"])
    first, second = card.data.eval_results
    assert (first.dataset_type, first.dataset_config, first.dataset_split) == ("openai/gsm8k", "main", "test")
    assert (first.metric_type, first.metric_value, second.metric_value) == ("accuracy", 25.0, 90.0)
    assert second.metric_name == "accuracy at attempt 2, percent"
    local = card_of(with_settings(run, "task", path="rows.jsonl"), tmp_path / "local")  # nobody knows what is in it
    assert local.data.datasets is None and local.data.eval_results is None


def test_a_base_is_what_its_name_stood_for_when_the_run_began(finished, tmp_path):
    """Elsewhere the relative path of a directory looks like an id on the Hub."""
    run = finished("model=models/warm", "model.lora_rank=0")
    start, *rest = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    for base, named in (("directory 0123456789abcdef", None), ("hub", "models/warm")):
        began = json.dumps({**json.loads(start), "base": base}) + "\n"
        (run / "metrics.jsonl").write_text("".join([began, *rest]), encoding="utf-8")
        card = card_of(run, tmp_path / base[:3])
        assert card.data.base_model == named
        assert ("The model in the local directory `models/warm`" in card.text) == (named is None)


def test_a_last_attempt_that_is_not_better_is_called_so(tmp_path):
    run = made_runs.begin(tmp_path / "run")
    for name in ("base", "final"):
        made_runs.evaluate(run, name, made_runs.held_out(trained=False))
    made_runs.finish(run)
    shutil.copytree(TINY, run.path / "model")
    text = card_of(run.path, tmp_path / "out").text
    assert "**On these problems the last attempt is not shown to be better than the base's.**" in text
    assert "None rang during training." in text


def test_the_card_says_that_results_with_verdicts_are_not_those_of_its_code(tmp_path):
    run = made_runs.begin(tmp_path / "run", "method=pag")
    for name in ("base", "final"):
        made_runs.evaluate(run, name, made_runs.held_out(trained=name == "final"))
    asked = {"verdict": "Is it right?", "stop": True, "temperature": 0.7}
    run.append(
        next(r for r in run.records() if getattr(r, "name", "") == "final").model_copy(update={"settings": asked})
    )
    made_runs.finish(run)
    shutil.copytree(TINY, run.path / "model")
    text = card_of(run.path, tmp_path / "out").text
    assert (
        'verdict on its answer (`Is it right?`), and another answer was asked for only where it said "wrong".' in text
    )
    assert "so it does not give the results above" in text and "# greedy, unlike the results above\n" in text


HOSTILE = [
    "---\nlicense: gpl\n---",
    "```\n# heading\n```` ~~~",
    "| a | b |\n|---|---|",
    "<script>alert(1)</script> [x](http://evil) ![i](http://evil) **b** `c` # d",
    "\u202e reversed \x1b[31m \x00 \u2028",
    "{{ 7 * 7 }} {% raw %} {problem} '\"\\ \"\"\" ''' \\n",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_texts_of_users_break_neither_the_header_nor_the_page(tmp_path, text):
    run = made_runs.begin(tmp_path / "run")
    with_settings(run.path, "task", instruction=text)
    with_settings(run.path, "model", name=f"../{text}")
    for name in ("base", "final"):
        made_runs.evaluate(run, name, made_runs.held_out(trained=name == "final"))
    run.append(AlarmRecord(step=1, name=text, message=text))
    made_runs.finish(run)
    shutil.copytree(TINY, run.path / "model")
    card = card_of(run.path, tmp_path / text.replace("/", "").replace("\x00", ""), license="mit")
    assert card.data.license == "mit" and card.data.tags == ["selfcorrect", "self-correction", "score"]
    tokens = MarkdownIt("commonmark").enable("table").parse(card.text)
    headings = [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open" and t.tag == "h2"]
    assert headings == ["Results", "How to use it", "What it is for", "Training", "Alarms", "Limits"]
    inline = [child for t in tokens for child in t.children or []]
    assert not [t for t in (*tokens, *inline) if t.type in ("html_block", "html_inline", "image")]
    assert {t.attrs["href"] for t in inline if t.type == "link_open"} == {"https://arxiv.org/abs/2409.12917"}
    assert {len(r) for r in rows_of(tokens)} == {8, 2}  # results; training
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u2028\u202a-\u202e]", card.content)
    (snippet,) = (t.content for t in tokens if t.type == "fence" and t.info == "python")
    said = next(n for n in ast.parse(snippet).body if isinstance(n, ast.Assign) and n.targets[0].id == "instruction")
    assert ast.literal_eval(said.value) == text


def rows_of(tokens):
    """Cells of every row of every table."""
    rows = []
    for i, t in enumerate(tokens):
        if t.type == "tr_open":
            rows.append([])
        elif t.type in ("td_open", "th_open"):
            rows[-1].append(tokens[i + 1].content)
    return rows


def test_marks_of_markdown():
    assert plain("a_b *c* <d> [e](f)\n## g") == r"a\_b \*c\* \<d\> \[e\](f) \#\# g"
    assert code("a`b") == "``a`b``" and code("`") == "`` ` ``" and code("a|b") == r"`a\|b`"
    assert code_block("````\nx") == "`````\n````\nx\n`````"


# --- refusals ------------------------------------------------------------------------------------------------------


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(finished, tmp_path):
    out = tmp_path / "out"
    begun = made_runs.begin(tmp_path / "begun")
    made_runs.train(begun)
    with pytest.raises(RunError, match=r"is unfinished: .* finish it with `selfcorrect train --resume"):
        export_run(begun.path, out)
    with pytest.raises(RunError, match="is not a run directory"):
        export_run(tmp_path / "nowhere", out)
    run = finished()
    for merge in (True, False):
        with pytest.raises(ConfigError, match="trained every weight"):
            export_run(run, out, merge=merge)
    (run / "evaluations" / "final.jsonl").unlink()
    with pytest.raises(DataError, match="holds no evaluation 'final'"):
        export_run(run, out)
    assert not out.exists()
    made_runs.evaluate(RunDirectory.open(run), "final", made_runs.held_out(trained=True))
    made_runs.finish(RunDirectory.open(run))
    out.mkdir()
    with pytest.raises(RunError, match="exists already and is not overwritten"):
        export_run(run, out)
    out.rmdir()
    shutil.rmtree(run / "model")
    with pytest.raises(RunError, match="does not hold the run's model"):
        export_run(run, out)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("left", [None, 0, -20])
@pytest.mark.parametrize("adapter", [False, True])
def test_a_model_that_is_not_whole_is_not_exported(finished, tmp_path, left, adapter):
    run = finished()
    weights = run / "model" / "model.safetensors"
    if adapter:
        weights = weights.rename(run / "model" / "adapter_model.safetensors")
        (run / "model" / "adapter_config.json").write_text("{}")
    content = weights.read_bytes()
    weights.unlink() if left is None else weights.write_bytes(content[:left])
    with pytest.raises(RunError, match=rf"{weights} cannot be read.*put it back from a copy"):
        export_run(run, tmp_path / "out", merge=False if adapter else None)
    assert not list(tmp_path.glob("*out*"))


def test_an_adapter_is_exported_from_every_directory(trained, tmp_path, monkeypatch):
    """The base is where the run was started, and another model of that name is here."""
    run = tmp_path / "run"
    shutil.copytree(trained(*LORA), run)
    tiny.save_model(tmp_path / "base")
    values = json.loads((run / "config.json").read_text())
    recorded = json.loads((run / "model" / "adapter_config.json").read_text())
    shipped = resolve_model("tiny").path_or_id
    assert recorded["base_model_name_or_path"] == shipped
    values["model"]["name"] = "base"
    (run / "config.json").write_text(json.dumps(values))
    monkeypatch.chdir(tmp_path)
    write_weights(RunDirectory.open(run), "merged", None, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(found[n].shape == w.shape for n, w in load_file(f"{shipped}/model.safetensors").items())


def test_a_failure_half_way_leaves_nothing(finished, tmp_path, monkeypatch):
    run = finished("task=own", f"task.path={tmp_path}", "task.verifier=gone_module:verify")
    with pytest.raises(ConfigError, match="gone_module"):
        export_run(run, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


# --- the Hub -------------------------------------------------------------------------------------------------------


class Hub:
    """Stands for ``HfApi``: keeps what it is asked, and fails where it is told to."""

    def __init__(self, **fails):
        self.asked, self._fails, self.exists = [], fails, False

    def _call(self, name, result, **arguments):
        self.asked.append((name, arguments))
        if name in self._fails:
            raise self._fails[name]
        return result

    def whoami(self):
        return self._call("whoami", {"name": "me"})

    def repo_exists(self, repo_id):
        return self._call("repo_exists", self.exists, repo_id=repo_id)

    def create_repo(self, repo_id, **options):
        return self._call("create_repo", f"https://hub/{repo_id}", repo_id=repo_id, **options)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        files = {p.name for p in Path(folder_path).iterdir()}
        return self._call("upload_folder", None, repo_id=repo_id, files=files)


def refusal(status, message):
    request = httpx2.Request("POST", "https://hub/api")
    response = httpx2.Response(status, request=request)
    return HfHubHTTPError(message, response=response, server_message=message)


@pytest.mark.parametrize("public", [False, True])
def test_a_push_makes_a_private_model_of_everything_unless_told_otherwise(finished, tmp_path, monkeypatch, public):
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda **_: hub)
    _, url = export_run(finished(), tmp_path / "out", push_to="me/model", private=not public)
    assert url == "https://hub/me/model"
    assert [name for name, _ in hub.asked] == ["whoami", "repo_exists", "create_repo", "upload_folder"]
    assert hub.asked[2][1] == {"repo_id": "me/model", "private": not public, "repo_type": "model"}
    assert {"README.md", "model.safetensors", "tokenizer.json", "generation_config.json"} <= hub.asked[3][1]["files"]
    assert "# model\n" in (tmp_path / "out" / "README.md").read_text()


BEFORE = {
    "no token": ({"whoami": LocalTokenNotFoundError("no token")}, "no token for the Hugging Face Hub.*hf auth login"),
    "wrong token": ({"whoami": refusal(401, "Invalid token")}, "401: Invalid token.*hf auth login"),
    "offline": ({"whoami": httpx2.ConnectError("no route")}, "could not be reached.*no route"),
    "offline by choice": ({"whoami": OfflineModeIsEnabled("offline")}, "HF_HUB_OFFLINE is set"),
    "broken": ({"repo_exists": refusal(500, "oops")}, "500: oops"),
}


@pytest.mark.parametrize("name", BEFORE)
def test_a_push_that_cannot_be_is_refused_before_anything_is_written(finished, tmp_path, monkeypatch, name):
    fails, words = BEFORE[name]
    monkeypatch.setattr("huggingface_hub.HfApi", lambda **_: Hub(**fails))
    with pytest.raises(EndpointError, match=words):
        export_run(finished(), tmp_path / "out", push_to="me/model")
    assert not (tmp_path / "out").exists()


def test_an_id_that_is_none_and_a_model_that_exists_are_refused():
    for wrong in ("model", "a/b/c", "me/--x", "me/mo del", ""):
        with pytest.raises(EndpointError, match="is not an id of a model on the Hub"):
            check_push(Hub(), wrong)
    hub = Hub()
    hub.exists = True
    with pytest.raises(EndpointError, match="exists on the Hub already and is not overwritten"):
        check_push(hub, "me/model")


def test_an_upload_that_fails_says_how_to_go_on(tmp_path):
    with pytest.raises(EndpointError, match=rf"is complete; upload it with `hf upload me/model {tmp_path}`"):
        push(Hub(upload_folder=refusal(503, "busy")), tmp_path, "me/model", private=False)
    # the model may not have been made, and the command must not make it public
    with pytest.raises(EndpointError, match=rf"`hf upload me/model {tmp_path} --private`"):
        push(Hub(create_repo=refusal(503, "busy")), tmp_path, "me/model", private=True)


def test_an_adapter_that_nobody_could_load_is_not_pushed(trained, tmp_path):
    with pytest.raises(ConfigError, match="nobody could load it from there"):
        export_run(trained(*LORA), tmp_path / "out", merge=False, push_to="me/model")
    export_run(trained(*LORA), tmp_path / "named", merge=False, base_model="me/base")
    config = json.loads((tmp_path / "named" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "me/base"


def test_the_real_client_reports_a_refused_token_and_a_dead_address(monkeypatch):
    """No stand-in: huggingface_hub against a server of ours that refuses, and against a closed port."""
    refuses = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=refuses.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{refuses.server_port}"
        with pytest.raises(EndpointError, match=r"the Hub refused me/model \(401: .*hf auth login"):
            check_push(HfApi(endpoint=address, token="hf_wrong"), "me/model")
    finally:
        refuses.shutdown()
        refuses.server_close()
    with pytest.raises(EndpointError, match="could not be reached"):
        check_push(HfApi(endpoint=address, token="hf_wrong"), "me/model")


class Refuses(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(401)
        self.send_header("X-Error-Message", "Invalid credentials")
        self.end_headers()

    def log_message(self, *_args):
        pass


def test_the_command_prints_where_everything_is(cli, finished, tmp_path, monkeypatch):
    run = finished()
    code_, out, err = cli("export", run, tmp_path / "out")
    assert (code_, err) == (0, "")
    assert out == f"model    {tmp_path / 'out'} (full, float32)\ncard     {tmp_path / 'out' / 'README.md'}\n"
    code_, _, err = cli("export", run, tmp_path / "again", "--public")
    assert code_ == 2 and "--public would be ignored without --push" in err
    monkeypatch.setattr("huggingface_hub.HfApi", lambda **_: Hub())
    code_, out, _ = cli("export", run, tmp_path / "pushed", "--push", "me/model")
    assert code_ == 0 and "hub      https://hub/me/model (private)" in out
