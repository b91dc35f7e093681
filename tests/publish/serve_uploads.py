"""The Hugging Face Hub's side of an upload on loopback, as its Python client speaks it, with a ledger and faults on demand.

Repositories with commits, the preupload question, git-lfs batches with single and multipart uploads into a store of objects by
sha256, and commits as lines of JSON that are refused when their parent has moved.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from fixture_http import in_a_thread

LARGE = (".gguf", ".safetensors", ".parquet", ".png", ".tar", ".zip")
"""Ends of the names that the Hub keeps as large files; others too, above LARGE_BYTES."""
LARGE_BYTES = 1_000_000


@dataclass
class Fault:
    """What happens to requests instead of an answer."""

    kind: str
    """A status; `cut`: half of the body is read, then the connection ends; `stall`: it is read and never answered;
    `lost`: all is done, and the connection ends before the answer."""
    where: str
    """Part of the path."""
    times: int = 1
    method: str = "PUT"
    after: int = 0
    """So many requests of this kind are answered first."""


@dataclass
class Asked:
    """One request."""

    method: str
    path: str
    token: str | None
    sent_bytes: int
    """Of its body, as far as it was read."""
    note: str = ""


@dataclass
class Repository:
    """Files by name: sha256 of a large one, bytes of a small one."""

    private: bool
    files: dict[str, str | bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=lambda: ["0" * 40])
    messages: list[str] = field(default_factory=list)


class UploadHub(ThreadingHTTPServer):
    """`repositories` by `models/owner/name` or `datasets/owner/name`; `objects` by sha256; `asked` in order."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, token: str, part_bytes: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token, self.part_bytes = token, part_bytes
        self.owners = {"us"}
        self.repositories: dict[str, Repository] = {}
        self.licences: dict[str, str] = {}
        """Of models that are only looked at."""
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.faults: list[Fault] = []
        self.asked: list[Asked] = []
        self.stalled = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def writes(self) -> list[Asked]:
        """Requests that change something, or ask to."""
        return [asked for asked in self.asked if asked.method not in ("GET", "HEAD")]

    def uploaded(self) -> dict[str, int]:
        """sha256 -> how often it was sent whole."""
        found: dict[str, int] = {}
        for asked in self.asked:
            if asked.method in ("PUT", "POST") and asked.note.startswith("whole "):
                sha256 = asked.note.removeprefix("whole ")
                found[sha256] = found.get(sha256, 0) + 1
        return found

    def content(self, repository: str) -> dict[str, bytes]:
        """What a reader of the main branch sees."""
        files = self.repositories[repository].files
        return {name: self.objects[kept] if isinstance(kept, str) else kept for name, kept in files.items()}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no news."""


@contextmanager
def serving(token: str = "hf_tokenofthetests0000", part_bytes: int = 1_000_000) -> Iterator[UploadHub]:
    """A server in a thread."""
    with UploadHub(token, part_bytes) as server, in_a_thread(server, 0.02):
        yield server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: UploadHub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        fault = self._fault(path)
        length = int(self.headers.get("Content-Length", 0))
        wanted = length // 2 if fault and fault.kind == "cut" else length
        self._body = self.rfile.read(wanted)
        self._asked = Asked(self.command, path, token, len(self._body), fault.kind if fault else "")
        with self.server.lock:
            self.server.asked.append(self._asked)
        if fault and fault.kind == "stall":
            self.server.stalled.set()
            time.sleep(60)
        if fault and fault.kind in ("cut", "stall"):
            self.close_connection = True
        elif fault and fault.kind != "lost":
            self._send(int(fault.kind), b"{}")
        else:
            self._lost = fault is not None
            with self.server.lock:
                self._route(path, token)

    def _fault(self, path: str) -> Fault | None:
        with self.server.lock:
            for fault in self.server.faults:
                if fault.method == self.command and fault.where in path and fault.times > 0:
                    if fault.after:
                        fault.after -= 1
                        return None
                    fault.times -= 1
                    return fault
        return None

    def _route(self, path: str, token: str | None) -> None:
        if found := re.fullmatch(r"/upload/([0-9a-f]{64})(?:/(\d+))?", path):
            self._object(found[1], found[2])
        elif path.startswith("/complete/"):
            self._complete(path.removeprefix("/complete/"))
        elif found := re.fullmatch(r"/(?:(datasets)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._with(f"{found[1] or 'models'}/{found[2]}", token, self._batch, write=True)
        elif found := re.fullmatch(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._with(f"{found[1] or 'models'}/{found[2]}", token, lambda r: self._file(r, found[4]))
        elif path == "/api/repos/create":
            self._create(token)
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            if found[2] in self.server.licences:
                licence = self.server.licences[found[2]]
                self._json({"_id": "1", "id": found[2], "sha": "1" * 40, "tags": [f"license:{licence}"], "siblings": []})
                return
            self._with(f"{found[1]}/{found[2]}", token, lambda r: self._info(r, found[2]))
        elif found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/(preupload|commit)/main", path):
            work = self._preupload if found[3] == "preupload" else self._commit
            self._with(f"{found[1]}/{found[2]}", token, work, write=True)
        else:
            self._refuse(404, "EntryNotFound")

    def _with(self, name: str, token: str | None, work: Any, *, write: bool = False) -> None:
        repository = self.server.repositories.get(name)
        allowed = token == self.server.token
        if repository is None or (repository.private and not allowed):
            self._refuse(404 if token else 401, "RepoNotFound")
        elif write and not allowed:
            self._send(403 if token else 401, b'{"error": "no right to write"}')
        else:
            work(repository)

    def _create(self, token: str | None) -> None:
        wanted = json.loads(self._body)
        if token != self.server.token or wanted["organization"] not in self.server.owners:
            self._send(403 if token else 401, b'{"error": "no right to create"}')
            return
        name = f"{wanted.get('type', 'model')}s/{wanted['organization']}/{wanted['name']}"
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        status = 409 if name in self.server.repositories else 200
        self.server.repositories.setdefault(name, Repository(private))
        self._json({"url": f"{self.server.url}/{name.removeprefix('models/')}"}, status)

    def _info(self, repository: Repository, name: str) -> None:
        siblings = []
        for file, kept in sorted(repository.files.items()):
            data = self.server.objects[kept] if isinstance(kept, str) else kept
            large = {"lfs": {"size": len(data), "sha256": kept, "pointerSize": 130}} if isinstance(kept, str) else {}
            siblings.append({"rfilename": file, "size": len(data), "blobId": _git_oid(data), **large})
        self._json({"_id": "1", "id": name, "sha": repository.commits[-1], "private": repository.private, "tags": [],
                    "siblings": siblings})  # fmt: skip

    def _preupload(self, repository: Repository) -> None:
        files = []
        for file in json.loads(self._body)["files"]:
            large = file["path"].endswith(LARGE) or file["size"] > LARGE_BYTES
            kept = repository.files.get(file["path"])
            oid = None if kept is None else kept if isinstance(kept, str) else _git_oid(kept)
            files.append({"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
        self._json({"files": files})

    def _batch(self, repository: Repository) -> None:
        wanted = json.loads(self._body)
        assert wanted["operation"] == "upload"
        assert wanted["hash_algo"] == "sha256"
        objects = []
        for item in wanted["objects"]:
            oid, size = item["oid"], item["size"]
            entry = {"oid": oid, "size": size}
            if oid not in self.server.objects:
                entry["actions"] = {"upload": self._places(oid, size), "verify": {"href": f"{self.server.url}/api/validate-yaml"}}
            objects.append(entry)
        self._json({"transfer": "multipart", "objects": objects})

    def _places(self, oid: str, size: int) -> dict[str, Any]:
        part = self.server.part_bytes
        if size <= part:
            return {"href": f"{self.server.url}/upload/{oid}"}
        count = -(-size // part)
        places = {f"{number:05d}": f"{self.server.url}/upload/{oid}/{number}" for number in range(1, count + 1)}
        return {"href": f"{self.server.url}/complete/{oid}", "header": {"chunk_size": str(part), **places}}

    def _object(self, oid: str, part: str | None) -> None:
        if part is None:
            self._keep(oid, self._body)
            self._send(200, b"")
        else:
            self.server.parts[oid, int(part)] = self._body
            self._send(200, b"", {"ETag": hashlib.md5(self._body, usedforsecurity=False).hexdigest()})

    def _complete(self, oid: str) -> None:
        numbers = [part["partNumber"] for part in json.loads(self._body)["parts"]]
        self._keep(oid, b"".join(self.server.parts.pop((oid, number)) for number in numbers))
        self._json({})

    def _keep(self, oid: str, data: bytes) -> None:
        assert hashlib.sha256(data).hexdigest() == oid, "the Hub refuses other bytes than those announced"
        self.server.objects[oid] = data
        self._asked.note = f"whole {oid}"

    def _commit(self, repository: Repository) -> None:
        lines = [json.loads(line) for line in self._body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, repository.commits[-1]):
            self._send(412, b'{"error": "the branch has moved"}')
            return
        files = dict(repository.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                assert value["oid"] in self.server.objects, "a commit of what was never uploaded"
                files[value["path"]] = value["oid"]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        repository.files = files
        repository.messages.append(header["summary"])
        repository.commits.append(hashlib.sha1(repr(sorted(files)).encode() + str(len(repository.commits)).encode()).hexdigest())
        head = repository.commits[-1]
        self._json({"success": True, "commitOid": head, "commitUrl": f"{self.server.url}/us/any/commit/{head}"})

    def _file(self, repository: Repository, file: str) -> None:
        kept = repository.files.get(file)
        if kept is None:
            self._refuse(404, "EntryNotFound")
            return
        data = self.server.objects[kept] if isinstance(kept, str) else kept
        self._send(200, data, {"ETag": f'"{_git_oid(data)}"', "X-Repo-Commit": repository.commits[-1]})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        if getattr(self, "_lost", False):
            self.close_connection = True
            return
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
