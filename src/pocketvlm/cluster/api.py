"""The Kubernetes API, as far as the conductor needs it. The only file that imports `kubernetes`.

Of that package it takes the client below its typed calls: kubeconfig and tokens, TLS, proxies, requests. `CoreV1Api`
alone builds some 700 models: 140 MB and 3.3 s of CPU at the start of each conductor, instead of 56 MB and 1.3 s.

Rights: jobs list, watch, patch; pods list; pods/log get; events create and list. Without the last one the conductor
works, and says less about volumes that are not mounted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import urllib3
from kubernetes import client, config
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
        self._plan, self._client = plan, made
        self._limits = limits or Limits()
        self._batch, self._core = (f"/{group}/namespaces/{plan.namespace}" for group in ("apis/batch/v1", "api/v1"))
        names = ",".join(stage.name for stage in plan.stages)
        # Lists cost what this release costs, whatever else lies in the namespace.
        self._jobs = f"app.kubernetes.io/instance={plan.release},app.kubernetes.io/component in ({names})"
        self._pods = f"{JOB_NAME} in ({','.join(stage.job for stage in plan.stages)})"
        self._events_allowed = True

    def look(self) -> tuple[Snapshot, str]:
        """Our Jobs and their pods, and the version to watch from."""
        jobs, now = self._list(f"{self._batch}/jobs", labelSelector=self._jobs)
        pods, _ = self._list(f"{self._core}/pods", labelSelector=self._pods)
        ours = {stage.job for stage in self._plan.stages}
        found = {job.name: job for job in map(read_job, jobs["items"]) if job.name in ours}
        return Snapshot(now, found, tuple(map(read_pod, pods["items"]))), str(jobs["metadata"]["resourceVersion"])

    def wait_for_change(self, version: str, seconds: float) -> bool:
        """Watches our Jobs until one changes (True) or the time is over (False)."""
        seconds = min(seconds, self._limits.watch_s)
        query = {"watch": "true", "labelSelector": self._jobs, "resourceVersion": version,
                 "timeoutSeconds": str(max(1, round(seconds)))}  # fmt: skip
        with self._request("GET", f"{self._batch}/jobs", query, silence_s=min(self._limits.silence_s, seconds + 30)) as answer:
            for event in _events(answer):
                if event["type"] == "ERROR":
                    raise _no(int(event["object"]["code"]), str(event["object"].get("message")))
                if event["type"] != "BOOKMARK":
                    return True
        return False

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
        with self._request("PATCH", f"{self._batch}/jobs/{job.name}", {"fieldManager": US}, patch):
            pass

    def log(self, pod: str, container: str) -> str:
        """The end of a container's log."""
        query = {"tailLines": str(TAIL_LINES)} | ({"container": container} if container else {})
        with self._request("GET", f"{self._core}/pods/{pod}/log", query) as answer:
            return bytes(answer.read()).decode(errors="replace")

    def warnings_about(self, thing: Job | Pod) -> str:
        """The newest warning among the Events of a pod or Job; nothing where Events must not be read."""
        if not self._events_allowed:
            return ""
        try:
            found, _ = self._list(f"{self._core}/events", fieldSelector=f"involvedObject.uid={thing.uid},type=Warning")
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
            with self._request("POST", f"{self._core}/events", {"fieldManager": US}, event):
                pass
        except Refused as refused:
            if refused.status != 409:
                raise

    def may(self, verb: str, group: str, resource: str, subresource: str = "", name: str = "") -> bool:
        """Whether the conductor has a right, as the API server sees it."""
        what = {"namespace": self._plan.namespace, "verb": verb, "group": group, "resource": resource,
                "subresource": subresource, "name": name}  # fmt: skip
        review = {"kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": what}}
        with self._request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", {}, review) as answer:
            return bool(json.loads(answer.read())["status"]["allowed"])

    def _list(self, path: str, **query: str) -> tuple[dict[str, Any], float]:
        """A list, and the cluster's clock."""
        with self._request("GET", path, query) as answer:
            date = answer.headers.get("Date")
            now = parsedate_to_datetime(date) if date else datetime.now(UTC)
            return json.loads(answer.read()), now.timestamp()

    @contextmanager
    def _request(
        self, method: str, path: str, query: dict[str, str], body: Any = None, *, silence_s: float | None = None
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """The answer to one request, if it is a yes. Errors of reading it become Away too."""
        kind = "application/json-patch+json" if method == "PATCH" else "application/json"
        headers = {"Accept": "application/json", "Content-Type": kind}
        with _plain_errors():
            request = self._client.param_serialize(
                method, path, query_params=list(query.items()), header_params=headers, body=body, auth_settings=["BearerToken"]
            )
            timeout = self._limits.connect_s, silence_s or self._limits.answer_s
            answer = self._client.call_api(*request, _request_timeout=timeout)
            try:
                if not 200 <= answer.status <= 299:
                    answer.read()
                    raise ApiException.from_response(http_resp=answer, body=None, data=None)
                yield answer.response
            finally:
                # A connection with an unread rest, as a watch leaves it, is of no use to the next request.
                answer.response.drain_conn() if silence_s is None else answer.response.close()
                answer.response.release_conn()


def _events(answer: urllib3.BaseHTTPResponse) -> Iterator[dict[str, Any]]:
    """The events of a watch: one JSON object a line."""
    rest = b""
    for chunk in answer.stream(decode_content=False):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (json.loads(line) for line in lines if line.strip())


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Turns what the client raises into Away and Refused."""
    try:
        yield
    except ApiException as error:
        raise _no(int(error.status or 0), _sentence(error)) from error
    except urllib3.exceptions.MaxRetryError as error:
        raise Away(_first(error.reason or error)) from error
    except (urllib3.exceptions.HTTPError, OSError, ValueError, KeyError) as error:
        raise Away(_first(error)) from error


def _time_of_event(event: dict[str, Any]) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")


def _no(status: int, says: str) -> Away | Refused:
    """No, or not now. Status 0 is TLS: the client has no other word for it."""
    return Away(f"{status or 'TLS'}: {says}") if status in (0, 429) or status >= 500 else Refused(status, says)


def _sentence(error: ApiException) -> str:
    """The API server's own words."""
    try:
        return str(json.loads(error.body or "")["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(str(error.body or error.reason).split())[:300]


def _first(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
