"""A Kubernetes API server in this process, over real HTTP: as much of it as a conductor meets, and its bad days.

Jobs, pods and Events are what the test puts here; nothing happens to them by itself but what `on_release` does. Lists
and watches know label selectors, patches are JSON Patch with `test`, every change raises resourceVersion, and `now`
is the clock that a client sees in the header Date.
"""

from __future__ import annotations

import copy
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubernetes import client
from shapes import T0

Raw = dict[str, Any]
PATHS = {
    "jobs": re.compile(r"^/apis/batch/v1/namespaces/([^/]+)/jobs(?:/([^/]+))?$"),
    "pods": re.compile(r"^/api/v1/namespaces/([^/]+)/pods(?:/([^/]+))?$"),
    "pods/log": re.compile(r"^/api/v1/namespaces/([^/]+)/pods/([^/]+)/log$"),
    "events": re.compile(r"^/api/v1/namespaces/([^/]+)/events(?:/([^/]+))?$"),
}
USER = "system:serviceaccount:demo:digits-conductor"


class FakeApi:
    """The server. As a context manager it listens on loopback."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.version = 100
        self.objects: dict[str, dict[str, Raw]] = {"jobs": {}, "pods": {}, "events": {}}
        self.history: list[tuple[int, str, str, Raw]] = []
        """(version, resource, type, object), for watches."""
        self.compacted = 0
        """Watches from before this version get 410."""
        self.logs: dict[str, str] = {}
        self.now = T0
        self.requests: list[tuple[str, str, str]] = []
        """(verb, resource, query)"""
        self.bytes_sent = 0
        self.forbidden: dict[tuple[str, str], float] = {}
        """(verb, resource) -> how many more times it is refused."""
        self.answers: dict[tuple[str, str], list[tuple[int, str]]] = {}
        """(verb, resource) -> status and message of the next answers."""
        self.watch_round = 0
        self.watches: list[str] = []
        """What the next watches do: drop, half-open, end, gone, gone-http, garbage, replay."""
        self.silent = False
        """Closes every connection without an answer."""
        self.patches: list[tuple[str, list[Raw]]] = []
        self.before_patch: Callable[[str], None] = lambda name: None
        self.on_release: Callable[[str], None] = lambda name: None
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    # The server.

    def __enter__(self) -> FakeApi:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> client.ApiClient:
        """The real client, pointed here."""
        settings = client.Configuration(host=self.url)
        settings.retries = 0
        return client.ApiClient(settings)

    def listen(self) -> None:
        """Starts to listen, on the same port as before."""
        handler = type("Handler", (_Handler,), {"api": self})
        self._server = _Server(("127.0.0.1", self.port), handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def hang_up(self) -> None:
        """Stops listening and closes every connection, as a machine that goes down does."""
        server, self._server = self._server, None
        if server:
            server.shutdown()
            server.close_connections()
            server.server_close()
        with self.changed:
            self.changed.notify_all()

    @property
    def listening(self) -> bool:
        return self._server is not None

    def forbid_everything(self) -> None:
        """Makes any conductor end, after its patience with rights."""
        with self.changed:
            self.forbidden = {(verb, what): float("inf") for verb in ("list", "watch", "patch") for what in ("jobs", "pods")}
            self.silent = False
            self.answers, self.watches = {}, []
        self.end_watches()
        if not self.listening:
            self.listen()

    # The objects.

    def put(self, *found: Raw) -> None:
        """Makes or replaces Jobs and pods."""
        for one in found:
            self._write("jobs" if one["kind"] == "Job" else "pods", copy.deepcopy(one))

    def _write(self, resource: str, one: Raw) -> None:
        with self.changed:
            self.version += 1
            one["metadata"]["resourceVersion"] = str(self.version)
            name = one["metadata"]["name"]
            kind = "MODIFIED" if name in self.objects[resource] else "ADDED"
            self.objects[resource][name] = one
            self.history.append((self.version, resource, kind, copy.deepcopy(one)))
            self.changed.notify_all()

    def delete(self, resource: str, name: str) -> None:
        with self.changed:
            self.version += 1
            self.history.append((self.version, resource, "DELETED", self.objects[resource].pop(name)))
            self.changed.notify_all()

    def job(self, name: str) -> Raw:
        with self.changed:
            return copy.deepcopy(self.objects["jobs"][name])

    def compact(self) -> None:
        """Forgets the history, as etcd does after minutes: watches from before get 410."""
        with self.changed:
            self.compacted = self.version

    def end_watches(self) -> None:
        """Every open watch ends, as at a rolling update of the API servers."""
        with self.changed:
            self.watch_round += 1
            self.changed.notify_all()

    # What a test asks.

    def count(self, verb: str, resource: str) -> int:
        return sum(1 for one in self.requests if one[:2] == (verb, resource))

    def wait_for(self, condition: Callable[[], bool], seconds: float = 10.0, what: str = "") -> None:
        """Waits for something that a conductor does."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"gave up waiting: {what or condition}; {Counter(r[:2] for r in self.requests)}"
            time.sleep(0.005)

    def is_released(self, name: str) -> bool:
        return not self.job(name)["spec"]["suspend"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, *arguments: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error of ours."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    api: FakeApi

    def log_message(self, *_: Any) -> None:
        pass

    def date_time_string(self, timestamp: float | None = None) -> str:
        del timestamp
        return formatdate(self.api.now, usegmt=True)

    def do_GET(self) -> None:
        self._answer("GET")

    def do_PATCH(self) -> None:
        self._answer("PATCH")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, query = urlsplit(self.path).path, {key: values[-1] for key, values in parse_qs(urlsplit(self.path).query).items()}
        if path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
            return self._review(json.loads(body)["spec"]["resourceAttributes"])
        resource, name = next(((one, found[2]) for one, pattern in PATHS.items() if (found := pattern.match(path))), ("", ""))
        read = "watch" if query.get("watch", "").lower() == "true" else "get" if name else "list"
        verb = {"PATCH": "patch", "POST": "create"}.get(method, read)
        with self.api.changed:
            self.api.requests.append((verb, resource, query.get("labelSelector", "") or query.get("fieldSelector", "")))
        if self.api.silent or not self.api.listening:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return None
        if self.api.forbidden.get((verb, resource), 0) > 0:
            self.api.forbidden[verb, resource] -= 1
            return self._status(403, _forbidden(verb, resource, name), "Forbidden")
        scripted = self.api.answers.get((verb, resource))
        if scripted:
            return self._status(*scripted.pop(0))
        if verb == "watch":
            return self._watch(resource, query)
        if verb == "list":
            return self._list(resource, query)
        if verb == "patch":
            return self._patch(name, json.loads(body))
        if verb == "create":
            return self._create(json.loads(body))
        if resource == "pods/log":
            return self._log(name)
        return self._status(404, f"{path} is not here", "NotFound")

    def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.api.bytes_sent += len(body)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _status(self, code: int, message: str, reason: str = "") -> None:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason, "code": code}
        self._send(code, json.dumps(status).encode())

    def _list(self, resource: str, query: dict[str, str]) -> None:
        with self.api.changed:
            items = [one for one in self.api.objects[resource].values() if _selected(one, query)]
            body = {"kind": "List", "metadata": {"resourceVersion": str(self.api.version)}, "items": items}
            data = json.dumps(body).encode()
        self._send(200, data)

    def _log(self, name: str) -> None:
        if name not in self.api.logs:
            return self._status(404, f'pods "{name}" not found', "NotFound")
        return self._send(200, self.api.logs[name].encode(), "text/plain")

    def _create(self, event: Raw) -> None:
        if event["metadata"]["name"] in self.api.objects["events"]:
            return self._status(409, f'events "{event["metadata"]["name"]}" already exists', "AlreadyExists")
        self.api._write("events", event)
        return self._send(201, json.dumps(event).encode())

    def _review(self, what: Raw) -> None:
        resource = what["resource"] + (f"/{what['subresource']}" if what["subresource"] else "")
        allowed = self.api.forbidden.get((what["verb"], resource), 0) <= 0
        self._send(201, json.dumps({"kind": "SelfSubjectAccessReview", "status": {"allowed": allowed}}).encode())

    def _patch(self, name: str, patch: list[Raw]) -> None:
        self.api.before_patch(name)
        if not self.headers["Content-Type"].startswith("application/json-patch+json"):
            return self._status(415, f"a list of operations came as {self.headers['Content-Type']}", "UnsupportedMediaType")
        with self.api.changed:
            if name not in self.api.objects["jobs"]:
                return self._status(404, f'jobs.batch "{name}" not found', "NotFound")
            changed = copy.deepcopy(self.api.objects["jobs"][name])
            if not _apply(changed, patch):
                return self._status(422, "the server rejected our request due to an error in our request", "Invalid")
            self.api.patches.append((name, patch))
            self.api._write("jobs", changed)
        self._send(200, json.dumps(changed).encode())
        threading.Thread(target=self.api.on_release, args=(name,), daemon=True).start()
        return None

    def _watch(self, resource: str, query: dict[str, str]) -> None:
        with self.api.changed:
            mode = self.api.watches.pop(0) if self.api.watches else ""
            since, number = int(query["resourceVersion"]), self.api.watch_round
        if mode == "gone-http":
            return self._status(410, "too old resource version", "Expired")
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if mode == "half-open":
            self._be_silent()
        elif mode == "drop":
            self.wfile.write(b"ff\r\n{\"type\":\"MODI")
            self.connection.shutdown(socket.SHUT_RDWR)
        elif mode == "garbage":
            self._chunk(b"<html>502 from a proxy</html>\n")
        elif mode == "gone" or since < self.api.compacted:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": f"too old resource version: {since}"}
            self._chunk(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
        elif mode != "end":
            self._stream(resource, query, 0 if mode == "replay" else since, number)
        self.close_connection = True
        if mode not in ("drop", "half-open"):
            self.wfile.write(b"0\r\n\r\n")
        return None

    def _be_silent(self) -> None:
        """Until the client gives up."""
        self.connection.settimeout(30)
        try:
            self.connection.recv(1)
        except OSError:
            return

    def _stream(self, resource: str, query: dict[str, str], since: int, number: int) -> None:
        """Events after a version; with since 0 all that ever were, old states after new ones."""
        deadline = time.monotonic() + float(query.get("timeoutSeconds", 3600))
        while self.api.listening and self.api.watch_round == number and time.monotonic() < deadline:
            with self.api.changed:
                news = [(version, kind, one) for version, what, kind, one in self.api.history
                        if what == resource and version > since and _selected(one, query)]  # fmt: skip
                if not news:
                    self.api.changed.wait(min(0.5, max(0.0, deadline - time.monotonic())))
                    continue
            for version, kind, one in news if since else reversed(news):
                self._chunk(json.dumps({"type": kind, "object": one}).encode() + b"\n")
                since = max(since, version)

    def _chunk(self, data: bytes) -> None:
        self.api.bytes_sent += len(data)
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


def _forbidden(verb: str, resource: str, name: str) -> str:
    """The API server's sentence, word for word."""
    group = "batch" if resource == "jobs" else ""
    what = resource + (f".{group}" if group else "") + (f' "{name}"' if name else "")
    return (f'{what} is forbidden: User "{USER}" cannot {verb} resource "{resource}" in API group "{group}" in the namespace '
            '"demo"')  # fmt: skip


def _selected(one: Raw, query: dict[str, str]) -> bool:
    labels = one["metadata"].get("labels") or {}
    for name, names, equal in re.findall(r"([\w./-]+)(?: in \(([^)]*)\)|=([^,]*))", query.get("labelSelector", "")):
        if labels.get(name) not in (names.split(",") if names else [equal]):
            return False
    fields = {"involvedObject.uid": (one.get("involvedObject") or {}).get("uid"), "type": one.get("type")}
    wanted = (pair.split("=") for pair in query.get("fieldSelector", "").split(",") if pair)
    return all(fields[name] == value for name, value in wanted)


def _apply(target: Raw, patch: list[Raw]) -> bool:
    """JSON Patch, as far as it is used here; False where an operation fails."""
    for one in patch:
        *way, last = [part.replace("~1", "/").replace("~0", "~") for part in one["path"].strip("/").split("/")]
        inner = target
        for part in way:
            inner = inner.get(part, {})
        if one["op"] == "test" and inner.get(last) != one["value"]:
            return False
        if one["op"] in ("remove", "replace") and last not in inner:
            return False
        if one["op"] == "remove":
            del inner[last]
        if one["op"] in ("replace", "add"):
            inner[last] = one["value"]
    return True
