"""MBPP, its repair task and HumanEval: splits, prompts, which program in a text is judged, and who is trusted."""

import asyncio
import gzip
import json
from collections import Counter

import pytest
from code_tools import DATA, needs_sandbox, rows

import tiny
from selfcorrect import cli as package
from selfcorrect.algorithm.sequences import sequences
from selfcorrect.config import EvalConfig, load_config
from selfcorrect.engines.base import Sampled
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.episodes.play import Play, Reply, given_answers, play
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.experiment import prepare
from selfcorrect.measuring.evaluate import controls, evaluate, held_out
from selfcorrect.serve.correct import Conversation
from selfcorrect.serve.protocol import ApiError, Bounds
from selfcorrect.tasks import make_task
from selfcorrect.tasks.base import Answer, GivesFirst, grade_answers
from selfcorrect.types import Verdict
from served import serving
from task_config import task_config

pytestmark = pytest.mark.skipif(
    not (DATA / "mbpp").is_dir(), reason=f"no benchmark data at {DATA}; set SELFCORRECT_DATA to its folder"
)
CHAT = ChatFormat(tiny.tokenizer())


def code_task(name, file="", **settings):
    folder = DATA / ("humaneval" if name == "humaneval" else "mbpp")
    return make_task(task_config(name=name, path=str(folder / file), **settings))


def verdicts(task, problems, texts=None):
    """Verdicts on one text per problem, by default the references, all sandboxes at once."""
    texts = texts or [task.reference_answer(p) for p in problems]

    async def all_at_once():
        graded = (grade_answers(task, p, [Answer(t)]) for p, t in zip(problems, texts, strict=True))
        return await asyncio.gather(*graded)

    return [grade.verdict.value for (grade,) in asyncio.run(all_at_once())]


def by_number(task, split, *numbers):
    return [p for p in task.problems(split) if p.meta["task_id"] in numbers]


# --- MBPP --------------------------------------------------------------------------------------------------------


def test_splits_of_mbpp():
    task = code_task("mbpp")
    assert [len(task.problems(s)) for s in ("train", "test")] == [374, 500]
    other = code_task("mbpp", eval_split="validation")
    assert [p.meta["task_id"] for p in other.problems("test")] == list(range(511, 601))
    assert (task.name, other.name) == ("mbpp", "mbpp-validation")
    assert not {p.id for p in task.problems("test")} & {p.id for p in other.problems("test")}


def test_the_sanitized_form_names_its_splits():
    task = code_task("mbpp", "sanitized.jsonl.gz")
    assert [len(task.problems(s)) for s in ("train", "test")] == [120, 257]
    assert len(task.first_messages(task.problems("test")[0])) == 7
    assert any(len(p.meta["tests"]) > len(p.meta["shown"]) for p in task.problems("test"))  # test_imports come first


def test_a_file_of_one_split_takes_its_examples_from_beside_it():
    task = code_task("mbpp", "test.jsonl.gz")
    assert len(task.problems("test")) == 500 and len(task.first_messages(task.problems("test")[0])) == 7
    with pytest.raises(DataError, match="holds the test split by its name"):
        task.problems("train")


def test_the_first_attempt_is_asked_for_with_three_worked_examples_and_the_tests():
    task = code_task("mbpp")
    problem = task.problems("test")[0]
    *examples, asked = task.first_messages(problem)
    assert [m["role"] for m in examples] == ["user", "assistant"] * 3
    table = {r["task_id"]: r for r in rows("mbpp/prompt.jsonl.gz")}
    for number, user, assistant in zip((2, 3, 4), examples[::2], examples[1::2], strict=True):
        assert table[number]["text"] in user["content"] and table[number]["test_list"][0].strip() in user["content"]
        assert assistant["content"].startswith("[BEGIN]\n") and assistant["content"].endswith("\n[DONE]")
        assert table[number]["code"].split()[1] in assistant["content"] and "\r" not in assistant["content"]
    assert all(test in asked["content"] for test in problem.meta["shown"])
    assert problem.meta["code"] not in str([*examples, asked])


def test_a_prompt_split_without_the_three_is_refused(tmp_path):
    row = rows("mbpp/prompt.jsonl.gz")[0]
    for split in ("prompt", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=r"lacks the worked examples with task_id 2, 3, 4"):
        make_task(task_config(name="mbpp", path=str(tmp_path))).problems("test")


def test_some_references_pass_and_every_forgeable_one_when_measuring():
    needs_sandbox()
    task = code_task("mbpp")
    task.get_ready(training=False)
    chosen = [*task.problems("test")[::50], *by_number(task, "test", 367), *by_number(task, "train", 601, 927, 700)]
    assert verdicts(task, chosen) == ["correct"] * 14


