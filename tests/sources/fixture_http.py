"""What the fixture servers of this folder share: a threaded HTTP/1.1 server that counts what it is asked and can be told to fail.

Standard library and Pillow only, so that a server can also run alone, in a process or a pod of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import random
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

from PIL import Image, ImageDraw

PALETTE = ("steelblue", "firebrick", "seagreen", "goldenrod", "slategray", "purple", "saddlebrown", "darkcyan")


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_json(cls, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
        return cls(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})


@contextlib.contextmanager
def in_a_thread(server: HTTPServer, poll_s: float) -> Iterator[None]:
    """Serves until the end of the block."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": poll_s}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


class FixtureServer:
    """Serves in threads from `__enter__` to `__exit__`. `answer` is what a server is."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, reached_as: str = "") -> None:
        """`reached_as` is the name by which clients know the host, where that is another."""
        self.asked: Counter[str] = Counter()
        """Path without its query -> number of requests."""
        self.in_flight = self.most_in_flight = 0
        self._faults: dict[str, deque[str]] = {}
        self._lock = threading.Lock()
        self._http = _Http((host, port), _Handler)
        self._http.fixture = self
        self.url = f"http://{reached_as or host}:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def fail(self, path: str, *faults: str) -> None:
        """The next requests of `path` meet these, in turn; a last one that ends with `*` stays.

        A status (`500`, `404*`), `cut` (half of the body, then the connection closes), `slow:SECONDS`, `none` (no fault).
        """
        self._faults[path] = deque(faults)

    def answer(self, path: str, query: str, headers: dict[str, str]) -> Answer:
        """`headers` by lower-case names."""
        raise NotImplementedError

    def wait(self) -> None:
        """For scripts: until the process is interrupted."""
        with contextlib.suppress(KeyboardInterrupt):
            self._thread.join()

    def next_fault(self, path: str) -> str:
        with self._lock:
            self.asked[path] += 1
            waiting = self._faults.get(path)
            if not waiting:
                return "none"
            fault = waiting[0] if waiting[0].endswith("*") else waiting.popleft()
            return fault.removesuffix("*")

    def count_in_flight(self, change: int) -> None:
        with self._lock:
            self.in_flight += change
            self.most_in_flight = max(self.most_in_flight, self.in_flight)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    fixture: FixtureServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that hang up are no news


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http
    timeout = 30

    def do_GET(self) -> None:
        fixture = self.server.fixture
        path = urlsplit(self.path).path
        fault = fixture.next_fault(path)
        fixture.count_in_flight(1)
        try:
            if fault.startswith("slow:"):
                time.sleep(float(fault.removeprefix("slow:")))
            if fault.isdigit():
                answer = Answer(int(fault), b"planted")
            else:
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer = fixture.answer(path, urlsplit(self.path).query, headers)
            self._send(answer, cut=fault == "cut")
        finally:
            fixture.count_in_flight(-1)

    def _send(self, answer: Answer, *, cut: bool) -> None:
        status, body, extra = answer.status, answer.body, {}
        asked = self.headers.get("Range", "")
        if status == 200 and asked.startswith("bytes="):
            start, _, end = asked.removeprefix("bytes=").partition("-")
            if int(start) >= len(body):
                status, body, extra = 416, b"", {"Content-Range": f"bytes */{len(body)}"}
            else:
                stop = min(int(end) + 1 if end else len(body), len(body))
                extra = {"Content-Range": f"bytes {start}-{stop - 1}/{len(body)}"}
                status, body = 206, body[int(start) : stop]
        self.send_response(status)
        for name, value in {"Accept-Ranges": "bytes", "Content-Length": str(len(body)), **answer.headers, **extra}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


def draw(name: str, colour: str, *, width_px: int = 320, height_px: int = 240) -> bytes:
    """A JPEG of some shapes on a coloured ground: the same bytes for the same name, and nothing like that of another name."""
    chance = random.Random(hashlib.sha256(name.encode()).digest())
    image = Image.new("RGB", (width_px, height_px), colour)
    pen = ImageDraw.Draw(image)
    for _ in range(24):
        x, y = chance.randrange(width_px), chance.randrange(height_px)
        side = chance.randrange(width_px // 16, width_px // 4)
        shape = chance.choice((pen.ellipse, pen.rectangle))
        shape((x, y, x + side, y + side), fill=tuple(chance.randrange(256) for _ in range(3)))
    # The ground stays visible: whoever names the image by its colour looks at the edge.
    pen.rectangle((0, 0, width_px - 1, height_px - 1), outline=colour, width=max(4, width_px // 16))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def arguments(about: str) -> argparse.ArgumentParser:
    """Those that every server has."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--reached-as", default="", metavar="HOST", help="name by which clients know it; default: --host")
    parser.add_argument("--fault", action="append", default=[], metavar="PATH=FAULT[,FAULT]",
                        help="status, cut, slow:SECONDS or none, in turn; a last one with * stays")  # fmt: skip
    return parser


def plant(server: FixtureServer, faults: list[str]) -> None:
    for fault in faults:
        path, _, kinds = fault.rpartition("=")
        server.fail(path, *kinds.split(","))
