"""One HTTP exchange with a server that is not trusted: an address that was checked, a clock and a count over every byte."""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from pocketvlm.sources.web.addresses import Hosts, Refused, Resolve, Target

Dial = Callable[[str, int, float], socket.socket]
"""Address, port and seconds -> a connected socket. Raises OSError."""

CHUNK_BYTES = 65_536
SPARE_BYTES = 1_000_000
"""Status line, headers and the frames of a chunked body, beside twice the body."""
CONNECT_S = 10.0
"""For one address, so that a dead first one leaves time for the next."""
IDLE_CONNECTIONS = 64
HEADERS = {"User-Agent": "pocketvlm", "Accept": "*/*", "Accept-Encoding": "identity"}


class Failed(Exception):
    """The network or the server failed in a way that may pass; soon, if `again`."""

    def __init__(self, text: str, *, again: bool = True) -> None:
        super().__init__(text)
        self.again = again


class _Spent(OSError):
    """More bytes came than a try may take, whatever they are."""


@dataclass
class Budget:
    """What one try may take; shared by all its redirects."""

    until: float
    """On the monotonic clock."""
    bytes_left: int
    """Of all that arrives."""
    stall_s: float = float("inf")
    """Longest wait for the next byte."""

    def seconds(self) -> float:
        """Of the next wait. Raises TimeoutError when there are none."""
        left = min(self.until - time.monotonic(), self.stall_s)
        if left <= 0:
            raise TimeoutError("took longer than one try may take")
        return left


@dataclass(frozen=True)
class Head:
    """An answer whose body is still to come."""

    status: int
    headers: Mapping[str, str]
    """Found whatever the case of their names."""
    chunks: Iterator[bytes] = field(repr=False)
    """The body. Raises Failed."""


