"""A server on loopback that sends exactly the bytes that a test wants, and counts who came. For what a decent one never does."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Asked:
    path: str
    headers: dict[str, str]
    """By lower-case names."""
    body: bytes = b""


Route = bytes | Callable[[socket.socket, Asked], None]
"""What is sent; a function may take its time, and raises OSError when the client has gone."""


def http(body: bytes = b"", status: int = 200, **headers: object) -> bytes:
    """A whole response; `_` in a name stands for `-`."""
    lines = {"Content-Length": len(body), **{name.replace("_", "-"): value for name, value in headers.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
    return f"HTTP/1.1 {status} Said\r\n{head}\r\n".encode("latin-1") + body


class RawServer:
    """Serves `routes` by path, in threads, until it is left. With `tls`, behind it."""

    def __init__(self, routes: dict[str, Route] | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.routes: dict[str, Route] = routes or {}
        self.connections = 0
        self.asked: list[Asked] = []
        self._tls = tls
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.port: int = self._listening.getsockname()[1]
        self.place = f"127.0.0.1:{self.port}"
        self.url = f"{'https' if tls else 'http'}://{self.place}"
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()
        self.hang_up()

    def hang_up(self) -> None:
        """Closes every connection, as a server does that restarts."""
        with self._lock:
            for client in self._open:
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)

    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            there = self._tls.wrap_socket(client, server_side=True) if self._tls else client
            with there:
                with self._lock:
                    self._open.add(there)
                try:
                    self._answer(there)
                finally:
                    with self._lock:
                        self._open.discard(there)

    def _answer(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        waiting = b""
        while True:
            while b"\r\n\r\n" not in waiting:
                more = client.recv(65_536)
                if not more:
                    return
                waiting += more
            head, _, waiting = waiting.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            length = int(headers.get("content-length", "0"))
            while len(waiting) < length:
                waiting += client.recv(65_536)
            asked = Asked(first.split()[1], headers, waiting[:length])
            waiting = waiting[length:]
            with self._lock:
                self.asked.append(asked)
            route = self.routes.get(asked.path, self.routes.get("*", http(b"no such path", 404)))
            if isinstance(route, bytes):
                client.sendall(route)
            else:
                route(client, asked)
