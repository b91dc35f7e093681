"""Runs all comparisons, both sides in turns, and writes one JSON file and a table."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketvlm.environment import calm_idle_threads, read_environment

if TYPE_CHECKING:
    from bench.clock import Spent
    from bench.setting import Setting

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")
LARGEST = 100
"""Labels, as far as the vocabulary has words."""
EQUAL_WITHIN = 0.1
"""Cost of one forward pass may differ this much between numbers of labels."""
BUSY = 0.5
"""Processes beyond our own threads, on average: above it the times of the wall are not to be trusted."""


@dataclass(frozen=True)
class Comparison:
    """How many times faster ours is than a rival, for one unit of work."""

    name: str
    goal: float | None
    """None: for information."""
    ours: list[Spent]
    rival: list[Spent]

    @property
    def ratios(self) -> list[float]:
        """By the wall, one for each round."""
        return [rival.seconds_each / ours.seconds_each for ours, rival in zip(self.ours, self.rival, strict=True)]

    @property
    def ratio(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.ratios)

    @property
    def cpu_ratio(self) -> float:
        """The same by CPU time."""
        pairs = zip(self.ours, self.rival, strict=True)
        return statistics.median(rival.cpu_seconds_each / ours.cpu_seconds_each for ours, rival in pairs)

    @property
    def met(self) -> bool | None:
        """None: there is no goal."""
        return None if self.goal is None else self.ratio >= self.goal

    def to_json(self) -> dict[str, Any]:
        """With all measurements."""
        return {
            "name": self.name, "goal": self.goal, "ratio": round(self.ratio, 2), "met": self.met,
            "ratios": [round(ratio, 2) for ratio in self.ratios], "cpu_ratio": round(self.cpu_ratio, 2),
            "ours": [asdict(spent) for spent in self.ours], "rival": [asdict(spent) for spent in self.rival],
        }  # fmt: skip


def settings(quick: bool, folder: Path) -> Setting:
    """The sizes of the real benchmark (about 15 minutes on two quiet cores without bf16), or of a run of seconds."""
    from bench.setting import Setting

    if quick:
        return Setting(folder, quick=True, images=8, batch_size=8, rounds=1, newcomer_steps=2, scored_images=4)
    return Setting(folder, quick=False, images=16, batch_size=8, rounds=2, newcomer_steps=2, scored_images=8)


def train(setting: Setting) -> list[Comparison]:
    """Training, in turns: ours, the newcomer's, the tuned one."""
    from bench import ours, rivals

    sides: dict[str, Callable[[Setting, int], Spent]] = {"ours": ours.train, "newcomer": rivals.newcomer, "tuned": rivals.tuned}
    spent: dict[str, list[Spent]] = {name: [] for name in sides}
    for number in range(setting.rounds):
        for name, side in sides.items():
            spent[name].append(side(setting, number))
            say(f"training, {name}", spent[name][-1], "sample")
    return [
        Comparison("LoRA training against TRL as a newcomer runs it", 70, spent["ours"], spent["newcomer"]),
        Comparison("LoRA training against a tuned TRL", 3, spent["ours"], spent["tuned"]),
    ]


def score(setting: Setting) -> tuple[list[Comparison], dict[str, Any]]:
    """Scoring, in turns; and what the number of labels costs."""
    from bench.answers import Answers

    answers = Answers(setting)
    ours, whole, rival = [], [], []
    for _ in range(setting.rounds):
        encoding = answers.encode()
        say("vision features for scoring", encoding, "image")
        ours.append(answers.score(10))
        say("scoring, 10 labels", ours[-1], "image")
        whole.append(encoding.followed_by(ours[-1]))
        rival.append(answers.generate())
        say("generate, one tile", rival[-1], "image")
    counts = (2, 10, min(LARGEST, len(answers.labels)))
    by_labels: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(setting.rounds + 1):
        for count in counts:
            by_labels[count].append(answers.score(count).cpu_seconds_each)
    costs = {count: statistics.median(values) for count, values in by_labels.items()}
    spread = max(costs.values()) / min(costs.values()) - 1
    labels = {"cpu_seconds_an_image": {str(n): round(cost, 5) for n, cost in costs.items()}, "spread": round(spread, 4),
              "equal_within": EQUAL_WITHIN, "met": spread <= EQUAL_WITHIN}  # fmt: skip
    return [
        Comparison("scoring on kept features against a loop of generate", 12, ours, rival),
        Comparison("the same with the vision features counted", None, whole, rival),
    ], labels


def say(what: str, spent: Spent, unit: str) -> None:
    """One line as it happens."""
    print(f"{what}: {spent.seconds_each:.3f} s a {unit} ({spent.cpu_seconds_each:.3f} s of CPU, load {spent.load})",
          file=sys.stderr, flush=True)  # fmt: skip


def machine(setting: Setting) -> dict[str, Any]:
    """Where and with what this was measured."""
    import torch

    models = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "precision": setting.precision, "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }  # fmt: skip


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def table(result: dict[str, Any]) -> str:
    """What is printed."""
    rows = [("", "ratio", "by CPU time", "goal", "")]
    for row in result["comparisons"]:
        goal, verdict = ("", "") if row["goal"] is None else (f"{row['goal']:.0f}x", "met" if row["met"] else "missed")
        rows.append((row["name"], f"{row['ratio']:.1f}x", f"{row['cpu_ratio']:.1f}x", goal, verdict))
    labels = result["labels"]
    name = f"cost of {', '.join(labels['cpu_seconds_an_image'])} labels: spread"
    rows.append((name, f"{labels['spread']:.1%}", "", f"{EQUAL_WITHIN:.0%}", "met" if labels["met"] else "missed"))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = []
    for first, *others in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:<{widths[0]}}", *cells]).rstrip())
    if result["busy"]:
        lines.append(f"load was up to {result['load']}: other work was running, so trust the ratios by CPU time more")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; the file's path is the last line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Ratios of speed against the usual way.")
    parser.add_argument("--quick", action="store_true", help="the tiny student, one round: shows that all still runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args(arguments)
    calm_idle_threads()
    import torch

    torch.set_num_threads(read_environment().thread_count())
    started, clock = datetime.now(UTC), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        setting = settings(options.quick, Path(folder))
        comparisons, (more, labels) = train(setting), score(setting)
        where = machine(setting)
    comparisons += more
    load = max(spent.load for comparison in comparisons for spent in (*comparison.ours, *comparison.rival))
    result = {
        "started": started.isoformat(timespec="seconds"), "seconds": round(time.monotonic() - clock, 1), "quick": options.quick,
        "machine": where, "load": load, "busy": load > where["threads"] + BUSY,
        "comparisons": [comparison.to_json() for comparison in comparisons], "labels": labels,
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{started:%Y%m%dT%H%M%SZ}{'-quick' if options.quick else ''}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
