"""HTTP/1.1 over asyncio, standard library alone: as much as a fake server needs, and the means to cut a connection."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email.parser import BytesHeaderParser
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 409: "Conflict", 413: "Payload Too Large",
           429: "Too Many Requests", 500: "Internal Server Error", 502: "Bad Gateway", 503: "Service Unavailable"}  # fmt: skip


class Cut(Exception):
    """The connection is to be cut; `sent` bytes of `response` go out before."""

    def __init__(self, response: Response | None = None) -> None:
        self.response = response


@dataclass
class Request:
    """One request, its body whole."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def form(self) -> dict[str, tuple[str, bytes]]:
        """Fields of a multipart body: name -> (file name, content)."""
        kind, _, boundary = self.headers.get("content-type", "").partition("boundary=")
        if not kind.startswith("multipart/form-data"):
            raise ValueError("the body is not multipart/form-data")
        found = {}
        for part in self.body.split(b"--" + boundary.strip('"').encode())[1:-1]:
            head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
            message = BytesHeaderParser().parsebytes(head)
            names = dict(message.get_params(header="content-disposition") or [])
            found[names["name"]] = (names.get("filename", ""), content.removesuffix(b"\r\n"))
        return found


@dataclass
class Response:
    """One response."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "application/json"

    @classmethod
    def of(cls, content: Any, status: int = 200, **headers: str) -> Response:
        return cls(status, json.dumps(content, ensure_ascii=False).encode(), dict(headers))

    def bytes(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} {REASONS.get(self.status, 'Other')}", f"content-type: {self.kind}",
                 f"content-length: {len(self.body)}", *(f"{name}: {value}" for name, value in self.headers.items())]  # fmt: skip
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + self.body


Answer = Callable[[Request], Awaitable[Response]]


class HttpServer:
    """Listens while it is a context manager, on an event loop in a thread of its own."""

    def __init__(self, answer: Answer, host: str = "127.0.0.1", port: int = 0) -> None:
        self._answer, self._host, self.port = answer, host, port
        self._loop = asyncio.new_event_loop()
        self._connections: set[asyncio.Task[None]] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fake server", daemon=True)
        self._failed: OSError | None = None

    def __enter__(self) -> HttpServer:
        self._thread.start()
        self._ready.wait(10)
        if self._failed:
            raise self._failed
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self.port}"

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        """Runs a coroutine beside the requests; called on the loop's thread."""
        task: asyncio.Task[Any] = self._loop.create_task(work)
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        return task

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        try:
            server = await asyncio.start_server(self._connected, self._host, self.port, limit=1 << 20, backlog=1024)
        except OSError as error:
            self._failed = error
            self._ready.set()
            return
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await asyncio.sleep(0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while (request := await read_request(reader, writer)) is not None:
                try:
                    response = await self._answer(request)
                except Cut as cut:
                    if cut.response is not None:
                        writer.write(cut.response.bytes()[:-max(1, len(cut.response.body) // 2)])
                        await writer.drain()
                    break
                writer.write(response.bytes())
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()


async def read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
    """The next request of a connection; None when the client has gone."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if "chunked" in headers.get("transfer-encoding", ""):
        body = await _read_chunks(reader)
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    split = urlsplit(target)
    query = {name: values[-1] for name, values in parse_qs(split.query).items()}
    return Request(method, unquote(split.path), query, headers, body)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(parts)
