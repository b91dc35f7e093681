"""Any image dataset of the Hugging Face Hub at a commit, and local Parquet files of the same kind.

Parquet, which most datasets of the Hub are, is read by pyarrow over ranges of the files' bytes: 100 images of a dataset of
100 GB cost a footer and what stands before their end, a later place costs no more than its row group, and no package but the
Hub's client is loaded. `datasets` would stream a shard from its beginning, takes 5 s to import, and keeps files below the home
folder. It reads the other layouts (hub_streamed.py), which would be many readers of our own. Code of a dataset is never run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from pocketvlm.errors import DataError, RunFileError
from pocketvlm.run_file import HubSource
from pocketvlm.sources.hub_columns import KEY, Columns, check_class_names, find_columns
from pocketvlm.sources.hub_layout import PARQUET, Layout, find_layout
from pocketvlm.sources.hub_remote import RemoteDataset
from pocketvlm.sources.hub_rows import ParquetRows, Row, Shard
from pocketvlm.sources.hub_streamed import StreamedRows
from pocketvlm.sources.record import MAX_FILE_BYTES, Context, Problem, Record, SourceReader, read_inside


class Images(Protocol):
    """Where a dataset's own files are."""

    def image(self, file: str) -> bytes | Problem: ...


@dataclass(frozen=True)
class LocalFolder:
    """Parquet files here."""

    root: Path
    """Resolved."""
    files: list[str]

    def image(self, file: str) -> bytes | Problem:
        return read_inside(self.root / file, self.root)


@dataclass(frozen=True)
class Opened:
    """All that is known once the first file has been looked at."""

    rows: ParquetRows
    columns: Columns
    images: Images
    licence: str | None


class Hub(SourceReader):
    """Splits one after the other, rows in the order of the files. Opening asks no server; `len` and `records` do."""

    def __init__(self, source: HubSource, context: Context) -> None:
        """Raises RunFileError for a missing revision or file, wrong columns or classes; DataError for damaged local files."""
        check_class_names(source, context)
        self._source = source
        self._context = context
        self._local: LocalFolder | None = None
        self._opened: Opened | None = None
        if source.dataset is not None:
            if source.revision is None:
                raise RunFileError(f"{KEY}.revision: {source.dataset} has none; pin the commit (40 hex digits, from the history "
                                   "of its files on the Hub), so that the same images come again")
            self.PIECE_RECORDS = 64
        else:
            self._local = _find_files(source, context.folder)
            self._opened = self._open_local(self._local)

    def fingerprint(self) -> str:
        settings = self._source.model_dump(mode="json", exclude={"path"})
        total = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        if self._local is not None:
            for name in self._local.files:
                with (self._local.root / name).open("rb") as file:
                    total.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return total.hexdigest()

    def plan_lines(self) -> list[str]:
        """What the source is, for `pocketvlm plan`. Asks no server."""
        source = self._source
        what = f"the first {source.limit} images" if source.limit else "all images"
        named = {"configuration": source.config, "split": source.split}
        parts = "".join(f", {word} {name}" for word, name in named.items() if name)
        if self._local is not None:
            return [f"{len(self)} images of {len(self._local.files)} Parquet files in {source.path}{parts}"]
        licence = f"licence {source.licence}" if source.licence else "licence from its card"
        return [f"{what} of huggingface.co/datasets/{source.dataset} at {str(source.revision)[:12]}{parts}, {licence}"]

    def __len__(self) -> int:
        return len(self._open().rows)

    def records(self, places: range) -> Iterator[Record]:
        opened = self._open()
        for place in places:
            yield self._record(opened, opened.rows.row(place))

    def _record(self, opened: Opened, row: Row) -> Record:
        source_id = f"{row.shard.split}/{row.index:08d}"
        label = opened.columns.label_of(row.cells)
        if isinstance(label, Problem):
            return Record(source_id, problem=label)
        data, file = _bytes(row.cells[opened.columns.image], opened.images)
        if isinstance(data, Problem):
            return Record(source_id, problem=data)
        record = Record(source_id, data, label=label, licence=opened.licence)
        if not isinstance(opened.images, RemoteDataset):
            return record
        of_the_dataset = file or (row.shard.name if row.shard.name in opened.images.sizes() else None)
        return replace(record, url=opened.images.page(of_the_dataset), author=opened.images.name.partition("/")[0])

    def _open(self) -> Opened:
        if self._opened is None:
            self._opened = self._open_remote()
        return self._opened

    def _open_local(self, local: LocalFolder) -> Opened:
        layout = find_layout(local.files, {}, None, self._source.split)
        shards = [
            Shard(name, split, (local.root / name).as_posix) for split, names in layout.splits.items() for name in names
        ]
        return self._see(shards, layout, local, self._source.licence)

    def _open_remote(self) -> Opened:
        source, context = self._source, self._context
        remote = RemoteDataset(str(source.dataset), str(source.revision), context.environment)
        card = remote.card()
        layout = find_layout(remote.sizes(), card, source.config, source.split)
        licence = source.licence or _licence(card)
        if layout.kind == PARQUET:
            shards = [
                Shard(name, split, _opener(remote, name)) for split, names in layout.splits.items() for name in names
            ]
            return self._see(shards, layout, remote, licence)
        streamed = StreamedRows(remote, layout, context.environment.cache)
        columns = find_columns(streamed.schema(), layout.card, source, context)
        shards = streamed.copy(columns.wanted(), columns.image, source.limit)
        return Opened(_rows(shards, columns, source.limit), columns, remote, licence)

    def _see(self, shards: Sequence[Shard], layout: Layout, images: Images, licence: str | None) -> Opened:
        """Opens Parquet files that have been found, by what the first of them says."""
        first = ParquetRows(shards[:1], None).schema()
        columns = find_columns(first, layout.card, self._source, self._context)
        return Opened(_rows(shards, columns, self._source.limit), columns, images, licence)


