"""Files between a folder and a store: hashed, in parallel, and kept when they are there already."""

from __future__ import annotations

import fcntl
import hashlib
import os
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from pocketvlm.artifacts.manifest import FileEntry
from pocketvlm.artifacts.store import KeyMissing, Store
from pocketvlm.errors import Corrupt

Item = TypeVar("Item")

THREADS = 4
"""Files at once; each large one is moved in parallel parts besides."""


def hash_file(path: Path, name: str) -> FileEntry:
    """Reads the file once; the entry says what was read."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(name=name, size=file.tell(), sha256=digest)


def hash_folder(folder: Path) -> list[FileEntry]:
    """Entries of every file below `folder`, sorted by name."""
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    entries: list[FileEntry] = []
    with ThreadPoolExecutor(THREADS) as pool:
        entries.extend(pool.map(lambda name: hash_file(folder / name, name), paths))
    return entries


def upload_files(store: Store, folder: Path, keys: Iterable[tuple[FileEntry, str]], present: dict[str, int]) -> None:
    """Uploads each entry's file to its key, unless `present` (key -> size) has it: an upload is whole or absent."""
    _each(lambda item: store.upload(folder / item[0].name, item[1]),
          [(entry, key) for entry, key in keys if present.get(key) != entry.size])


def fetch_files(store: Store, keys: Iterable[tuple[FileEntry, str]], to: Path) -> None:
    """Downloads each key to `to`/name, verified; a file that is there with the right sha256 is kept.

    Raises Corrupt for wrong bytes, or for a key that a manifest lists and the store has lost.
    """
    _each(lambda item: _fetch(store, item[0], item[1], to / item[0].name), list(keys))


def write_file(path: Path, data: bytes) -> None:
    """Writes a small file whole, and so that it lasts."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    with temporary.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def check_bytes(store: Store, entry: FileEntry, key: str, data: bytes) -> bytes:
    """Returns `data`. Raises Corrupt if they are not what `entry` says."""
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise Corrupt(_corrupt(store, key, entry))
    return data


def _fetch(store: Store, entry: FileEntry, key: str, path: Path) -> None:
    if _matches(path, entry):
        return
    # The name says whose bytes these are, so that a killed download is taken up again where it was.
    part = path.with_name(f"{path.name}.{entry.sha256[:12]}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as lock:
        # Two pulls into one folder add to the same part: the second one waits, and finds the file.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _matches(path, entry):
            part.unlink(missing_ok=True)
        else:
            _download(store, entry, key, part)
            part.replace(path)


def _download(store: Store, entry: FileEntry, key: str, part: Path) -> None:
    begun = part.is_file() and part.stat().st_size > 0
    for _ in range(2 if begun else 1):
        try:
            store.download(key, part)
        except KeyMissing as error:
            part.unlink(missing_ok=True)
            raise Corrupt(f"{store.url}: {key} is listed and not there; delete the artifact and run again") from error
        if _matches(part, entry):
            return
        part.unlink(missing_ok=True)  # it went on from something else: once more, from the start
    raise Corrupt(_corrupt(store, key, entry))


def _matches(path: Path, entry: FileEntry) -> bool:
    if not path.is_file() or path.stat().st_size != entry.size:
        return False
    return hash_file(path, entry.name).sha256 == entry.sha256


def _corrupt(store: Store, key: str, entry: FileEntry) -> str:
    return (f"{store.url}: {key} does not have the sha256 {entry.sha256[:12]}... of its manifest; "
            "try again, and if that fails too, delete the artifact and run again")


def _each(work: Callable[[Item], None], items: list[Item]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in futures:
                future.result()
        finally:
            # One failure ends the whole: what waits is dropped, what runs is awaited.
            for future in futures:
                future.cancel()
