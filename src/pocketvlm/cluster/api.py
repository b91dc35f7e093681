"""The Kubernetes API, as far as the conductor needs it. The only file that imports `kubernetes`.

Rights: jobs list, watch, patch; pods list; pods/log get; events create and list. Without the last one the conductor
works, and says less about volumes that are not mounted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import urllib3
from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException
from kubernetes.utils.keepalive import tcp_keepalive_socket_options

from pocketvlm.cluster.objects import GATES, JOB_NAME, Job, Pod, Snapshot, read_job, read_pod
from pocketvlm.cluster.plan import ConductorPlan, SetUpWrong
from pocketvlm.errors import PocketVLMError

US = "pocketvlm-conductor"
TAIL_LINES = 40
MESSAGE_CHARACTERS = 1000
"""The API server refuses Events with more than 1024."""


class Away(PocketVLMError):
    """The API server does not answer, or not as one: it may come back."""


class Refused(PocketVLMError):
    """The API server says no."""

    def __init__(self, status: int, says: str) -> None:
        super().__init__(says)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """How long a request may take."""

    connect_s: float = 10.0
    answer_s: float = 30.0
    watch_s: float = 240.0
    """The API server ends a watch after this time."""
    silence_s: float = 270.0
    """We end a watch after this time without a byte: a connection that is open on our side only never ends by itself."""


def connect() -> client.ApiClient:
    """A client with the pod's own token, or on a laptop with KUBECONFIG. Raises SetUpWrong."""
    settings = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=settings)
    except config.ConfigException:
        try:
            config.load_kube_config(client_configuration=settings)
        except (config.ConfigException, OSError) as error:
            raise SetUpWrong(
                f"no way to the Kubernetes API: this is no pod with a service account token, and no kubeconfig works ({error})"
            ) from error
    settings.retries = 0  # the loop above tries again, and says so
    settings.socket_options = tcp_keepalive_socket_options(idle=30, interval=10, count=3)
    made = client.ApiClient(settings)
    made.user_agent = US
    return made


