"""Members of a tar file, plain or compressed, that nobody vouches for. `tarfile` reads the headers, and nothing else."""

from __future__ import annotations

import bz2
import lzma
import os
import struct
import tarfile
import tempfile
import weakref
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from pocketvlm.sources.packed.members import CHUNK_BYTES, Limits, Member, Members
from pocketvlm.sources.record import Problem

HEADER_BYTES = 262_144
"""Of one member with its extensions: a long name, times. More is an attack on who parses it."""
PACKED_BYTES = 4_096
"""Read at once, so that what a member took packed is known to this much."""
XZ_MEMORY_BYTES = 200_000_000
"""`xz -9` needs 65 MB; a header can ask for 4 GB."""
BLOCK = 512
BROKEN = (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, IndexError, KeyError, RecursionError, struct.error,
          zlib.error, lzma.LZMAError)  # fmt: skip
"""What `tarfile` and the decompressors raise on hostile files."""


class TarMembers(Members):
    """Of a plain tar each member can be read by itself; a compressed one is unpacked once, when the first is asked for."""

    def __init__(self, path: Path, packing: str, limits: Limits, scratch: Path) -> None:
        """`packing`: gz, bz2, xz or nothing."""
        self._path, self._packing, self._limits, self._scratch = path, packing, limits, scratch
        self._wanted: set[int] = set()
        self._file: BinaryIO | None = None
        self._bytes: dict[int, tuple[int, int] | Problem] = {}
        """Where the members' bytes lie in `_file`: offset and size."""

    def listed(self) -> Iterator[Member]:
        for place, (info, _) in enumerate(self._walk()):
            if not self._packing:
                self._bytes[place] = (info.offset_data, info.size)
            yield Member(place, info.name, is_folder=info.isdir(), problem=None if info.isdir() else self._problem(info))

    def want(self, members: Collection[Member]) -> None:
        self._wanted = {member.place for member in members}

    def read(self, member: Member) -> bytes | Problem:
        if self._file is None:
            self._file = self._spooled() if self._packing else self._path.open("rb")
            weakref.finalize(self, self._file.close)
        found = self._bytes[member.place]
        if isinstance(found, Problem):
            return found
        offset, size = found
        data = bytearray()
        while len(data) < size and (more := os.pread(self._file.fileno(), size - len(data), offset + len(data))):
            data += more
        return bytes(data) if len(data) == size else Problem("damaged", "the archive has become shorter since it was listed")

    def _problem(self, info: tarfile.TarInfo) -> Problem | None:
        if info.issym() or info.islnk():
            return Problem("link", "links in archives are not followed")
        if not info.isreg() or info.issparse():
            return Problem("not_a_file", "is a device, a pipe or a file with holes")
        return self._limits.too_large(info.size)

    def _spooled(self) -> BinaryIO:
        """The wanted members' bytes, one after the other, in a file that has no name and ends with this process."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        spool: BinaryIO = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115
        try:
            for place, (info, tape) in enumerate(self._walk()):
                if place in self._wanted:
                    self._bytes[place] = self._copied(tape, info.size, spool)
            spool.flush()
        except BaseException:
            spool.close()
            raise
        return spool

    def _copied(self, tape: Tape, size: int, spool: BinaryIO) -> tuple[int, int] | Problem:
        """Adds one member to the spool: offset and size there."""
        offset, packed, left = spool.tell(), tape.packed(), size
        while left:
            with self._explained():  # not what a full disk says
                chunk = tape.read(min(left, CHUNK_BYTES))
                if not chunk:
                    raise EOFError("it ends in the middle of a member")
            spool.write(chunk)
            left -= len(chunk)
            if problem := self._limits.too_dense(size - left, tape.packed() - packed + PACKED_BYTES):
                spool.seek(offset)
                return problem
        return offset, size

    def _walk(self) -> Iterator[tuple[tarfile.TarInfo, Tape]]:
        """Every member with the tape, which stands at its content. Raises DataError."""
        limits = self._limits
        with self._path.open("rb") as file, self._explained():
            tape = Tape(file, self._packing, limits)
            archive = tarfile.TarFile(fileobj=tape, encoding="utf-8", errors="surrogateescape")  # type: ignore[arg-type]
            count, before = 0, -1
            while (info := tape.parse(archive.next)) is not None:
                count += 1
                if count > limits.members:
                    raise limits.too_many_members()
                if info.size < 0 or info.offset <= before or archive.offset <= info.offset or len(archive.pax_headers) > 100:
                    raise tarfile.ReadError(f"its header at byte {info.offset} is no honest one")
                before = info.offset
                tape.seek(info.offset_data)
                yield info, tape
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            if tape.last != bytes(BLOCK):
                raise tarfile.ReadError(f"it has no end mark at byte {archive.offset}")
            while tape.read(CHUNK_BYTES):  # the checksums come last
                pass

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except BROKEN as error:
            raise self._limits.damaged(f"{type(error).__name__}: {error}") from error


class Tape:
    """The unpacked bytes of a tar file, read forward only, as `tarfile` wants a file to be."""

    def __init__(self, file: BinaryIO, packing: str, limits: Limits) -> None:
        self._file, self._limits = file, limits
        self._chunks = _unpacked(file, MACHINES[packing]) if packing else None
        self._chunk = memoryview(b"")
        self._at = 0
        self._header_bytes_left: int | None = HEADER_BYTES
        self.last = b""
        """What was read last."""

    def parse(self, step: Callable[[], tarfile.TarInfo | None]) -> tarfile.TarInfo | None:
        """Runs a step that reads one header, and may read only so much."""
        self._header_bytes_left = HEADER_BYTES
        try:
            return step()
        finally:
            self._header_bytes_left = None

    def packed(self) -> int:
        """Bytes of the file that were taken, to PACKED_BYTES."""
        return self._file.tell()

    def tell(self) -> int:
        return self._at

    def seek(self, to: int) -> None:
        if to < self._at:
            raise tarfile.ReadError(f"a header leads back from byte {self._at} to {to}")
        if self._chunks is None:
            self._file.seek(to)
            self._move(to - self._at)
        else:
            while self._at < to and self._next(to - self._at):
                pass

    def read(self, size: int) -> bytes:
        if self._header_bytes_left is not None:
            self._header_bytes_left -= size
            if size < 0 or self._header_bytes_left < 0:
                raise tarfile.ReadError(f"the header at byte {self._at} is too long")
        data = bytearray()
        while len(data) < size and (more := self._next(size - len(data))):
            data += more
        self.last = bytes(data)
        return self.last

    def _next(self, most: int) -> bytes:
        """At least one byte, unless it has ended."""
        if self._chunks is None:
            got = self._file.read(min(most, CHUNK_BYTES))
        else:
            if not self._chunk:
                self._chunk = memoryview(next(self._chunks, b""))
            got = bytes(self._chunk[:most])
            self._chunk = self._chunk[most:]
        self._move(len(got))
        return got

    def _move(self, count: int) -> None:
        self._at += count
        if self._at > self._limits.total_bytes:
            raise self._limits.too_much()


class Machine(Protocol):
    """A decompressor of one stream."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Gunzip:
    """zlib with the manners of the other two: it keeps what it could not use yet."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(31)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        out = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        self.needs_input = not self._zlib.unconsumed_tail and len(out) < max_length
        return out


MACHINES: dict[str, Callable[[], Machine]] = {
    "gz": _Gunzip,
    "bz2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES),
}


def _unpacked(file: BinaryIO, new: Callable[[], Machine]) -> Iterator[bytes]:
    """Chunks of at most CHUNK_BYTES, of all streams in the file. Raises EOFError for a cut one."""
    data = file.read(PACKED_BYTES)
    while data:
        machine = new()
        while not machine.eof:
            if machine.needs_input and not data and not (data := file.read(PACKED_BYTES)):
                raise EOFError("it ends in the middle")
            if chunk := machine.decompress(data, CHUNK_BYTES):
                yield chunk
            data = b""
        data = machine.unused_data or file.read(PACKED_BYTES)
        while data and not data.strip(b"\0"):  # padding of a tape or a download tool
            data = file.read(PACKED_BYTES)
