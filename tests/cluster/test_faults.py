"""What goes wrong on clusters: each ends as the design says, with the message that a person needs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import SMALL, merged

from pocketvlm.artifacts.artifact import Artifact, find
from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.artifacts.run_record import read_record, run_id
from pocketvlm.run_file import read_run_file
from pocketvlm.stages.stage import STAGES

from .conftest import CHART, ROOT, Namespace, Release, stored_at, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

SOON = {"startupTimeoutSeconds": 15, "unschedulableTimeoutSeconds": 10}
LONGER: dict[str, Any] = {
    "trainer": {
        "phases": [{"method": "full", "train": ["vision", "connector", "text"], "epochs": 24, "learning_rate": 0.002}],
        "checkpoint_every_steps": 5,
    },
}
"""A training of half a minute, to be disturbed in its middle."""


def small(name: str, *more: dict[str, Any]) -> dict[str, Any]:
    recipe: dict[str, Any] = {"name": name, **SMALL}
    for block in more:
        recipe |= block
    return {"run": recipe}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The checkpoint that the longer training makes on this machine when nobody disturbs it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    content = merged(yaml.safe_load((ROOT / "jobs/digits.yaml").read_text()), small("longer", LONGER))
    (folder / "run.yaml").write_text(yaml.safe_dump({"run": content["run"]}, sort_keys=False))
    environment = {**os.environ, "POCKETVLM_STORE": str(folder / "store"), "POCKETVLM_SCRATCH": str(folder / "scratch")}
    for stage in ("labeller", "trainer"):
        command = [sys.executable, "-m", "pocketvlm", "stage", stage, str(folder / "run.yaml")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    store = FolderStore(folder / "store")
    record = read_record(store, run_id(read_run_file(folder / "run.yaml").run), "trainer")
    assert record is not None
    found = find(store, record.kind, record.id)
    assert found is not None
    return found


@pytest.fixture
def api_server() -> int:
    """Process id of the API server, where it is a process of this machine."""
    home = Path(os.environ.get("CLUSTER_HOME", Path.home() / ".cache/one-node-cluster"))
    pid_file = home / "run" / "kube-apiserver.pid"
    if not pid_file.exists():
        pytest.skip("this cluster's API server is no process of this machine")
    return int(pid_file.read_text())


def test_a_wrong_image_name_is_told_at_once_and_ends_the_run(namespace: Namespace, small_on_cluster: Release) -> None:
    release = namespace.install(
        "no-image", stored_at("small"), small("small"), {"defaults": SOON, "stages": {"labeller": {"image": {"tag": "nowhere"}}}}
    )
    assert release.finish(90) == "Failed"
    log = release.logs()
    assert "ErrImagePull" in log or "ImagePullBackOff" in log
    assert "pocketvlm-labeller:nowhere" in log
    assert "stages.labeller.image" in log
    assert release.condition("trainer") is None
    release.uninstall()


def test_a_missing_secret_is_named(namespace: Namespace, small_on_cluster: Release) -> None:
    values = {"store": {**stored_at("small")["store"], "existingSecret": "not-there"}, "defaults": SOON}
    release = namespace.install("no-secret", small("small"), values)
    assert release.finish(90) == "Failed"
    assert 'secret "not-there" not found' in release.logs()
    release.uninstall()


def test_a_gpu_that_no_node_has_is_told_with_the_schedulers_reason(namespace: Namespace, small_on_cluster: Release) -> None:
    values = {"defaults": SOON, "stages": {"trainer": {"gpus": 1}}}
    release = namespace.install("no-gpu", stored_at("small"), small("small"), values)
    assert release.finish(120) == "Failed"
    assert "Insufficient nvidia.com/gpu" in release.logs()
    release.uninstall()


def test_a_misspelt_key_is_refused_at_install_with_its_path(namespace: Namespace) -> None:
    path = namespace.values("misspelt", small("small", {"trainer": {**SMALL["trainer"], "bach_size": 4}}))
    done = namespace.helm("install", "misspelt", str(CHART), "-f", str(ROOT / "jobs/digits.yaml"), "-f", str(path), check=False)
    assert done.returncode != 0
    assert "run.trainer" in done.stderr.replace("/", ".")
    assert "bach_size" in done.stderr


def test_a_run_file_that_only_the_stage_can_judge_fails_without_a_retry(namespace: Namespace, small_on_cluster: Release) -> None:
    """`--skip-schema-validation` lets the misspelt key through to the stage, which exits 2."""
    path = namespace.values("bad-key", stored_at("small"), small("small", {"trainer": {**SMALL["trainer"], "bach_size": 4}}))
    namespace.helm("install", "bad-key", str(CHART), "-f", str(ROOT / "jobs/digits.yaml"), "-f", str(path),
                   "--skip-schema-validation")  # fmt: skip
    release = Release(namespace, "bad-key", small_on_cluster.run_file)
    assert release.finish(90) == "Failed"
    assert len(release.pods("labeller")) == 1
    log = release.logs()
    assert "exit code 2" in log
    assert "run.trainer.bach_size" in log
    assert "batch_size" in log
    release.uninstall()


def test_bad_data_fail_without_a_retry(namespace: Namespace, small_on_cluster: Release) -> None:
    few = {"labeller": {"source": {"kind": "digits", "side_px": 32, "limit": 12}}}
    release = namespace.install("bad-data", stored_at("small"), small("bad-data", few))
    assert release.finish(90) == "Failed"
    assert len(release.pods("labeller")) == 1
    assert "exit code 3" in release.logs()
    release.uninstall()


def test_a_gate_that_refuses_leaves_latest_where_it_was(namespace: Namespace, small_on_cluster: Release) -> None:
    store = namespace.store("small")
    before = store.read("releases/small/latest.json")
    strict = {"evaluator": {**SMALL["evaluator"], "gates": {"min_accuracy": 1.0}}}
    release = namespace.install("strict", stored_at("small"), small("small", strict))
    assert release.finish(180) == "Failed"
    log = release.logs()
    assert "exit code 4" in log
    assert "min_accuracy of q8_0" in log
    assert len(release.pods("evaluator")) == 1
    assert store.read("releases/small/latest.json") == before
    release.uninstall()


def test_a_trainer_and_a_store_that_go_away_in_the_middle_change_no_byte(
    namespace: Namespace, small_on_cluster: Release, undisturbed: Artifact
) -> None:
    """The trainer's pod is deleted after its first checkpoint, the object store's while the second pod goes on."""
    release = namespace.install("disturbed", stored_at("disturbed"), small("longer", LONGER))
    pod = release.running("trainer")["metadata"]["name"]
    store = namespace.store("disturbed")
    wait_for("a step checkpoint",
             lambda: [stored for stored in store.list("partial/checkpoints/")
                      if stored.key.endswith("step.json")] or None, 120, on_failure=release.logs)  # fmt: skip
    namespace.kubectl("delete", "pod", pod, "--wait=true")
    release.running("trainer")
    release.line("trainer", "going on after step")
    namespace.kubectl("delete", "pod", "object-store-0", "--grace-period=0", "--force")
    wait_for("the end of the training", lambda: release.condition("trainer"), 300, on_failure=release.logs)
    assert release.condition("trainer") == "Complete", release.logs()
    made = release.artifact("trainer", "disturbed")
    assert (made.id, made.files) == (undisturbed.id, undisturbed.files)
    release.uninstall()


def test_a_conductor_deleted_three_times_and_an_api_server_away_for_20_seconds_are_outlived(
    namespace: Namespace, small_on_cluster: Release, api_server: int
) -> None:
    """The API server is stopped, not ended: its connections stay half open, which hangs a client without timeouts."""
    release = namespace.install("headless", stored_at("headless"), small("small"))
    for stage in STAGES[:3]:
        release.running(stage)
        pod = release.running("conductor")["metadata"]["name"]
        namespace.kubectl("delete", "pod", pod, "--grace-period=1", "--wait=true")
    release.running("quantiser")
    os.kill(api_server, signal.SIGSTOP)
    try:
        time.sleep(20)
    finally:
        os.kill(api_server, signal.SIGCONT)
    release.complete()
    assert [release.condition(stage) for stage in STAGES] == ["Complete"] * 5
    assert [len(release.pods(stage)) for stage in STAGES] == [1] * 5
    release.uninstall()


def test_a_stage_job_deleted_by_hand_is_an_error_that_says_so(namespace: Namespace, small_on_cluster: Release) -> None:
    release = namespace.install("deleted", stored_at("deleted"), small("small"))
    release.running("trainer")
    namespace.kubectl("delete", "job", "deleted-merger")
    assert release.finish(120) == "Failed"
    log = release.logs()
    assert "deleted-merger" in log
    assert "helm uninstall deleted" in log
    release.uninstall()


def test_a_queued_stage_stays_suspended_and_only_its_gate_goes(namespace: Namespace, small_on_cluster: Release) -> None:
    """Without Kueue nobody admits it: what is to be seen is that the conductor leaves `suspend` to the queue."""
    release = namespace.install("queued", stored_at("small"), small("small"), {"kueue": {"queueName": "gpus"}})
    gate = "kueue.x-k8s.io/admission-gated-by"
    wait_for("the gate of the labeller to go",
             lambda: True if gate not in release.job("labeller")["metadata"].get("annotations", {}) else None, 60,
             on_failure=release.logs)  # fmt: skip
    time.sleep(5)
    assert release.job("labeller")["spec"]["suspend"] is True
    assert gate in release.job("trainer")["metadata"]["annotations"]
    assert release.condition("conductor") is None
    release.uninstall()


def test_an_upgrade_is_refused_with_the_way_out(small_on_cluster: Release) -> None:
    namespace = small_on_cluster.namespace
    path = namespace.values("small", stored_at("small"), small("small"))
    done = namespace.helm("upgrade", "small", str(CHART), "-f", str(ROOT / "jobs/digits.yaml"), "-f", str(path), check=False)
    assert done.returncode != 0
    assert "helm uninstall small" in done.stderr
