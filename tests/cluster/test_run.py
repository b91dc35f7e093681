"""A run on the cluster from `helm install` to a released GGUF pair; the same again; and a changed setting."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from runs import SMALL

from pocketvlm.artifacts.pull import pull
from pocketvlm.report.results import Metrics
from pocketvlm.stages.stage import STAGES

from .conftest import DIGITS, OBJECT_STORE, Namespace, Release, moment, stored_at

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


def test_all_jobs_complete_each_after_the_one_before(digits_on_cluster: Release, figures: dict[str, Any]) -> None:
    status = [digits_on_cluster.job(stage)["status"] for stage in STAGES]
    assert [digits_on_cluster.condition(stage) for stage in (*STAGES, "conductor")] == ["Complete"] * 6
    for before, after in itertools.pairwise(status):
        assert moment(after["startTime"]) >= moment(before["completionTime"])
    figures["digits, seconds"] = digits_on_cluster.seconds()
    pauses = [value for name, value in figures["digits, seconds"].items() if name.startswith("pause")]
    assert max(pauses) <= 3


def test_every_pod_was_admitted_under_restricted_and_ran_once(digits_on_cluster: Release) -> None:
    for component in (*STAGES, "conductor"):
        (pod,) = digits_on_cluster.pods(component)
        assert pod["status"]["phase"] == "Succeeded"
        assert pod["status"]["containerStatuses"][0]["restartCount"] == 0


def test_the_release_pulls_and_verifies_and_is_what_a_local_run_makes(
    digits_on_cluster: Release, digits_here: Any, tmp_path: Path
) -> None:
    """Equal threads, equal weights: so the files are equal to the byte."""
    release = pull(digits_on_cluster.namespace.store(), "digits", None, tmp_path / "models")
    command = [sys.executable, "-m", "pocketvlm", "verify", str(tmp_path / "models")]
    verified = subprocess.run(command, capture_output=True, text=True)
    assert verified.returncode == 0, verified.stderr
    there = Metrics.model_validate_json(digits_on_cluster.artifact("evaluator").read("metrics.json"))
    here = Metrics.model_validate(digits_here.metrics())
    assert there.types["q8_0"].accuracy == here.types["q8_0"].accuracy
    local = {entry.name: entry.sha256 for entry in digits_here.artifact("quantiser").files}
    pulled = {file.name: file.sha256 for file in release.files if file.role in ("text_model", "mmproj")}
    assert pulled == {name: local[name] for name in pulled}


def test_the_conductors_log_tells_the_whole_run(digits_on_cluster: Release) -> None:
    log = digits_on_cluster.logs()
    for stage in STAGES:
        assert stage in log
    assert "Traceback" not in log
    assert json.loads(digits_on_cluster.namespace.store().read("releases/digits/latest.json"))["name"] == "digits"


def test_helm_test_passes(digits_on_cluster: Release) -> None:
    done = digits_on_cluster.namespace.helm("test", "digits", "--logs", check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_uninstalled_and_installed_again_every_stage_finds_its_result(
    digits_on_cluster: Release, figures: dict[str, Any]
) -> None:
    """The object store goes and comes with the release; its volume stays."""
    before = digits_on_cluster.artifact("evaluator").id
    digits_on_cluster.uninstall()
    clock = time.monotonic()
    again = digits_on_cluster.namespace.install("digits", OBJECT_STORE, DIGITS)
    again.complete(120)
    figures["digits again, s"] = round(time.monotonic() - clock, 1)
    assert figures["digits again, s"] < 60
    for stage in STAGES:
        assert "already done: " in again.logs(stage)
    assert again.artifact("evaluator").id == before


def test_a_changed_trainer_setting_runs_again_from_the_trainer_on(namespace: Namespace, small_on_cluster: Release) -> None:
    changed = {"trainer": {**SMALL["trainer"], "seed": 7}}
    release = namespace.install("changed", stored_at("small"), {"run": {"name": "small", **SMALL, **changed}})
    release.complete()
    assert "already done: " in release.logs("labeller")
    for stage in STAGES[1:]:
        assert "published " in release.logs(stage)
    release.uninstall()


def test_three_shards_publish_what_one_pod_would(namespace: Namespace, small_on_cluster: Release) -> None:
    """In a store of its own the sharded run makes everything anew; the ids and bytes are those of the undisturbed run."""
    shared = ("labeller", "evaluator")
    sharded = {"run": {"name": "small", **SMALL}, "stages": {stage: {"shards": 3} for stage in shared}}
    release = namespace.install("shards", stored_at("shards"), sharded)
    release.complete(600)
    for stage in shared:
        pods = release.pods(stage)
        assert len(pods) == 3
        logs = [namespace.kubectl("logs", pod["metadata"]["name"]).stdout for pod in pods]
        assert any("published " in log for log in logs)
        made, whole = release.artifact(stage, "shards"), small_on_cluster.artifact(stage, "small")
        assert (made.id, made.files) == (whole.id, whole.files)
    release.uninstall()
