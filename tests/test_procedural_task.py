"""Procedural tasks: the base, a user's own by import path with options, reasoning-gym; and what is refused before a run."""

from __future__ import annotations

import inspect
import itertools
import json
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest

import toy
from selfcorrect.config import load_config, override
from selfcorrect.errors import ConfigError
from selfcorrect.measuring.validate import validate
from selfcorrect.tasks import make_task
from selfcorrect.tasks.arithmetic import Arithmetic
from selfcorrect.tasks.procedural import BUCKETS, Drawn, Procedural, split_of
from selfcorrect.tasks.reasoning_gym import _RUNS_ANSWERS
from selfcorrect.training.warmup import require_demonstrations
from selfcorrect.types import Verdict
from selfcorrect.verify.code.report import RISK_NAME
from task_config import task_config

ROOT = Path(__file__).parent.parent
FACTORS = "examples.own_task.factors:make"


class Letters(Procedural):
    """Sort three letters."""

    name = "letters"
    counts: ClassVar = {"train": 40, "test": 20, "pretrain": 60}

    def draw(self, rng):
        letters = "".join(rng.sample("abcdefgh", 3))
        return Drawn(f"Sort {letters}.", "".join(sorted(letters))) if letters[0] != "h" else None

    def verify(self, problem, text):
        assert text != "raise"
        return Verdict.NO_ANSWER if not text else text == problem.answer

    def demonstrate(self, problem, right, rng):
        return problem.answer if right else problem.answer[::-1]


def verdict(task, problem, text, truncated=False):
    return task.grade(problem, text, truncated=truncated).verdict.value


# --- the base ----------------------------------------------------------------------------------------------------


def test_a_task_of_three_functions():
    task = Letters()
    questions = {split: {p.question for p in task.problems(split)} for split in ("train", "test", "pretrain")}
    assert {split: len(found) for split, found in questions.items()} == Letters.counts
    for split, found in questions.items():
        assert {split_of(q) for q in found} == {split} and not any(q.startswith("Sort h") for q in found)
    problem = task.problems("test")[0]
    assert re.fullmatch(r"test-[0-9a-f]{16}", problem.id)  # of a hash: a question may be long
    assert verdict(task, problem, task.reference_answer(problem)) == "correct"
    assert verdict(task, problem, "zzz") == "wrong" and verdict(task, problem, "zzz", truncated=True) == "truncated"
    assert verdict(task, problem, "") == "no_answer" and verdict(task, problem, "", truncated=True) == "truncated"
    grade = task.grade(problem, "raise", truncated=False)
    assert grade.verdict is Verdict.ERROR and grade.detail.startswith("Letters.verify raised AssertionError")
    assert task.check_is_sound(problem, "abc") is None
    assert [p.id for p in Letters().problems("train")] == [p.id for p in task.problems("train")]


def test_a_key_joins_questions_that_are_the_same_problem():
    class Sets(Letters):
        counts: ClassVar = {"train": 10, "test": 4, "pretrain": 15}  # of the 56 sets of 3 letters of 8

        def draw(self, rng):
            letters = "".join(rng.sample("abcdefgh", 3))
            return Drawn(f"Sort {letters}.", "".join(sorted(letters)), key="".join(sorted(letters)))

    task = Sets()
    answers = [p.answer for split in ("train", "test", "pretrain") for p in task.problems(split)]
    assert len(set(answers)) == len(answers) == 29
    assert {p.id for p in task.problems("test")} == {f"test-{p.answer}" for p in task.problems("test")}


def test_the_base_ends_where_nothing_new_can_be_drawn():
    class Few(Letters):
        counts: ClassVar = {"train": 40, "test": 200, "pretrain": 60}

    with pytest.raises(
        ConfigError, match=r"needs 200: 5,000 draws in a row brought no new one; let draw\(\) return more"
    ):
        Few().problems("test")

    class Nothing(Letters):
        def draw(self, rng):
            return None

    with pytest.raises(ConfigError, match="has 0 distinct problems"):
        Nothing().problems("train")

    class Broken(Letters):
        def draw(self, rng):
            return rng.sample("ab", 3)

    with pytest.raises(ConfigError, match=r"task letters cannot draw a problem: ValueError: .*; correct its draw\(\)"):
        Broken().problems("train")

    class Half(Letters):
        counts: ClassVar = {"train": 2, "test": 2}

    assert len(Half().problems("train")) == 2
    with pytest.raises(ConfigError, match="does not say how many problems its pretrain split has; add 'pretrain' to"):
        next(Half().demonstrations(0))


