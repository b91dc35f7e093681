"""How the labeller grows with pods: 1, 2 and 4 shares of the same photographs, a process with one thread for each.

`python -m bench.shards` prints a table and writes bench/results/<time>-shards.json. On fewer cores than processes the
wall says less than the CPU: what sharing costs is the CPU time beyond that of one process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pocketvlm.artifacts.folder import FolderStore

RESULTS = Path(__file__).parent / "results"
COUNTS = (1, 2, 4)
RECIPE = """\
run:
  name: shards
  task: {classes: {fire: "", water: ""}, question: "Which?"}
  student: {model: tiny}
  labeller: {source: {kind: folder, path: images}}
  trainer: {phases: [{}]}
"""


@dataclass(frozen=True)
class Figure:
    """One number of shares."""

    shards: int
    seconds: float
    """From the start of all processes to the end of the last."""
    cpu_seconds: float
    """Of all processes, starting Python and importing included."""
    share_seconds: list[float]
    """Preparing images and saving them, by share."""
    assembling_seconds: float
    """Copies, splits and Parquet, in the process that came last."""
    manifest: str


def photographs(folder: Path, count: int) -> None:
    """JPEGs of 640x480 that no two are copies of each other."""
    rng = np.random.default_rng(0)
    for index in range(count):
        path = folder / "images" / ("fire", "water")[index % 2] / f"{index:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise_HWC = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(noise_HWC).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
    (folder / "run.yaml").write_text(RECIPE)


def measure(folder: Path, shards: int) -> Figure:
    """Labels from nothing with so many processes at once."""
    store = folder / f"store-{shards}"
    shutil.rmtree(store, ignore_errors=True)
    variables = {"POCKETVLM_STORE": str(store), "POCKETVLM_SCRATCH": str(folder / "scratch"), "POCKETVLM_THREADS": "1",
                 "POCKETVLM_SHARDS": str(shards)}  # fmt: skip
    command = [sys.executable, "-m", "pocketvlm", "stage", "labeller", str(folder / "run.yaml")]
    before, clock = _cpu_seconds(), time.monotonic()
    pods = [
        subprocess.Popen(command, env={**os.environ, **variables, "JOB_COMPLETION_INDEX": str(index)}, stderr=subprocess.PIPE)
        for index in range(shards)
    ]
    logs = [pod.communicate()[1].decode() for pod in pods]
    seconds, cpu_seconds = time.monotonic() - clock, _cpu_seconds() - before
    assert all(pod.returncode == 0 for pod in pods), logs
    there = FolderStore(store)
    keys = [stored.key for stored in there.list("datasets/")]
    manifest, measured = (
        there.read(next(key for key in keys if key.endswith(name))).decode() for name in ("manifest.json", "measurements.json")
    )
    found: dict[str, Any] = json.loads(measured)
    return Figure(shards, round(seconds, 2), round(cpu_seconds, 2), found["share_seconds"],
                  round(found["seconds"] - max(found["share_seconds"]), 2), manifest)  # fmt: skip


def _cpu_seconds() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def table(figures: list[Figure], images: int) -> str:
    """What is printed."""
    lines = ["shards   wall s  images/s  faster   CPU s  slowest share s  assembling s"]
    for one in figures:
        lines.append(
            f"{one.shards:>6}  {one.seconds:>7.1f}  {images / one.seconds:>8.0f}  {figures[0].seconds / one.seconds:>5.2f}x  "
            f"{one.cpu_seconds:>6.1f}  {max(one.share_seconds):>15.1f}  {one.assembling_seconds:>12.1f}"
        )
    return "\n".join(lines)


def main() -> int:
    """Prints the table; the file's path is the last line."""
    parser = argparse.ArgumentParser(prog="python -m bench.shards", description="The labeller on 1, 2 and 4 shards.")
    parser.add_argument("--images", type=int, default=4000, help="photographs; default: 4000")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    started = datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        photographs(folder, options.images)
        figures = [measure(folder, shards) for shards in COUNTS]
    assert len({figure.manifest for figure in figures}) == 1, "the dataset must not depend on the number of shards"
    rows = [{name: value for name, value in asdict(figure).items() if name != "manifest"} for figure in figures]
    result = {"started": started.isoformat(timespec="seconds"), "images": options.images, "cores": os.cpu_count(),
              "load": round(os.getloadavg()[0], 2), "figures": rows}  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{started:%Y%m%dT%H%M%SZ}-shards.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(table(figures, options.images))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