def test_in_training_a_pass_that_could_be_forged_earns_nothing_and_measuring_stays_the_same():
    needs_sandbox()
    task = code_task("mbpp")
    task.get_ready(training=True)
    assert verdicts(task, by_number(task, "train", 601, 700)) == ["error", "correct"]
    assert verdicts(task, by_number(task, "test", 367)) == ["correct"]
    (forgeable,) = by_number(task, "train", 601)
    assert "trust_forgeable" in task.grade(forgeable, task.reference_answer(forgeable), truncated=False).detail


def test_prepare_tells_the_task_what_its_verdicts_are_for(tmp_path):
    needs_sandbox()
    model = tmp_path / "m"
    tiny.random_model(max_position_embeddings=20_000).save_pretrained(model)
    tiny.tokenizer().save_pretrained(model)
    settings = [f"model={model}", "task=mbpp", f"task.path={DATA / 'mbpp'}", "play.max_new_tokens=300"]
    for training, verdict in ((True, "error"), (False, "correct")):
        task = prepare(load_config(None, settings), training=training).task
        assert verdicts(task, by_number(task, "train", 601)) == [verdict]


def test_programs_graded_together_get_the_verdicts_that_they_get_alone():
    needs_sandbox()
    task = code_task("mbpp")
    problem = task.problems("test")[0]
    right = problem.meta["code"]
    answers = [
        Answer(task.reference_answer(problem)),
        Answer(f"Here it is:\n```python\n{right}\n```\nDone."),
        Answer("[BEGIN]\ndef remove_Occ(s, ch): return s\n[DONE]\n" + right),
        Answer("I do not know."),
        Answer("[BEGIN]\ndef remove_Occ(s, ch):\n    for i in", truncated=True),
    ]
    together = asyncio.run(grade_answers(task, problem, answers))
    alone = [task.grade(problem, a.text, truncated=a.truncated) for a in answers]
    assert [(g.verdict, g.extracted, g.detail) for g in together] == [(g.verdict, g.extracted, g.detail) for g in alone]
    assert [g.verdict.value for g in alone] == ["correct", "correct", "wrong", "no_answer", "truncated"]


# --- HumanEval ---------------------------------------------------------------------------------------------------


def test_humaneval_shows_no_test():
    task = code_task("humaneval")
    problems = task.problems("test")
    assert len(problems) == 164
    for p in problems:
        (message,) = task.first_messages(p)
        shown = message["content"] + task.instruction
        checks = [line.strip() for line in p.answer.splitlines() if line.strip().startswith(("assert", "def check"))]
        assert checks and not [c for c in checks if c in shown]
        assert p.question.rstrip() in shown and p.meta["solution"].strip() not in shown


def test_some_humaneval_references_pass():
    needs_sandbox()
    task = code_task("humaneval")
    chosen = task.problems("test")[::16]
    assert verdicts(task, chosen) == ["correct"] * len(chosen)


def test_a_whole_function_in_a_fence_keeps_the_imports_and_helpers_of_the_stub():
    needs_sandbox()
    task = code_task("humaneval")
    problems = {p.id: p for p in task.problems("test")}
    typed, helped = problems["HumanEval/0"], problems["HumanEval/38"]  # List from typing; encode_cyclic above the stub
    for p in (typed, helped):
        stub = "def " + p.question.rpartition("def ")[2]
        whole = f"The function:\n\n```python\n{stub}{p.meta['solution']}```\nIt loops over the input."
        body = f"```python\n{p.meta['solution']}```"
        own_imports = f"```python\nimport typing\nfrom typing import *\n{stub}{p.meta['solution']}```"
        assert "import" not in whole.split("```")[1]
        assert verdicts(task, [p] * 3, [whole, body, own_imports]) == ["correct"] * 3, p.id
        broken = whole.replace("return", "return not")
        assert verdicts(task, [p], [broken]) == ["wrong"]


# --- repair ------------------------------------------------------------------------------------------------------


def wrong_programs(split):
    table = rows("mbpp/first_attempts_models.jsonl.gz")
    return {(r["task_id"], r["attempt"].strip("\n")) for r in table if r["split"] == split and not r["passed"]}


@pytest.mark.parametrize("split", ["test", "validation"])
def test_one_problem_per_task_and_distinct_wrong_program(split):
    task = code_task("mbpp_repair", eval_split=split)
    problems = task.problems("test")
    assert {(p.meta["task_id"], p.meta["given"]) for p in problems} == wrong_programs(split)
    assert len({p.id for p in problems}) == len(problems) == len(wrong_programs(split))
    assert isinstance(task, GivesFirst) and problems[0].level in {
        "codellama",
        "starcoder",
        "gpt-4",
        "gpt-3.5-turbo-0613",
    }


