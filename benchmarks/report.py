"""The report of a run with 100,000 episodes per evaluation: seconds to build, peak memory, size, seconds to open.

    python benchmarks/report.py [--episodes 100000] [--keep DIR] [--out FILE.json]

Makes such a run (base and final, two attempts of 420 characters and more), builds its page in a process of its own, and
opens it in headless Chromium until its episodes are listed and answer to a filter. Ends with 1 where a bound is broken:
60 s, 1 GiB, 5 MB, 3 s. Run it on a quiet machine: the load average is printed and stored. --keep leaves the page there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import made_runs
from browser import Browser, find_chromium

BOUNDS = {"build_s": 60.0, "peak_gib": 1.0, "size_mb": 5.0, "open_s": 3.0}
BUILD = """
import json, pathlib, resource, sys, time
begun = time.perf_counter()
from selfcorrect.report import write_report
size = write_report([pathlib.Path(sys.argv[1])], pathlib.Path(sys.argv[2]))
wall = time.perf_counter() - begun
used = resource.getrusage(resource.RUSAGE_SELF)
# not ru_maxrss: that holds what the process that forked this one had
peak = pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
print(json.dumps({"build_s": wall, "build_cpu_s": used.ru_utime + used.ru_stime, "peak_gib": int(peak) / 2**20, "size_mb": size / 1e6}))
"""
READY = "document.getElementById('status') && document.getElementById('status').textContent.includes(' found. ')"


def build(run: Path, page: Path) -> dict[str, float]:
    """In its own process, so that its peak memory is its own."""
    command = [sys.executable, "-c", BUILD, str(run), str(page)]
    built: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return built


def opened(page: Path, profile: Path) -> dict[str, object]:
    """Seconds until the episodes are there, and from choosing a filter until they are the chosen ones."""
    browser = Browser(profile)
    try:
        begun = time.perf_counter()
        browser.open(page)
        browser.until(READY)
        ready = time.perf_counter()
        browser.run("tag.value = 'fixed'; tag.dispatchEvent(new Event('change'))")
        kind = "[...document.querySelectorAll('#list h4')].slice(0, 1).map(e => e.textContent)[0]"
        browser.until(f"({kind} || '').includes('fixed')")
        chosen = time.perf_counter()
        status = browser.run("document.getElementById('status').textContent")
        return {"open_s": ready - begun, "filter_s": chosen - ready, "says": status, "complaints": browser.complaints}
    finally:
        browser.close()


def measure(episodes: int, keep: Path | None) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        page = (keep or place) / "big.html"
        made_runs.large(place / "run", episodes)
        return {"episodes": episodes, **build(place / "run", page), **opened(page, place / "profile")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=100_000, help="of each of the two evaluations")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    if find_chromium() is None:
        raise SystemExit("there is no Chromium to open the page in: install the package chromium")
    load = os.getloadavg()[0]
    result = {"load_average_before": load, "cores": os.cpu_count(), **measure(a.episodes, a.keep)}
    if a.out:
        a.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    print(f"\n{'':12}{'measured':>10}{'bound':>8}")
    for name, bound in BOUNDS.items():
        print(f"{name:12}{result[name]:>10.2f}{bound:>8g}")
    print(f"the page says: {result['says']}; load average {load:.2f}")
    sampled = f"of {a.episodes:,} episodes" in str(result["says"])
    sys.exit(any(result[name] > bound for name, bound in BOUNDS.items()) or bool(result["complaints"]) or not sampled)


if __name__ == "__main__":
    main()
