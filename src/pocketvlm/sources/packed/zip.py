"""Members of a zip file that nobody vouches for."""

from __future__ import annotations

import io
import stat
import struct
import weakref
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

from pocketvlm.sources.packed.members import CHUNK_BYTES, Limits, Member, Members
from pocketvlm.sources.record import Problem

ENTRY = b"PK\x01\x02"
ENTRY_BYTES = 512
"""Of the list of members, for each of them: 46 and the name, with twice the longest name that people give."""
LOCAL_HEADER_BYTES = 30
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""The others unpack a chunk to whatever it holds at once, and nobody packs images by them."""
BROKEN = (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError, ValueError, OverflowError, IndexError,
          struct.error, zlib.error)  # fmt: skip
"""What `zipfile` raises on hostile files. RuntimeError: encrypted."""


class ZipMembers(Members):
    """Sizes of a zip's list cannot lie to any effect: `zipfile` gives no more than them, and takes no more packed bytes."""

    def __init__(self, path: Path, limits: Limits) -> None:
        """Raises DataError."""
        self._limits = limits
        file = _Guarded(path, limits)
        try:
            if file.peek(2)[:2] != b"PK":
                raise zipfile.BadZipFile("something lies before the archive, or it is none")
            self._zip = zipfile.ZipFile(file)
            file.listing = False
        except BROKEN as error:
            file.close()
            raise limits.damaged(error) from error
        except BaseException:
            file.close()
            raise
        weakref.finalize(self, _close, self._zip, file)
        self._infos = self._zip.infolist()
        if len(self._infos) > limits.members:
            raise limits.too_many_members()
        if sum(info.file_size for info in self._infos) > limits.total_bytes:
            raise limits.too_much()
        self._overlapping = _overlapping(self._infos, self._zip.start_dir)

    def listed(self) -> Iterator[Member]:
        for place, info in enumerate(self._infos):
            name = info.orig_filename if "\0" in info.orig_filename else info.filename
            yield Member(place, name, is_folder=info.is_dir(), problem=self._problem(place, info))

    def want(self, members: Collection[Member]) -> None:
        pass  # each one can be read by itself

    def read(self, member: Member) -> bytes | Problem:
        info = self._infos[member.place]
        chunks, total = [], 0
        try:
            with self._zip.open(info) as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    total += len(chunk)
                    if problem := self._limits.too_large(total) or self._limits.too_dense(total, info.compress_size):
                        return problem
                    chunks.append(chunk)
        except BROKEN as error:
            return Problem("damaged", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        if total != info.file_size:
            return Problem("damaged", f"holds {total} bytes, and the archive says {info.file_size}")
        return b"".join(chunks)

    def _problem(self, place: int, info: zipfile.ZipInfo) -> Problem | None:
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind == stat.S_IFLNK:
            return Problem("link", "links in archives are not followed")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            return Problem("not_a_file", "is a device, pipe or socket")
        if info.flag_bits & 0x1:
            return Problem("encrypted", "needs a password")
        if info.compress_type not in PACKINGS:
            return Problem("unsupported_packing", f"is packed by method {info.compress_type}; deflated and stored ones are read")
        if place in self._overlapping:
            return Problem("overlapping_member", "shares its bytes with other members")
        return self._limits.too_large(info.file_size)


class _Guarded(io.BufferedReader):
    """A zip file whose list of members is measured before `zipfile` makes objects of it."""

    def __init__(self, path: Path, limits: Limits) -> None:
        super().__init__(io.FileIO(path))
        self._limits = limits
        self.listing = True

    def read(self, size: int | None = -1, /) -> bytes:
        if not self.listing:
            return super().read(size)
        most = max(ENTRY_BYTES * self._limits.members, 1_000_000)
        if size is None or size < 0 or size > most:
            size = most + 1
        data = super().read(size)
        if len(data) > most or data.count(ENTRY) > self._limits.members + 1:  # one more: the bytes may occur in a comment
            raise self._limits.too_many_members()
        return data


def _overlapping(infos: list[zipfile.ZipInfo], end_of_members: int) -> set[int]:
    """Places of members that reach into each other, or into the list: honest packers never write such, bombs are made so.

    With that, the packed size that is said of a member is no more than what it has.
    """
    ordered = sorted(range(len(infos)), key=lambda place: infos[place].header_offset)
    found: set[int] = set()
    reach = owner = -1
    for place in ordered:
        info = infos[place]
        if info.header_offset < reach:
            found |= {place, owner}
        end = info.header_offset + LOCAL_HEADER_BYTES + info.compress_size
        if end > end_of_members:
            found.add(place)
        if end > reach:
            reach, owner = end, place
    return found


def _close(*opened: zipfile.ZipFile | io.BufferedReader) -> None:
    for one in opened:
        one.close()
