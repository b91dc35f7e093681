"""The port to where artifacts lie: a flat map from keys to bytes with conditional writes.

Two adapters pass one contract test: `FolderStore` (a directory) and `S3Store` (any S3-compatible endpoint). Everything
that PocketVLM promises about crashes and races rests on three properties of each: a write is seen whole or not at all,
`create` has one winner, `replace` succeeds only on what was read.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pocketvlm.errors import ConditionIgnored


class KeyMissing(LookupError):
    """The store has no such key. Callers that cannot go on turn it into an error that a person can read."""


@dataclass(frozen=True)
class Stored:
    """One key of a listing; `size` in bytes."""

    key: str
    size: int


class Store(ABC):
    """Keys are relative paths with `/`; every method may raise StoreUnavailable, CredentialsError or BucketMissing."""

    url: str
    """What `POCKETVLM_STORE` says, for messages."""

    @abstractmethod
    def read(self, key: str) -> bytes:
        """All bytes of `key`. Raises KeyMissing."""

    @abstractmethod
    def read_tagged(self, key: str) -> tuple[bytes, str] | None:
        """Bytes and an opaque tag for `replace`; None if the key is absent."""

    @abstractmethod
    def read_part(self, key: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of a key that is at least `end` long: a header without what follows. Raises KeyMissing."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Writes whole and unconditionally."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Writes if the key is absent (If-None-Match: *). False: somebody was first, and nothing was written."""

    @abstractmethod
    def replace(self, key: str, data: bytes, tag: str) -> bool:
        """Writes if the key still has `tag` (If-Match). False: it has changed or is gone, and nothing was written."""

    @abstractmethod
    def upload(self, path: Path, key: str) -> None:
        """Writes a file of any size; in parts where the store has them, seen whole or not at all."""

    @abstractmethod
    def download(self, key: str, path: Path) -> None:
        """Adds to `path` what it lacks of `key`, by parallel ranges where the store has them.

        What `path` holds is taken for the beginning of the bytes, left by a download that was killed; it is thrown away
        only if it is too long. Bytes are added in order, so `path` holds a beginning at any moment. The caller checks
        the whole. Raises KeyMissing.
        """

    @abstractmethod
    def list(self, prefix: str) -> Iterator[Stored]:
        """Every key that starts with `prefix` (a string, not a folder), sorted by key."""

    @abstractmethod
    def delete(self, prefix: str) -> None:
        """Deletes every key that starts with `prefix`; none is fine."""

    def probe(self) -> None:
        """Proves with a key of its own that conditional writes are honoured. Raises ConditionIgnored."""
        key = f"probe/{uuid.uuid4().hex}"
        ignored = self._ignored_condition(key)
        self.delete(key)
        if ignored:
            raise ConditionIgnored(f"{self.url}: this store does not honour {ignored}, so two pods could publish over "
                                   "each other; use a store with conditional writes "
                                   "(AWS S3, MinIO of 2025 or later, Ceph)")

    def _ignored_condition(self, key: str) -> str | None:
        if not self.create(key, b"1") or self.create(key, b"2"):
            return "If-None-Match on a key that is there"
        tagged = self.read_tagged(key)
        if tagged is None or self.replace(key, b"3", '"00000000000000000000000000000000"'):
            return "If-Match with another ETag"
        if self.replace(f"{key}-absent", b"3", tagged[1]):
            return "If-Match on an absent key"
        if not self.replace(key, b"4", tagged[1]) or self.read(key) != b"4":
            return "If-Match with its own ETag"
        return None


def open_part(path: Path, size: int) -> BinaryIO:
    """The file of a download of `size` bytes, at the place where it goes on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    if file.tell() > size:
        file.truncate(0)
        file.seek(0)
    return file


def check_key(key: str) -> str:
    """Returns `key` if it is a plain relative path; refuses what could leave the store's folder.

    Raises ValueError: keys are made by us, or come from a manifest, which must never be trusted with a path.
    """
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts) or parts[0].startswith("."):
        raise ValueError(f"{key!r} is not a plain relative path")
    if "\\" in key or not key.isprintable():
        raise ValueError(f"{key!r} holds a backslash or a control character")
    return key
