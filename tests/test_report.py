"""What a report says of a run, in whatever state it is: the page model, the choice of episodes, the text made safe."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import made_runs as made
from browser import find_chromium
from selfcorrect.errors import DataError, RunError
from selfcorrect.report import build_report, write_report
from selfcorrect.report.charts import Curves, Flow, Line, axis_range, draw_curves, draw_flow
from selfcorrect.report.page import build_page
from selfcorrect.report.reading import read_run
from selfcorrect.report.sample import balanced, sample_episodes
from selfcorrect.report.tags import TAGS, tags_of
from selfcorrect.report.text import SHOWN_CHARACTERS, shown, visible


def page_of(*paths):
    return build_page([read_run(p) for p in paths], paths)


def only(*paths):
    return page_of(*paths).runs[0]


class Plain(HTMLParser):
    """Elements and attributes of a page, to look for what should not be there."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *a) for a in attrs]

    def handle_data(self, data):
        self.words.append(data)


# --- text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("\x00\x1b[31m\r\x7f", "\u2400\u241b[31m\u240d\u2421"),
        ("\u202eevil", "⟨U+202E⟩evil"),
        ("\ud800", "⟨U+D800⟩"),
        ("a\u2028b\ufeff", "a⟨U+2028⟩b⟨U+FEFF⟩"),
        ("👩\u200d🔬 שלום 数学", "👩\u200d🔬 שלום 数学"),
        ("\U000e0041", "⟨U+E0041⟩"),
    ],
)
def test_what_is_unseen_becomes_visible_and_the_rest_stays(text, seen):
    assert visible(text) == seen


def test_every_character_can_be_encoded_once_visible():
    everything = "".join(map(chr, range(0x110000)))
    left = visible(everything)
    left.encode()
    assert not [c for c in left if (ord(c) < 32 and c not in "\t\n") or c in "\u202a\u202e\u2066\u2069\u200f"]


def test_a_long_text_keeps_both_ends_and_says_what_is_missing():
    text, left_out = shown("A" * 5_000 + "Z" * 5_000)
    assert left_out == 10_000 - SHOWN_CHARACTERS
    assert text.startswith("A") and text.endswith("Z") and "6,800 characters not shown" in text
    assert shown("x" * SHOWN_CHARACTERS) == ("x" * SHOWN_CHARACTERS, 0)


# --- tags ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attempts", "tags"),
    [
        ([("a", "wrong"), ("b", "correct")], ("fixed",)),
        ([("a", "correct"), ("b", "wrong")], ("broken",)),
        ([("a", "correct"), ("a", "correct")], ("kept-right", "copied")),
        ([("a", "wrong"), ("b", "no_answer")], ("kept-wrong", "cut")),
        ([("a", "truncated"), ("b", "correct")], ("fixed", "cut")),
        ([("a", "error"), ("b", "correct")], ("error",)),
        ([("a", "correct")], ("one-right",)),
        ([("a", "wrong")], ("one-wrong",)),
        ([("a", "wrong"), ("b", "correct"), ("c", "wrong")], ("kept-wrong",)),
    ],
)
def test_tags(attempts, tags):
    assert tags_of(made.episode(1, *attempts)) == tags
    assert set(tags) <= TAGS.keys()


# --- the page model ------------------------------------------------------------------------------------------------


def test_a_finished_run(tmp_path):
    run = only(made.finished(tmp_path / "run"))
    assert run.state == "Finished: step 20 of 20"
    base, final = run.results
    # 40 problems: first attempts right where i % 4 == 0, so 10 of 40
    assert base.accuracies[0].startswith("25.0 [") and base.delta.startswith("+0.0") and base.copied.startswith("100.0")
    # trained: 10 right at first, 2 of them (4, 24) broken; 30 wrong, 2 of them (5, 25) cut: 28 fixed; so 36 right
    assert final.name == "trained (step 19)"
    assert final.accuracies[1].startswith("90.0 [") and final.i_to_c.startswith("70.0 [") and final.n == "40"
    assert [f.counts for f in run.flows] == [((10, 0, 0, 30),), ((8, 2, 28, 2),)]
    assert [sum(counts) for _, counts in run.edits.series] == [40, 40]
    assert [level for level, _ in run.levels.rows] == ["level 0", "level 1"]
    assert [a.name for a in run.alarms] == ["copying"] and run.alarms[0].steps == "at step 10"
    assert run.curves[0].marks == ((10.5, "Stage II begins"), (19, "kept"))
    assert run.curves[0].lines[1].values[-1] == pytest.approx(0.45)
    assert dict(run.facts)["command, 2026-01-01T00:00:00Z"] == "selfcorrect train"
    assert ("method.alpha", "10.0") in run.settings


