"""What a source gives: one record for each image it knows of, usable or not."""

from __future__ import annotations

import difflib
import hashlib
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pocketvlm.artifacts.store import Store
from pocketvlm.environment import Environment
from pocketvlm.progress import Progress
from pocketvlm.run_file import ExtractField

MAX_FILE_BYTES = 256_000_000
"""Larger files are no photographs: 50 megapixels of 8-bit RGB take 150 MB before they are compressed."""


@dataclass(frozen=True)
class Problem:
    """Why something is quarantined: `reason` is a code that is counted, `detail` a text for a person."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Record:
    """One image as its source knows it. `data` is None exactly when `problem` says why there is nothing to use."""

    source_id: str
    data: bytes | None = None
    """The original file's bytes."""
    problem: Problem | None = None
    label: str = ""
    """One of the task's class names, or its fields as compact JSON; empty where a teacher labels."""
    url: str | None = None
    author: str | None = None
    licence: str | None = None
    reason: str | None = None
    confidence: float | None = None
    """0..1."""


@dataclass(frozen=True)
class Context:
    """What a source is opened with."""

    folder: Path
    """Of the run file; relative paths start here."""
    classes: list[str]
    """Names of the task's classes, in order; none for `extract`."""
    labelled: bool = True
    """Whether the source's labels are used. False: a teacher labels, so records without a label are as good."""
    environment: Environment = field(default_factory=Environment)
    """For keys, and the cache folder for what is downloaded whole."""
    store: Store | None = None
    """For what must be found again by every process (a search's results); None while nothing but `fingerprint` is asked."""
    progress: Progress = field(default_factory=Progress)
    fields: Mapping[str, ExtractField] = field(default_factory=dict)
    """Those of an `extract` task, which has no classes."""


class SourceReader(ABC):
    """One opened source: Records at the places 0 to len - 1, in an order that depends on the content only.

    Opening and `fingerprint` ask no server: a remote source is named by what pins its content. `len` and `records` may.
    """

    PIECE_RECORDS = 512
    """Records that are prepared and saved at once; a remote source has fewer, since what a killed process had fetched of them
    is fetched again."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Sha256 (hex) over all that decides what the source gives, so that an id can follow the content."""

    @abstractmethod
    def __len__(self) -> int:
        """Records, unusable ones included."""

    @abstractmethod
    def records(self, places: range) -> Iterator[Record]:
        """The records at `places`, in this order; what lies elsewhere is not read.

        Unusable files are Records with a problem. Raises DataError, UserError or SourceUnavailable when there is no going on.
        """

    def expected(self) -> int | None:
        """Records, or the most that there can be, without asking a server; None where only that can tell."""
        return len(self)

    def plan_lines(self) -> list[str]:
        """What `pocketvlm plan` says of it, beside the number of images; asks no server."""
        return []

    def __iter__(self) -> Iterator[Record]:
        """All records, as `records` gives them."""
        return self.records(range(len(self)))


class ClassNames:
    """The task's classes, found whatever the case and the white space of a label are."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)
        self._by_key = {_key(name): name for name in self.names}

    def match(self, label: str) -> str | None:
        """The class name that `label` means, or None."""
        return self._by_key.get(_key(label))

    def hint(self, label: str) -> str:
        """`; did you mean ...?` with the nearest class name, or an empty string."""
        return hint(label, self.names)


def hint(word: str, names: Iterable[str]) -> str:
    """`; did you mean ...?` with the nearest of `names`, or an empty string."""
    by_key = {_key(name): name for name in names}
    near = difflib.get_close_matches(_key(word), by_key, n=1, cutoff=0.5)
    return f"; did you mean `{by_key[near[0]]}`?" if near else ""


def _key(label: str) -> str:
    return " ".join(label.split()).casefold()


def read_inside(path: Path, root: Path) -> bytes | Problem:
    """Bytes of a regular file that really lies in `root` (resolved), or why they are not read.

    Devices and pipes would block for ever, so only regular files are opened; links may not lead out of `root`.
    """
    try:
        real = path.resolve()
        if not real.is_relative_to(root):
            return Problem("outside_folder", "leads out of the folder of the images")
        status = real.stat()
        if not stat.S_ISREG(status.st_mode):
            return Problem("not_a_file", "is a folder, device or pipe")
        if status.st_size > MAX_FILE_BYTES:
            return Problem("too_many_bytes", f"{status.st_size} bytes; at most {MAX_FILE_BYTES} are read")
        return real.read_bytes()
    except FileNotFoundError:
        return Problem("missing_file", "there is no such file")
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a NUL in the name; RuntimeError: links in a loop
        return Problem("unreadable_file", getattr(error, "strerror", None) or str(error))


def fingerprint_files(files: Iterable[tuple[str, Path]], root: Path, head: bytes = b"") -> str:
    """Sha256 over `head`, then name and content (or problem) of each file, in the order given."""
    total = hashlib.sha256(head)
    for name, path in files:
        data = read_inside(path, root)
        content = hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else data.reason
        total.update(f"{name}\0{content}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()
