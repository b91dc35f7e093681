"""Kubernetes objects as the API server gives them, in the shapes that tests need. Times are seconds after T0."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

from pocketvlm.cluster.conductor import Patience
from pocketvlm.cluster.objects import Snapshot, read_job, read_pod
from pocketvlm.cluster.plan import ConductorPlan

STAGES = ("labeller", "trainer", "merger", "quantiser", "evaluator")
GATE = "pocketvlm.dev/conductor"
GATES = "kueue.x-k8s.io/admission-gated-by"
T0 = datetime(2026, 11, 21, 10, tzinfo=UTC).timestamp()

Raw = dict[str, Any]

SHORT = Patience(away_s=5, rights_s=0.1, lost_rights_s=0.1, arrival_s=0.6, absence_s=0.2, longest_pause_s=0.1, settle_s=0.01)
"""So that no test waits long for what a conductor gives up."""


def at(seconds: float) -> str:
    return datetime.fromtimestamp(T0 + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def plan_json(release: str = "digits", stages: tuple[str, ...] = STAGES) -> Raw:
    """conductor.json as the chart writes it."""
    return {
        "release": release,
        "namespace": "demo",
        "run": "digits",
        "stages": [
            {"name": name, "job": f"{release}-{name}", "startup_timeout_s": 600, "unschedulable_timeout_s": 1800}
            for name in stages
        ],
        "metrics": {"port": 0, "linger_s": 0},
        "gate": GATE,
    }


def release_plan(release: str = "digits", stages: tuple[str, ...] = STAGES) -> ConductorPlan:
    return ConductorPlan.model_validate(plan_json(release, stages))


def job(stage: str, *, release: str = "digits", gates: str | None = GATE, queue: str | None = None, suspend: bool = True,
        suspender: str = "helm") -> Raw:  # fmt: skip
    """A stage's Job as the chart makes it: suspended, with our gate."""
    name = f"{release}-{stage}"
    labels = {"app.kubernetes.io/name": "pocketvlm", "app.kubernetes.io/instance": release, "app.kubernetes.io/component": stage}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": "demo",
            "uid": f"uid-{name}",
            "resourceVersion": "1",
            "creationTimestamp": at(0),
            "labels": labels | ({"kueue.x-k8s.io/queue-name": queue} if queue else {}),
            "annotations": {} if gates is None else {GATES: gates},
            "managedFields": [
                {"manager": suspender, "operation": "Update", "time": at(0), "fieldsV1": {"f:spec": {"f:suspend": {}}}},
                {"manager": "kube-controller-manager", "subresource": "status", "time": at(9), "fieldsV1": {"f:status": {}}},
            ],
        },
        "spec": {"suspend": suspend, "activeDeadlineSeconds": 86400, "backoffLimit": 3},
        "status": {"conditions": [{"type": "Suspended", "status": "True", "reason": "JobSuspended"}]} if suspend else {},
    }


def released(stage: str, *, started: float = 0, **options: Any) -> Raw:
    """A Job after its release, as the Job controller knows it."""
    raw = job(stage, gates=None, suspend=False, **options)
    raw["status"] = {"startTime": at(started), "conditions": [{"type": "Suspended", "status": "False"}]}
    return raw


def complete(stage: str, *, started: float = 0, ended: float = 60, **options: Any) -> Raw:
    raw = released(stage, started=started, **options)
    raw["status"] |= {"succeeded": 1, "completionTime": at(ended), "conditions": [
        {"type": "SuccessCriteriaMet", "status": "True", "lastTransitionTime": at(ended)},
        {"type": "Complete", "status": "True", "lastTransitionTime": at(ended)},
    ]}  # fmt: skip
    return raw


def failed(stage: str, reason: str, message: str = "", *, started: float = 0, ended: float = 60, count: int = 1) -> Raw:
    raw = released(stage, started=started)
    said = {"status": "True", "reason": reason, "message": message, "lastTransitionTime": at(ended)}
    raw["status"] |= {"failed": count, "conditions": [{"type": "FailureTarget"} | said, {"type": "Failed"} | said]}
    return raw


