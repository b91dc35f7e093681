"""Downloads from servers that nobody vouches for: images into memory, answers of an API, large files to disk.

Only https, only hosts of a list, only addresses that are public: a name is looked up once for each connection, what it means is
checked, and exactly that is dialled, under the certificate of the name. Redirects are followed here, each checked like the first
URL. Proxies of the environment are not used (see `wire`).
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Self
from urllib.parse import urljoin, urlsplit

from pocketvlm.errors import RunFileError, SourceUnavailable, UserError
from pocketvlm.run_file.source import Fetch
from pocketvlm.sources.record import Problem
from pocketvlm.sources.web.addresses import Hosts, Refused, Resolve, system_resolve
from pocketvlm.sources.web.wire import SPARE_BYTES, Budget, Dial, Failed, Head, Wire, system_dial

LOST_IN_A_ROW = 20
"""URLs that stay unavailable, one after the other, before the whole source counts as unavailable."""
REDIRECTS = (301, 302, 303, 307, 308)
AGAIN = (408, 425, 429)
"""Statuses that may pass, with all from 500 on."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
WAITING_BYTES = 128_000_000
"""Of images that are there and that nobody has taken yet."""
API_BYTES = 10_000_000
DRAINED_BYTES = 65_536
"""A longer body of a redirect or an error costs the connection."""


@dataclass(frozen=True)
class Response:
    """An API's answer, whatever its status."""

    status: int
    headers: Mapping[str, str]
    """Found whatever the case of their names."""
    body: bytes


@dataclass(frozen=True)
class Later:
    """A try failed in a way that may pass."""

    why: str
    retry_after_s: float = 0.0
    again: bool = True