def test_the_hash_decides_the_split():
    shares = [split_of(str(i)) for i in range(20_000)]
    for split, buckets in BUCKETS.items():
        assert shares.count(split) / 20_000 == pytest.approx(len(buckets) / 100, abs=0.015)
    assert sorted(b for buckets in BUCKETS.values() for b in buckets) == list(range(100))


# --- validate ----------------------------------------------------------------------------------------------------


def demonstrated(task):
    told = []
    (report,) = validate(task, ["demonstrations"], told.append)
    return report, told


def test_demonstrations_are_validated():
    report, told = demonstrated(Letters())
    assert (report.problems, report.rejected, report.passed, told) == (1000, 0, True, [])
    assert 300 < report.verdicts[Verdict.WRONG] < 500  # 40 % of 1,000
    report, _ = demonstrated(Arithmetic(4, 6))
    assert report.passed and report.problems == 1000
    assert [r.split for r in validate(Letters())] == ["train", "test", "demonstrations"]


class NeverWrong(Letters):
    def demonstrate(self, problem, right, rng):
        return problem.answer


class NeverRight(Letters):
    def demonstrate(self, problem, right, rng):
        return problem.answer[::-1]


class Unsound(Letters):
    def check_is_sound(self, problem, text):
        return text == problem.answer


class Raises(Letters):
    def demonstrate(self, problem, right, rng):
        raise KeyError("steps")


class ByHand(toy.Toy):
    def grade(self, problem, text, *, truncated):
        grade = super().grade(problem, text, truncated=truncated)
        return type(grade)(Verdict.NO_ANSWER) if text == "bb" else grade


@pytest.mark.parametrize(
    ("task", "detail", "rejected"),
    [
        (NeverWrong(), "demonstrated as an honest wrong try, '", (300, 500)),
        (NeverRight(), "demonstrated as a right answer, '", (500, 700)),
        (Unsound(), "the check in the demonstrated '", (300, 500)),
        (Raises(), "KeyError: 'steps'", (1, 1)),
        (ByHand(), "demonstrated as 'bb'; ", (500, 500)),
    ],
    ids=["never wrong", "never right", "unsound", "raises", "by hand"],
)
def test_a_faulty_demonstration_is_told(task, detail, rejected):
    report, told = demonstrated(task)
    assert told[0].split == "demonstrations" and told[0].grade.detail.startswith(detail)
    assert rejected[0] <= report.rejected == len(told) <= rejected[1] and not report.passed


# --- a user's own, by import path --------------------------------------------------------------------------------