def test_methods_are_compared_where_the_runs_fit_together(tmp_path):
    runs = [made.finished(tmp_path / f"run{s}", f"seed={s}") for s in (0, 1)]
    page = page_of(*runs)
    assert [(m.name, m.seeds) for m in page.methods] == [("base", 1), ("SCoRe", 2)] and page.methods_note == ""
    assert page.methods[1].t2_over_base.text(sign=True).startswith("+65.0")  # 90 against 25
    other = made.begin(tmp_path / "going")
    page = page_of(runs[0], other.path)
    assert page.methods == () and "still missing in: going" in page.methods_note
    page = page_of(runs[0], made.finished(tmp_path / "again"))
    assert page.methods == () and "not independent" in page.methods_note


def test_a_run_that_has_only_begun_says_n_a_and_never_0(tmp_path):
    run = only(made.begin(tmp_path / "run").path)
    assert run.state == "Started; nothing measured yet"
    assert all(row.n == row.delta == "n/a" for row in run.results)
    assert (run.curves, run.flows, run.edits, run.levels, run.alarms) == ((), (), None, None, ())
    made.begin(tmp_path / "bare").metrics_file.unlink()
    text = build_report([tmp_path / "bare"])
    table = text[text.index("<tbody>") : text.index("</tbody>")]
    assert "n/a" in table and not re.search(r">\s*0", table)


def test_a_run_without_a_base_evaluation(tmp_path):
    run = made.begin(tmp_path / "run")
    made.train(run)
    made.evaluate(run, "final", made.held_out(trained=True), at_step=19)
    made.finish(run)
    page = only(run.path)
    assert [r.n != "n/a" for r in page.results] == [False, True]
    assert page.results[0].accuracies == ("n/a", "n/a")
    assert len(page.flows) == 1 and [label for label, _ in page.edits.series] == ["trained"]
    assert all("base" not in e["sides"] for e in sample_episodes([read_run(run.path)]).entries)


def test_a_run_that_is_going_on(tmp_path):
    run = made.begin(tmp_path / "run")
    made.evaluate(run, "base", made.held_out(trained=False))
    made.train(run, steps=12)
    page = only(run.path)
    assert page.state.startswith("Not finished: step 12 of 20; last record ")
    assert page.curves[0].marks[-1] == (11, "best so far")
    assert [r.n != "n/a" for r in page.results] == [True, False]
    sides = [set(e["sides"]) for e in sample_episodes([read_run(run.path)]).entries]
    assert sides.count({"base"}) == 40 and sides.count({"training"}) == 24


def test_one_attempt_has_no_flow_and_no_change(tmp_path):
    run = made.begin(tmp_path / "run", "method=single_turn")
    made.evaluate(run, "base", [made.episode(i, ("a", "correct" if i % 2 else "wrong")) for i in range(10)])
    made.train(run, attempts=1)
    page = only(run.path)
    assert page.attempts == 1 and page.results[0].delta == "n/a"
    assert (page.flows, page.edits, page.levels) == ((), None, None)
    change = next(c for c in page.curves if c.title.startswith("Answers changed"))
    assert draw_curves(change).rows[0][1:] == ("n/a", "n/a", "n/a")
    assert {"one-right", "one-wrong"} <= {tag for e in read_run(run.path).held_out["base"].lines for tag in e.tags}
    assert len(build_report([run.path])) > 10_000


def test_lines_cut_by_a_crash_are_passed_over(tmp_path):
    path = made.finished(tmp_path / "run")
    for name in ("metrics.jsonl", "episodes.jsonl"):
        file = path / name
        whole = file.read_bytes()
        file.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1] + '{"kind":"step","é'.encode()[:-1])
    run = read_run(path)
    assert len(run.steps) == 20 and run.end is None and len(run.training.lines) == 39
    assert len(build_report([path])) > 10_000


def test_damage_in_the_middle_is_told(tmp_path):
    path = made.finished(tmp_path / "run")
    file = path / "evaluations" / "final.jsonl"
    file.write_text("{}\n" + file.read_text())
    with pytest.raises(DataError, match=r"final\.jsonl has a line that is not an episode"):
        build_report([path])


def test_verifier_errors_are_left_out_of_the_flow_and_counted(tmp_path):
    run = made.begin(tmp_path / "run")
    rows = [made.episode(0, ("a", "error"), ("b", "correct")), made.episode(1, ("a", "wrong"), ("b", "correct"))]
    made.evaluate(run, "base", rows)
    flow = only(run.path).flows[0]
    assert (flow.counts, flow.n_errors) == (((0, 0, 1, 0),), 1)
    assert "verifier failed: 1" in draw_flow(flow).summary


