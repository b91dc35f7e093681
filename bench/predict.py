"""`pocketvlm predict` beside what a person would write: a loop that calls llama-mtmd-cli for each image.

`python -m bench.predict` prints a table and writes bench/results/<time>-predict.json. Both sides are asked about the same digits
on the canvas of the release, with its prompt, grammar and sampling, on the same number of threads; the loop has one half of
its images before `predict` and one half after it. A release of jobs/digits.yaml must be there: `make demo`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image

from pocketvlm.environment import read_environment
from pocketvlm.llamacpp.toolchain import Toolchain, find_toolchain
from pocketvlm.phone import pair_threads
from pocketvlm.predict.opened import OpenedRelease, open_release
from pocketvlm.student.pixels import letterbox

RESULTS = Path(__file__).parent / "results"
GOAL = 5.0
"""Times as many images a second."""
RETRIES = 10


@dataclass(frozen=True)
class Side:
    """One way to ask."""

    name: str
    images: int
    seconds: float
    cpu_seconds: float
    """Of its processes."""
    answers: dict[str, str]
    peak_mb: float | None = None
    """Resident memory of the process that asks, the servers apart."""
    lost: int = 0
    """Calls that ended well and did not print the whole answer; asked again outside of the time."""

    @property
    def rate(self) -> float:
        return self.images / self.seconds


def pictures(folder: Path, count: int, canvas_px: int) -> list[Path]:
    """Handwritten digits as PNG files on the canvas; beyond those that there are, turned by a few degrees."""
    from sklearn.datasets import load_digits

    digits_NHW = load_digits().images
    folder.mkdir()
    paths = []
    for number in range(count):
        digit = Image.fromarray((digits_NHW[number % len(digits_NHW)] * 15.9).astype("uint8"))
        turned = digit.resize((canvas_px, canvas_px)).rotate(7 * (number // len(digits_NHW)))
        paths.append(folder / f"{number:06d}.png")
        letterbox(turned.convert("RGB"), canvas_px).save(paths[-1])
    return paths


def loop(opened: OpenedRelease, toolchain: Toolchain, paths: list[Path], threads: int) -> Side:
    """A program for each image. The template passes the prompt on as it is."""
    text, mmproj = opened.pair(opened.types[0])
    command = [
        str(toolchain.program("llama-mtmd-cli")), "--model", str(text), "--mmproj", str(mmproj),
        "--jinja", "--chat-template", "{{ messages[0].content }}",
        "--prompt", (opened.folder / "prompt.txt").read_bytes().decode(),
        "--grammar-file", str(opened.folder / "grammar.gbnf"), "--temp", "0", "--samplers", "temperature",
        "--predict", str(opened.release.sampling["max_new_tokens"]), "--ctx-size", str(opened.context_tokens()),
        "--threads", str(threads), "--no-warmup",
    ]  # fmt: skip

    def ask(path: Path) -> str:
        return subprocess.run([*command, "--image", str(path)], capture_output=True, text=True, check=True).stdout.strip()

    wall, cpu = time.monotonic(), _children_s()
    answers = {str(path): ask(path) for path in paths}
    seconds, cpu_seconds = time.monotonic() - wall, _children_s() - cpu
    # Its log has a thread of its own, and on a busy machine the program sometimes ends before all of the answer is printed.
    classes = opened.release.classes
    lost = [path for path in paths if answers[str(path)] not in classes]
    for path in lost:
        answers[str(path)] = next((answer for answer in (ask(path) for _ in range(RETRIES)) if answer in classes), "")
    return Side("llama-mtmd-cli", len(paths), seconds, cpu_seconds, answers, lost=len(lost))


def ours(opened: OpenedRelease, folder: Path, out: Path) -> Side:
    """The command as a person types it, with its start."""
    type = opened.types[0]
    command = [sys.executable, "-c", MEASURED, "predict", str(opened.folder), str(folder), "--type", type, "--output", str(out)]
    wall, cpu = time.monotonic(), _children_s()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds, cpu_seconds = time.monotonic() - wall, _children_s() - cpu
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    peak_mb = round(float(done.stdout.split()[-1]) / 1024, 1)
    return Side("pocketvlm predict", len(rows), seconds, cpu_seconds, {row["image"]: row["best"] for row in rows}, peak_mb)


MEASURED = """
import re, sys
from pocketvlm.cli import main
code = main(sys.argv[1:])
print(re.search(r"^VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read(), re.MULTILINE)[1])
sys.exit(code)
"""


def _children_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _joined(before: Side, after: Side) -> Side:
    return Side(before.name, before.images + after.images, before.seconds + after.seconds, before.cpu_seconds + after.cpu_seconds,
                before.answers | after.answers, lost=before.lost + after.lost)  # fmt: skip


def main() -> int:
    """Prints the table; the file's path is the last line. Exit code 1 when an answer differs."""
    parser = argparse.ArgumentParser(prog="python -m bench.predict", description="predict beside a loop of llama-mtmd-cli calls.")
    parser.add_argument("--release", default="digits", metavar="NAME_OR_DIR", help="default: digits")
    parser.add_argument("--images", type=int, default=1000, metavar="N", help="that predict is asked; default: 1000")
    parser.add_argument("--loop", type=int, default=100, metavar="N", help="of them, that the loop is asked; default: 100")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    environment, started = read_environment(), datetime.now(UTC)
    toolchain, opened = find_toolchain(environment), open_release(options.release, environment)
    threads = pair_threads(*opened.pair(opened.types[0]), environment.thread_count())
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        paths = pictures(Path(name) / "images", options.images, opened.release.device["canvas_px"] or 256)
        asked = paths[: options.loop]
        middle = len(asked) // 2
        before = loop(opened, toolchain, asked[:middle], threads)
        mine = ours(opened, paths[0].parent, Path(name) / "rows.jsonl")
        theirs = _joined(before, loop(opened, toolchain, asked[middle:], threads))
    differing = [path for path, answer in theirs.answers.items() if mine.answers[path] != answer]
    ratio = mine.rate / theirs.rate
    result = {
        "started": started.isoformat(timespec="seconds"), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2),
        "release": f"{opened.release.name} {opened.release.version}", "type": opened.types[0],
        "goal": GOAL, "ratio": round(ratio, 2), "compared": len(asked), "differing": len(differing),
        "sides": [{key: value for key, value in asdict(side).items() if key != "answers"} for side in (theirs, mine)],
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{started:%Y%m%dT%H%M%SZ}-predict.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(table([theirs, mine], ratio, len(asked), len(differing)))
    print("".join(f"{Path(one).name}: {mine.answers[one]!r} and {theirs.answers[one]!r}\n" for one in differing), end="")
    print(path)
    return 1 if differing else 0


def table(sides: list[Side], ratio: float, compared: int, differing: int) -> str:
    """What is printed."""
    lines = [f"{'':<18} images  wall s  images/s  CPU ms each  peak MB"]
    for side in sides:
        peak = "" if side.peak_mb is None else f"{side.peak_mb:.0f}"
        lines.append(f"{side.name:<18} {side.images:>6}  {side.seconds:>6.1f}  {side.rate:>8.1f}  "
                     f"{1000 * side.cpu_seconds / side.images:>11.1f}  {peak:>7}")  # fmt: skip
    lines.append(f"{ratio:.1f} times as many images a second (goal {GOAL:g}); {compared - differing} of {compared} answers equal")
    if lost := sum(side.lost for side in sides):
        lines.append(f"{lost} calls of llama-mtmd-cli ended before all of the answer was printed, and were repeated, untimed")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
