"""The numbers of docs/results/countdown.md, from its records: the table, intervals over seeds, answers by verdict, check and
change, and training by 20 steps."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np

from selfcorrect.measuring.intervals import across_seeds, bootstrap_mean, paired_across_seeds

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "countdown"
WINDOW = 20


def lines(file: Path) -> list[dict]:
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def percent(estimate: dict) -> str:
    return f"{100 * estimate['value']:.1f} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"


def held_out(record: dict) -> str:
    """t1, t2, delta, i→c, c→i and changed answers of a measurement, with its intervals over problems, and its step."""
    attempts, revision = record["summary"]["attempts"], record["summary"]["revisions"][0]
    values = [a["accuracy"] for a in attempts]
    values += [revision[name] for name in ("delta", "i_to_c", "c_to_i", "answer_changed")]
    return " | ".join([*map(percent, values), str(record["step"])])


def advantage(seed: int) -> str:
    """Right second attempts of SCoRe minus those of multi-turn RL, paired by problem."""
    right = []
    for row in ("score", "multi_turn"):
        episodes = lines(RESULTS / "evaluations" / f"{row}-s{seed}.jsonl.gz")
        right.append({e["problem"]: e["attempts"][1]["verdict"] == "correct" for e in episodes})
    gained = [float(right[0][problem]) - right[1][problem] for problem in sorted(right[0])]
    return percent(asdict(bootstrap_mean(np.array(gained))))


def over_seeds() -> str:
    """t-intervals over the seeds of t1, t2 and delta of both methods, and of the paired differences, in points."""
    values: dict[tuple[str, str], list[float]] = {}
    for file in sorted((RESULTS / "records").glob("*.jsonl.gz")):
        row = file.name.rpartition("-s")[0]
        summary = [r for r in lines(file) if r["kind"] == "eval"][-1]["summary"]
        numbers = [a["accuracy"]["value"] for a in summary["attempts"]] + [summary["revisions"][0]["delta"]["value"]]
        for name, value in zip(("t1", "t2", "delta"), numbers, strict=True):
            values.setdefault((row, name), []).append(value)
    out = [f"{row}, {name}: {percent(asdict(across_seeds(v)))}" for (row, name), v in values.items() if len(v) > 1]
    for name in ("t1", "t2", "delta"):
        a, b = values["score", name], values["multi_turn", name]
        n = min(len(a), len(b))
        out.append(f"score minus multi_turn, {name}: {percent(asdict(paired_across_seeds(b[:n], a[:n])))}, {n} seeds")
    return "\n".join(out)


def false_alarms(episodes: list[dict]) -> str:
    """Right first answers whose check says "no", and how many of them write a wrong sum."""
    right = [e["attempts"][0]["text"] for e in episodes if e["attempts"][0]["verdict"] == "correct"]
    denied = [text for text in right if text.endswith("no")]
    sums = [re.match(r"(\d+)\+(\d+)=(\d+)", text) for text in denied]
    wrong = sum(int(m[1]) + int(m[2]) != int(m[3]) for m in sums if m is not None)
    return f"  {len(denied)} of {len(right)} right first answers say no; {wrong} of them write a wrong sum"


def training_table() -> str:
    """Training by 20 steps as Markdown: t2, fixed and broken of every run, in percent of its episodes."""
    files = sorted((RESULTS / "records").glob("*.jsonl.gz"), key=lambda file: ("score" not in file.name, file.name))
    runs = {f.name.removesuffix(".jsonl.gz"): [r for r in lines(f) if r["kind"] == "step"] for f in files}
    out = ["| steps | " + " | ".join(runs) + " |", "|---|" + "---|" * len(runs)]
    for start in range(0, max(map(len, runs.values())), WINDOW):
        cells = []
        for steps in runs.values():
            some = [(r["reward"][1], r["fixed"], r["broken"]) for r in steps[start : start + WINDOW]]
            cells.append(", ".join(f"{100 * sum(column) / len(some):.0f}" for column in zip(*some, strict=True)))
        out.append(f"| {start + 1} to {start + WINDOW} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def main() -> None:
    print(training_table())
    print(over_seeds())
    bases = [lines(RESULTS / "evaluations" / f"{name}.jsonl.gz") for name in ("base", "base-s2")]
    first, again = ({e["problem"]: [a["text"] for a in e["attempts"]] for e in base} for base in bases)
    differ = [sum(first[problem][k] != again[problem][k] for problem in first) for k in range(2)]
    print(f"answers of the base that differ from those of seed 2's base, by attempt: {differ}")
    for file in sorted((RESULTS / "evaluations").glob("score-s*.jsonl.gz")):
        seed = int(file.name.removeprefix("score-s").removesuffix(".jsonl.gz"))
        print(f"seed {seed}: t2 of SCoRe minus t2 of multi-turn RL {advantage(seed)}")
    for file in sorted((RESULTS / "records").glob("*.jsonl.gz")):
        counts: Counter[tuple[str, str, str]] = Counter()
        episodes = lines(RESULTS / "evaluations" / file.name)
        for row in episodes:
            first, second = row["attempts"]
            same = first["extracted"] == second["extracted"]
            counts[first["verdict"], first["text"].split()[-1], "kept" if same else f"to {second['verdict']}"] += 1
        print(file.name.removesuffix(".jsonl.gz"))
        records = lines(file)
        for record in records:
            if record["kind"] == "eval":
                print(f"  {record['name']}: {held_out(record)}")
        for (verdict, check, change), n in counts.most_common():
            print(f"  {n:4d}  attempt 1 {verdict}, its check says {check}, {change}")
        print(false_alarms(episodes))
        steps = [record for record in records if record["kind"] == "step"]
        for some in [*(steps[start : start + WINDOW] for start in range(0, len(steps), WINDOW)), steps[-5:]]:
            names = ("fixed", "broken", "answer_change")
            values = [[*r["reward"], *(r[name] for name in names), r["kl"][0]] for r in some]
            t1, t2, fixed, broken, changed, kl = (sum(column) / len(some) for column in zip(*values, strict=True))
            print(
                f"  steps {some[0]['step']} to {some[-1]['step']}: t1 {t1:.3f}, t2 {t2:.3f}, fixed {fixed:.3f}, broken "
                f"{broken:.3f}, changed {changed:.3f}, KL of attempt 1 {kl:.2f} nats"
            )


if __name__ == "__main__":
    main()