def failing(stage: str, reason: str) -> Raw:
    """Kubernetes has decided that it fails and waits for its pods to end."""
    raw = failed(stage, reason)
    raw["status"]["conditions"].pop()
    return raw


def pod(
    of: Raw,
    suffix: str = "x7k2p",
    *,
    phase: str = "Pending",
    created: float = 0,
    node: str = "node-1",
    state: Raw | None = None,
    init_state: Raw | None = None,
    sandbox: bool = True,
    volumes: list[Raw] | None = None,
    requests: Raw | None = None,
    leave_by: float | None = None,
    image: str = "localhost:5000/pocketvlm-trainer:dev",
) -> Raw:
    """A pod of a Job. `state`: of its only container, as in containerStatuses; `init_state`: of an init container."""
    stage = of["metadata"]["labels"]["app.kubernetes.io/component"]
    name = f"{of['metadata']['name']}-{suffix}"
    labels = {"batch.kubernetes.io/job-name": of["metadata"]["name"], "batch.kubernetes.io/controller-uid": of["metadata"]["uid"]}
    placed = {"type": "PodScheduled", "status": "True", "lastTransitionTime": at(created)}
    resources = {"requests": requests or {"cpu": "1"}, "limits": {"memory": "8Gi"} | (requests or {})}
    raw: Raw = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "demo",
            "uid": f"uid-{name}",
            "resourceVersion": "1",
            "creationTimestamp": at(created),
            "labels": of["metadata"]["labels"] | labels,
        },
        "spec": {"containers": [{"name": stage, "image": image, "resources": resources}], "volumes": volumes or []},
        "status": {
            "phase": phase,
            "conditions": [{"type": "PodReadyToStartContainers", "status": str(sandbox)}, *([placed] if node else [])],
            "containerStatuses": [{"name": stage, "state": state or {"waiting": {"reason": "ContainerCreating"}}}],
        },
    }
    if node:
        raw["spec"]["nodeName"] = node
    if leave_by is not None:
        raw["metadata"]["deletionTimestamp"] = at(leave_by)
    if init_state is not None:
        raw["spec"]["initContainers"] = [{"name": "bucket", "image": "localhost:5000/pocketvlm-labeller:dev"}]
        raw["status"]["initContainerStatuses"] = [{"name": "bucket", "state": init_state}]
    return raw


def running(of: Raw, suffix: str = "x7k2p", **options: Any) -> Raw:
    return pod(of, suffix, phase="Running", state={"running": {"startedAt": at(1)}}, **options)


def waiting(reason: str, message: str = "") -> Raw:
    return {"waiting": {"reason": reason, "message": message}}


def ended(of: Raw, code: int, message: str = "", *, reason: str = "Error", at_s: float = 60, **options: Any) -> Raw:
    """A pod whose container has ended with this exit code and this termination message."""
    told = {"exitCode": code, "reason": reason if code else "Completed", "message": message, "finishedAt": at(at_s)}
    return pod(of, phase="Failed" if code else "Succeeded", state={"terminated": told}, **options)


def homeless(of: Raw, message: str, suffix: str = "x7k2p", **options: Any) -> Raw:
    """A pod for which the scheduler finds no node."""
    raw = pod(of, suffix, node="", sandbox=False, **options)
    raw["status"]["conditions"].append(
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
         "lastTransitionTime": raw["metadata"]["creationTimestamp"]}
    )  # fmt: skip
    raw["status"].pop("containerStatuses")
    return raw


def chain(*first: Raw, release: str = "digits") -> list[Raw]:
    """These Jobs, and suspended ones for the stages that are not among them."""
    there = {one["metadata"]["labels"]["app.kubernetes.io/component"] for one in first}
    return [*map(copy.deepcopy, first), *(job(stage, release=release) for stage in STAGES if stage not in there)]


def snapshot(
    jobs: list[Raw], pods: list[Raw] | None = None, *, now: float = 60, events: dict[str, str] | None = None
) -> Snapshot:
    found = [read_job(one) for one in jobs]
    return Snapshot(T0 + now, {one.name: one for one in found}, tuple(read_pod(one) for one in pods or []), events or {})
