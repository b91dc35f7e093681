"""Why a stage that should run does not: read off its pods.

None of this ever fails a Job by itself (kubernetes#122300): a pod that cannot pull its image stays Pending for good.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pocketvlm.cluster.objects import Container, Job, Pod
from pocketvlm.cluster.plan import StagePlan
from pocketvlm.cluster.words import Commands, value

IMAGE_REASONS = frozenset({
    "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError",
    "RegistryUnavailable", "SignatureValidationFailed",
})  # fmt: skip
QUIET_REASONS = frozenset({"", "ContainerCreating", "PodInitializing"})
"""Waiting reasons of a start that goes as it should."""
KINDS = {"secret": "Secret", "configmap": "ConfigMap", "config": "ConfigMap", "persistentvolumeclaim": "PersistentVolumeClaim"}

PLACE_PATIENCE_S = 3.0
"""A place that is just being freed, or a volume that is just being made, is no news."""
MOUNT_PATIENCE_S = 5.0
"""A kubelet that has not fetched a new ConfigMap yet warns once and goes on."""
SANDBOX_PATIENCE_S = 30.0
"""Mounts and network take about a second. Without the right to list Events this is how their absence shows."""
POD_PATIENCE_S = 15.0
LEAVE_PATIENCE_S = 60.0
HEALS = "its pod then starts by itself within two minutes"
LARGE = "nothing, if it is large or its registry is slow: the run goes on"
AS_SAID = "see what Kubernetes says about it"


@dataclass(frozen=True)
class Trouble:
    """One thing that keeps a stage from running."""

    reason: str
    """Kubernetes' word for it."""
    what: str
    says: str
    """Kubernetes' own sentence."""
    to_do: str
    more: str
    """The command that shows more."""
    heals: str = ""
    """What happens by itself once that is done, while the conductor is there."""
    pod: str = ""
    since: float = 0.0
    limit_s: float | None = None
    """How long it may last before the run fails; None: it is told and never a verdict."""
    limit_name: str = ""

    @property
    def deadline(self) -> float | None:
        """When the run fails if nothing changes."""
        return None if self.limit_s is None else self.since + self.limit_s


@dataclass(frozen=True)
class Case:
    """A Job that should run, and what is known of it."""

    stage: StagePlan
    job: Job
    pods: tuple[Pod, ...]
    events: Mapping[str, str]
    now: float
    commands: Commands
    gate: str
    """Our name in the annotation that holds the Job back."""

    def value(self, key: str) -> str:
        """Path of a chart value of this stage."""
        return value(self.stage.name, key)


def find_troubles(case: Case) -> list[Trouble]:
    """What is wrong with the pods of a Job that should run; what ends the run first comes first."""
    found = [trouble for pod in case.pods for trouble in _of_pod(case, pod)]
    if not case.pods and not case.job.failing and case.now - (case.job.started or case.now) > POD_PATIENCE_S:
        found.append(_no_pod(case))
    return sorted(found, key=lambda one: (one.deadline is None, one.deadline or 0.0, one.pod))


def _of_pod(case: Case, pod: Pod) -> Iterator[Trouble]:
    if pod.leave_by is not None:
        if case.now - pod.leave_by > LEAVE_PATIENCE_S and pod.phase in ("Pending", "Running"):
            yield _cannot_leave(case, pod)
    elif pod.phase == "Pending" and pod.place_reason != "SchedulingGated":
        yield from _without_node(case, pod) if not pod.node else _on_node(case, pod)


def _on_node(case: Case, pod: Pod) -> Iterator[Trouble]:
    waiting = next((one for one in pod.containers if one.waiting not in QUIET_REASONS), None)
    event, since = case.events.get(pod.uid, ""), case.now - _placed(pod)
    if waiting:
        yield _waiting(case, pod, waiting)
    elif any(one.running for one in pod.containers):
        return
    elif not pod.sandbox and since > (MOUNT_PATIENCE_S if event else SANDBOX_PATIENCE_S):
        yield _no_sandbox(case, pod, event)
    elif since > case.stage.startup_timeout_s:
        images = ", ".join(one.image for one in pod.containers)
        yield Trouble("ContainerCreating", f"the node still pulls {images}", "", LARGE, case.commands.describe("pod", pod.name),
                      pod=pod.name, since=_placed(pod))  # fmt: skip


def _placed(pod: Pod) -> float:
    return pod.placed or pod.created


def _stuck(case: Case, pod: Pod, reason: str, says: str, what: str, to_do: str, heals: str = "") -> Trouble:
    """Trouble of a pod that has a node."""
    return Trouble(
        reason=reason,
        what=what,
        says=says,
        to_do=to_do,
        more=case.commands.describe("pod", pod.name),
        heals=heals,
        pod=pod.name,
        since=_placed(pod),
        limit_s=case.stage.startup_timeout_s,
        limit_name=case.value("startupTimeoutSeconds"),
    )


def _waiting(case: Case, pod: Pod, container: Container) -> Trouble:
    says = container.waiting_message
    words: tuple[str, ...] = f"the container {container.name} cannot be made", AS_SAID
    if container.waiting in IMAGE_REASONS:
        words = _image(case, container)
    elif container.waiting == "CreateContainerConfigError":
        words = _settings(case, says)
    return _stuck(case, pod, container.waiting, says, *words)


