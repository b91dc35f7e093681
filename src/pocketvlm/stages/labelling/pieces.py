"""Prepared images on disk: written as pieces of a share, read back in the order of the source.

A piece is `rows.jsonl`, one line for each record, used or refused; `images.bin`, the PNGs one after the other; and
`looks.bin`, one look of fixed size for each image. Where there are teachers, `answers.jsonl` has one line for each image, a
list of outcomes for each teacher. Equal records and answers give equal bytes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pocketvlm.artifacts.dataset import Quarantined
from pocketvlm.sources.record import Record
from pocketvlm.stages.labelling.copies import SIDE_PX
from pocketvlm.stages.labelling.prepared import Prepared
from pocketvlm.teacher.answers import Outcome, Panel

ROWS, IMAGES, LOOKS, ANSWERS = "rows.jsonl", "images.bin", "looks.bin", "answers.jsonl"
LOOK_BYTES = SIDE_PX * SIDE_PX * 3


class PieceWriter:
    """Fills the files of one piece, record by record."""

    def __init__(self, folder: Path) -> None:
        self._rows = (folder / ROWS).open("w", newline="\n")
        self._images = (folder / IMAGES).open("wb")
        self._looks = (folder / LOOKS).open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for file in (self._rows, self._images, self._looks):
            file.close()

    def add(self, item: Prepared | Quarantined) -> None:
        """The next record."""
        if isinstance(item, Quarantined):
            self._write({"refused": asdict(item)})
            return
        self._images.write(item.png)
        self._looks.write(item.look.pixels_SSC.tobytes())
        record = {name: value for name, value in vars(item.record).items() if name not in ("data", "problem")}
        self._write({
            "record": record, "sha256": item.sha256, "phash": item.look.phash, "size_px": item.look.size_px,
            "png_bytes": len(item.png),
        })  # fmt: skip

    def _write(self, row: dict[str, Any]) -> None:
        self._rows.write(json.dumps(row, sort_keys=True) + "\n")


@dataclass(frozen=True)
class Kept:
    """A usable image of a piece."""

    record: Record
    sha256: str
    phash: int
    size_px: tuple[int, int]
    look: bytes
    images: Path
    """The file that holds its PNG, from `start`, `png_bytes` long."""
    start: int
    png_bytes: int
    answers: Panel = ()
    """Of each teacher."""


def write_answers(folder: Path, panels: Iterable[Panel]) -> None:
    """Adds what the teachers said of each image of a piece, in the order of its images."""
    with (folder / ANSWERS).open("w", newline="\n") as lines:
        for panel in panels:
            plain = [[outcome.model_dump(mode="json") for outcome in own] for own in panel]
            lines.write(json.dumps(plain, sort_keys=True) + "\n")


def _read_answers(folder: Path) -> Generator[Panel, None, None]:
    """As `write_answers` was told; without end and empty where nobody was asked."""
    path = folder / ANSWERS
    if not path.exists():
        yield from itertools.repeat(())
        return
    with path.open() as lines:
        for line in lines:
            yield [[Outcome.model_validate(outcome) for outcome in own] for own in json.loads(line)]


def read_share(folders: Sequence[Path]) -> Iterator[Kept | Quarantined]:
    """The rows of a share's pieces, in order."""
    for folder in folders:
        start, answers = 0, _read_answers(folder)
        with (folder / ROWS).open() as rows, (folder / LOOKS).open("rb") as looks, contextlib.closing(answers):
            for row in map(json.loads, rows):
                if "refused" in row:
                    yield Quarantined(**row["refused"])
                    continue
                yield Kept(
                    Record(**row["record"]), row["sha256"], row["phash"], tuple(row["size_px"]), looks.read(LOOK_BYTES),
                    folder / IMAGES, start, row["png_bytes"], next(answers),
                )  # fmt: skip
                start += row["png_bytes"]


class Spool:
    """Images stay in the files of their pieces, what is known of them is in memory: about 3 KB for each, of any size."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.shas: list[str] = []
        self.hashes: list[int] = []
        self.png_sizes: list[int] = []
        self._sizes_px: list[tuple[int, int]] = []
        self._places: list[tuple[Path, int]] = []
        self._looks = bytearray()

    def __len__(self) -> int:
        return len(self.records)

    def add(self, item: Kept) -> None:
        """Keeps one image; its index is the number of those before."""
        self._looks += item.look
        self.records.append(item.record)
        self.shas.append(item.sha256)
        self.hashes.append(item.phash)
        self.png_sizes.append(item.png_bytes)
        self._sizes_px.append(item.size_px)
        self._places.append((item.images, item.start))

    def png(self, index: int) -> bytes:
        """The image on the canvas."""
        path, start = self._places[index]
        with path.open("rb") as file:
            file.seek(start)
            return file.read(self.png_sizes[index])

    def looks(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Hashes_N, looks_NSSC and sizes_N2 for `group_copies`."""
        looks_NSSC = np.frombuffer(self._looks, np.uint8).reshape(len(self), SIDE_PX, SIDE_PX, 3)
        return np.array(self.hashes, np.uint64), looks_NSSC, np.array(self._sizes_px, np.int64).reshape(-1, 2)