def test_three_attempts(tmp_path):
    run = made.begin(tmp_path / "run")
    rows = [made.episode(i, ("a", "wrong"), ("b", "correct"), ("c", "wrong")) for i in range(4)]
    made.evaluate(run, "base", rows)
    flow = only(run.path).flows[0]
    assert flow.counts == ((0, 0, 4, 0), (0, 4, 0, 0))
    assert draw_flow(flow).svg.count("attempt ") == 3
    assert len(draw_flow(flow).rows) == 8


# --- charts --------------------------------------------------------------------------------------------------------


def test_a_curve_has_gaps_where_nothing_was_measured():
    chart = Curves("t", "share", (1, 2, 3, 4), (Line("a", 0, (0.5, None, math.nan, 1.0)),), 0, 1)
    drawing = draw_curves(chart)
    assert drawing.rows == (("1", "50.0 %"), ("2", "n/a"), ("3", "n/a"), ("4", "100.0 %"))
    assert len(re.findall(r'd="M[^"L]*M[^"L]*"', drawing.svg)) == 1  # two pieces, no line between
    assert "nan" not in drawing.svg


def test_long_curves_are_thinned_and_keep_their_last_point():
    n = 5_000
    drawing = draw_curves(Curves("t", "nats", tuple(range(n)), (Line("a", 0, tuple(map(float, range(n)))),), 0, n))
    assert len(drawing.svg) < 40_000 and len(drawing.rows) == 20 and drawing.rows[-1][0] == str(n - 1)


@pytest.mark.parametrize(
    ("values", "share", "limits"),
    [
        ([0.2, 0.7], True, (0, 1)),
        ([0.03], True, (0, 0.05)),
        ([-3, 14], False, (-5, 20)),
        ([-0.1, 14], False, (0, 20)),
        ([None], False, (0, 1)),
    ],
)
def test_axes(values, share, limits):
    assert axis_range(values, share=share) == pytest.approx(limits)


def test_what_marks_say_is_not_written_over():
    marks = ((50.0, "Stage II begins"), (60.0, "kept"), (99.0, "at the edge"))
    drawing = draw_curves(Curves("t", "nats", (1, 100), (Line("a", 0, (1.0, 2.0)),), 0, 2, marks))
    places = re.findall(r'mark-label" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]*)', drawing.svg)
    rows = {label: y for _, y, _, label in places}
    assert rows["Stage II begins"] != rows["kept"] and len(places) == 3
    assert [anchor for *_, anchor, _ in places] == ["start", "start", "end"]


def test_a_flow_without_episodes_draws_nothing():
    assert "n/a" in str(draw_flow(Flow("t", ((0, 0, 0, 0),), 3)).rows)


# --- episodes ------------------------------------------------------------------------------------------------------


def test_rare_kinds_are_on_the_page(tmp_path):
    run = made.begin(tmp_path / "run")
    rows = [made.episode(i, ("a", "wrong"), ("a", "wrong")) for i in range(500)]
    rows += [made.episode(500 + i, ("a", "correct"), ("b", "wrong")) for i in range(3)]
    made.evaluate(run, "base", rows)
    episodes = read_run(run.path).held_out["base"]
    chosen = balanced(episodes.lines, 20)
    assert len(chosen) == 20 and sum("broken" in line.tags for line in chosen) == 3
    assert chosen == balanced(episodes.lines, 20)
    assert len(balanced(episodes.lines, 10_000)) == 503


def test_base_and_trained_stand_side_by_side(tmp_path):
    sample = sample_episodes([read_run(made.finished(tmp_path / "run"))])
    paired = [e for e in sample.entries if "trained" in e["sides"]]
    assert len(paired) == 40 and all(list(e["sides"]) == ["trained", "base"] for e in paired)
    for e in paired:
        number = int(e["id"].removeprefix("test-"))
        assert e["question"] == f"What is {number} + 1?"
        base = made.held_out(trained=False)[number]
        assert [a["text"] for a in e["sides"]["base"]["attempts"]] == [a.text for a in base.attempts]
    assert sample.runs[0]["totals"]["trained"] == {
        "all": 40, "fixed": 28, "broken": 2, "kept-right": 8, "kept-wrong": 2, "copied": 4, "cut": 2,
    }  # fmt: skip


