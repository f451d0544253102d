"""The counts of docs/results/countdown.md, from its records: answers by verdict, check and change; training by 20 steps."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "countdown"
WINDOW = 20


def lines(file: Path) -> list[dict]:
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def main() -> None:
    for file in sorted((RESULTS / "records").glob("*.jsonl.gz")):
        counts: Counter[tuple[str, str, str]] = Counter()
        for row in lines(RESULTS / "evaluations" / file.name):
            first, second = row["attempts"]
            same = first["extracted"] == second["extracted"]
            counts[first["verdict"], first["text"].split()[-1], "kept" if same else f"to {second['verdict']}"] += 1
        print(file.name.removesuffix(".jsonl.gz"))
        for (verdict, check, change), n in counts.most_common():
            print(f"  {n:4d}  attempt 1 {verdict}, its check says {check}, {change}")
        steps = [record for record in lines(file) if record["kind"] == "step"]
        for start in range(0, len(steps), WINDOW):
            some = steps[start : start + WINDOW]
            names = ("fixed", "broken", "answer_change")
            values = [[*r["reward"], *(r[name] for name in names), r["kl"][0]] for r in some]
            t1, t2, fixed, broken, changed, kl = (sum(column) / len(some) for column in zip(*values, strict=True))
            print(
                f"  steps {some[0]['step']} to {some[-1]['step']}: t1 {t1:.3f}, t2 {t2:.3f}, fixed {fixed:.3f}, broken "
                f"{broken:.3f}, changed {changed:.3f}, KL of attempt 1 {kl:.2f} nats"
            )


if __name__ == "__main__":
    main()
