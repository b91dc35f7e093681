"""What a repository on the Hub gets: files on this machine and their names there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pocketvlm.artifacts.files import hash_file

RepositoryType = Literal["model", "dataset"]


@dataclass(frozen=True)
class Upload:
    """One file; `size` in bytes."""

    name: str
    """Its path in the repository."""
    path: Path
    size: int
    sha256: str


@dataclass
class Repository:
    """A repository as it shall be."""

    id: str
    """`owner/name`."""
    type: RepositoryType
    files: list[Upload] = field(default_factory=list)

    def add(self, name: str, path: Path) -> None:
        """Adds a file, hashed as it is now."""
        entry = hash_file(path, name)
        self.files.append(Upload(name, path, entry.size, entry.sha256))

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def kind_and_id(self) -> str:
        """As a person names it."""
        return f"{self.type} repository {self.id}"
