"""The runs that are compared, read from the store: small files only, but for the pictures that are shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pocketvlm.artifacts.artifact import Artifact, find
from pocketvlm.artifacts.evaluated import report_of, run_named
from pocketvlm.artifacts.run_record import run_id
from pocketvlm.artifacts.store import Store
from pocketvlm.errors import UserError
from pocketvlm.run_file import Task, read_recipe, read_run_file
from pocketvlm.student.tasks import TaskKind, kind_of


@dataclass(frozen=True)
class Answer:
    """What one type said of one test image."""

    text: str
    """As it is shown: the label, or what was written where that is none."""
    right: bool


@dataclass(frozen=True)
class Seen:
    """A test image of one run."""

    sha256: str
    """Of the original file."""
    label: str
    source_id: str
    answers: Mapping[str, Answer]
    """By type."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    letter: str
    """By which the page names it: A is the baseline."""
    id: str
    recipe: dict[str, Any]
    kind: TaskKind | None
    """What its answers mean; None for a task block of an older version."""
    metrics: dict[str, Any]
    """metrics.json."""
    seen: dict[str, Seen]
    """By sha256, in the dataset's order."""
    dataset: Artifact
    sizes_mb: dict[str, float]
    """By name of a GGUF file, in 10^6 bytes."""
    latency: dict[str, dict[str, float]]
    """By type, milliseconds."""
    versions: dict[str, str]
    """Packages that shaped model and numbers."""

    @property
    def types(self) -> list[str]:
        """Measured types, shipped ones first."""
        order: list[str] = self.metrics["order"]
        return order

    @property
    def shipped(self) -> list[str]:
        """Types that the run file asks for."""
        return [name for name in self.types if self.metrics["types"][name]["shipped"]]


def read_run(store: Store, named: str, letter: str) -> Run:
    """The run that a run file, the id of a run or `release[/version]` names.

    Raises UserError for what is not there or not evaluated, RunFileError for a run file, Corrupt for wrong bytes.
    """
    run = _run_of(store, named)
    report = report_of(store, run)
    if report is None:
        raise UserError(f"{named}: run {run} has not been evaluated in {store.url}; run `pocketvlm run` with its run file first")
    inputs = report.manifest.inputs
    dataset, ggufs, merged = (_input(store, kind, inputs[stage], run) for stage, kind in
                              (("labeller", "datasets"), ("quantiser", "ggufs"), ("merger", "models")))  # fmt: skip
    recipe = read_recipe(store.read(f"runs/{run}/run.yaml").decode(), f"{store.url}: runs/{run}/run.yaml")
    kind, metrics = _kind(recipe), json.loads(report.read("metrics.json"))
    files = json.loads(ggufs.read("audit.json"))["files"]
    return Run(
        letter=letter, id=run, recipe=recipe, kind=kind, metrics=metrics, seen=_seen(report, kind), dataset=dataset,
        sizes_mb={row["name"]: row["size_mb"] for row in files}, latency=report.measurements().get("latency", {}),
        versions={**merged.manifest.versions, **report.manifest.versions},
    )  # fmt: skip


def _run_of(store: Store, named: str) -> str:
    path = Path(named)
    if path.is_file():
        return run_id(read_run_file(path).run)
    run = run_named(store, named)
    if run is None:
        raise UserError(f"{named}: is neither a run file, nor a finished run or a release (name or name/version) of {store.url}")
    return run


def _input(store: Store, kind: str, id: str, run: str) -> Artifact:
    artifact = find(store, kind, id)
    if artifact is None:
        raise UserError(f"{store.url}: {kind}/{id} of run {run} is not there; run it again")
    return artifact


def _seen(report: Artifact, kind: TaskKind | None) -> dict[str, Seen]:
    seen = {}
    for row in map(json.loads, report.read("predictions.jsonl").splitlines()):
        said = {name: row.get("labels", {}).get(name) or _read(kind, text) for name, text in row["answers"].items()}
        answers = {name: _answer(text, said[name], row["label"]) for name, text in row["answers"].items()}
        seen[row["sha256"]] = Seen(row["sha256"], row["label"], row["source_id"], answers)
    return seen


def _answer(text: str, said: str | None, label: str) -> Answer:
    """An answer that says nothing of its task is shown as it was written."""
    return Answer(text if said is None else said, said == label)


def _kind(recipe: dict[str, Any]) -> TaskKind | None:
    try:
        return kind_of(Task.model_validate(recipe["task"]))
    except ValidationError:
        return None


def _read(kind: TaskKind | None, text: str) -> str | None:
    """What an answer says by the run's own task, for reports from before they said it: all of those answer with a class."""
    if kind is None:
        return text
    said = kind.read(text)
    return said.label if said else None
