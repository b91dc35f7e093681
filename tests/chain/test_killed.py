"""SIGKILL at any moment of any stage, then the same command again: the same bytes as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from runs import FULL, SMALL

from pocketvlm.stages.stage import STAGES

from ..conftest import Place, place

pytestmark = [pytest.mark.chain, pytest.mark.timeout(1500)]
MOMENTS = 5 if FULL else 3


def test_killed_several_times_in_every_stage_the_run_ends_with_the_same_bytes(small: Place, tmp_path: Path) -> None:
    there = place(tmp_path / "killed", SMALL)
    killed = dict.fromkeys(STAGES, 0)
    seconds: dict[str, float] = json.loads((small.folder / "seconds.json").read_text())
    for stage in STAGES:
        for moment in range(1, MOMENTS + 1):
            killed[stage] += _kill(there, stage, seconds[stage] * moment / (MOMENTS + 1))
        done = there.pocketvlm("stage", stage, str(there.run_file))
        assert done.returncode == 0, done.stderr[-4000:]
    assert there.manifests() == small.manifests()
    release = [stored.key for stored in small.store.list("releases/") if not stored.key.endswith("measurements.json")]
    assert release
    assert {key: there.store.read(key) for key in release} == {key: small.store.read(key) for key in release}
    assert not list(there.store.list("partial/"))
    assert all(killed.values()), killed  # on a machine that is less busy than before, a stage may end before its last moment


def test_changed_training_keeps_the_dataset(small: Place, tmp_path: Path) -> None:
    there = place(tmp_path / "again", SMALL, {"trainer": {"seed": 7}})
    shutil.copytree(small.folder / "store", tmp_path / "again" / "store")
    done = there.pocketvlm("stage", "labeller", str(there.run_file))
    assert "already done: datasets/" in done.stderr


def _kill(there: Place, stage: str, after_s: float) -> int:
    """Starts a stage and kills it, and all that it started, after that long. 1 if it was still running."""
    command, environment = there.command("stage", stage, str(there.run_file))
    process = subprocess.Popen(
        command, env=environment, cwd=there.folder, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    time.sleep(after_s)
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return int(running)