class Fetcher:
    """Use it as a context manager. Several threads may use one; what they ask of one host shares connections."""

    def __init__(
        self, settings: Fetch, hosts: Collection[str], *, resolve: Resolve = system_resolve, dial: Dial = system_dial,
        ca_certs: Path | None = None,
    ) -> None:  # fmt: skip
        """`hosts` are the source's own, `host` or `host:port`. Raises RunFileError for a wrong entry of allow_hosts."""
        try:
            self._hosts = Hosts({*hosts, *settings.allow_hosts}, allow_http=settings.allow_http,
                                allow_private=settings.allow_private_hosts)  # fmt: skip
        except ValueError as error:
            raise RunFileError(f"run.labeller.source.fetch.allow_hosts: {error} is no host; "
                               "write `host` or `host:port`") from error
        self.settings = settings
        self._wire = Wire(self._hosts, resolve, dial, ca_certs)
        self.ending = threading.Event()
        """Set when it is closed: whoever waits for a next try gives up."""
        self._lock = threading.Lock()
        self._probing = threading.Lock()
        self._succeeded: tuple[float, str] = (float("-inf"), "")
        """When something was downloaded last, and what."""
        self._lost: set[str] = set()
        """URLs given up since."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends what other threads still wait for, too."""
        self.ending.set()
        self._wire.close()

    def get(self, url: str) -> bytes | Problem:
        """One image, or why it is not to be had.

        Raises SourceUnavailable when the deadline passed and nothing else can be downloaded either.
        """
        return self._get(url, self.ending)

    def get_all(self, urls: Iterable[str]) -> Iterator[bytes | Problem]:
        """As `get`, in the order of `urls`, several at once; few wait in memory."""
        ending = threading.Event()
        failures: list[SourceUnavailable] = []

        def get(url: str) -> bytes | Problem:
            try:
                return self._get(url, ending)
            except SourceUnavailable as error:
                failures.append(error)
                ending.set()  # so that the others do not wait for their deadlines
                raise

        pool = ThreadPoolExecutor(self.settings.parallel)
        waiting: deque[Future[bytes | Problem]] = deque()
        try:
            for url in urls:
                waiting.append(pool.submit(get, url))
                while waiting and (len(waiting) >= 4 * self.settings.parallel or _held(waiting) > WAITING_BYTES):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except SourceUnavailable:
            raise failures[0] from None
        finally:
            ending.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def request(self, url: str, headers: Mapping[str, str] | None = None, *, max_bytes: int = API_BYTES) -> Response:
        """The answer of an API, whatever its status: the caller knows what a status or a quota means there.

        `headers` are not sent on to another host. Only lost connections are tried again. Raises UserError for a URL that must
        not be asked, SourceUnavailable when no answer came until the deadline.
        """
        pauses = Pauses(self.settings.deadline_s, self.ending)
        while True:
            try:
                with self.follow(url, self._budget(max_bytes, pauses.until), own=headers or {}) as head:
                    return Response(head.status, head.headers, _body(head, max_bytes))
            except Refused as error:
                raise UserError(f"{shown(url)}: {error.problem.detail}; check the settings of fetch") from error
            except Failed as error:
                if not (error.again and pauses.wait()):
                    raise SourceUnavailable(f"{shown(url)}: no answer within {self.settings.deadline_s:g} s ({error}); "
                                            "check the network, then run again") from error

    @contextmanager
    def follow(
        self, url: str, budget: Budget, *, own: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[Head]:
        """The answer at the end of all redirects. `headers` go everywhere, `own` only to the first origin.

        Raises Refused or Failed.
        """
        first, given = None, url
        try:
            for _ in range(self.settings.max_redirects + 1):
                target = self._hosts.check(url)
                asked = {**(headers or {}), **(own or {} if first in (None, target.origin) else {})}
                first = first or target.origin
                with self._wire.ask(target, asked, budget) as head:
                    if head.status not in REDIRECTS or "location" not in head.headers:
                        yield head
                        return
                    _drain(head)
                    url = _joined(url, head.headers["location"])
        except Refused as error:
            if url is given:
                raise
            raise Refused(error.problem.reason, f"is redirected to {shown(url)}: {error.problem.detail}") from error
        raise Refused("too_many_redirects", f"more than {self.settings.max_redirects} redirects; the next leads to {shown(url)}")

    def _get(self, url: str, ending: threading.Event) -> bytes | Problem:
        begun = time.monotonic()
        pauses = Pauses(self.settings.deadline_s, ending)
        while True:
            answer = self._try(url, pauses.until)
            if isinstance(answer, bytes):
                with self._lock:
                    self._succeeded = (time.monotonic(), url)
                    self._lost.clear()
            if not isinstance(answer, Later):
                return answer
            if not (answer.again and pauses.wait(answer.retry_after_s)):
                if ending.is_set() or self.ending.is_set():
                    raise SourceUnavailable(f"{shown(url)}: given up, since the others were ({answer.why})")
                return self._give_up(url, begun, answer.why)

    def _try(self, url: str, until: float) -> bytes | Problem | Later:
        try:
            with self.follow(url, self._budget(self.settings.max_bytes, until)) as head:
                if head.status == 200:
                    return _body(head, self.settings.max_bytes)
                _drain(head)
                if head.status in AGAIN or head.status >= 500:
                    return Later(f"answers {head.status}", retry_after_s(head.headers))
                if head.status in (404, 410):
                    return Problem("not_found", f"the server answers {head.status}")
                reason = "refused_by_server" if 400 <= head.status < 500 else "bad_response"
                return Problem(reason, f"the server answers {head.status}")
        except Refused as error:
            return error.problem
        except Failed as error:
            return Later(str(error), again=error.again)

    def _give_up(self, url: str, begun: float, why: str) -> Problem:
        """A problem of this URL alone, if others can be downloaded; raises SourceUnavailable if it is the whole server's."""
        with self._probing:
            at, known = self._succeeded
            # Not all since it began: what was under way when the server went away may still have come.
            alive = at > (begun + time.monotonic()) / 2
            if not alive and known and known != url:
                alive = isinstance(self._try(known, time.monotonic() + self.settings.timeout_s), bytes)
                if alive:
                    self._succeeded = (time.monotonic(), known)
        with self._lock:
            self._lost.add(url)
            lost = len(self._lost)
        if alive and lost < LOST_IN_A_ROW:
            return Problem("unavailable", f"not to be had within {self.settings.deadline_s:g} s: {why}")
        told = f"{lost} images in a row, the last of them" if lost > 1 else "the image"
        raise SourceUnavailable(f"{told} {shown(url)}, could not be downloaded within {self.settings.deadline_s:g} s ({why}); "
                                "check the network and the server, then run again: what is done stays")

    def _budget(self, max_bytes: int, until: float) -> Budget:
        return Budget(min(time.monotonic() + self.settings.timeout_s, until), 2 * max_bytes + SPARE_BYTES)


class Pauses:
    """Between tries: full jitter, longer each time, until a deadline."""

    def __init__(self, deadline_s: float, ending: threading.Event) -> None:
        self.until = time.monotonic() + deadline_s
        self._longest_s = FIRST_PAUSE_S
        self.ending = ending

    def wait(self, at_least_s: float = 0.0) -> bool:
        """Whether there is another try; at once False if that could only come after the deadline."""
        left = self.until - time.monotonic()
        pause = at_least_s + random.uniform(0, min(self._longest_s, max(left - at_least_s, 0)))
        if pause >= left or self.ending.wait(pause):
            return False
        self._longest_s = min(2 * self._longest_s, LONGEST_PAUSE_S)
        return True


def shown(url: str) -> str:
    """For messages: without the query, which may hold a key."""
    parts = urlsplit(url) if "//" in url and "[" not in url else None
    text = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts else url
    return text[:200].encode("ascii", "backslashreplace").decode()


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks for; 0 where it says nothing that can be read."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return 0.0
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def _body(head: Head, max_bytes: int) -> bytes:
    """The whole body. Raises Refused or Failed."""
    encoding = head.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise Refused("encoded_body", f"comes as {encoding[:40]}, which was not asked for: it may unpack to anything")
    length = head.headers.get("content-length", "")
    if length.isdigit() and int(length[:19]) > max_bytes:
        raise Refused("too_many_bytes", f"{int(length[:19])} bytes; at most {max_bytes} are read")
    chunks, total = [], 0
    for chunk in head.chunks:
        total += len(chunk)
        if total > max_bytes:
            raise Refused("too_many_bytes", f"more than {max_bytes} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _joined(url: str, location: str) -> str:
    """Raises Refused for a location that is no URL."""
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise Refused("bad_url", f"is redirected to {shown(location)}, which cannot be read") from error


def _drain(head: Head) -> None:
    """Reads a body that nobody wants, so that the connection can be used again."""
    total = 0
    for chunk in head.chunks:
        total += len(chunk)
        if total > DRAINED_BYTES:
            return


def _held(waiting: Iterable[Future[bytes | Problem]]) -> int:
    """Bytes that nobody has taken yet."""
    done = (future.result() for future in waiting if future.done() and not future.cancelled() and future.exception() is None)
    return sum(len(data) for data in done if isinstance(data, bytes))
