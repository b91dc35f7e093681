"""A real cluster for tests: the one that KUBECONFIG names, with the images in its registry.

Skipped with the reason where either is missing; where POCKETVLM_TEST_CLUSTER=required, as `.ci/run` sets it, missing fails.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest
import yaml
from pydantic import SecretStr
from runs import FULL, SMALL, merged

from pocketvlm.artifacts.artifact import Artifact, find
from pocketvlm.artifacts.run_record import read_record, run_id
from pocketvlm.artifacts.s3 import S3Store
from pocketvlm.run_file import RunFile, read_run_file
from pocketvlm.stages.stage import STAGES

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "pocketvlm"
REGISTRY, TAG = "localhost:5000", os.environ.get("POCKETVLM_TEST_TAG", "dev")
BUCKET = "pocketvlm"
HERE: dict[str, Any] = {
    "image": {"registry": REGISTRY, "tag": TAG, "pullPolicy": "Always"},
    "defaults": {
        "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"cpu": "2", "memory": "6Gi"}},
        "startupTimeoutSeconds": 300, "workSize": "5Gi",
    },
    "stages": {name: {"resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"cpu": "2", "memory": "6Gi"}}}
               for name in ("trainer", "evaluator")},
}  # fmt: skip
"""What every release of these tests sets: a node of two cores, which they share, and images whose tag moves."""
OBJECT_STORE: dict[str, Any] = {
    "objectStore": {
        "enabled": True, "developmentCredentials": True,
        "image": {"repository": f"{REGISTRY}/minio", "tag": "dev", "digest": ""}, "persistence": {"size": "5Gi"},
    },
}  # fmt: skip
DIGITS: dict[str, Any] = {} if FULL else {"run": SMALL}
"""What the demo is cut by: its training takes five minutes on two cores, and runs whole on this machine in tests/chain."""
FIGURES: dict[str, Any] = {}


@dataclass(frozen=True)
class Namespace:
    """A namespace that enforces Pod Security `restricted`, and what a person does in it."""

    name: str
    folder: Path

    def kubectl(self, *arguments: str, check: bool = True, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        command = ["kubectl", "--namespace", self.name, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done

    def get(self, kind: str, name: str | None = None, selector: str | None = None) -> dict[str, Any]:
        chosen = [name] if name else ["--selector", selector] if selector else []
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, *chosen, "--output", "json").stdout)
        return found

    def helm(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = ["helm", "--namespace", self.name, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done

    def values(self, release: str, *values: dict[str, Any]) -> Path:
        path = self.folder / f"{release}-{uuid.uuid4().hex[:6]}.yaml"
        path.write_text(yaml.safe_dump(merged(HERE, *values), sort_keys=False))
        return path

    def install(self, release: str, *values: dict[str, Any], job: str = "digits", check: bool = True) -> Release:
        """`helm install RELEASE charts/pocketvlm -f jobs/JOB.yaml -f ...`."""
        path = self.values(release, *values)
        jobs = ROOT / "jobs" / f"{job}.yaml"
        self.helm("install", release, str(CHART), "-f", str(jobs), "-f", str(path), check=check)
        recipe = self.folder / f"{path.stem}-run.yaml"
        recipe.write_text(yaml.safe_dump({"run": merged(yaml.safe_load(jobs.read_text()), *values)["run"]}, sort_keys=False))
        return Release(self, release, read_run_file(recipe))

    def store(self, prefix: str = "") -> S3Store:
        """The namespace's object store, from outside of any pod: this machine is the node."""
        address = self.get("service", "object-store")["spec"]["clusterIP"]
        keys = {"access_key_id": SecretStr("pocketvlm"), "secret_access_key": SecretStr("pocketvlm-development")}
        url = f"s3://{BUCKET}/{prefix}" if prefix else f"s3://{BUCKET}"
        return S3Store(url, endpoint_url=f"http://{address}:9000", **keys)