def _rows(shards: Sequence[Shard], columns: Columns, limit: int | None) -> ParquetRows:
    rows = ParquetRows(shards, limit)
    rows.want(columns.wanted())
    return rows


def _opener(remote: RemoteDataset, name: str) -> Any:
    return lambda: remote.open(name)


def _bytes(cell: Any, images: Images) -> tuple[bytes | Problem, str | None]:
    """The image of a cell; and its file, where it is one of the dataset's own."""
    data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, Mapping) else (cell, None)
    if data:
        if len(data) > MAX_FILE_BYTES:
            return Problem("too_many_bytes", f"{len(data)} bytes; at most {MAX_FILE_BYTES} are read"), None
        return data, None
    if not path:
        return Problem("missing_file", "the cell holds neither bytes nor the name of a file"), None
    if "://" in path:
        return Problem("outside_dataset", f"{path[:200]} is an address; only images in the dataset are read"), None
    return images.image(path), path


def _find_files(source: HubSource, folder: Path) -> LocalFolder:
    """The Parquet files that `path` names. Links may not lead out of the folder."""
    path = folder / str(source.path)
    if path.is_file():
        return LocalFolder(path.parent.resolve(), [path.name])
    if not path.is_dir():
        raise RunFileError(f"{KEY}.path: {source.path} is not there; name a Parquet file, or a folder of them, relative to the "
                           "run file")
    root = path.resolve()
    files = sorted(found.relative_to(root).as_posix() for found in root.rglob("*.parquet") if found.is_file())
    if not files:
        raise RunFileError(f"{KEY}.path: there is no .parquet file in {source.path}; name a folder that has some")
    for name in files:
        if not (root / name).resolve().is_relative_to(root):
            raise DataError(f"{source.path}/{name}: is a link that leads out of the folder; put the file itself there")
    return LocalFolder(root, files)


def _licence(card: Mapping[str, Any]) -> str | None:
    """The licence that a card names; its own name of it where it is none of the Hub's list."""
    given = card.get("license")
    if given == "other" and card.get("license_name"):
        given = card["license_name"]
    names = given if isinstance(given, list) else [given]
    return ", ".join(name for name in names if isinstance(name, str)) or None
