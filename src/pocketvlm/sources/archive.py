"""Images in class folders inside a zip or tar file: what the `folder` source gives for the unpacked folder, without unpacking.

Nothing is written under a name that an archive gives, and every size is counted while it unpacks, not believed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property

from pocketvlm.errors import DataError, RunFileError
from pocketvlm.run_file.source import ArchiveSource
from pocketvlm.sources.class_folders import ClassFolders, is_litter, printable
from pocketvlm.sources.packed.members import Limits, Member, Members
from pocketvlm.sources.packed.tar import TarMembers
from pocketvlm.sources.packed.zip import ZipMembers
from pocketvlm.sources.record import Context, Problem, Record, SourceReader, hint

TAR_PACKINGS = {".tar": "", ".tar.gz": "gz", ".tgz": "gz", ".tar.bz2": "bz2", ".tbz2": "bz2", ".tar.xz": "xz", ".txz": "xz"}
LONGEST_NAME = 1000


class Archive(SourceReader):
    """Reads the list of members when opened, each member when its record is asked for.

    A member that cannot be trusted (a link, a name that leads out, a name that comes twice, an encrypted or overlapping one, one
    that unpacks to too much) is a record with a problem. A compressed tar is unpacked once, as bytes, into one nameless file.
    """

    def __init__(self, source: ArchiveSource, context: Context, *, named: str = "", key: str = "path") -> None:
        """`named` and `key` are what messages call it, for an archive that no person has named.

        Raises RunFileError for a wrong path or class folder, DataError for an archive that is damaged or beyond the caps.
        """
        named = named or source.path
        path = context.folder / source.path
        if not path.is_file():
            raise RunFileError(f"run.labeller.source.path: {source.path} is not a file; name it relative to the run file")
        self._source, self._path = source, path
        limits = Limits(f"run.labeller.source.{key}: {named}", source.max_members, source.max_member_bytes,
                        source.max_total_bytes, source.max_ratio)  # fmt: skip
        suffix = next((end for end in TAR_PACKINGS if path.name.lower().endswith(end)), "")
        if not suffix and path.suffix.lower() != ".zip":
            raise RunFileError(f"run.labeller.source.path: {source.path} must end in .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz")
        self._members: Members = (TarMembers(path, TAR_PACKINGS[suffix], limits, context.environment.scratch) if suffix
                                  else ZipMembers(path, limits))  # fmt: skip
        self._found = _sorted_out(self._members.listed(), source.inside, named)
        self._names = sorted(self._found.files)
        if not self._names:
            raise DataError(f"{limits.where}: holds no files{f' in {source.inside}' if source.inside else ''}; "
                            "name the archive of the images")
        try:
            self._folders = ClassFolders(source, context, self._found.tops, named=named, key=key)
        except RunFileError as error:
            if len(self._found.tops) > 1:
                raise
            deeper = "/".join([*filter(None, [source.inside.strip("/")]), *map(printable, self._found.tops)])
            raise RunFileError(f"{error}\nrun.labeller.source.inside: if the class folders lie in it, write {deeper}") from error
        self._members.want({member for member in self._found.files.values() if isinstance(member, Member)})

    @cached_property
    def _sha256(self) -> str:
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def fingerprint(self) -> str:
        settings = self._source.model_dump(mode="json", exclude={"path"})
        return hashlib.sha256(json.dumps([self._sha256, settings], sort_keys=True).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._names)

    def records(self, places: range) -> Iterator[Record]:
        for name in map(self._names.__getitem__, places):
            yield self._folders.record(name, self._read)

    def _read(self, name: str) -> bytes | Problem:
        member = self._found.files[name]
        return member if isinstance(member, Problem) else self._members.read(member)


class _Found:
    """What lies where the class folders are."""

    def __init__(self) -> None:
        self.files: dict[str, Member | Problem] = {}
        """By name from there; of unsafe names the name itself."""
        self.tops: set[str] = set()
        """Folders."""


def _sorted_out(members: Iterator[Member], inside: str, named: str) -> _Found:
    """Raises RunFileError when nothing lies `inside`, or the class folders seem to lie deeper."""
    root = _parts(inside)
    if root is None:
        raise RunFileError(f"run.labeller.source.inside: {inside} leads out of {named}; name a folder in it")
    found, elsewhere, hit = _Found(), set(), not root
    for member in members:
        parts = _parts(member.name)
        if parts is None or not (parts or member.is_folder):
            found.files[_unsafe(member.name)] = Problem("unsafe_name", "its name leads out of the archive, or is no file's")
        elif tuple(parts[: len(root)]) != tuple(root):
            elsewhere.add(parts[0])
        else:
            hit = True
            _add(found, parts[len(root) :], member)
    if not hit:
        raise RunFileError(f"run.labeller.source.inside: {named} has no folder {inside}{hint(inside, elsewhere)}")
    return found


def _add(found: _Found, parts: list[str], member: Member) -> None:
    if not parts or any(map(is_litter, parts)):
        return
    if member.is_folder or len(parts) > 1:
        found.tops.add(parts[0])
    if not member.is_folder:
        name = "/".join(parts)
        twice = Problem("duplicate_name", "the archive holds several files of this name")
        found.files[name] = twice if name in found.files else (member.problem or member)


def _parts(name: str) -> list[str] | None:
    """Folders and file of a name as an unpacker would make them; None for one that is not safe to unpack."""
    if name.startswith("/") or "\\" in name or "\0" in name or len(name) > LONGEST_NAME:
        return None
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if ".." in parts else parts


def _unsafe(name: str) -> str:
    if len(name) <= 200:
        return name.replace("\0", "\\0")
    return f"{name[:200]}...{hashlib.sha256(printable(name).encode()).hexdigest()[:8]}".replace("\0", "\\0")
