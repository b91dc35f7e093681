"""A finished artifact in the store: found by id, verified on read, published once.

Layout: `<kind>/<id>/<sha256, 12 hex>/<name>`, then `<kind>/<id>/measurements.json`, then `<kind>/<id>/manifest.json`.
Files lie under their own hash, so two attempts never write other bytes to one key; the manifest, written last by a
conditional create, decides whose files the artifact is made of.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from pocketvlm.artifacts.files import check_bytes, fetch_files, hash_folder, upload_files
from pocketvlm.artifacts.manifest import FORMATS, FileEntry, Manifest, canonical_json
from pocketvlm.artifacts.store import KeyMissing, Store
from pocketvlm.errors import Corrupt, DataError


@dataclass(frozen=True)
class Artifact:
    """A published artifact. Every byte that it hands out was checked against the manifest, but for `read_part`."""

    store: Store
    manifest: Manifest

    @property
    def kind(self) -> str:
        return self.manifest.kind

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def facts(self) -> dict[str, Any]:
        return self.manifest.facts

    @property
    def files(self) -> list[FileEntry]:
        return self.manifest.files

    def fetch(self, to: Path, names: Collection[str] | None = None) -> Path:
        """Puts the files (or those named) below `to` and returns `to`; files with the right sha256 stay as they are.

        Raises Corrupt for wrong bytes, DataError for a name that the artifact does not have.
        """
        entries = self.files if names is None else [self._entry(name) for name in names]
        to.mkdir(parents=True, exist_ok=True)
        fetch_files(self.store, [(entry, self._key(entry)) for entry in entries], to)
        return to

    def read(self, name: str) -> bytes:
        """Bytes of one file. Raises Corrupt for wrong bytes, DataError for a name that the artifact does not have."""
        entry = self._entry(name)
        key = self._key(entry)
        try:
            return check_bytes(self.store, entry, key, self.store.read(key))
        except KeyMissing as error:
            raise Corrupt(f"{self.store.url}: {key} is listed and not there; delete {self.kind}/{self.id}/ "
                          "and run again") from error

    def read_part(self, name: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of one file. They alone are not checked: a sha256 is of whole files. For headers.

        Raises DataError for a name that the artifact does not have, or an end beyond the file's.
        """
        entry = self._entry(name)
        if end > entry.size:
            raise DataError(f"{self.store.url}: {self.kind}/{self.id}: {name} has {entry.size} bytes, not {end}")
        return self.store.read_part(self._key(entry), start, end)

    def measurements(self) -> dict[str, Any]:
        """Times, rates and memory of the attempt whose files these are; {} if none. For people: not hashed."""
        try:
            data = self.store.read(f"{self.kind}/{self.id}/measurements.json")
        except KeyMissing:
            return {}
        return cast(dict[str, Any], json.loads(data))

    def _entry(self, name: str) -> FileEntry:
        for entry in self.files:
            if entry.name == name:
                return entry
        there = ", ".join(entry.name for entry in self.files)
        raise DataError(f"{self.store.url}: {self.kind}/{self.id} has no file {name}; it has {there}")

    def _key(self, entry: FileEntry) -> str:
        return _file_key(self.kind, self.id, entry)


def find(store: Store, kind: str, id: str) -> Artifact | None:
    """The artifact, or None if nobody has finished it. Raises Corrupt if its manifest is not its own."""
    key = f"{kind}/{id}/manifest.json"
    try:
        data = store.read(key)
    except KeyMissing:
        return None
    manifest = Manifest.from_bytes(data, f"{store.url}: {key}")
    if (manifest.kind, manifest.id) != (kind, id):
        raise Corrupt(f"{store.url}: {key} is the manifest of {manifest.kind}/{manifest.id}; delete it and run again")
    return Artifact(store, manifest)


def publish(
    store: Store,
    kind: str,
    id: str,
    folder: Path,
    *,
    inputs: Mapping[str, str],
    settings: Mapping[str, Any],
    facts: Mapping[str, Any],
    measurements: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
) -> Artifact:
    """Publishes every file of `folder`; returns what is in the store then, which may be from a faster attempt.

    `facts` must be equal for equal runs; `measurements` (times, rates, memory) may differ and are not hashed.
    `versions` are of the packages that shaped the content; PocketVLM's own is added.
    """
    root = f"{kind}/{id}/"
    present = {stored.key: stored.size for stored in store.list(root)}
    found = find(store, kind, id) if f"{root}manifest.json" in present else None
    if found is None:
        manifest = Manifest(
            format=FORMATS[kind], kind=kind, id=id, inputs=dict(inputs), settings=dict(settings), facts=dict(facts),
            versions={"pocketvlm": metadata.version("pocketvlm"), **(versions or {})}, files=hash_folder(folder),
        )
        keys = [(entry, _file_key(kind, id, entry)) for entry in manifest.files]
        upload_files(store, folder, keys, present)
        found = _publish(store, manifest, measurements)
        present |= {key: entry.size for entry, key in keys}
    _delete_leftovers(found, present)
    return found


def _publish(store: Store, manifest: Manifest, measurements: Mapping[str, Any] | None) -> Artifact:
    root = f"{manifest.kind}/{manifest.id}/"
    data = canonical_json(dict(measurements or {}))
    # Before the manifest, so that a killed attempt leaves none without; whoever then wins puts right whose they are.
    first = not measurements or store.create(f"{root}measurements.json", data)
    if store.create(f"{root}manifest.json", manifest.to_bytes()):
        if not first:
            store.write(f"{root}measurements.json", data)
        return Artifact(store, manifest)
    winner = find(store, manifest.kind, manifest.id)
    assert winner is not None, "a manifest that somebody was faster with is there"
    return winner


def _delete_leftovers(artifact: Artifact, present: Collection[str]) -> None:
    """Deletes files of attempts that lost or were killed: once there is a manifest, nobody can need them."""
    root = f"{artifact.kind}/{artifact.id}/"
    used = {entry.sha256[:12] for entry in artifact.files}
    folders = {key.removeprefix(root).split("/")[0] for key in present if "/" in key.removeprefix(root)}
    for name in sorted(folders - used):
        artifact.store.delete(f"{root}{name}/")


def _file_key(kind: str, id: str, entry: FileEntry) -> str:
    return f"{kind}/{id}/{entry.sha256[:12]}/{entry.name}"