def test_only_a_whole_copy_is_said_to_repeat_the_attempt_before(tmp_path):
    """The page leaves out the middle of a long text, and there alone the two may differ."""
    long = "A" * 5_000, "wrong"
    rows = [made.episode(0, long, ("A" * 2_500 + "B" + "A" * 2_499, "correct")), made.episode(1, long, long)]
    made.evaluate(run := made.begin(tmp_path / "run"), "base", rows)
    entries = {e["id"]: e["sides"]["base"]["attempts"] for e in sample_episodes([read_run(run.path)]).entries}
    (first, second), copies = entries["test-00000"], entries["test-00001"]
    assert first["text"] == second["text"] and "repeats" not in second
    assert [a.get("repeats") for a in copies] == [None, True]


def test_the_room_is_kept(tmp_path):
    run = made.begin(tmp_path / "run")
    rows = [made.episode(i, ("数" * 9_000, "wrong"), ("學" * 9_000, "correct")) for i in range(400)]
    made.evaluate(run, "base", rows)
    sample = sample_episodes([read_run(run.path)], most=300, most_bytes=500_000)
    size = len(json.dumps(sample.to_json(), ensure_ascii=False).encode())
    assert 400_000 < size < 520_000
    assert len(build_report([run.path]).encode()) < 5_000_000


def test_two_runs_share_the_room(tmp_path):
    runs = [read_run(made.finished(tmp_path / f"run{s}", f"seed={s}")) for s in (0, 1)]
    entries = sample_episodes(runs, most=40).entries
    assert [sum(e["run"] == r for e in entries) for r in (0, 1)] == [20, 20]


# --- the page ------------------------------------------------------------------------------------------------------


def test_hostile_texts_bring_no_element_and_no_attribute(tmp_path):
    text = build_report([made.hostile(tmp_path / "run")])
    text.encode()  # no lone surrogate
    page = Plain(text)
    assert page.tags.count("script") == 2 and "img" not in page.tags
    assert not [a for a in page.attributes if a[1].startswith("on") or a[1] in ("src", "style", "background")]
    assert {a[2] for a in page.attributes if a[1] == "href"} <= {f"#{s}" for s in re.findall(r'id="([\w-]+)"', text)}
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\u2028\u2029]", text)
    assert len(text.encode()) < 5_000_000


def test_the_data_can_be_read_back(tmp_path):
    text = build_report([made.hostile(tmp_path / "run")])
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    found = {e["question"].split(":")[0]: e for e in data["entries"] if "trained" in e["sides"]}
    assert found.keys() == made.HOSTILE.keys()
    assert found["end of data"]["sides"]["base"]["attempts"][0]["text"] == made.HOSTILE["end of data"]
    assert found["long line"]["sides"]["base"]["attempts"][0]["leftOut"] == 1_000_010 - SHOWN_CHARACTERS
    assert found["nul"]["sides"]["base"]["attempts"][0]["text"] == "before\u2400after"


def test_the_policy_names_the_style_and_the_script(tmp_path):
    text = build_report([made.begin(tmp_path / "run").path])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert "default-src 'none'" in policy and policy.count("sha256-") == 2 and "unsafe" not in policy


# --- the file ------------------------------------------------------------------------------------------------------


def test_a_report_replaces_a_report_and_nothing_else(tmp_path):
    run = made.begin(tmp_path / "run").path
    out = tmp_path / "page.html"
    assert write_report([run], out) == out.stat().st_size
    write_report([run], out)
    thesis = tmp_path / "thesis.html"
    thesis.write_text("<p>results")
    with pytest.raises(RunError, match="not a report of this command"):
        write_report([run], thesis)
    assert thesis.read_text() == "<p>results"
    with pytest.raises(RunError, match="there is no directory"):
        write_report([run], tmp_path / "none" / "page.html")
    with pytest.raises(RunError, match="is not a run directory"):
        write_report([tmp_path], tmp_path / "other.html")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.html", "run", "thesis.html"]


@pytest.mark.slow
@pytest.mark.browser
def test_a_hundred_thousand_episodes(tmp_path):
    """Built within 60 s of processor time and 1 GiB, smaller than 5 MB, sampled, and it says so. REPORT_OUT keeps it."""
    if find_chromium() is None:
        pytest.skip("no Chromium")
    file = Path(__file__).parent.parent / "benchmarks/report.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_the_report", file)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    keep = os.environ.get("REPORT_OUT")
    found = benchmark.measure(100_000, Path(keep) if keep else None)
    bounds = benchmark.BOUNDS
    assert found["build_cpu_s"] < bounds["build_s"], found  # wall times mean nothing on a busy machine
    assert found["peak_gib"] < bounds["peak_gib"] and found["size_mb"] < bounds["size_mb"], found
    assert "of 100,000 episodes" in found["says"] and found["complaints"] == []
