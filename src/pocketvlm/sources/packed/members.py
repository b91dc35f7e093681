"""What the readers of zip and tar files have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from pocketvlm.errors import DataError
from pocketvlm.sources.record import Problem

CHUNK_BYTES = 65_536
SMALL_BYTES = 1_000_000
"""What unpacks to less is no bomb, whatever its ratio."""


@dataclass(frozen=True)
class Limits:
    """How much an archive may hold."""

    where: str
    """Key and name, for messages."""
    members: int
    member_bytes: int
    total_bytes: int
    ratio: float

    def too_many_members(self) -> DataError:
        return DataError(f"{self.where}: holds more than max_members ({self.members}); split it, or raise the setting")

    def too_much(self) -> DataError:
        return DataError(f"{self.where}: unpacks to more than max_total_bytes ({self.total_bytes}); "
                         "split it, or raise the setting")

    def damaged(self, why: object) -> DataError:
        text = " ".join(str(why).split())[:200].encode("utf-8", "backslashreplace").decode()
        return DataError(f"{self.where}: is damaged, cut off or not what its name says ({text}); copy or download it again")

    def too_large(self, size: int) -> Problem | None:
        """Of one member."""
        if size > self.member_bytes:
            return Problem("too_many_bytes", f"unpacks to more than {self.member_bytes} bytes")
        return None

    def too_dense(self, unpacked: int, packed: int) -> Problem | None:
        """Of one member, as far as it is unpacked."""
        if unpacked > SMALL_BYTES and unpacked > self.ratio * packed:
            return Problem("too_high_ratio", f"unpacks to more than {self.ratio:g} times its packed size")
        return None


@dataclass(frozen=True)
class Member:
    """One entry of an archive, as the archive names it."""

    place: int
    """Its number in the archive."""
    name: str
    is_folder: bool = False
    problem: Problem | None = None
    """Why it is not read."""


class Members(ABC):
    """An opened archive. What it holds open is closed when nobody refers to it any more."""

    @abstractmethod
    def listed(self) -> Iterator[Member]:
        """All entries, in their order. Raises DataError."""

    @abstractmethod
    def want(self, members: Collection[Member]) -> None:
        """Says which ones will be read."""

    @abstractmethod
    def read(self, member: Member) -> bytes | Problem:
        """One of those. Raises DataError when the archive as a whole cannot be read on."""
