"""The whole run on this machine: the same stages that run as Jobs, one after the other, each in a process of its own.

A stage whose artifact is already there is finished in this process: that needs no torch, so a rerun takes seconds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from pocketvlm.artifacts.artifact import Artifact, find
from pocketvlm.artifacts.open import open_store
from pocketvlm.artifacts.run_record import read_record, run_id
from pocketvlm.artifacts.store import Store
from pocketvlm.environment import Environment
from pocketvlm.errors import Interrupted, PocketVLMError, UserError
from pocketvlm.progress import Progress, duration
from pocketvlm.run_file import RunFile
from pocketvlm.stages.stage import STAGES, load_stage, run_stage, stage_id


class StageFailed(PocketVLMError):
    """A stage's process ended with an error, which it has already told; only its exit code is passed on."""

    def __init__(self, stage: str, code: int) -> None:
        super().__init__(f"the {stage} ended with exit code {code}; what it said is above")
        self.exit_code = code if code > 0 else 1


def run(path: Path, run_file: RunFile, environment: Environment) -> dict[str, Artifact]:
    """Runs every stage of the run file; returns their artifacts by stage. Raises StageFailed and what stages raise."""
    if environment.shards is not None:
        raise UserError(f"POCKETVLM_SHARDS={environment.shards}: a run on this machine does all of the work in one process "
                        "for each stage; unset it")
    store = open_store(environment)
    progress = Progress("run")
    clock = time.monotonic()
    artifacts: dict[str, Artifact] = {}
    made = 0
    for stage in STAGES:
        ids = {other: artifacts[other].id for other in load_stage(stage).INPUTS}
        kind, own_id = load_stage(stage).KIND, stage_id(stage, run_file, ids)
        if find(store, kind, own_id) is None:
            if not made:
                _check(run_file, environment)
            made += 1
            _in_process(stage, path, environment.store)
        else:
            run_stage(stage, run_file, store, environment, Progress(stage))
        artifacts[stage] = _finished(store, kind, own_id, run_file, stage)
    progress.line(f"{run_id(run_file.run)}: {made} stages made, {len(STAGES) - made} already done, "
                  f"{duration(time.monotonic() - clock)}")  # fmt: skip
    return artifacts


def _check(run_file: RunFile, environment: Environment) -> None:
    """Refuses what cannot work before hours go into it. Imported late: it reads the base's tokenizer, which takes seconds."""
    from pocketvlm.llamacpp.toolchain import find_toolchain
    from pocketvlm.plan import check

    check(run_file, environment)
    find_toolchain(environment)


def _finished(store: Store, kind: str, own_id: str, run_file: RunFile, stage: str) -> Artifact:
    artifact = find(store, kind, own_id)
    if artifact is None:
        record = read_record(store, run_id(run_file.run), stage)
        raise PocketVLMError(
            f"the {stage} says it is done ({record}) and {kind}/{own_id} is not in {store.url}; run again"
        )
    return artifact


def _in_process(stage: str, path: Path, store_url: str) -> None:
    """One stage as a child; SIGTERM and SIGINT to us reach it, and we wait until it has saved."""
    command = [sys.executable, "-m", "pocketvlm", "--store", store_url, "stage", stage, str(path)]
    child = subprocess.Popen(command)
    stopped: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        stopped.append(number)
        if child.poll() is None:
            os.kill(child.pid, number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped:
        raise Interrupted(f"stopped during the {stage}; run the same command again to go on")
    if code:
        raise StageFailed(stage, code)