MODULE = """
import toy
from selfcorrect.errors import DataError

def make(config, *, numbers=3, share=0.5, name="toy", also=None):
    task = toy.Toy(n_test=numbers)
    task.name, task.seen = name, (numbers, share, name, also)
    return task

def anything(config, **options): return make(config, also=options)
def plain(config): return toy.Toy()
def fails(config, *, numbers=3): raise ZeroDivisionError("numbers")
def refuses(config): raise DataError("no data here")
def leaves(config): raise SystemExit(0)
def silent(config):
    task = toy.Toy()
    task.demonstrations = lambda seed: iter(())
    return task
def texts(config):
    task = toy.Toy()
    task.demonstrations = lambda seed: iter([("question", "one text")])
    return task
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_tasks.py").write_text(MODULE)
    yield lambda name, *settings: make_task(load_config(None, [f"task=my_tasks:{name}", *settings]).task)
    sys.modules.pop("my_tasks", None)


def test_an_imported_task_has_settings_of_its_own(mine):
    assert mine("make").seen == (3, 0.5, "toy", None)
    given = ("task.options.numbers=7", "task.options.share=1", "task.options.name=seven", "task.options.also=[1]")
    task = mine("make", *given)
    assert task.seen == (7, 1.0, "seven", [1]) and len(task.problems("test")) == 7
    assert mine("anything", "task.options.a.b=2").seen[3] == {"a": {"b": 2}}
    config = override(load_config(None, ["task=my_tasks:make", *given]), ["task.options.numbers=8"])
    assert make_task(config.task).seen == (8, 1.0, "seven", [1])  # the other options stay


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("make", ["task.options.number=7"], r"'task.options.number' of my_tasks:make: did you mean task.options.numbers or task.options.name\?"),
        ("make", ["task.options.x=7"], "did you mean task.options.also or task.options.name or task.options.numbers"),
        ("plain", ["task.options.x=7"], "of my_tasks:plain: it has no options; drop it"),
        ("make", ["task.options.numbers=many"], r"task.options.numbers = 'many': Input should be a valid integer.*is 3"),
        ("make", ["task.options=3"], "task.options = 3: Input should be a valid dictionary"),
        ("make", ["task.numbers=7"], r"task.numbers is no setting of a task from an import path; write task.options.numbers=7"),
        ("make", ["task.pick=all"], "write task.options.pick=all"),
        ("fails", [], "failed to make a task: ZeroDivisionError: numbers; correct that function"),
        ("refuses", [], "^no data here$"),
        ("misspelt", [], "'my_tasks:misspelt' cannot be used: AttributeError"),
        ("leaves", [], "failed to make a task: SystemExit: 0; correct that function"),
    ],
)  # fmt: skip
def test_faults_of_an_imported_task_are_refused(mine, name, settings, reason):
    with pytest.raises(Exception, match=reason) as error:
        mine(name, *settings)
    assert type(error.value).__module__ == "selfcorrect.errors"


def test_a_script_that_leaves_while_it_is_imported_is_refused(tmp_path, monkeypatch):
    """Else the command would end without a word, as if it had succeeded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_script.py").write_text("import sys\ndef make(config): ...\nsys.exit(0)\n")
    with pytest.raises(ConfigError, match="'my_script:make' cannot be used: SystemExit: 0; it has to name a function"):
        make_task(load_config(None, ["task=my_script:make"]).task)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["task=my_tasks:misspelt"], "AttributeError"),
        (["task=no_such_module:make"], "ModuleNotFoundError"),
        (["task=my_tasks:make", "task.options.number=1"], "did you mean task.options.numbers or"),
        (["task=own", "task.path=x", "task.verifier=my_tasks:misspelt"], "AttributeError"),
        (["task=own"], "task=own needs task.path"),
        (["task=chess"], "is not a task"),
        (["method=self_refine"], "self_refine"),
    ],
)
def test_a_dry_run_says_what_would_stop_the_run(cli, mine, settings, reason):
    code, out, err = cli("train", *settings, "--dry-run")
    assert (code, out) == (2, "") and reason in err


def test_a_dry_run_shows_the_options(cli, mine):
    code, out, _ = cli("train", "task=my_tasks:make", "task.options.numbers=7", "--dry-run")
    assert code == 0 and json.loads(out)["task"]["options"] == {"numbers": 7}


def test_demonstrations_serve_the_warm_up_and_their_absence_names_the_way_out(mine):
    assert require_demonstrations(mine("make"))
    task = SimpleNamespace(name="mute")
    with pytest.raises(
        ConfigError, match=r"write a task with a method demonstrations \(docs/your-own-task.md\)"
    ) as error:
        require_demonstrations(task)
    assert "arithmetic" not in str(error.value)
    with pytest.raises(ConfigError, match="the first demonstration of task toy fails: StopIteration"):
        require_demonstrations(mine("silent"))
    with pytest.raises(ConfigError, match="is not a Problem with the texts of its attempts"):
        require_demonstrations(mine("texts"))
    with pytest.raises(ConfigError, match="the first demonstration of task letters fails: KeyError: 'steps'"):
        require_demonstrations(Raises())


# --- the example of docs/your-own-task.md ------------------------------------------------------------------------