def test_another_file_of_first_attempts():
    task = code_task("mbpp_repair", first_attempts=str(DATA / "mbpp/first_attempts_mutated.jsonl.gz"))
    assert (len(task.problems("test")), len(task.problems("train"))) == (880, 647)


def test_first_attempts_that_cannot_be_used(tmp_path):
    with pytest.raises(ConfigError, match=r"the Hub's MBPP has none: set task.first_attempts"):
        make_task(task_config(name="mbpp_repair"))
    file = tmp_path / "f.jsonl"
    for line, reason in [
        ('{"task_id": 11}', r"f.jsonl line 1 has no field 'attempt'"),
        ('{"task_id": "11", "attempt": "x"}', "line 1 has a task_id that is not a number"),
        ('{"task_id": 11, "attempt": "x", "passed": 1}', "line 1 has a field 'passed' that is not a boolean"),
        ('{"task_id": 601, "attempt": "x"}', r"holds no wrong program for a task of this split"),
        ('{"task_id": 11, "attempt": "x", "passed": true}', r"holds no wrong program"),
        ("{", "line 1 is not valid JSON"),
    ]:
        file.write_text(line)
        with pytest.raises(DataError, match=reason):
            code_task("mbpp_repair", first_attempts=str(file)).problems("test")
    file.unlink()
    with pytest.raises(DataError, match=r"stored first attempts .*f.jsonl do not exist"):
        code_task("mbpp_repair", first_attempts=str(file)).problems("test")


class Solver:
    """An engine that answers every prompt with the reference program of the task asked for last in it."""

    def __init__(self, task, problems):
        self.chat, self.asked = CHAT, []
        self._references = {p.id: CHAT.answer_ids(task.reference_answer(p)) for p in problems}

    async def sample(self, requests, params):
        self.asked += requests
        found = [next(self._references[part] for part in r.key if part in self._references) for r in requests]
        return [Sampled(ids, (-1.0,) * len(ids), "end") for ids in found]


def some_repairs():
    """A spread of wrong programs, with those that hold fences or prose: their verdict is that of the stored program."""
    task = code_task("mbpp_repair")
    odd = by_number(task, "test", 231, 367, 437)
    return task, [*odd, *[p for p in task.problems("test")[::40] if p not in odd]]


def test_repair_starts_from_the_stored_program_and_measures_attempt_2():
    needs_sandbox()
    task, problems = some_repairs()
    engine = Solver(task, problems)
    measured = evaluate(engine, task, problems, EvalConfig(), 400)
    firsts = [e.attempts[0] for e in measured.episodes]
    assert {a.grade.verdict for a in firsts} <= {Verdict.WRONG, Verdict.TIMEOUT}  # as recorded: none passes
    assert all(a.source == "given" and a.logprobs is None and a.stop == "given" for a in firsts)
    assert [a.text for a in firsts] == [task.first_answers(e.problem)[0] for e in measured.episodes]
    assert (measured.summary.accuracy(1).value, measured.summary.accuracy(2).value) == (0.0, 1.0)
    assert len(engine.asked) == len(problems)  # attempt 1 is not sampled
    shown = CHAT.tokenizer.decode(engine.asked[0].prompt_ids)
    assert measured.episodes[0].problem.meta["given"] in shown and task.instruction in shown


def test_the_controls_of_repair_swap_the_given_programs_and_sample_none():
    needs_sandbox()
    task, problems = some_repairs()
    problems = problems[:4]
    engine = Solver(task, problems)
    measured = evaluate(engine, task, problems, EvalConfig(), 400)
    engine.asked.clear()
    (swapped,) = controls(engine, task, measured, EvalConfig(), 400)
    assert swapped.name == "eval-swapped" and len(engine.asked) == 4
    assert {e.attempts[0].text for e in swapped.episodes} <= {task.first_answers(p)[0] for p in problems}


def test_given_first_attempts_can_be_offline_ones_in_training():
    """What a training mode would need: they enter the sequence as context, and carry no weight."""
    needs_sandbox()
    task, problems = some_repairs()
    engine = Solver(task, problems)
    given = given_answers(CHAT, task, problems[:1], 3)
    assert [len(v) for v in given.values()] == [3]
    ((episode, *_),) = asyncio.run(play(engine, task, problems[:1], Play(2, 3, 400, 1.0, ("s",)), given))
    (laid_out,) = sequences(episode)
    assert [k for k, _, _ in laid_out.spans] == [1]
    assert laid_out.sampled_T.sum() == len(episode.attempts[1].token_ids)


