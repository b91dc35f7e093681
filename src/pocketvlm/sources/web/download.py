"""One large file to disk: taken up where it was left, and never there unless its sha256 is right."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pocketvlm.errors import DataError, SourceUnavailable, UserError
from pocketvlm.sources.web.addresses import Refused
from pocketvlm.sources.web.fetch import AGAIN, Fetcher, Pauses, retry_after_s, shown
from pocketvlm.sources.web.wire import SPARE_BYTES, Budget, Failed, Head

SLOWEST_BYTES_PER_S = 100_000
"""A server that is slower all the time is given up; what it has sent stays."""


def download(fetcher: Fetcher, url: str, path: Path, sha256: str, max_bytes: int) -> None:
    """Downloads `url` to `path`, unless it is there already, by way of `path`.part, which outlives this process.

    A second process waits for the first.
    Raises UserError for a URL that must not be asked, SourceUnavailable when no bytes came for `deadline_s`, DataError for a
    file that is not there, too large, or has another sha256.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with locked(part) as file:
        if has_sha256(path, sha256):
            part.unlink(missing_ok=True)
            return
        begun = os.fstat(file.fileno()).st_size > 0
        for _ in range(2 if begun else 1):
            _Filling(fetcher, url, file, part, max_bytes).run()
            found = _sha256(part)
            if found == sha256:
                os.fsync(file.fileno())
                part.replace(path)
                _validator(part).unlink(missing_ok=True)
                return
            file.truncate(0)  # it may have gone on from something else: once more, from the start
        part.unlink(missing_ok=True)
        _validator(part).unlink(missing_ok=True)
        raise DataError(f"{shown(url)}: has the sha256 {found}, not {sha256}; if you trust what is served there now, "
                        "write the new sha256 into the run file, else name another server")


@contextmanager
def locked(part: Path) -> Iterator[IO[bytes]]:
    """`part`, opened to add to it, by one process at a time. Whoever had to wait may find that it became the whole file."""
    while True:
        with part.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                own = os.path.samestat(os.fstat(file.fileno()), part.stat())
            except FileNotFoundError:
                own = False
            if own:
                yield file
                return


def has_sha256(path: Path, sha256: str) -> bool:
    return path.is_file() and _sha256(path) == sha256


class _Filling:
    """Adds to the part until the server says that it is whole."""

    def __init__(self, fetcher: Fetcher, url: str, file: IO[bytes], part: Path, max_bytes: int) -> None:
        self._fetcher, self._url, self._file, self._part = fetcher, url, file, part
        self._max_bytes = max_bytes
        self._until = time.monotonic() + fetcher.settings.deadline_s + max_bytes / SLOWEST_BYTES_PER_S

    def run(self) -> None:
        """Raises as `download`."""
        pauses = Pauses(self._fetcher.settings.deadline_s, self._fetcher.ending)
        while True:
            before = self._size()
            again, least_s = True, 0.0
            try:
                with self._fetcher.follow(self._url, self._budget(), headers=self._range()) as head:
                    if head.status in AGAIN or head.status >= 500:
                        why, least_s = f"answers {head.status}", retry_after_s(head.headers)
                    elif self._take(head):
                        return
                    else:
                        why = "what is there does not fit what is served"
            except Refused as error:
                self._refuse(error)
            except Failed as error:
                why, again = str(error), error.again
            if self._size() > before:
                pauses = Pauses(self._fetcher.settings.deadline_s, self._fetcher.ending)
            if not again or time.monotonic() > self._until or not pauses.wait(least_s):
                raise SourceUnavailable(f"{shown(self._url)}: stopped at {self._size()} bytes ({why}); check the network, then "
                                        "run again: it goes on from there")

    def _take(self, head: Head) -> bool:
        """Writes a body. False: what is there was thrown away, ask for the whole."""
        at = self._size()
        if head.status == 206 and head.headers.get("content-range", "").startswith(f"bytes {at}-"):
            pass
        elif head.status == 200:
            self._start_over(head)
        elif head.status == 416 and head.headers.get("content-range", "") == f"bytes */{at}":
            return True  # killed after the last byte
        elif head.status in (206, 416) and at:
            self._start_over(None)
            return False
        else:
            raise DataError(f"{shown(self._url)}: the server answers {head.status}; check the address in the run file")
        encoding = head.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise Refused("encoded_body", f"comes as {encoding[:40]}, which was not asked for")
        for chunk in head.chunks:
            if self._size() + len(chunk) > self._max_bytes:
                raise Refused("too_many_bytes", f"more than {self._max_bytes} bytes")
            self._file.write(chunk)
            self._file.flush()
        return True

    def _start_over(self, head: Head | None) -> None:
        """Empties the part, then keeps what the server calls this state of the file, so that no other one is added to it."""
        note = _validator(self._part)
        note.unlink(missing_ok=True)
        self._file.truncate(0)
        named = [head.headers.get("etag", ""), head.headers.get("last-modified", "")] if head else []
        strong = [text for text in named if text.isprintable() and text and not text.startswith("W/")]
        if strong:
            note.write_text(strong[0][:1000])

    def _range(self) -> dict[str, str]:
        at, note = self._size(), _validator(self._part)
        if not at:
            return {}
        known = note.read_text() if note.is_file() else ""
        return {"Range": f"bytes={at}-", **({"If-Range": known} if known else {})}

    def _budget(self) -> Budget:
        return Budget(self._until, 2 * self._max_bytes + SPARE_BYTES, stall_s=self._fetcher.settings.timeout_s)

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _refuse(self, error: Refused) -> None:
        if error.problem.reason in ("too_many_bytes", "encoded_body", "bad_response"):
            self._start_over(None)
            raise DataError(f"{shown(self._url)}: {error.problem.detail}; check the address in the run file") from error
        raise UserError(f"{shown(self._url)}: {error.problem.detail}; check the settings of fetch") from error


def _validator(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
