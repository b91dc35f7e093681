"""The labeller with a teacher: latency hidden, quota used, memory flat. The teacher is the tests' fake one, over real HTTP.

`python -m bench.teacher` prints a table and writes bench/results/<time>-teacher.json. Each line is a labeller in a process of its
own, from nothing; `floor s` is what no client can beat: images x latency / calls in flight, or images / quota.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
KEY = "a-key-of-the-fake-teacher"


@dataclass(frozen=True)
class Case:
    """One labeller and the server that it meets."""

    name: str
    images: int
    latency_s: float = 0.0
    in_flight: int = 64
    requests_per_minute: int | None = None
    refused: float = 0.0
    """Share of calls that meet a 429 without a quota behind it."""

    @property
    def floor_s(self) -> float:
        by_quota = 60 * self.images / self.requests_per_minute if self.requests_per_minute else 0.0
        return max(self.images * self.latency_s / self.in_flight, by_quota)


CASES = (
    Case("1,000 at 2 s, 64 in flight", 1000, latency_s=2.0),
    Case("quota of 3,000 a minute", 2000, latency_s=0.2, requests_per_minute=3000),
    Case("every fifth call a 429", 1000, latency_s=0.1, refused=0.2),
    Case("1,000 at no latency", 1000),
    Case("20,000 at no latency", 20000),
)


@dataclass(frozen=True)
class Figure:
    """What a case took."""

    name: str
    seconds: float
    floor_s: float
    calls: int
    forced: int
    """Tries that the faults made necessary."""
    over_quota: int
    """429 of the quota itself."""
    billed: int
    peak_mb: float
    """Resident memory of the labeller's process."""


@contextmanager
def served(case: Case) -> Iterator[str]:
    """The fake teacher of a case; its address."""
    settings: dict[str, Any] = {"rates": {"rate_limit": case.refused}, "retry_after_s": 0.05} if case.refused else {}
    command = [sys.executable, str(ROOT / "tests" / "teacher" / "fake_teacher.py"), "--latency", str(case.latency_s),
               "--burst", "2", "--by", "hash", "--settings", json.dumps(settings)]  # fmt: skip
    if case.requests_per_minute:
        command += ["--requests-per-minute", str(case.requests_per_minute)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.terminate()


def pictures(folder: Path, count: int) -> None:
    """Small JPEGs that no two are copies of each other."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        noise_HWC = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(noise_HWC).resize((64, 48), Image.Resampling.BICUBIC).save(folder / f"{index:06d}.jpg", quality=85)


def measure(case: Case, folder: Path) -> Figure:
    """Labels a case's images from nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    pictures(folder / "images", case.images)
    with served(case) as url:
        recipe = {
            "name": "bench", "task": {"classes": {"fire": "x", "land": "x", "water": "x"}, "question": "Which?"},
            "device": {"canvas_px": 64}, "student": {"model": "tiny"}, "trainer": {"phases": [{}]},
            "labeller": {"source": {"kind": "folder", "path": "images"},
                         "teacher": {"model": "fake", "base_url": url, "image_px": 64, "in_flight": case.in_flight}},
        }  # fmt: skip
        (folder / "run.yaml").write_text(json.dumps({"run": recipe}))
        places = {"POCKETVLM_STORE": str(folder / "store"), "POCKETVLM_SCRATCH": str(folder / "scratch")}
        command = [sys.executable, "-c", MEASURED, str(folder / "run.yaml")]
        clock = time.monotonic()
        done = subprocess.run(command, env={**os.environ, **places, "OPENAI_API_KEY": KEY}, capture_output=True, text=True)
        seconds = time.monotonic() - clock
        assert done.returncode == 0, done.stderr[-3000:]
        with urllib.request.urlopen(url.removesuffix("/v1") + "/_ledger?brief=1") as answer:
            bill: dict[str, Any] = json.load(answer)
    forced = sum(bill["forced"].values())
    statuses = {int(status): count for status, count in bill["statuses"].items()}
    return Figure(case.name, round(seconds, 1), round(case.floor_s, 1), sum(statuses.values()), forced,
                  statuses.get(429, 0) - forced, bill["billed"], round(float(done.stdout.split()[-1]) / 1024, 1))  # fmt: skip


MEASURED = """
import re, sys
from pocketvlm.cli import main
code = main(["stage", "labeller", sys.argv[1]])
print(re.search(r"^VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read(), re.MULTILINE)[1])
sys.exit(code)
"""


def table(figures: list[Figure]) -> str:
    """What is printed."""
    lines = [f"{'case':<28} wall s  floor s  calls  forced  over quota  billed  peak MB"]
    for one in figures:
        lines.append(f"{one.name:<28} {one.seconds:>6.1f}  {one.floor_s:>7.1f}  {one.calls:>5}  {one.forced:>6}  "
                     f"{one.over_quota:>10}  {one.billed:>6}  {one.peak_mb:>7.0f}")  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    """Prints the table; the file's path is the last line."""
    parser = argparse.ArgumentParser(prog="python -m bench.teacher", description="The labeller with a teacher.")
    parser.add_argument("--case", type=int, action="append", help=f"only these, from 0 to {len(CASES) - 1}; default: all")
    parser.add_argument("--images", type=int, help="of each case; default: as its name says")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    started = datetime.now(UTC)
    chosen = [CASES[place] for place in options.case] if options.case else list(CASES)
    chosen = [replace(case, images=options.images or case.images) for case in chosen]
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        figures = [measure(case, Path(name) / "case") for case in chosen]
    result = {"started": started.isoformat(timespec="seconds"), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2),
              "figures": [asdict(figure) for figure in figures]}  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{started:%Y%m%dT%H%M%SZ}-teacher.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(table(figures))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
