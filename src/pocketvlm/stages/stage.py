"""The skeleton around every stage: find the inputs, know the id, reuse what is finished, else make and publish it.

A stage is a pure function from its inputs and settings to files. All that concerns crashes, races and records is here:

1. the records under runs/<run id>/ name the artifacts of the stages before;
2. the id follows from settings and input ids, so a finished artifact is found and nothing is done;
3. else the stage fills an empty folder, which is published with its manifest last; a stage that shares its work does
   so only in the process that finds all shares saved (stages/sharing.py);
4. `finish`, where a stage has one, runs in both cases and must be idempotent (gates and release).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from pocketvlm.artifacts.artifact import Artifact, find, publish
from pocketvlm.artifacts.manifest import artifact_id
from pocketvlm.artifacts.partial import Partial
from pocketvlm.artifacts.run_record import read_record, run_id, write_recipe
from pocketvlm.artifacts.store import Store
from pocketvlm.environment import Environment, Shard
from pocketvlm.errors import PocketVLMError, StoreUnavailable, UserError
from pocketvlm.interrupt import temporary_folder
from pocketvlm.progress import Progress, duration
from pocketvlm.run_file import Recipe, RunFile
from pocketvlm.stages.recording import Recorder
from pocketvlm.stages.sharing import Desk

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
    desk: Desk
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

    def make(self, work: Work) -> Made | None:
        """Fills `work.folder`. None: this process' share is saved, and those of others are still to come.

        Only a stage with `SHARED = True`, which asks `work.desk` for all shares, may be given one share of several.
        """


def load_stage(name: str) -> Stage:
    """The module of a stage; only its own imports are paid for."""
    return cast(Stage, importlib.import_module(f"pocketvlm.stages.{name}"))


def stage_id(name: str, run_file: RunFile, inputs: dict[str, str]) -> str:
    """Id of what the stage makes of this run file and these input ids."""
    stage = load_stage(name)
    return artifact_id(stage.KIND, stage.settings(run_file.run, run_file.folder), inputs)


def run_stage(
    name: str, run_file: RunFile, store: Store, environment: Environment, progress: Progress
) -> tuple[Artifact | None, bool]:
    """Runs one stage to its end. Returns its artifact, and whether it was made now (False: found finished).

    No artifact: this process' share is saved, and whoever saves the last one will publish.
    """
    stage = load_stage(name)
    shard = _shard(name, stage, environment)
    recorder = Recorder(store, write_recipe(store, run_file.run), name, stage.KIND)
    try:
        artifact, made = _find_or_make(name, stage, run_file, store, environment, progress, recorder, shard)
    except StoreUnavailable:
        raise  # the record lies in that store: writing it would wait as long again, and hide what was lost
    except Exception as error:
        ours = isinstance(error, PocketVLMError)
        recorder.end("failed", message=str(error) if ours else f"{type(error).__name__}: {error}")
        raise
    if artifact is not None:
        recorder.end("done" if made else "found", artifact.id)
        progress.line(
            f"{'published' if made else 'already done:'} {artifact.kind}/{artifact.id} ({duration(recorder.seconds)})"
        )
    return artifact, made


def _shard(name: str, stage: Stage, environment: Environment) -> Shard:
    shard = environment.shard()
    if shard.count > 1 and not getattr(stage, "SHARED", False):
        able = " and ".join(other for other in STAGES if getattr(load_stage(other), "SHARED", False))
        raise UserError(f"POCKETVLM_SHARDS={shard.count}: the {name} cannot share its work; unset it (only {able} can)")
    return shard


def _find_or_make(
    name: str,
    stage: Stage,
    run_file: RunFile,
    store: Store,
    environment: Environment,
    progress: Progress,
    recorder: Recorder,
    shard: Shard,
) -> tuple[Artifact | None, bool]:
    recipe = run_file.run
    inputs = {other: _input(store, run_id(recipe), other) for other in stage.INPUTS}
    settings = stage.settings(recipe, run_file.folder)
    own_id = artifact_id(stage.KIND, settings, {other: artifact.id for other, artifact in inputs.items()})
    with temporary_folder(environment.scratch, f"{name}-{own_id[:6]}-") as scratch:
        (scratch / "out").mkdir()
        work = Work(
            recipe, run_file.folder, store, own_id, inputs, scratch / "out", scratch,
            Partial(store, stage.KIND, own_id, warn=progress.warn),
            Desk(store, stage.KIND, own_id, shard, scratch / "shares", progress), progress, environment,
        )  # fmt: skip
        artifact, made = find(store, stage.KIND, own_id), False
        if artifact is None:
            recorder.begin(own_id)
            artifact, made = _make(stage, work, settings)
        if artifact is not None:
            work.partial.clear()  # an attempt that was killed after it had published left its own
            if finish := getattr(stage, "finish", None):
                finish(work, artifact)
    return artifact, made


def _make(stage: Stage, work: Work, settings: dict[str, Any]) -> tuple[Artifact | None, bool]:
    result = stage.make(work)
    if result is None:
        artifact = find(work.store, stage.KIND, work.id)  # by another process, since this one looked
    else:
        artifact = publish(
            work.store, stage.KIND, work.id, work.folder, settings=settings, facts=result.facts, versions=result.versions,
            inputs={other: found.id for other, found in work.inputs.items()}, measurements=result.measurements,
        )  # fmt: skip
    return artifact, result is not None


def _input(store: Store, run: str, stage: str) -> Artifact:
    record = read_record(store, run, stage)
    artifact = find(store, record.kind, record.id) if record and record.status in ("done", "found") else None
    if artifact is None:
        raise UserError(f"{store.url}: the {stage} of run {run} has not finished; run `pocketvlm stage {stage} RUN` first, "
                        "or `pocketvlm run RUN` for the whole chain")  # fmt: skip
    return artifact