def _image(case: Case, container: Container) -> tuple[str, str]:
    name, correct = f'"{container.image}"', f"correct registry, name, tag or digest in the values image or {case.value('image')}"
    if container.waiting == "InvalidImageName":
        return f"{name} is no name of an image", correct
    if container.waiting == "ErrImageNeverPull":
        return f"the image {name} is not on the node and must not be pulled", "load it there, or change image.pullPolicy"
    return f"the image {name} cannot be pulled", f"{correct}; or push it; or name the registry's pull secret in image.pullSecrets"


def _settings(case: Case, says: str) -> tuple[str, ...]:
    """CreateContainerConfigError: what the container is told does not exist."""
    missing = re.search(r'(secret|configmap) "([^"]+)" not found', says)
    if missing:
        return _absent(KINDS[missing[1]], missing[2])
    key = re.search(r"couldn't find key (\S+) in (Secret|ConfigMap) (?:\S+/)?(\S+)", says)
    if key:
        return _no_key(key[1], f"{key[2]} {key[3]}")
    if "run as root" in says or "non-numeric user" in says:
        return "its image runs as root, or under a name instead of a number", (
            f"name an image with a numeric user other than 0 in {case.value('image')}")  # fmt: skip
    return "its container's settings cannot be put together", AS_SAID


def _no_sandbox(case: Case, pod: Pod, event: str) -> Trouble:
    """Volumes and network come before containers; only an Event says which of them does not come."""
    missing = re.search(r'(secret|configmap|persistentvolumeclaim) "(?:[^"/]+/)?([^"]+)" not found', event)
    key = re.search(r"references non-existent (secret|config) key: ([^\s,]+)", event)
    if missing:
        return _stuck(case, pod, "FailedMount", event, *_absent(KINDS[missing[1]], missing[2]))
    if key:
        kind = KINDS[key[1]]
        holder = " or ".join(one for one in pod.mounts if one.startswith(kind)) or f"a {kind}"
        return _stuck(case, pod, "FailedMount", event, *_no_key(key[2], holder))
    to_do = AS_SAID
    if not event:
        to_do = f"look whether all that it mounts exists: {', '.join(pod.mounts) or 'nothing'}; else look at the node's network"
    return _stuck(case, pod, "ContainerCreating", event, "its volumes are not mounted, or its network is not there", to_do)


def _absent(kind: str, name: str) -> tuple[str, str, str]:
    return f"the {kind} {name} does not exist", "make it, or correct its name in the values if it is called otherwise", HEALS


def _no_key(key: str, holder: str) -> tuple[str, str, str]:
    return f"{holder} has no key {key}", "add it, or correct its name in the values if it is called otherwise", HEALS


def _without_node(case: Case, pod: Pod) -> Iterator[Trouble]:
    others = [other for other in case.pods if other is not pod]
    lacking = _lacking(pod)
    since = max([pod.created, *(other.ended for other in others if other.phase in ("Succeeded", "Failed"))])
    if case.now - since > PLACE_PATIENCE_S:
        yield Trouble(
            reason=pod.place_reason or "Pending",
            what=f"no node has enough {' and '.join(lacking)} free" if lacking else "no node takes its pod",
            says=pod.place_message,
            to_do="; ".join(_hints(case, pod)) or (AS_SAID if pod.place_message else "is a scheduler running?"),
            more=case.commands.describe("pod", pod.name),
            pod=pod.name,
            since=since,
            # A shard may wait for a place for as long as the others work.
            limit_s=None if any(other.phase == "Running" for other in others) else case.stage.unschedulable_timeout_s,
            limit_name=case.value("unschedulableTimeoutSeconds"),
        )


def _lacking(pod: Pod) -> list[str]:
    return list(dict.fromkeys(re.findall(r"Insufficient ([\w./-]*\w)", pod.place_message)))


def _hints(case: Case, pod: Pod) -> Iterator[str]:
    """What the scheduler's sentence asks of a person."""
    for resource in _lacking(pod):
        asked = next((one.requests.get(resource) or one.limits[resource] for one in pod.containers
                      if resource in (*one.requests, *one.limits)), "")  # fmt: skip
        node = "a node that has it" if "/" in resource else "a larger node"
        yield f"it asks for {resource}{f': {asked}' if asked else ''}: add {node}, or ask for less in stages.{case.stage.name}"
    if "untolerated taint" in pod.place_message:
        yield f"nodes have a taint that it does not tolerate: add it to {case.value('tolerations')}, or choose its preset"
    if "node affinity/selector" in pod.place_message:
        yield (f"no node has the labels that {case.value('nodeSelector')}, its affinity or its preset ask for: compare "
               "`kubectl get nodes --show-labels`")  # fmt: skip
    if "persistentvolumeclaim" in pod.place_message.lower():
        yield f"a volume that it claims is not there: see `{case.commands.kubectl('get pvc')}`"


def _no_pod(case: Case) -> Trouble:
    return Trouble(
        reason="FailedCreate",
        what="its Job has no pod",
        says=case.events.get(case.job.uid, ""),
        to_do="a quota, a policy or a missing ServiceAccount may refuse it",
        more=case.commands.describe("job", case.job.name),
        since=case.job.started or case.now,
    )


def _cannot_leave(case: Case, pod: Pod) -> Trouble:
    force = case.commands.kubectl(f"delete pod {pod.name} --force --grace-period=0")
    return Trouble(
        reason="Terminating",
        what=f"pod {pod.name} should have ended and has not, and the next attempt waits for it",
        says="",
        to_do=f"if its node {pod.node} is dead, delete the node, or `{force}`",
        more=f"kubectl describe node {pod.node}",
        pod=pod.name,
        since=pod.leave_by or case.now,
    )
