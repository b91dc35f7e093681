"""The other end of a release: its files in a folder, checked, all or nothing."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path

from pocketvlm.artifacts.files import fetch_files, write_file
from pocketvlm.artifacts.release import NAME, Release, ReleaseFile, parse_latest, parse_release
from pocketvlm.artifacts.store import KeyMissing, Store, check_key
from pocketvlm.errors import Corrupt, UserError

PULLING = ".pulling.json"
"""In the target while a pull is under way: names of the files that this or an earlier pull may have put there."""


def pull(
    store: Store, name: str, version: str | None, to: Path, types: Collection[str] | None = None
) -> Release:
    """Puts a release (None: the latest) below `to`, with all types or only `types`; returns its whole release.json.

    `release.json` is there only while every file beside it is what it says (or was left out by `types`). Files that are
    right already are kept; those of an earlier pull that do not belong to this one are deleted. Raises UserError for a
    name, version or type that does not exist, saying which do; Corrupt for wrong bytes.
    """
    data = _read_release(store, name, version)
    release = parse_release(data, f"{store.url}: release {name} {version or ''}")
    files = _chosen(release, types)
    final, pulling = to / "release.json", to / PULLING
    ours = {file.name for file in files} | _earlier(final, pulling)
    to.mkdir(parents=True, exist_ok=True)
    write_file(pulling, json.dumps(sorted(ours)).encode())
    if final.exists() and final.read_bytes() != data:
        final.unlink()
    fetch_files(store, [(file, release.root + file.name) for file in files], to)
    # All that is not of this release goes before release.json comes, so that nothing strange lies beside it.
    for stale in ours - {file.name for file in files}:
        (to / check_key(stale)).unlink(missing_ok=True)
    for part in to.rglob("*.part"):  # of a killed download
        if any(part.relative_to(to).as_posix().startswith(f"{name}.") for name in (*ours, "release.json", PULLING)):
            part.unlink()
    write_file(final, data)
    pulling.unlink()
    return release


def read_release(store: Store, name: str, version: str | None) -> Release:
    """A release (None: the latest) without its files. Raises as `pull` does."""
    return parse_release(_read_release(store, name, version), f"{store.url}: release {name} {version or ''}")


def _read_release(store: Store, name: str, version: str | None) -> bytes:
    """Bytes of release.json; those of the latest are checked against latest.json."""
    if not re.fullmatch(NAME, name) or (version is not None and not re.fullmatch(NAME, version)):
        raise _unknown(store, name, version)
    try:
        if version is not None:
            return store.read(f"releases/{name}/{version}/release.json")
        latest = parse_latest(store, name, store.read(f"releases/{name}/latest.json"))
        data = store.read(f"releases/{name}/{latest.version}/release.json")
    except KeyMissing as error:
        raise _unknown(store, name, version) from error
    if hashlib.sha256(data).hexdigest() != latest.release_sha256:
        raise Corrupt(f"{store.url}: {latest.release} does not have the sha256 that latest.json says; "
                      "pull an earlier version, or release again under another version")
    return data


def _unknown(store: Store, name: str, version: str | None) -> UserError:
    versions: dict[str, list[str]] = {}
    for stored in store.list("releases/"):
        parts = stored.key.split("/")
        if len(parts) == 4 and parts[3] == "release.json":
            versions.setdefault(parts[1], []).append(parts[2])
    if name not in versions:
        return UserError(f"{store.url}: there is no release {name}; there are: {', '.join(versions) or 'none'}")
    wanted = f"version {version}" if version else "latest version"
    return UserError(f"{store.url}: {name} has no {wanted}; it has: {', '.join(versions[name])}")


def _chosen(release: Release, types: Collection[str] | None) -> list[ReleaseFile]:
    """Files of the types asked for, and all files that belong to no type."""
    if types is None:
        return release.files
    unknown = sorted(set(types) - set(release.types))
    if unknown:
        raise UserError(f"release {release.name} {release.version} has no type {', '.join(unknown)}; "
                        f"it has: {', '.join(release.types)}")
    wanted = {file for kind in types for file in (release.types[kind].text_model, release.types[kind].mmproj)}
    paired = {file for pair in release.types.values() for file in (pair.text_model, pair.mmproj)}
    return [file for file in release.files if file.name in wanted or file.name not in paired]


def _earlier(final: Path, pulling: Path) -> set[str]:
    """Names of the files that earlier pulls put there."""
    names: set[str] = set()
    if final.exists():
        try:
            names |= {file.name for file in parse_release(final.read_bytes(), str(final)).files}
        except Corrupt as error:
            raise UserError(f"{final} is not from a pull; choose another folder, or move that file away") from error
    if pulling.exists():
        names |= set(json.loads(pulling.read_bytes()))
    return names