class Api:
    """One namespace, one release. Every method raises Away or Refused."""

    def __init__(self, plan: ConductorPlan, made: client.ApiClient, limits: Limits | None = None) -> None:
        self._plan = plan
        self._limits = limits or Limits()
        self._batch, self._core = client.BatchV1Api(made), client.CoreV1Api(made)
        self._authorization = client.AuthorizationV1Api(made)
        names = ",".join(stage.name for stage in plan.stages)
        # Lists cost what this release costs, whatever else lies in the namespace.
        self._jobs = f"app.kubernetes.io/instance={plan.release},app.kubernetes.io/component in ({names})"
        self._pods = f"{JOB_NAME} in ({','.join(stage.job for stage in plan.stages)})"
        self._watch = watch.Watch()
        self._events_allowed = True

    def look(self) -> tuple[Snapshot, str]:
        """Our Jobs and their pods, and the version to watch from."""
        jobs, now = self._get(self._batch.list_namespaced_job, label_selector=self._jobs)
        pods, _ = self._get(self._core.list_namespaced_pod, label_selector=self._pods)
        ours = {stage.job for stage in self._plan.stages}
        found = {job.name: job for job in map(read_job, jobs["items"]) if job.name in ours}
        return Snapshot(now, found, tuple(map(read_pod, pods["items"]))), str(jobs["metadata"]["resourceVersion"])

    def wait_for_change(self, version: str, seconds: float) -> bool:
        """Watches our Jobs until one changes (True) or the time is over (False)."""
        seconds = min(seconds, self._limits.watch_s)
        with _plain_errors():
            stream = self._watch.stream(
                self._batch.list_namespaced_job, self._plan.namespace, label_selector=self._jobs, resource_version=version,
                timeout_seconds=max(1, round(seconds)), deserialize=False,
                _request_timeout=(self._limits.connect_s, min(self._limits.silence_s, seconds + 30)),
            )  # fmt: skip
            with closing(stream):
                return any(event["type"] != "BOOKMARK" for event in stream)

    def release(self, job: Job) -> None:
        """Lets a Job go, if it is still what was seen; otherwise Refused with status 409 or 422.

        With a queue spec.suspend belongs to Kueue, and only our gate goes; otherwise both go at once.
        """
        others = ",".join(gate for gate in job.gates if gate != self._plan.gate)
        path = f"/metadata/annotations/{GATES.replace('~', '~0').replace('/', '~1')}"
        patch: list[dict[str, Any]] = [
            {"op": "test", "path": "/metadata/resourceVersion", "value": job.version},
            {"op": "test", "path": "/spec/suspend", "value": True},
            {"op": "replace", "path": path, "value": others} if others else {"op": "remove", "path": path},
        ]
        if job.queue is None:
            patch.append({"op": "replace", "path": "/spec/suspend", "value": False})
        with _plain_errors():
            self._batch.patch_namespaced_job(
                job.name, self._plan.namespace, patch, field_manager=US, _preload_content=False, _request_timeout=self._timeout
            ).read()

    def log(self, pod: str, container: str) -> str:
        """The end of a container's log."""
        with _plain_errors():
            answer = self._core.read_namespaced_pod_log(
                pod, self._plan.namespace, container=container or None, tail_lines=TAIL_LINES, _preload_content=False,
                _request_timeout=self._timeout,
            )  # fmt: skip
            return bytes(answer.read()).decode(errors="replace")

    def warnings_about(self, thing: Job | Pod) -> str:
        """The newest warning among the Events of a pod or Job; nothing where Events must not be read."""
        if not self._events_allowed:
            return ""
        try:
            found, _ = self._get(self._core.list_namespaced_event, field_selector=f"involvedObject.uid={thing.uid},type=Warning")
        except Refused as refused:
            if refused.status != 403:
                raise
            self._events_allowed = False
            return ""
        newest: dict[str, Any] = max(found["items"], key=_time_of_event, default={})
        return str(newest.get("message", ""))

    def tell(self, job: Job, reason: str, message: str, *, warning: bool = False) -> None:
        """An Event on a Job, once for each reason: its name follows from both, and a second one is no error."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        event = {
            "metadata": {"name": f"{job.name}.{reason.lower()}.{job.uid[:8]}", "namespace": self._plan.namespace},
            "involvedObject": {"apiVersion": "batch/v1", "kind": "Job", "name": job.name, "namespace": self._plan.namespace,
                               "uid": job.uid},
            "type": "Warning" if warning else "Normal", "reason": reason, "message": message[:MESSAGE_CHARACTERS], "count": 1,
            "firstTimestamp": now, "lastTimestamp": now, "source": {"component": US}, "reportingComponent": self._plan.gate,
            "reportingInstance": US,
        }  # fmt: skip
        try:
            with _plain_errors():
                self._core.create_namespaced_event(
                    self._plan.namespace, event, _preload_content=False, _request_timeout=self._timeout
                ).read()
        except Refused as refused:
            if refused.status != 409:
                raise

    def may(self, verb: str, group: str, resource: str, subresource: str = "", name: str = "") -> bool:
        """Whether the conductor has a right, as the API server sees it."""
        what = {"namespace": self._plan.namespace, "verb": verb, "group": group, "resource": resource,
                "subresource": subresource, "name": name}  # fmt: skip
        review = {"kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": what}}
        with _plain_errors():
            answer = self._authorization.create_self_subject_access_review(
                review, _preload_content=False, _request_timeout=self._timeout
            )
            return bool(json.loads(answer.read())["status"]["allowed"])

    @property
    def _timeout(self) -> tuple[float, float]:
        return self._limits.connect_s, self._limits.answer_s

    def _get(self, call: Any, **options: Any) -> tuple[dict[str, Any], float]:
        """The JSON of a list, and the cluster's clock."""
        with _plain_errors():
            answer = call(self._plan.namespace, _preload_content=False, _request_timeout=self._timeout, **options)
            body = json.loads(answer.read())
            date = answer.headers.get("Date")
            now = parsedate_to_datetime(date) if date else datetime.now(UTC)
            return body, now.timestamp()


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Turns what the client raises into Away and Refused."""
    try:
        yield
    except ApiException as error:
        status = int(error.status or 0)
        says = _sentence(error)
        if status in (0, 429) or status >= 500:
            raise Away(f"{status or 'TLS'}: {says}") from error
        raise Refused(status, says) from error
    except urllib3.exceptions.MaxRetryError as error:
        raise Away(_first(error.reason or error)) from error
    except (urllib3.exceptions.HTTPError, OSError, ValueError, KeyError) as error:
        raise Away(_first(error)) from error


def _time_of_event(event: dict[str, Any]) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")


def _sentence(error: ApiException) -> str:
    """The API server's own words."""
    try:
        return str(json.loads(error.body or "")["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(str(error.body or error.reason).split())[:300]


def _first(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
