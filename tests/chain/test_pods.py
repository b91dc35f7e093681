"""The stages as pods: shares of the evaluator, SIGTERM in each stage, and what Prometheus sees of them."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from runs import FULL, SMALL

from pocketvlm.artifacts.run_record import run_id
from pocketvlm.run_file import read_run_file
from pocketvlm.stages.stage import STAGES

from ..conftest import Place, place

pytestmark = [pytest.mark.chain, pytest.mark.timeout(1500)]
ALWAYS = ("pocketvlm_stage_done_units", "pocketvlm_stage_total_units")
TOLD = {
    "labeller": "pocketvlm_labeller_images_total", "trainer": "pocketvlm_trainer_loss_nats",
    "evaluator": 'pocketvlm_evaluator_images_asked_total{stage="evaluator",type="q8_0"}',
}  # fmt: skip
"""Samples that a stage must have shown while it worked."""
PROGRAMS = {"quantiser": ("convert_runner", "llama-quantize"), "evaluator": ("llama-server",)}
"""What a stage starts; the signal comes while one of them runs."""


def without(small: Place, folder: Path, *prefixes: str) -> Place:
    """A copy of the small run that has not made what lies below `prefixes` yet."""
    there = place(folder, SMALL)
    shutil.copytree(small.folder / "store", folder / "store")
    for prefix in prefixes:
        there.store.delete(prefix)
    return there


def in_session(leader: int) -> list[str]:
    """Command lines of the living processes of a session."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            status, command = (folder / "stat").read_text(), (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:  # no process, or it has just ended
            continue
        state, *_, session = status.rpartition(")")[2].split()[:4]
        if int(session) == leader and state != "Z":
            found.append(command)
    return found


@pytest.mark.parametrize("shards", [2, 4] if FULL else [2])
def test_shares_of_the_evaluator_publish_what_one_process_makes(small: Place, tmp_path: Path, shards: int) -> None:
    """In parallel; the first is killed while llama-server answers it, and starts again."""
    run = run_id(read_run_file(small.run_file).run)
    there = without(small, tmp_path / "shared", "reports/", "releases/", f"runs/{run}/evaluator")

    def pod(index: int) -> subprocess.Popen[str]:
        return there.start("stage", "evaluator", str(there.run_file), POCKETVLM_SHARDS=shards, JOB_COMPLETION_INDEX=index)

    pods = [pod(index) for index in range(shards)]
    wait_for_a_program(pods[0], "evaluator")
    pods[0].kill()
    pods[0].communicate()
    pods[0] = pod(0)
    logs = [process.communicate(timeout=600)[1] for process in pods]
    assert [process.returncode for process in pods] == [0] * shards, logs
    assert there.manifests() == small.manifests()
    assert "pieces were saved before" in logs[0]
    assert sum("published reports/" in log for log in logs) >= 1
    assert all("published reports/" in log or "already done" in log or "whoever saves the last one" in log for log in logs)
    report = there.artifact("evaluator")
    assert len(report.measurements()["share_seconds"]) == shards
    assert report.measurements()["latency"]["q8_0"]["total_ms_median"] > 0
    latest = "releases/digits/latest.json"
    assert there.store.read(latest) == small.store.read(latest)
    assert list(there.store.list("partial/")) == []


def wait_for_a_program(process: subprocess.Popen[str], stage: str) -> None:
    deadline = time.monotonic() + 300
    while not any(program in command for command in in_session(process.pid) for program in PROGRAMS[stage]):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_every_stage_obeys_sigterm_leaves_no_program_behind_and_ends_with_the_same_bytes(small: Place, tmp_path: Path) -> None:
    there = place(tmp_path / "stopped", SMALL)
    seconds: dict[str, float] = json.loads((small.folder / "seconds.json").read_text())
    for stage in STAGES:
        process = there.start("stage", stage, str(there.run_file))
        scratch = there.folder / "scratch"
        while not (scratch.exists() and list(scratch.iterdir())):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.005)
        if stage in PROGRAMS:
            wait_for_a_program(process, stage)
        elif stage != "labeller":  # which has only a second of work here
            time.sleep(seconds[stage] / 3)
        clock = time.monotonic()
        process.send_signal(signal.SIGTERM)
        log = process.communicate(timeout=60)[1]
        assert process.returncode == 75, f"{stage}: {process.returncode} {log}"
        assert time.monotonic() - clock < 15, stage
        time.sleep(0.5)
        assert in_session(process.pid) == []
        assert list(scratch.iterdir()) == []
        finish(there, stage)
    assert there.manifests() == small.manifests()


def finish(there: Place, stage: str) -> None:
    """Runs a stage to its end and scrapes it meanwhile."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = there.start("stage", stage, str(there.run_file), POCKETVLM_METRICS_PORT=port)
    seen = ""
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                seen += answer.read().decode()
        except (OSError, http.client.HTTPException):  # not up yet, or it ended in the middle of an answer
            pass
        time.sleep(0.02)
    log = process.communicate()[1]
    assert process.returncode == 0, log
    if stage in TOLD:
        assert all(name in seen for name in (*ALWAYS, TOLD[stage])), f"{stage}: {seen[-3000:]}"
