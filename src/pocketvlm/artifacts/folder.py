"""A store that is a directory: the embedded default.

Every file is written under `.pending/`, flushed to disk, and only then linked or renamed to its key, under one lock for
the whole store; so a reader, who takes no lock, sees old bytes or new bytes. The kernel drops the locks of a killed
process, which also tells a file that is being written from one that was left behind.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pocketvlm.artifacts.store import KeyMissing, Store, Stored, check_key, open_part
from pocketvlm.errors import StoreUnavailable, UserError

PENDING = ".pending"
_NEEDS_A_PERSON = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOTSUP)


class FolderStore(Store):
    """Keys are files below `root`, which is made on the first write."""

    def __init__(self, root: Path) -> None:
        self.url = str(root)
        self._root = root.absolute()
        self._pending = self._root / PENDING
        self._sweep()

    def read(self, key: str) -> bytes:
        with self._errors(key), self._reading(key):
            return self._path(key).read_bytes()

    def read_tagged(self, key: str) -> tuple[bytes, str] | None:
        try:
            data = self.read(key)
        except KeyMissing:
            return None
        return data, hashlib.sha256(data).hexdigest()

    def read_part(self, key: str, start: int, end: int) -> bytes:
        with self._errors(key), self._reading(key), self._path(key).open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def write(self, key: str, data: bytes) -> None:
        with self._errors(key), self._written(data) as temporary, self._locked():
            self._place(temporary, self._path(key))

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with self._errors(key), self._written(data) as temporary, self._locked():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            _flush_folder(path.parent)
            return True

    def replace(self, key: str, data: bytes, tag: str) -> bool:
        with self._errors(key), self._written(data) as temporary, self._locked():
            tagged = self.read_tagged(key)
            if tagged is None or tagged[1] != tag:
                return False
            self._place(temporary, self._path(key))
            return True

    def upload(self, path: Path, key: str) -> None:
        with path.open("rb") as source, self._errors(key), self._written(source) as temporary, self._locked():
            self._place(temporary, self._path(key))

    def download(self, key: str, path: Path) -> None:
        with self._errors(key):
            with self._reading(key):
                source = self._path(key).open("rb")
            with source, open_part(path, os.fstat(source.fileno()).st_size) as target:
                source.seek(target.tell())
                shutil.copyfileobj(source, target, 1 << 20)

    def list(self, prefix: str) -> Iterator[Stored]:
        start, slash, _ = prefix.rpartition("/")
        found = []
        for folder, _, names in os.walk(self._path(start) if slash else self._root):
            for name in names:
                path = Path(folder, name)
                key = path.relative_to(self._root).as_posix()
                if key.startswith(prefix) and not key.startswith(f"{PENDING}/"):
                    found.append((key, path))
        for key, path in sorted(found):
            try:
                size = path.stat().st_size
            except FileNotFoundError:  # deleted since
                continue
            yield Stored(key, size)

    def delete(self, prefix: str) -> None:
        assert prefix.strip("/"), "deleting a whole store is not what anybody wants"
        if not self._root.exists():
            return
        with self._errors(prefix), self._locked():
            for stored in list(self.list(prefix)):
                path = self._root / stored.key
                path.unlink()
                self._remove_empty(path.parent)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _place(self, temporary: Path, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(path)
        _flush_folder(path.parent)

    def _remove_empty(self, folder: Path) -> None:
        while folder != self._root and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent

    @contextmanager
    def _written(self, source: bytes | IO[bytes]) -> Iterator[Path]:
        """A file under `.pending/` with these bytes on disk, locked by us until it is placed."""
        self._pending.mkdir(parents=True, exist_ok=True)
        path, file = self._open_locked()
        with file:
            try:
                if isinstance(source, bytes):
                    file.write(source)
                else:
                    shutil.copyfileobj(source, file, 1 << 20)
                file.flush()
                os.fsync(file.fileno())
                yield path
            finally:
                path.unlink(missing_ok=True)

    def _open_locked(self) -> tuple[Path, IO[bytes]]:
        while True:
            path = self._pending / uuid.uuid4().hex
            file = path.open("xb")
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:
                return path, file
            file.close()  # a sweep came between the open and the lock

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time; each `open` is a lock owner of its own, so this holds between threads too."""
        self._pending.mkdir(parents=True, exist_ok=True)
        with (self._pending / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _sweep(self) -> None:
        """Removes files that killed writers left: a living writer holds the lock of its file."""
        if not self._pending.is_dir():
            return
        for path in self._pending.iterdir():
            if path.name == "lock":
                continue
            try:
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
            except (BlockingIOError, FileNotFoundError, PermissionError):
                continue  # alive, gone, or another user's

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise KeyMissing(f"{self.url}: no {key}") from error

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            message = f"store {self.url}: {key}: {error.strerror or error}"
            if error.errno in _NEEDS_A_PERSON:
                raise UserError(f"{message}; set POCKETVLM_STORE to a folder on a disk with hard links where this user "
                                "may write") from error
            raise StoreUnavailable(f"{message}; check the disk's free space and health, then run again") from error


def _flush_folder(folder: Path) -> None:
    """A new name lasts through a power cut only when its folder is flushed too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