class Wire:
    """Connections to checked addresses, kept and used again. Several threads may ask at once.

    Proxies of the environment are not used: a proxy would look the name up itself, and nobody could check what it found.
    """

    def __init__(self, hosts: Hosts, resolve: Resolve, dial: Dial, ca_certs: Path | None) -> None:
        """`ca_certs`: who may sign certificates; None: whom the machine trusts."""
        self._hosts, self._resolve, self._dial, self._ca_certs = hosts, resolve, dial, ca_certs
        self._idle: list[_Plain | _Tls] = []
        self._busy: set[_Plain | _Tls] = set()
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def ask(self, target: Target, headers: Mapping[str, str], budget: Budget) -> Iterator[Head]:
        """Sends a GET. The connection is used again if the whole body was read, else closed.

        Raises Refused (private_address, bad_response) or Failed.
        """
        connection = None
        try:
            with _explained():
                connection, response = self._sent(target, {**HEADERS, **headers}, budget)
            yield Head(response.status, response.headers, _chunks(response))
            if response.closed and not connection.is_closed:
                self._keep(connection)
                connection = None
        finally:
            if connection is not None:
                self._drop(connection)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self._ca_certs)  # takes 20 ms

    def close(self) -> None:
        """Ends what is under way too."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            busy = list(self._busy)
        for connection in idle:
            connection.close()
        for connection in busy:
            connection.cut()

    def _sent(self, target: Target, headers: Mapping[str, str], budget: Budget) -> tuple[_Plain | _Tls, urllib3.HTTPResponse]:
        while True:
            connection, used = self._take(target)
            connection.budget = budget
            try:
                if not used:
                    connection.addresses = self._hosts.addresses(target, self._resolve)
                connection.timeout = budget.seconds()
                connection.request("GET", target.path, headers=headers, preload_content=False, decode_content=False)
                return connection, connection.getresponse()
            except BaseException as error:
                self._drop(connection)
                # A server may close a kept connection just as we send: nothing was answered, so it costs no try.
                if used and isinstance(error, ConnectionError | urllib3.exceptions.ProtocolError):
                    continue
                raise

    def _take(self, target: Target) -> tuple[_Plain | _Tls, bool]:
        """A connection, and whether it was used before."""
        with self._lock:
            if self._closed:
                raise OSError("is being closed")
            for connection in [own for own in self._idle if own.origin == target.origin]:
                self._idle.remove(connection)
                if connection.is_connected:
                    self._busy.add(connection)
                    return connection, True
                connection.close()
            made = _Tls(target, self._dial, self._tls) if target.scheme == "https" else _Plain(target, self._dial)
            self._busy.add(made)
            return made, False

    def _keep(self, connection: _Plain | _Tls) -> None:
        with self._lock:
            self._busy.discard(connection)
            if not self._closed and len(self._idle) < IDLE_CONNECTIONS:
                self._idle.append(connection)
                return
        connection.close()

    def _drop(self, connection: _Plain | _Tls) -> None:
        with self._lock:
            self._busy.discard(connection)
        connection.close()


def system_dial(address: str, port: int, seconds: float) -> socket.socket:
    """Raises OSError."""
    return socket.create_connection((address, port), seconds)


class _Pinned(HTTPConnection):
    """Dials addresses that were checked, and never asks what the name means again."""

    def __init__(self, target: Target, dial: Dial, **options: Any) -> None:
        super().__init__(host=target.host, port=target.port, **options)
        self.origin = target.origin
        self.addresses: list[str] = []
        self.budget = Budget(0, 0)
        self._dialler = dial
        self.response_class = self._metered  # type: ignore[assignment]

    def _new_conn(self) -> socket.socket:
        failure: OSError = OSError("has no address")
        for address in self.addresses:
            try:
                dialled = self._dialler(address, self.port or 0, min(self.budget.seconds(), CONNECT_S))
            except OSError as error:
                failure = error
                continue
            try:
                dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                dialled.settimeout(self.budget.seconds())  # of the TLS handshake as a whole
                return dialled
            except OSError:
                dialled.close()
                raise
        raise failure

    def cut(self) -> None:
        """Ends a read in another thread."""
        if (there := self.sock) is not None:
            try:
                there.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it has ended by itself

    def _metered(self, sock: socket.socket, **options: Any) -> http.client.HTTPResponse:
        response = http.client.HTTPResponse(sock, **options)
        response.fp = io.BufferedReader(_Metered(response.fp.detach(), sock, self.budget), CHUNK_BYTES)
        return response


class _Plain(_Pinned):
    pass


class _Tls(_Pinned, HTTPSConnection):
    """Server name and certificate are the name's, not the address's."""

    def __init__(self, target: Target, dial: Dial, tls: ssl.SSLContext) -> None:
        super().__init__(target, dial, ssl_context=tls)


class _Metered(io.RawIOBase):
    """A socket's stream, every read of which keeps to the budget: a byte a second ends like silence does."""

    def __init__(self, stream: io.RawIOBase, sock: socket.socket, budget: Budget) -> None:
        self._stream, self._sock, self._budget = stream, sock, budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._budget.seconds())
        count = self._stream.readinto(buffer)
        self._budget.bytes_left -= count or 0
        if self._budget.bytes_left < 0:
            raise _Spent("sends more than a try may take")
        return int(count or 0)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def _chunks(response: urllib3.HTTPResponse) -> Iterator[bytes]:
    with _explained():
        yield from response.stream(CHUNK_BYTES, decode_content=False)


@contextmanager
def _explained() -> Iterator[None]:
    """Turns what sockets, TLS, http.client and urllib3 raise into Refused (nonsense was answered) or Failed."""
    try:
        yield
    except (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError, ValueError) as error:
        said = "".join(letter if letter.isprintable() else "?" for letter in " ".join(str(error).split())[:200])
        text = f"{type(error).__name__}: {said}"
        inner = error.args[-1] if isinstance(error, urllib3.exceptions.ProtocolError) else error
        if isinstance(error, _Spent) or isinstance(inner, _Spent):
            raise Refused("too_many_bytes", "the answer goes on and on") from error
        passing = (OSError, http.client.IncompleteRead, urllib3.exceptions.ProtocolError, urllib3.exceptions.TimeoutError,
                   urllib3.exceptions.SSLError)  # fmt: skip
        nonsense = (urllib3.exceptions.InvalidChunkLength, http.client.BadStatusLine, http.client.LineTooLong)
        disconnected = isinstance(inner, http.client.RemoteDisconnected)  # one kind of BadStatusLine
        if isinstance(error, passing) and (disconnected or not isinstance(inner, nonsense)):
            raise Failed(text, again=not isinstance(error, ssl.SSLCertVerificationError)) from error
        raise Refused("bad_response", f"the server does not keep to HTTP: {text}") from error
