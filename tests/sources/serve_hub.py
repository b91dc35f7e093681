"""The Hugging Face Hub on loopback: the addresses that its Python client asks for datasets and models, with faults on demand.

As a script it serves folders `<root>/<owner>/<name>/...` at every commit: point HF_ENDPOINT at what it prints.

    python tests/sources/serve_hub.py ROOT --port 0 --host 127.0.0.1
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from fixture_http import in_a_thread

PAGE_ENTRIES = 1000
"""Of a listing, as on the Hub."""
SMALL_BYTES = 10_000_000
"""Larger files, and all that end as large files do, are answered with a redirect to another path, as from its store."""
STORED = (".parquet", ".tar", ".zip", ".arrow", ".jpg", ".png")


@dataclass
class Fault:
    """What happens to requests of a kind instead of an answer."""

    kind: str
    """`401`, `429`, `500` ...; or `cut`: half of the body, then the connection ends."""
    where: str = ""
    """Part of the path."""
    times: int = 1_000_000
    method: str = "GET"


@dataclass
class Asked:
    """One request that was answered."""

    method: str
    path: str
    range: str | None
    token: str | None
    """What followed `Bearer`."""
    sent_bytes: int = 0


@dataclass
class Repository:
    """One dataset, or one model; their names are of one space here."""

    files: dict[str, bytes]
    token: str | None = None
    """What may read it; None: everybody."""
    gated: bool = False
    revision: str | None = None
    """Its only commit; None: any is taken for it."""
    page_entries: int = PAGE_ENTRIES
    faults: list[Fault] = field(default_factory=list)


class FakeHub(ThreadingHTTPServer):
    """`repositories` are served by name; `asked` is what was asked for, in order."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__((host, port), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.asked: list[Asked] = []

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]}:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no news."""


@contextmanager
def serving() -> Iterator[FakeHub]:
    """A server in a thread."""
    with FakeHub() as server, in_a_thread(server, 0.05):
        yield server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        found = re.fullmatch(r"/(?:(api|store)/)?(?:(?:datasets|models)/)?([^/]+/[^/]+)/(\w[\w-]*)/([^/]+)(?:/(.*))?", path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        self._asked = Asked(self.command, path, self.headers.get("Range"), token)
        self.server.asked.append(self._asked)
        repository = self.server.repositories.get(found[2]) if found else None
        if found is None or repository is None:
            # The Hub does not tell strangers whether there is such a repository.
            self._refuse(404 if token else 401, "RepoNotFound")
            return
        area, name, verb, revision, rest = found.groups()
        for fault in repository.faults:
            if fault.times > 0 and fault.where in path and fault.method == self.command:
                fault.times -= 1
                self._fail(fault, repository.files.get(rest or "", b"x" * 1000))
                return
        if area != "store" and repository.token is not None and token != repository.token:
            code = "GatedRepo" if repository.gated else "RepoNotFound"
            self._refuse(401 if token is None else 403, code)
        elif repository.revision not in (None, revision):
            self._refuse(404, "RevisionNotFound")
        elif area == "api":
            self._describe(name, repository, verb, revision, rest or "")
        elif (rest or "") not in repository.files:
            self._refuse(404, "EntryNotFound")
        else:
            self._file(name, repository, area, revision, rest)

    def _describe(self, name: str, repository: Repository, verb: str, revision: str, below: str) -> None:
        if verb == "revision":
            siblings = [{"rfilename": file} for file in sorted(repository.files)]
            self._json({"_id": "1", "id": name, "sha": revision, "private": False, "gated": repository.gated, "tags": [],
                        "downloads": 0, "likes": 0, "siblings": siblings})  # fmt: skip
        elif verb == "paths-info":
            asked = parse_qs(self._body.decode()).get("paths", [])
            if self.headers.get("Content-Type", "").startswith("application/json"):
                asked = json.loads(self._body)["paths"]
            entries = {entry["path"]: entry for entry in _entries(repository, "", True)}
            self._json([entries[path] for path in asked if path in entries])
        elif verb == "tree":
            query = parse_qs(urlsplit(self.path).query)
            entries_ = _entries(repository, below, query.get("recursive", ["false"])[0].lower() == "true")
            if below and not entries_:
                self._refuse(404, "EntryNotFound")
                return
            first = int(query.get("cursor", ["0"])[0])
            last = first + repository.page_entries
            more = {}
            if last < len(entries_):
                again = f"{self.server.url}{urlsplit(self.path).path}?recursive={query.get('recursive', ['false'])[0]}"
                more = {"Link": f'<{again}&cursor={last}>; rel="next"'}
            self._json(entries_[first:last], more)
        else:
            self._refuse(404, "EntryNotFound")

    def _file(self, name: str, repository: Repository, area: str | None, revision: str, file: str) -> None:
        data = repository.files[file]
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        if area is None and (file.endswith(STORED) or len(data) > SMALL_BYTES):
            headers = {"Location": f"{self.server.url}/store/datasets/{name}/resolve/{revision}/{file}",
                       "X-Repo-Commit": revision, "X-Linked-Size": str(len(data)), "X-Linked-ETag": etag}  # fmt: skip
            self._send(302, b"", headers)
            return
        headers = {"ETag": etag, "X-Repo-Commit": revision, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self._send(200, data, headers)
            return
        start, stop = int(wanted[1]), min(int(wanted[2]) + 1 if wanted[2] else len(data), len(data))
        if start >= len(data):
            self._send(416, b"", headers | {"Content-Range": f"bytes */{len(data)}"})
            return
        self._send(206, data[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})

    def _fail(self, fault: Fault, data: bytes) -> None:
        if fault.kind == "cut":
            self.send_response(200 if "Range" not in self.headers else 206)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        else:
            self._send(int(fault.kind), b"", {"Retry-After": "0"} if fault.kind == "429" else {})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _json(self, value: object, headers: dict[str, str] | None = None) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self._asked.sent_bytes = len(data)
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _entries(repository: Repository, below: str, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders of a listing, as the Hub describes them."""
    prefix = f"{below}/" if below else ""
    entries: dict[str, dict[str, Any]] = {}
    for file, data in repository.files.items():
        if not file.startswith(prefix):
            continue
        parts = file.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            folder = prefix + "/".join(parts[:depth])
            entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": hashlib.sha1(folder.encode()).hexdigest()}
        if recursive or len(parts) == 1:
            digest = hashlib.sha256(data).hexdigest()
            entries[file] = {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            if file.endswith(STORED):
                entries[file]["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
    return [entries[path] for path in sorted(entries)]


def read_repositories(root: Path) -> dict[str, Repository]:
    """`<root>/<owner>/<name>/...` as datasets by name."""
    return {
        f"{folder.parent.name}/{folder.name}": Repository({
            path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        })
        for folder in sorted(root.glob("*/*")) if folder.is_dir()
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    with FakeHub(options.host, options.port) as hub:
        hub.repositories = read_repositories(options.root)
        print(f"HF_ENDPOINT={hub.url}", flush=True)
        with suppress(KeyboardInterrupt):
            hub.serve_forever()