def test_repair_with_one_attempt_would_measure_nothing():
    settings = ["task=mbpp_repair", f"task.path={DATA / 'mbpp'}", "model=/none", "eval.attempts=1"]
    with pytest.raises(ConfigError, match=r"eval.attempts=1 would measure nothing of the model"):
        prepare(load_config(None, settings), training=False)


class Repairer:
    """A backend of the server that answers with the reference program of the task asked for, and refuses one task."""

    def __init__(self, task, problems, refused):
        self._references = {task.first_messages(p)[-1]["content"]: task.reference_answer(p) for p in problems}
        self._refused = task.first_messages(refused)[-1]["content"]
        self.asked = []

    async def open(self, asked):
        self.asked.append([m["role"] for m in asked.messages[-3:]])
        question = asked.messages[-3]["content"]
        if question == self._refused:
            raise ApiError(400, "that program again")
        return Conversation(Once(self._references[question]), (), "Again.")

    def fault(self):
        return None

    async def aclose(self):
        pass


class Once:
    def __init__(self, text):
        self._text = text

    async def answer(self, prompts, keys, *, continued):
        return [Reply(self._text, "end") for _ in keys]


def test_repair_behind_an_endpoint(tmp_path, monkeypatch, capsys):
    needs_sandbox()
    monkeypatch.chdir(tmp_path)
    task = code_task("mbpp_repair")
    problems = held_out(task, 12)
    times = Counter(p.meta["task_id"] for p in problems)
    alone = next(p for p in problems if times[p.meta["task_id"]] == 1)
    backend = Repairer(task, problems, alone)
    with serving(backend, bounds=Bounds(attempts=1, max_tokens=1024)) as (url, _):
        arguments = [
            "eval",
            "--base-url",
            f"{url}/v1",
            "--model",
            "m",
            "task=mbpp_repair",
            f"task.path={DATA / 'mbpp'}",
        ]
        monkeypatch.setattr("sys.argv", ["selfcorrect", *arguments, "limit=12", "eval.controls=false", "--json"])
        with pytest.raises(SystemExit) as stop:
            package.main()
        monkeypatch.setattr("sys.argv", ["selfcorrect", *arguments, "attempts=1"])
        with pytest.raises(SystemExit) as refused:
            package.main()
    out, err = capsys.readouterr()
    assert not stop.value.code, err
    assert refused.value.code == 2 and "would measure nothing of the model" in err
    result = json.loads(out)
    assert backend.asked == [["user", "assistant", "user"]] * 12
    assert result["refused"]["plain"] == [alone.id]
    first, second = result["plain"]["summary"]["attempts"]
    assert (first["accuracy"]["value"], second["accuracy"]["value"], second["accuracy"]["n"]) == (0, 1, 11)


# --- as a user types it ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mbpp_repair", "humaneval"])
def test_eval_from_the_command_line(tmp_path, monkeypatch, capsys, name):
    needs_sandbox()
    source, data = DATA / ("humaneval" if name == "humaneval" else "mbpp"), tmp_path / "data"
    data.mkdir()
    for file in ("test.jsonl.gz", "prompt.jsonl.gz", "first_attempts_models.jsonl.gz"):
        if (source / file).exists():
            with gzip.open(source / file, "rt") as full:
                keep = [line for line in full if file != "test.jsonl.gz" or json.loads(line)["task_id"] != 493]
            (data / file.removesuffix(".gz")).write_text("".join(keep[:300]))
    model = tmp_path / "m"
    tiny.random_model(max_position_embeddings=20_000).save_pretrained(model)
    tiny.tokenizer().save_pretrained(model)
    settings = [f"task={name}", f"task.path={data}", "limit=2", "model.dtype=float32"]
    settings += ["play.max_new_tokens=600", f"eval.controls={'true' if name == 'mbpp_repair' else 'false'}"]
    monkeypatch.setattr("sys.argv", ["selfcorrect", "eval", str(model), *settings, "model.lora_rank=0", "--json"])
    with pytest.raises(SystemExit) as stop:
        package.main()
    out, err = capsys.readouterr()
    assert not stop.value.code, err
    result = json.loads(out)
    assert result["plain"]["settings"]["task"] == name
    assert result.keys() == ({"plain", "plain-swapped"} if name == "mbpp_repair" else {"plain"})
    assert result["plain"]["summary"]["n_problems"] == 2