def test_the_example_is_short_complete_and_the_one_of_the_page(monkeypatch):
    monkeypatch.chdir(ROOT)
    source = (ROOT / "examples/own_task/factors.py").read_text()
    assert len(source.splitlines()) <= 60
    assert source in (ROOT / "docs/your-own-task.md").read_text()
    task = make_task(load_config(None, [f"task={FACTORS}", "task.options.largest=70"]).task)
    assert {r.split: (r.problems, r.rejected) for r in validate(task)} == {
        "train": (300, 0),
        "test": (120, 0),
        "demonstrations": (1000, 0),
    }
    problem = next(p for p in task.problems("test"))
    product = problem.meta["product"]
    assert verdict(task, problem, f"1*{product}={product}, yes") == "wrong"
    assert verdict(task, problem, "a product") == "no_answer"
    assert task.check_is_sound(problem, f"1*{product}={product + 1}, no") is False
    with pytest.raises(ConfigError, match=r"task factors has .* distinct problems for its train split and needs 300"):
        make_task(load_config(None, [f"task={FACTORS}", "task.options.largest=9"]).task).problems("train")


# --- reasoning-gym -----------------------------------------------------------------------------------------------


SMALL_COUNTS = {"train": 20, "test": 10, "pretrain": 20}


@dataclass
class WordsConfig:
    seed: int = 0
    size: int = 500
    letters: int = 4

    def validate(self):
        assert self.letters > 1, "too few letters"


class Words:
    """As the package's data sets are written: problem by index, a score from 0 to 1."""

    def __init__(self, config):
        self.config = config

    def __len__(self):
        return self.config.size

    def __getitem__(self, i):
        word = "".join(random.Random(f"{self.config.seed} {i}").choices("abcdefgh", k=self.config.letters))
        return {"question": f"Spell {word} backward.", "answer": word[::-1], "metadata": {}}

    def score_answer(self, answer, entry):
        return sum(a == b for a, b in zip(answer, entry["answer"], strict=False)) / max(
            len(answer), len(entry["answer"])
        )


class Examples(Words):
    """Without one right answer; every third problem has no example either."""

    def __getitem__(self, i):
        entry = super().__getitem__(i)
        return {**entry, "answer": None, "metadata": {"example_answer": entry["answer"]} if i % 3 else {}}

    def score_answer(self, answer, entry):
        return float(len(answer) == self.config.letters)


class Evaluates(Words):
    def score_answer(self, answer, entry):
        return float(eval(answer) == entry["answer"]) if answer.isdigit() else float(answer == entry["answer"])


@pytest.fixture
def fake_gym(monkeypatch):
    """The package's registry with made-up data sets: these tests need no package."""
    made = {"spell_backward": Words, "examples": Examples, "evaluates": Evaluates, "composite": Words}
    package, factory = ModuleType("reasoning_gym"), ModuleType("reasoning_gym.factory")

    def create_dataset(name, **settings):
        config = WordsConfig(**settings)
        config.validate()
        return made[name](config)

    factory.DATASETS = {name: (cls, WordsConfig) for name, cls in made.items()}
    factory.create_dataset = create_dataset
    package.factory = factory
    monkeypatch.setitem(sys.modules, "reasoning_gym", package)
    monkeypatch.setattr("selfcorrect.tasks.reasoning_gym.ReasoningGym.counts", SMALL_COUNTS)
    return lambda **settings: make_task(task_config(name="reasoning_gym", **settings))


def test_a_data_set_is_a_task(fake_gym):
    task = fake_gym(dataset="spell_backward", options={"letters": 6})
    assert task.name == "reasoning_gym-spell_backward"
    assert [(r.passed, r.problems) for r in validate(task)] == [(True, 20), (True, 10), (True, 500)]
    problem = task.problems("test")[0]
    assert len(problem.answer) == 6  # the data set's own settings
    assert task.first_messages(problem)[0]["content"].endswith("Write the answer between <answer> and </answer>.")
    right, wrong = task.reference_answer(problem), "<answer>no</answer>"
    assert right == f"<answer>{problem.answer}</answer>"
    assert verdict(task, problem, f"Let me see. {wrong} No: {right}") == "correct"
    assert verdict(task, problem, f"<answer>\n{problem.answer}\n</answer>") == "correct"
    assert verdict(task, problem, f"{right} {wrong}") == "wrong"  # the last one counts
    assert verdict(task, problem, problem.answer) == "no_answer"
    assert verdict(task, problem, "<answer>", truncated=True) == "truncated"
    assert {len(a) for _, a in itertools.islice(task.demonstrations(0), 5)} == {1}


