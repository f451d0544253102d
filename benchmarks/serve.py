"""The server's throughput on the embedded model: one request at a time, compared with 64 at once.

    python benchmarks/serve.py [--requests 64] [--rounds 5] [--at-least 4] [--out FILE.json]

Starts `selfcorrect serve tiny` in its own process and sends different questions, each once alone and once together with all
others. The two alternate, so that a change of load affects both. A lost answer, an error response, and an answer that differs
from the one the same question got alone count as errors. Exits with 1 if there is an error, or if the ratio of the median
rates is below --at-least. Run it on a quiet machine: the load average is printed and stored.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2


@dataclass
class Measured:
    """One way of asking, over all rounds."""

    rates: list[float] = field(default_factory=list)
    """Answers per second, one for each round."""
    latencies_s: list[float] = field(default_factory=list)

    def row(self) -> dict[str, object]:
        deciles = statistics.quantiles(self.latencies_s, n=20)
        return {
            "requests_per_s": round(statistics.median(self.rates), 2),
            "requests_per_s_by_round": [round(r, 2) for r in self.rates],
            "latency_p50_s": round(statistics.median(self.latencies_s), 4),
            "latency_p95_s": round(deciles[18], 4),
            "latency_max_s": round(max(self.latencies_s), 4),
        }


@contextmanager
def server() -> Iterator[str]:
    command = [sys.executable, "-m", "selfcorrect", "serve", "tiny", "engine.device=cpu", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://[\d.:]+", line)
            if found is None:
                raise SystemExit(f"the server did not start: {line!r}")
            yield found[0]
        finally:
            process.terminate()
            process.wait(60)


def question(i: int) -> str:
    """Different for every i below 10,000, of the form that the embedded model knows."""
    return f"What is the last digit of {'+'.join(f'{i:04d}')}?"


async def ask(client: httpx2.AsyncClient, i: int, into: Measured) -> str:
    """The answer with its first attempt, or what went wrong."""
    begun = time.perf_counter()
    try:
        got = await client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": question(i)}]})
        data = got.json()
        texts = [a["text"] for a in data["selfcorrect"]["attempts"]]
    except (httpx2.HTTPError, ValueError, KeyError) as error:
        return f"error: {type(error).__name__}: {error}"
    into.latencies_s.append(time.perf_counter() - begun)
    return "\n--\n".join(texts)


async def timed(into: Measured, n: int, play: Callable[[], Awaitable[list[str]]]) -> list[str]:
    begun = time.perf_counter()
    answers = await play()
    into.rates.append(n / (time.perf_counter() - begun))
    return answers


async def measure(url: str, n: int, rounds: int) -> dict[str, object]:
    alone, together = Measured(), Measured()
    errors: list[str] = []
    limits = httpx2.Limits(max_connections=n)
    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=120, limits=limits) as client:

        async def one_by_one(numbers: range) -> list[str]:
            return [await ask(client, i, alone) for i in numbers]

        async def at_once(numbers: range) -> list[str]:
            return list(await asyncio.gather(*(ask(client, i, together) for i in numbers)))

        await asyncio.gather(
            *(ask(client, 9_999, Measured()) for _ in range(n))
        )  # opens the connections, warms the model
        for k in range(rounds):
            numbers = range(k * n, (k + 1) * n)
            expected = await timed(alone, n, lambda numbers=numbers: one_by_one(numbers))
            found = await timed(together, n, lambda numbers=numbers: at_once(numbers))
            pairs = zip(numbers, expected, found, strict=True)
            errors += [f"{question(i)}: {b}" for i, a, b in pairs if a != b or a.startswith("error")]
        in_flight = (await client.get("/health")).json()["in_flight"]
    one, many = alone.row(), together.row()
    ratio = statistics.median(together.rates) / statistics.median(alone.rates)
    return {
        "requests": n,
        "rounds": rounds,
        "one_at_a_time": one,
        "at_once": many,
        "ratio": round(ratio, 2),
        "errors": errors,
        "in_flight_afterwards": in_flight,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=64, help="at once, and one by one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--at-least", type=float, default=4.0, help="ratio of the rates below which this ends with 1")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    load = os.getloadavg()[0]
    with server() as url:
        result = asyncio.run(measure(url, a.requests, a.rounds))
    result = {"load_average_before": load, "cores": os.cpu_count(), **result}
    if a.out:
        a.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    print(f"\n{'':16}{'requests/s':>12}{'p50 s':>10}{'p95 s':>10}{'max s':>10}")
    for name in ("one_at_a_time", "at_once"):
        row = result[name]
        print(
            f"{name:16}{row['requests_per_s']:>12}{row['latency_p50_s']:>10}{row['latency_p95_s']:>10}{row['latency_max_s']:>10}"
        )
    print(
        f"ratio {result['ratio']} (required: {a.at_least:g}), errors {len(result['errors'])}, load average {load:.2f}"
    )
    sys.exit(result["ratio"] < a.at_least or bool(result["errors"]) or result["in_flight_afterwards"] != 0)


if __name__ == "__main__":
    main()
