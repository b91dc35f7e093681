"""Rows of Parquet files by their place, read a few at a time, wherever the files are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pocketvlm.errors import DataError

BATCH_ROWS = 16
"""Rows in memory at once."""
BUFFER_BYTES = 4_000_000
"""What is read of a column at once. A row group of the Hub often holds 100 MB of images, of which a run may want the first."""


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a split."""

    name: str
    """In the dataset."""
    split: str
    source: Callable[[], Any]
    """Its path, or a new file-like object: what pyarrow opens."""


@dataclass(frozen=True)
class Row:
    """The wanted cells of a row and where it stands."""

    shard: Shard
    index: int
    """Position in its split, from 0."""
    cells: dict[str, Any]


@dataclass
class _Footer:
    """Of one file: where it begins, and where its row groups do."""

    first: int
    """Place of its first row among all rows."""
    index: int
    """The same in its split."""
    groups: list[int]
    """Rows before each row group, and at last all rows."""

    @property
    def end(self) -> int:
        return self.first + self.groups[-1]


@dataclass
class _Cursor:
    """Where reading stands: further rows of a file, from `next` on."""

    shard: int
    next: int
    """Row of the file."""
    batches: Iterator[pa.RecordBatch]
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Of the last batch; they end before `next`."""


class ParquetRows:
    """Footers are read as far as they are needed. Rows in rising order cost each byte once; any other order a row group."""

    def __init__(self, shards: Sequence[Shard], limit: int | None) -> None:
        self._shards = shards
        self._limit = limit
        self._columns: list[str] = []
        self._footers: list[_Footer] = []
        self._cursor: _Cursor | None = None

    def schema(self) -> pa.Schema:
        """Of the first file. Raises DataError when it is no Parquet."""
        return self._open(0).schema_arrow

    def want(self, columns: list[str]) -> None:
        """Names the columns that are read."""
        self._columns = columns

    def __len__(self) -> int:
        while len(self._footers) < len(self._shards) and (self._limit is None or self._end() < self._limit):
            self._read_footer()
        return self._end() if self._limit is None else min(self._limit, self._end())

    def row(self, place: int) -> Row:
        """The row at a place. Raises IndexError behind the last, DataError for a damaged file."""
        shard, footer = self._find(place)
        wanted = place - footer.first
        cursor = self._cursor
        if cursor is None or cursor.shard != shard or not self._can_go_on(cursor, footer, wanted):
            cursor = self._cursor = self._at(shard, footer, wanted)
        while cursor.next <= wanted:
            cursor.rows = self._next_batch(cursor)
            cursor.next += len(cursor.rows)
        cells = cursor.rows[wanted - cursor.next + len(cursor.rows)]
        return Row(self._shards[shard], footer.index + wanted, cells)

    def _can_go_on(self, cursor: _Cursor, footer: _Footer, wanted: int) -> bool:
        """Whether the row is in memory, or ahead with no whole row group between."""
        group = max(start for start in footer.groups if start <= wanted)
        return wanted >= cursor.next - len(cursor.rows) and (wanted < cursor.next or cursor.next >= group)

    def _at(self, shard: int, footer: _Footer, wanted: int) -> _Cursor:
        """A cursor at the beginning of the row group that holds a row."""
        file = self._open(shard)
        missing = [name for name in self._columns if name not in file.schema_arrow.names]
        if missing:
            raise DataError(f"{self._shards[shard].name}: has no column {', '.join(missing)}, which the first file of the "
                            "dataset has; name one split or configuration whose files are alike")
        group = max(number for number, start in enumerate(footer.groups[:-1]) if start <= wanted)
        groups = range(group, len(footer.groups) - 1)
        batches = file.iter_batches(BATCH_ROWS, row_groups=list(groups), columns=self._columns, use_threads=False)
        return _Cursor(shard, footer.groups[group], batches)

    def _next_batch(self, cursor: _Cursor) -> list[dict[str, Any]]:
        name = self._shards[cursor.shard].name
        try:
            batch = next(cursor.batches, None)
            rows: list[dict[str, Any]] = [] if batch is None else batch.to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _damaged(name, error) from error
        if not rows:
            raise DataError(f"{name}: ends at row {cursor.next}, though its footer says that there are more; fetch it again")
        return rows

    def _find(self, place: int) -> tuple[int, _Footer]:
        while self._end() <= place:
            if len(self._footers) == len(self._shards):
                raise IndexError(f"place {place} of {self._end()} rows")
            self._read_footer()
        # Places come in rising order, so the file of the cursor is the likely one.
        if self._cursor is not None and self._holds(self._footers[self._cursor.shard], place):
            return self._cursor.shard, self._footers[self._cursor.shard]
        return next((number, footer) for number, footer in enumerate(self._footers) if self._holds(footer, place))

    @staticmethod
    def _holds(footer: _Footer, place: int) -> bool:
        return footer.first <= place < footer.end

    def _end(self) -> int:
        return self._footers[-1].end if self._footers else 0

    def _read_footer(self) -> None:
        number = len(self._footers)
        meta = self._open(number).metadata
        rows = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
        split = self._shards[number].split
        before = [footer for footer, shard in zip(self._footers, self._shards, strict=False) if shard.split == split]
        index = before[-1].index + before[-1].groups[-1] if before else 0
        self._footers.append(_Footer(self._end(), index, list(accumulate(rows, initial=0))))

    def _open(self, number: int) -> pq.ParquetFile:
        shard = self._shards[number]
        try:
            return pq.ParquetFile(shard.source(), buffer_size=BUFFER_BYTES, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(shard.name, error) from error


def _damaged(name: str, error: Exception) -> DataError:
    said = " ".join(str(error).split())[:300]
    return DataError(f"{name}: cannot be read as Parquet ({type(error).__name__}: {said}); fetch or write it again")