def test_a_partial_score_is_wrong(fake_gym):
    task = fake_gym(dataset="spell_backward")
    problem = task.problems("test")[0]
    grade = task.grade(problem, f"<answer>{problem.answer[:-1]}_</answer>", truncated=False)
    assert (grade.verdict, grade.detail) == (Verdict.WRONG, "score 0.75")


def test_a_data_set_without_one_right_answer_takes_its_examples(fake_gym):
    task = fake_gym(dataset="examples")
    assert all(r.passed and r.problems for r in validate(task))
    problem = task.problems("test")[0]
    assert verdict(task, problem, "<answer>zzzz</answer>") == "correct"  # whatever scores 1
    assert verdict(task, problem, "<answer>zzz</answer>") == "wrong"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"dataset": "spell_backwards"},
            r"no data set of reasoning-gym that stands alone; did you mean spell_backward\?",
        ),
        ({}, r"task.dataset = None is no data set .*; take one of: evaluates, examples, spell_backward"),
        ({"dataset": "composite"}, "that stands alone"),
        ({"dataset": "examples", "options": {"leters": 3}}, r"did you mean task.options.letters\?"),
        ({"dataset": "examples", "options": {"letters": 1}}, "cannot be made: AssertionError: too few letters"),
        ({"dataset": "evaluates"}, f"evaluates the model's text as Python.*task.accept_risk={RISK_NAME}"),
        ({"dataset": "evaluates", "accept_risk": "yes"}, "evaluates the model's text as Python"),
    ],
)
def test_what_reasoning_gym_cannot_do_is_refused(fake_gym, settings, reason):
    with pytest.raises(ConfigError, match=reason):
        fake_gym(**settings)


def test_a_score_that_runs_a_models_text_needs_the_risk_by_name(fake_gym):
    task = fake_gym(dataset="evaluates", accept_risk=RISK_NAME)
    problem = task.problems("test")[0]
    assert verdict(task, problem, task.reference_answer(problem)) == "correct"


@pytest.mark.parametrize("name", ["spell_backward", "chain_sum", "mini_sudoku"])
def test_data_sets_of_reasoning_gym(monkeypatch, name):
    """The package itself; `make test-reasoning-gym` installs it."""
    pytest.importorskip("reasoning_gym")
    monkeypatch.setattr("selfcorrect.tasks.reasoning_gym.ReasoningGym.counts", SMALL_COUNTS)
    task = make_task(task_config(name="reasoning_gym", dataset=name))
    assert all(r.passed and r.problems for r in validate(task))
    problem = task.problems("test")[0]
    assert verdict(task, problem, task.reference_answer(problem)) == "correct"
    assert verdict(task, problem, "<answer>no</answer>") == "wrong"


def test_references_of_a_real_data_set_without_one_right_answer(monkeypatch):
    pytest.importorskip("reasoning_gym")
    monkeypatch.setattr("selfcorrect.tasks.reasoning_gym.ReasoningGym.counts", SMALL_COUNTS)
    assert all(r.passed for r in validate(make_task(task_config(name="reasoning_gym", dataset="graph_color"))))


def test_every_score_that_evaluates_an_answer_is_known():
    """What 0.1.25 evaluates, by hand. A new release with more ways to evaluate has to be read before it is allowed."""
    factory = pytest.importorskip("reasoning_gym.factory")
    found = {name for name, (made, _) in factory.DATASETS.items() if _RUNS_ANSWERS.search(inspect.getsource(made))}
    assert found == {
        *("string_insertion", "spiral_matrix", "binary_matrix", "n_queens", "puzzle24", "countdown"),
        *("simple_integration", "intermediate_integration", "polynomial_multiplication"),
    }
    evaluates = re.compile(r"\b(?:eval|exec|parse_expr|sympify)\(([^)]*)")
    arguments = {
        (name, argument)
        for name, (made, _) in factory.DATASETS.items()
        if name not in found
        for argument in evaluates.findall(inspect.getsource(made.score_answer))
    }
    assert arguments == {("number_sorting", 'entry["answer"]')}  # the data set's own text


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match=r"pip install 'selfcorrect\[reasoning-gym\]'"):
        make_task(task_config(name="reasoning_gym", dataset="chain_sum"))
