"""Jobs, pods and Events, cut down to what the conductor looks at. Times are seconds since 1970 on the cluster's clock.

They are read from plain JSON, so that a field of a newer API server is no error and a table of a test is what
`kubectl get -o json` prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

GATES = "kueue.x-k8s.io/admission-gated-by"
"""Annotation: who holds a Job back, comma-separated. Settable at creation only, afterwards only removable."""
QUEUE = "kueue.x-k8s.io/queue-name"
"""Label: the queue that admits a Job; whoever set it, spec.suspend then belongs to Kueue."""
JOB_NAME = "batch.kubernetes.io/job-name"
JOB_UID = "batch.kubernetes.io/controller-uid"
"""Labels that the Job controller puts on each pod. The uid tells a Job from one of the same name before it."""

Raw = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """A batch/v1 Job."""

    name: str
    uid: str
    version: str
    """resourceVersion."""
    suspended: bool
    gates: tuple[str, ...]
    queue: str | None
    condition: str
    """`Complete`, `Failed` or nothing. `FailureTarget` and `SuccessCriteriaMet` come while pods still end."""
    reason: str
    message: str
    failing: bool
    """Kubernetes has decided that it fails, and waits for its pods to end."""
    started: float | None
    ended: float | None
    failed: int
    """Pods that failed and count."""
    failed_shards: str
    """Of an Indexed Job, such as `1,3-5`."""
    deadline_s: int | None
    suspender: str
    """Who last set spec.suspend, from managedFields."""
    leaving: bool
    """Somebody has deleted it."""


@dataclass(frozen=True)
class Container:
    """A container of a pod, with what its last state says."""

    name: str
    init: bool
    image: str
    waiting: str
    """Reason for which it is not started."""
    waiting_message: str
    running: bool
    exit_code: int | None
    ended_reason: str
    ended_message: str
    """The termination message: with FallbackToLogsOnError the end of its log."""
    ended: float | None
    limits: Mapping[str, str]
    requests: Mapping[str, str]


@dataclass(frozen=True)
class Pod:
    """A pod of a stage."""

    name: str
    uid: str
    job_uid: str
    phase: str
    created: float
    leave_by: float | None
    """When it should be gone, once deleted."""
    node: str
    place_reason: str
    """Why it has no node."""
    place_message: str
    placed: float | None
    """When it got a node, or when the scheduler last said that there is none."""
    sandbox: bool | None
    """Its volumes are mounted and its network is there; None on a kubelet that does not say."""
    reason: str
    message: str
    mounts: tuple[str, ...]
    """Secrets, ConfigMaps and claims without which it does not start."""
    containers: tuple[Container, ...] = field(default=())

    @property
    def ended(self) -> float:
        """When its last container ended, or when it was made."""
        return max((one.ended for one in self.containers if one.ended is not None), default=self.created)

    @property
    def broken(self) -> Container | None:
        """The container that ended with an error."""
        return next((one for one in self.containers if one.exit_code), None)


@dataclass(frozen=True)
class Snapshot:
    """All that the conductor knows of the cluster at one moment."""

    now: float
    jobs: Mapping[str, Job]
    pods: tuple[Pod, ...]
    events: Mapping[str, str] = field(default_factory=dict)
    """uid of a pod or Job -> its newest warning, where one was asked for."""

    def pods_of(self, job: Job) -> tuple[Pod, ...]:
        """Pods of a Job, oldest first; not those of a Job of the same name that was there before."""
        own = (pod for pod in self.pods if pod.job_uid == job.uid)
        return tuple(sorted(own, key=lambda pod: (pod.created, pod.name)))


def seconds(text: str | None) -> float | None:
    """Seconds since 1970 of a Kubernetes time."""
    return datetime.fromisoformat(text).timestamp() if text else None


def read_job(raw: Raw) -> Job:
    """A Job from the API's JSON."""
    meta, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    annotations, labels = meta.get("annotations") or {}, meta.get("labels") or {}
    conditions = {one["type"]: one for one in status.get("conditions") or () if one.get("status") == "True"}
    condition = next((name for name in ("Complete", "Failed") if name in conditions), "")
    said = conditions.get(condition) or conditions.get("FailureTarget") or {}
    ended = status.get("completionTime") or (said.get("lastTransitionTime") if condition else None)
    return Job(
        name=meta["name"],
        uid=meta.get("uid", ""),
        version=meta.get("resourceVersion", ""),
        suspended=bool(spec.get("suspend")),
        gates=tuple(gate.strip() for gate in annotations.get(GATES, "").split(",") if gate.strip()),
        queue=labels.get(QUEUE),
        condition=condition,
        reason=said.get("reason", ""),
        message=said.get("message", ""),
        failing="FailureTarget" in conditions,
        started=seconds(status.get("startTime")),
        ended=seconds(ended),
        failed=int(status.get("failed") or 0),
        failed_shards=str(status.get("failedIndexes") or ""),
        deadline_s=spec.get("activeDeadlineSeconds"),
        suspender=_who_set_suspend(meta.get("managedFields") or ()),
        leaving=bool(meta.get("deletionTimestamp")),
    )