@dataclass(frozen=True)
class Release:
    """One run on the cluster."""

    namespace: Namespace
    name: str
    run_file: RunFile

    def job(self, component: str) -> dict[str, Any]:
        return self.namespace.get("job", f"{self.name}-{component}")

    def condition(self, component: str) -> str | None:
        """`Complete` or `Failed`; None before."""
        for condition in self.job(component)["status"].get("conditions", []):
            if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
                return str(condition["type"])
        return None

    def finish(self, timeout_s: float = 300) -> str:
        """Waits for the conductor; returns its condition."""
        wait_for(f"the end of {self.name}", lambda: self.condition("conductor"), timeout_s, on_failure=self.logs)
        return str(self.condition("conductor"))

    def complete(self, timeout_s: float = 300) -> None:
        """The same, and it must be Complete."""
        assert self.finish(timeout_s) == "Complete", self.logs()

    def logs(self, component: str = "conductor") -> str:
        """Of all the component's pods, the newest last."""
        pods = self.pods(component)
        pods.sort(key=lambda pod: pod["metadata"]["creationTimestamp"])
        names = [pod["metadata"]["name"] for pod in pods]
        return "\n".join(self.namespace.kubectl("logs", name, check=False).stdout for name in names)

    def pods(self, component: str) -> list[dict[str, Any]]:
        selector = f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component={component}"
        found: list[dict[str, Any]] = self.namespace.get("pods", selector=selector)["items"]
        return found

    def running(self, component: str, timeout_s: float = 120) -> dict[str, Any]:
        """The component's running pod, as soon as there is one."""

        def look() -> dict[str, Any] | None:
            ready = [pod for pod in self.pods(component) if pod["status"].get("phase") == "Running"
                     and "deletionTimestamp" not in pod["metadata"]]  # fmt: skip
            return ready[0] if ready else None

        return wait_for(f"a running {component} of {self.name}", look, timeout_s, on_failure=self.logs)

    def line(self, component: str, text: str, timeout_s: float = 120) -> None:
        """Waits for a line in the component's log."""
        wait_for(f"{text!r} in the log of {self.name}-{component}", lambda: text in self.logs(component) or None, timeout_s,
                 on_failure=lambda: self.logs(component))  # fmt: skip

    def uninstall(self) -> None:
        self.namespace.helm("uninstall", self.name, "--wait", "--timeout", "2m")

    def artifact(self, stage: str, prefix: str = "") -> Artifact:
        """What the stage's record in the store says that it made or found."""
        store = self.namespace.store(prefix)
        record = read_record(store, run_id(self.run_file.run), stage)
        assert record is not None, f"no record of the {stage}"
        artifact = find(store, record.kind, record.id)
        assert artifact is not None
        return artifact

    def seconds(self) -> dict[str, float]:
        """Wall time of each stage's Job, and of the pauses between the end of one and the first container of the next."""
        spent: dict[str, float] = {}
        before: datetime | None = None
        for stage in STAGES:
            status = self.job(stage)["status"]
            started, ended = moment(status["startTime"]), moment(status["completionTime"])
            spent[stage] = (ended - started).total_seconds()
            if before is not None:
                spent[f"pause before {stage}"] = (started - before).total_seconds()
            before = ended
        return spent


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def wait_for(what: str, look: Callable[[], T | None], timeout_s: float, *, on_failure: Callable[[], str]) -> T:
    """What `look` finds. Fails at the timeout, with what `on_failure` says."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = look()
        if found is not None:
            return found
        time.sleep(0.5)
    pytest.fail(f"waited {timeout_s:.0f} s in vain for {what}\n{on_failure()}")


def missing(reason: str) -> NoReturn:
    if os.environ.get("POCKETVLM_TEST_CLUSTER") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def cluster() -> None:
    """The real one-node cluster answers, and its registry has our images."""
    for program in ("kubectl", "helm"):
        if shutil.which(program) is None:
            missing(f"no cluster: {program} is not on PATH")
    if subprocess.run(["kubectl", "get", "--raw", "/readyz"], capture_output=True).returncode:
        missing("no cluster answers at KUBECONFIG")
    for name, tag in [*((f"pocketvlm-{component}", TAG) for component in (*STAGES, "conductor")), ("minio", "dev")]:
        url = f"http://{REGISTRY}/v2/{name}/manifests/{tag}"
        accept = "Accept: application/vnd.oci.image.manifest.v1+json,application/vnd.docker.distribution.manifest.v2+json"
        if subprocess.run(["curl", "-sfI", "-H", accept, url], capture_output=True).returncode:
            missing(f"the cluster's registry has no {name}:{tag}; make images push-images BUILDER=buildah TAG={TAG}")


@pytest.fixture(scope="session")
def new_namespace(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Namespace]]:
    """`new_namespace(name)`: enforces `restricted`; deleted at the end."""
    made: list[str] = []

    def make(name: str) -> Namespace:
        full = f"{name}-{uuid.uuid4().hex[:6]}"
        subprocess.run(["kubectl", "create", "namespace", full], check=True, capture_output=True)
        made.append(full)
        label = "pod-security.kubernetes.io/enforce=restricted"
        subprocess.run(["kubectl", "label", "namespace", full, label], check=True, capture_output=True)
        return Namespace(full, tmp_path_factory.mktemp(name))

    yield make
    for name in made:
        subprocess.run(["kubectl", "delete", "namespace", name, "--wait=false"], capture_output=True)


@pytest.fixture(scope="session")
def namespace(new_namespace: Callable[[str], Namespace]) -> Namespace:
    """One for most tests, with an object store that the release `small` brings."""
    return new_namespace("small")


@pytest.fixture(scope="session")
def digits_on_cluster(new_namespace: Callable[[str], Namespace], figures: dict[str, Any]) -> Release:
    """`helm install digits charts/pocketvlm -f jobs/digits.yaml -f ...`, with MinIO in the chart, run to its end."""
    namespace = new_namespace("digits")
    clock = time.monotonic()
    release = namespace.install("digits", OBJECT_STORE, DIGITS)
    done = namespace.kubectl("wait", "--for=condition=Complete", "job/digits-conductor", "--timeout=1200s", check=False,
                             timeout_s=1260)  # fmt: skip
    assert done.returncode == 0, release.logs()
    figures["digits, from install to release, s"] = round(time.monotonic() - clock, 1)
    return release


@pytest.fixture(scope="session")
def digits_here(request: pytest.FixtureRequest) -> Any:
    """The same run on this machine."""
    return request.getfixturevalue("digits" if FULL else "small")


@pytest.fixture(scope="session")
def small_on_cluster(namespace: Namespace) -> Release:
    """A run of seconds, undisturbed. Its store and those of others lie side by side in one bucket."""
    release = namespace.install("small", OBJECT_STORE, stored_at("small"), {"run": {"name": "small", **SMALL}})
    release.complete(600)
    return release


def stored_at(prefix: str) -> dict[str, Any]:
    """Values of a release that keeps to itself in the namespace's object store."""
    return {"store": {"url": f"s3://{BUCKET}/{prefix}", "endpoint": "http://object-store:9000"}}


@pytest.fixture(scope="session")
def figures() -> dict[str, Any]:
    """What tests measured; printed at the end of the session."""
    return FIGURES


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name, value in FIGURES.items():
        terminalreporter.write_line(f"cluster: {name}: {value}")
