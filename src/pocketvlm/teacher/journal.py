"""Every answer that was paid for, kept in the store before it counts: `answers/<key>/`, shared by all runs that ask the same.

Answers are lines of JSON in segments, `answers/<key>/<first 16 hex of the sha256 of its bytes>.jsonl`, each written once and
never changed. Small segments of one process are put together into one that holds the same lines, and only then deleted. Two
processes that asked the same at once leave two lines for it: everywhere the one that sorts first counts.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pocketvlm.artifacts.manifest import canonical_json
from pocketvlm.artifacts.store import KeyMissing, Store, Stored
from pocketvlm.errors import Corrupt
from pocketvlm.teacher.answers import Outcome

READERS = 16
TOGETHER = 64
"""Small segments that become one. A commit is small when few calls end at once, and each segment is a request to read later."""
PORTION_BYTES = 16_000_000
"""Of segments that are in memory at once."""
SMALLEST_WINS = """insert into answers values (?, ?, ?)
    on conflict (image, vote) do update set line = min(line, excluded.line)"""


class Journal:
    """The outcomes of one question. Thread-safe; `close` it. Nothing is read before the first use."""

    def __init__(self, store: Store, key: str, scratch: Path) -> None:
        """`key` is that of the question; `scratch` holds the index while this is open."""
        self._store, self._root = store, f"answers/{key}/"
        self._path = scratch / f"answers-{key}-{uuid.uuid4().hex[:12]}.sqlite3"
        self._index: sqlite3.Connection | None = None
        self._lock = threading.RLock()
        self._seen: set[str] = set()
        """Segments whose lines are in the index."""
        self._waiting: list[tuple[Outcome, Future[None]]] = []
        self._small: dict[str, bytes] = {}
        """Own segments that are not put together yet."""
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="journal")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits until what was recorded is durable; deletes the index."""
        self._writer.shutdown(wait=True)
        with self._lock:
            self._drop_index()

    def describe(self, question: Mapping[str, Any]) -> None:
        """Keeps `question.json` beside the answers, for people and audits; the first one stays."""
        self._store.create(f"{self._root}question.json", canonical_json(dict(question)))

    def find(self, image_sha256: str, vote: int) -> Outcome | None:
        """What is kept of this image and vote. The first use reads all segments. Raises Corrupt naming a damaged one."""
        with self._lock:
            row = self._opened().execute("select line from answers where image = ? and vote = ?", (image_sha256, vote)).fetchone()
        return None if row is None else Outcome.model_validate_json(row[0])

    def record(self, outcome: Outcome) -> None:
        """Returns once the outcome is durable. Raises what the store raises; then it is not known to be kept."""
        self.submit(outcome).result()

    def knows(self, image_sha256: str, vote: int) -> bool:
        """Whether `find` has something; cheaper."""
        with self._lock:
            query = "select 1 from answers where image = ? and vote = ?"
            return self._opened().execute(query, (image_sha256, vote)).fetchone() is not None

    def submit(self, outcome: Outcome) -> Future[None]:
        """`record` without waiting: all that waits goes into one segment."""
        done: Future[None] = Future()
        with self._lock:
            self._waiting.append((outcome, done))
        self._writer.submit(self._commit)
        return done

    def refresh(self) -> None:
        """Reads segments that other processes wrote since. Raises Corrupt naming a damaged one."""
        with self._lock:
            if self._index is None:
                self._opened()
                return
        self._read_new()

    def _read_new(self) -> None:
        while True:
            listed = (stored for stored in self._store.list(self._root) if stored.key.endswith(".jsonl"))
            if self._load([stored for stored in listed if stored.key not in self._seen]):
                return

    def _opened(self) -> sqlite3.Connection:
        if self._index is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            index = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
            # It is made anew each time, so it need not outlive anything.
            index.execute("pragma journal_mode = memory")
            index.execute("pragma synchronous = off")
            index.execute("create table answers (image text, vote integer, line text, unique (image, vote))")
            self._index = index
            try:
                self._read_new()
            except BaseException:
                self._drop_index()  # half of the answers would be asked again
                raise
        return self._index

    def _drop_index(self) -> None:
        if self._index is not None:
            self._index.close()
            self._index = None
            self._seen.clear()
            self._path.unlink(missing_ok=True)

    def _load(self, new: list[Stored]) -> bool:
        """False: one was put together with others since it was listed; list again."""
        whole = True
        with ThreadPoolExecutor(READERS) as readers:
            for some in _portions(new):
                for key, data in zip(some, readers.map(self._read, some), strict=True):
                    if data is None:
                        whole = False
                    else:
                        self._insert(key, self._rows(key, data))
        return whole

    def _read(self, key: str) -> bytes | None:
        try:
            return self._store.read(key)
        except KeyMissing:
            return None

    def _rows(self, key: str, data: bytes) -> Iterator[tuple[str, int, str]]:
        where = f"{self._store.url}/{key}"
        remedy = "put back a copy of it, or delete it: then its answers are asked and paid for again"
        if key != self._key_of(data):
            raise Corrupt(f"{where}: its bytes are not those that were written; {remedy}")
        try:
            for line in data.decode().splitlines():
                outcome = Outcome.model_validate_json(line)
                yield outcome.image, outcome.vote, line
        except (ValidationError, UnicodeDecodeError) as error:
            raise Corrupt(f"{where}: is no list of answers; {remedy}") from error

    def _insert(self, key: str, rows: Iterable[tuple[str, int, str]]) -> None:
        with self._lock:
            index = self._opened()
            index.execute("begin")
            try:
                index.executemany(SMALLEST_WINS, rows)
            except BaseException:
                index.execute("rollback")
                raise
            index.execute("commit")
            self._seen.add(key)

    def _commit(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        if not waiting:
            return  # an earlier commit took them
        # Whoever asked may be gone; the outcome was paid for all the same.
        asking = [done for _, done in waiting if done.set_running_or_notify_cancel()]
        try:
            rows = [(outcome.image, outcome.vote, _line(outcome)) for outcome, _ in waiting]
            data = "".join(f"{line}\n" for _, _, line in rows).encode()
            key = self._key_of(data)
            self._store.write(key, data)
            self._insert(key, rows)
            self._small[key] = data
        except BaseException as error:
            for done in asking:
                done.set_exception(error)
            raise
        for done in asking:
            done.set_result(None)
        if len(self._small) >= TOGETHER:
            self._put_together()

    def _put_together(self) -> None:
        """One segment instead of many, written before they go: ended in between, lines are there twice, which is harmless."""
        small, self._small = self._small, {}
        data = b"".join(small.values())
        key = self._key_of(data)
        self._store.write(key, data)
        with self._lock:
            self._seen.add(key)
        for old in small:
            self._store.delete(old)

    def _key_of(self, data: bytes) -> str:
        return f"{self._root}{hashlib.sha256(data).hexdigest()[:16]}.jsonl"


def _line(outcome: Outcome) -> str:
    return json.dumps(outcome.model_dump(mode="json"), separators=(",", ":"), allow_nan=False)


def _portions(stored: list[Stored]) -> Iterator[list[str]]:
    """Keys of segments to read at once."""
    portion: list[str] = []
    held = 0
    for one in stored:
        if portion and held + one.size > PORTION_BYTES:
            yield portion
            portion, held = [], 0
        portion.append(one.key)
        held += one.size
    if portion:
        yield portion
