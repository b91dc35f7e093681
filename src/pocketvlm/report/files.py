"""The report of a finished run as a file, and its numbers as a table on the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pocketvlm.artifacts.artifact import Artifact
from pocketvlm.artifacts.open import open_store
from pocketvlm.artifacts.run_record import run_id
from pocketvlm.artifacts.store import KeyMissing
from pocketvlm.environment import Environment
from pocketvlm.errors import UserError
from pocketvlm.report.results import Metrics
from pocketvlm.run_file import RunFile

REPORTS = Path(".pocketvlm/reports")
"""Where reports go unless told otherwise, in the folder where the command runs."""


def write_report(run_file: RunFile, environment: Environment, to: Path | None) -> Path:
    """Writes the report that the evaluator left in the store, to `to` or below REPORTS; returns the path.

    Raises UserError when this run has not been evaluated, or the file cannot be written.
    """
    run = run_id(run_file.run)
    store = open_store(environment, read_only=True)
    try:
        page = store.read(f"runs/{run}/report.html")
    except KeyMissing as error:
        raise UserError(f"{store.url}: run {run} has no report, because its evaluator has not finished; "
                        "run `pocketvlm run RUN` first") from error  # fmt: skip
    path = to or REPORTS / f"{run}.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(page)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); say another place with `pocketvlm report RUN --to FILE`"
                        ) from error  # fmt: skip
    return path


def summary(run_file: RunFile, report: Artifact, ggufs: Artifact) -> str:
    """The measured types as a table: size, accuracy with its interval, agreement, prompt, latency."""
    metrics = Metrics.model_validate_json(report.read("metrics.json"))
    sizes = {row["name"]: row for row in json.loads(ggufs.read("audit.json"))["files"]}
    latency = report.measurements().get("latency", {})
    lists = any(pair.list_f1 is not None for pair in metrics.types.values())
    measured = ("accuracy", "95 % interval", *(("list F1",) if lists else ()), "agreement")
    rows: list[tuple[str, ...]] = [("type", "MB", "bits/weight", *measured, "prompt", "ms/image")]
    for name in metrics.order:
        pair = metrics.types[name]
        rows.append((
            name if pair.shipped else f"{name} (not shipped)", _sum_mb(sizes, pair.text, pair.mmproj),
            f"{sizes[pair.text]['bits_per_weight']:.2f}" if pair.text in sizes else "", f"{pair.accuracy:.4f}",
            f"{pair.interval[0]:.3f} to {pair.interval[1]:.3f}", *((f"{pair.list_f1 or 0:.4f}",) if lists else ()),
            f"{pair.agreement:.4f}", f"{pair.prompt_tokens[1]} tokens",
            f"{latency[name]['total_ms_median']:.3g}" if name in latency else "",
        ))  # fmt: skip
    base_lists = "" if metrics.base.list_f1 is None else f" (list F1 {metrics.base.list_f1:.4f})"
    last = (
        f"{run_file.run.name}: {metrics.images} test images; transformers {metrics.transformers.accuracy:.4f}, base "
        f"{metrics.base.accuracy:.4f}{base_lists}, without seeing {metrics.blind.accuracy:.4f}; parity "
        f"{metrics.parity.max_nats:.4f} nats, layout {metrics.layout.max_nats:.4f}"
    )
    return f"{_table(rows)}\n{last}"


def _sum_mb(sizes: dict[str, Any], *names: str) -> str:
    return f"{sum(sizes[name]['size_mb'] for name in names):.1f}" if all(name in sizes for name in names) else ""


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
