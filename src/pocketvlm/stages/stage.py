"""The skeleton around every stage: find the inputs, know the id, reuse what is finished, else make and publish it.

A stage is a pure function from its inputs and settings to files. All that concerns crashes, races and records is here:

1. the records under runs/<run id>/ name the artifacts of the stages before;
2. the id follows from settings and input ids, so a finished artifact is found and nothing is done;
3. else the stage fills an empty folder, which is published with its manifest last;
4. `finish`, where a stage has one, runs in both cases and must be idempotent (gates and release).
"""

from __future__ import annotations

import importlib
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, cast

from pocketvlm.artifacts.artifact import Artifact, find, publish
from pocketvlm.artifacts.manifest import artifact_id
from pocketvlm.artifacts.partial import Partial
from pocketvlm.artifacts.run_record import StageRecord, read_record, run_id, write_record
from pocketvlm.artifacts.store import Store
from pocketvlm.environment import Environment
from pocketvlm.errors import PocketVLMError, UserError
from pocketvlm.progress import Progress, duration
from pocketvlm.run_file import Recipe, RunFile

STAGES = ("labeller", "trainer", "merger", "quantiser", "evaluator")
"""In the order of the flow; each is a module of this package."""


@dataclass(frozen=True)
class Made:
    """What a stage says about the files that it made."""

    facts: dict[str, Any] = field(default_factory=dict)
    """Equal for equal runs; goes into the manifest."""
    measurements: dict[str, Any] = field(default_factory=dict)
    """Times, rates and memory; kept beside the manifest, not hashed."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the packages that shaped the files."""


@dataclass(frozen=True)
class Work:
    """What a stage works with."""

    recipe: Recipe
    recipe_folder: Path
    store: Store
    id: str
    inputs: dict[str, Artifact]
    folder: Path
    """Empty; what lies here after `make` is published."""
    scratch: Path
    """For everything else; deleted afterwards."""
    partial: Partial
    progress: Progress
    environment: Environment

    def fetch(self, stage: str) -> Path:
        """Verified local copy of the artifact of an input stage."""
        return self.inputs[stage].fetch(self.scratch / "inputs" / stage)


class Stage(Protocol):
    """The module of a stage."""

    KIND: str
    INPUTS: tuple[str, ...]

    def settings(self, recipe: Recipe, folder: Path) -> dict[str, Any]:
        """All that determines the content besides the inputs."""

    def make(self, work: Work) -> Made:
        """Fills `work.folder`."""


def load_stage(name: str) -> Stage:
    """The module of a stage; only its own imports are paid for."""
    return cast(Stage, importlib.import_module(f"pocketvlm.stages.{name}"))


def stage_id(name: str, run_file: RunFile, inputs: dict[str, str]) -> str:
    """Id of what the stage makes of this run file and these input ids."""
    stage = load_stage(name)
    return artifact_id(stage.KIND, stage.settings(run_file.run, run_file.folder), inputs)


def run_stage(
    name: str, run_file: RunFile, store: Store, environment: Environment, progress: Progress
) -> tuple[Artifact, bool]:
    """Runs one stage to its end. Returns its artifact, and whether it was made now (False: found finished)."""
    run = run_id(run_file.run)
    started = datetime.now(UTC)
    before = read_record(store, run, name)
    stage = load_stage(name)
    record = StageRecord(stage=name, kind=stage.KIND, id="", status="running", attempts=(before.attempts if before else 0) + 1,
                         started=started.isoformat(timespec="seconds"), finished="", seconds=0.0, message="")  # fmt: skip
    clock = time.monotonic()
    try:
        artifact, made = _find_or_make(name, stage, run_file, store, environment, progress, record)
    except PocketVLMError as error:
        _close(store, run, record, clock, status="failed", message=str(error))
        raise
    if made or before is None or before.status not in ("done", "found") or before.id != artifact.id:
        _close(
            store,
            run,
            record.model_copy(update={"id": artifact.id}),
            clock,
            status="done" if made else "found",
            message="",
        )
    progress.line(
        f"{'published' if made else 'already done:'} {artifact.kind}/{artifact.id} ({duration(time.monotonic() - clock)})"
    )
    return artifact, made


def _find_or_make(
    name: str,
    stage: Stage,
    run_file: RunFile,
    store: Store,
    environment: Environment,
    progress: Progress,
    record: StageRecord,
) -> tuple[Artifact, bool]:
    recipe = run_file.run
    inputs = {other: _input(store, run_id(recipe), other) for other in stage.INPUTS}
    ids = {other: artifact.id for other, artifact in inputs.items()}
    settings = stage.settings(recipe, run_file.folder)
    own_id = artifact_id(stage.KIND, settings, ids)
    artifact = find(store, stage.KIND, own_id)
    made = artifact is None
    environment.scratch.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{name}-{own_id[:6]}-", dir=environment.scratch))
    try:
        (scratch / "out").mkdir()
        work = Work(recipe, run_file.folder, store, own_id, inputs, scratch / "out", scratch,
                    Partial(store, stage.KIND, own_id, warn=progress.warn), progress, environment)  # fmt: skip
        if artifact is None:
            write_record(store, run_id(recipe), record.model_copy(update={"id": own_id}))
            result = stage.make(work)
            artifact = publish(store, stage.KIND, own_id, work.folder, inputs=ids, settings=settings, facts=result.facts,
                               measurements=result.measurements, versions=result.versions)  # fmt: skip
            work.partial.clear()
        finish = getattr(stage, "finish", None)
        if finish:
            finish(work, artifact)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return artifact, made


def _input(store: Store, run: str, stage: str) -> Artifact:
    record = read_record(store, run, stage)
    artifact = find(store, record.kind, record.id) if record and record.status in ("done", "found") else None
    if artifact is None:
        raise UserError(f"{store.url}: the {stage} of run {run} has not finished; run `pocketvlm stage {stage} RUN` first, "
                        "or `pocketvlm run RUN` for the whole chain")  # fmt: skip
    return artifact


def _close(store: Store, run: str, record: StageRecord, clock: float, *, status: str, message: str) -> None:
    write_record(store, run, record.model_copy(update={
        "status": status, "message": message, "seconds": round(time.monotonic() - clock, 3),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }))  # fmt: skip