def _who_set_suspend(managed: Iterable[Raw]) -> str:
    owners = [one for one in managed if "f:suspend" in ((one.get("fieldsV1") or {}).get("f:spec") or {})]
    return str(max(owners, key=lambda one: str(one.get("time", ""))).get("manager", "")) if owners else ""


def read_pod(raw: Raw) -> Pod:
    """A pod from the API's JSON."""
    meta, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    conditions = {one["type"]: one for one in status.get("conditions") or ()}
    placed = conditions.get("PodScheduled") or {}
    sandbox = conditions.get("PodReadyToStartContainers")
    homeless = placed.get("status") == "False"
    return Pod(
        name=meta["name"],
        uid=meta.get("uid", ""),
        job_uid=(meta.get("labels") or {}).get(JOB_UID, ""),
        phase=status.get("phase", "Pending"),
        created=seconds(meta.get("creationTimestamp")) or 0.0,
        leave_by=seconds(meta.get("deletionTimestamp")),
        node=spec.get("nodeName", ""),
        place_reason=placed.get("reason", "") if homeless else "",
        place_message=placed.get("message", "") if homeless else "",
        placed=seconds(placed.get("lastTransitionTime")),
        sandbox=None if sandbox is None else sandbox.get("status") == "True",
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        mounts=tuple(_mounts(spec.get("volumes") or ())),
        containers=tuple(_containers(spec, status)),
    )


def _mounts(volumes: Iterable[Raw]) -> Iterable[str]:
    for volume in volumes:
        parts = [volume, *((volume.get("projected") or {}).get("sources") or ())]
        for part in parts:
            for key, kind, name in (("secret", "Secret", "secretName"), ("configMap", "ConfigMap", "name"),
                                    ("persistentVolumeClaim", "PersistentVolumeClaim", "claimName")):  # fmt: skip
                block = part.get(key) or {}
                found = block.get(name) or block.get("name")
                if found and not block.get("optional") and found != "kube-root-ca.crt":
                    yield f"{kind} {found}"


def _containers(spec: Raw, status: Raw) -> Iterable[Container]:
    for init, key in ((True, "initContainers"), (False, "containers")):
        states = {one["name"]: one for one in status.get(f"{'initC' if init else 'c'}ontainerStatuses") or ()}
        for one in spec.get(key) or ():
            state = (states.get(one["name"]) or {}).get("state") or {}
            waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
            resources = one.get("resources") or {}
            yield Container(
                name=one["name"],
                init=init,
                image=one.get("image", ""),
                waiting=waiting.get("reason", ""),
                waiting_message=waiting.get("message", ""),
                running="running" in state,
                exit_code=ended.get("exitCode"),
                ended_reason=ended.get("reason", ""),
                ended_message=ended.get("message", ""),
                ended=seconds(ended.get("finishedAt")),
                limits=resources.get("limits") or {},
                requests=resources.get("requests") or {},
            )
