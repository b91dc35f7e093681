"""jobs/elements.yaml on the cluster, its servers in a pod beside it: from COCO's layout and a teacher to a released pair."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_teacher import KEY
from runs import NO_GPU, elements

from pocketvlm.artifacts.dataset import SPLITS, read_split

from .conftest import REGISTRY, ROOT, TAG, Namespace, Release, stored_at, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

TESTS = ROOT / "tests"
SCRIPTS = [*sorted((TESTS / "teacher").glob("fake_*.py")),
           *(TESTS / "sources" / name for name in ("fixture_http.py", "serve_coco.py"))]  # fmt: skip
COCO_PORT, TEACHER_PORT = 8001, 8002


def container(name: str, port: int, *arguments: str) -> dict[str, Any]:
    """A server of ours on the labeller's image, which has Pillow."""
    return {
        "name": name, "image": f"{REGISTRY}/pocketvlm-labeller:{TAG}", "imagePullPolicy": "Always",
        "command": ["python", f"/servers/{arguments[0]}"],
        "args": ["--host", "0.0.0.0", "--port", str(port), *arguments[1:]],
        "ports": [{"containerPort": port}],
        "volumeMounts": [{"name": "servers", "mountPath": "/servers"}],
        "resources": {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
    }  # fmt: skip


@pytest.fixture
def servers(namespace: Namespace) -> dict[str, Any]:
    """COCO and a teacher behind the Service `servers`; the source's settings for a run file."""
    namespace.kubectl("create", "configmap", "servers", *(f"--from-file={path}" for path in SCRIPTS))
    namespace.kubectl("create", "secret", "generic", "services", f"--from-literal=openai={KEY}")
    pod = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "servers", "labels": {"app": "servers"}},
        "spec": {
            "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
            "automountServiceAccountToken": False, "terminationGracePeriodSeconds": 1,
            "containers": [
                container("coco", COCO_PORT, "serve_coco.py", "--images", "1000", "--reached-as", "servers"),
                container("teacher", TEACHER_PORT, "fake_teacher.py", "--latency", "0.05"),
            ],
            "volumes": [{"name": "servers", "configMap": {"name": "servers"}}],
        },
    }  # fmt: skip
    ports = [{"name": f"port-{port}", "port": port} for port in (COCO_PORT, TEACHER_PORT)]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "servers"},
               "spec": {"selector": {"app": "servers"}, "ports": ports}}  # fmt: skip
    path = namespace.folder / "servers.yaml"
    path.write_text(yaml.safe_dump_all([pod, service]))
    namespace.kubectl("apply", "--filename", str(path))

    def said() -> dict[str, Any] | None:
        lines = namespace.kubectl("logs", "servers", "--container", "coco", check=False).stdout.splitlines()
        return json.loads(lines[1]) if len(lines) > 1 else None

    def events() -> str:
        return namespace.kubectl("describe", "pod", "servers", check=False).stdout

    found = wait_for("the servers", said, 120, on_failure=events)
    namespace.kubectl("wait", "--for=condition=Ready", "pod/servers", "--timeout=60s")
    return found


def test_photographs_and_a_teacher_end_as_a_released_pair(
    namespace: Namespace, small_on_cluster: Release, servers: dict[str, Any], tmp_path: Path
) -> None:
    """`small_on_cluster` brings the object store."""
    run = {"run": elements(servers, f"http://servers:{TEACHER_PORT}/v1")}
    keys = {"keys": {"existingSecret": "services", "teacherKey": "openai"}}
    release = namespace.install("elements", stored_at("elements"), run, NO_GPU, keys, job="elements")
    release.complete(600)
    folder = release.artifact("labeller", "elements").fetch(tmp_path / "dataset")
    labels = Counter(example.label for split in SPLITS for example in read_split(folder, split))
    assert labels == dict.fromkeys(["water", "land", "fire", "wood", "metal"], 8)
    store = namespace.store("elements")
    latest = json.loads(store.read("releases/elements/latest.json"))
    names = {stored.key.rsplit("/", 1)[1] for stored in store.list(f"releases/elements/{latest['version']}/")}
    assert sum(name.endswith(".gguf") for name in names) == 2
    for component in ("labeller", "conductor"):
        assert KEY not in release.logs(component)
    release.uninstall()
