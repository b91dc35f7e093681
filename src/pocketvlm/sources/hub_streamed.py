"""Layouts of the Hub other than Parquet: `datasets` streams their rows once into Parquet files in the cache folder.

So every layout that it streams is read at any place, at the price of a copy: of names where images are files of the dataset,
of the images where they lie in archives. The copy stops at the source's limit, and a killed one goes on in the archive where
it was.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pocketvlm.errors import DataError, UserError
from pocketvlm.hub_errors import FOLDER
from pocketvlm.sources.hub_layout import Layout
from pocketvlm.sources.hub_remote import RemoteDataset
from pocketvlm.sources.hub_rows import Shard

PART_ROWS = 1024
PART_BYTES = 64_000_000
"""A part of the copy holds at most so much, but for one row: what a killed process has to stream again."""
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
COMPLETE = "complete"
"""Empty file beside the parts of a split that is copied to its end."""
OPTIONS = ("drop_labels", "drop_metadata")
"""Of image folders, in a card."""


class StreamedRows:
    """The rows of a layout as `datasets` streams them. Raises as RemoteDataset does, and DataError for what it cannot read."""

    def __init__(self, remote: RemoteDataset, layout: Layout, cache: Path) -> None:
        self._remote = remote
        self._layout = layout
        self._root = f"hf://datasets/{remote.name}@{remote.revision}/"
        self._cache = cache / FOLDER
        self._streams = self._load()

    def schema(self) -> pa.Schema:
        """Arrow schema of the rows, with the features in its metadata. May read the first rows."""
        stream = next(iter(self._streams.values()))
        with self._remote.errors():
            features = stream.features or stream._resolve_features().features
        if features is None:
            raise DataError(f"{self._remote.name}: the dataset is empty; choose another configuration, split or revision")
        return features.arrow_schema

    def copy(self, columns: Sequence[str], image: str, limit: int | None) -> list[Shard]:
        """The copy's files: made here, but for those of an earlier process."""
        shards: list[Shard] = []
        left = limit
        for split in self._layout.splits:
            parts = self._copy_split(split, columns, image, left)
            shards += [Shard(path.name, split, path.as_posix) for path, _ in parts]
            if left is not None:
                left -= sum(rows for _, rows in parts)
                if left <= 0:
                    break
        return shards

    def _load(self) -> dict[str, Any]:
        try:
            import datasets  # type: ignore[import-untyped]
        except ImportError as error:
            raise UserError(f"run.labeller.source.dataset: {self._remote.name} is no Parquet, and the datasets package, which "
                            "reads its layout, is not installed; pip install 'pocketvlm[hub]'") from error
        # It would count a download at a server of its makers' whenever a dataset is opened.
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
        files = {
            split: [self._root + glob.escape(name) for name in names] for split, names in self._layout.splits.items()
        }
        options = {key: value for key in OPTIONS if isinstance(value := self._layout.card.get(key), bool)}
        try:
            with self._remote.errors():
                streams = datasets.load_dataset(
                    self._layout.kind, data_files=files, streaming=True, token=self._remote.token,
                    cache_dir=str(self._cache / "datasets"), **(options if self._layout.kind == "imagefolder" else {}),
                )  # fmt: skip
            return {split: stream.decode(False) for split, stream in streams.items()}
        except (ValueError, TypeError, KeyError, pa.ArrowException) as error:
            raise self._unreadable(error) from error

    def _copy_split(self, split: str, columns: Sequence[str], image: str, limit: int | None) -> list[tuple[Path, int]]:
        """Parts and their rows; at least `limit` rows, or all."""
        folder = self._folder(split, columns, limit)
        with self._remote.errors():
            folder.mkdir(parents=True, exist_ok=True)
        parts = [(path, pq.read_metadata(path).num_rows) for path in sorted(folder.glob("part-*.parquet"))]
        done = sum(rows for _, rows in parts)
        if (folder / COMPLETE).exists() or (limit is not None and done >= limit):
            return parts
        stream = self._streams[split].select_columns(list(columns))
        if parts:
            stream.load_state_dict(json.loads(parts[-1][0].with_suffix(".json").read_text()))
        rows = self._rows(stream, image)
        while limit is None or done < limit:
            part = _take(rows, image, PART_ROWS if limit is None else min(limit - done, PART_ROWS))
            if not part:
                (folder / COMPLETE).touch()
                break
            path = folder / f"part-{len(parts):06d}.parquet"
            # Another process may be writing the same part. The table comes last: where it is, its state is too.
            _publish(path.with_suffix(".json"), lambda file: file.write_text(json.dumps(stream.state_dict())))
            table = self._table(part, columns, image)
            _publish(path, lambda file: pq.write_table(table, file, compression="none", row_group_size=64))  # noqa: B023
            parts.append((path, len(part)))
            done += len(part)
        return parts

    def _rows(self, stream: Any, image: str) -> Iterator[dict[str, Any]]:
        rows = iter(stream)
        while True:
            try:
                with self._remote.errors():
                    row = next(rows, None)
                if row is None:
                    return
                row[image] = self._image(row[image])
            except (ValueError, TypeError, KeyError, pa.ArrowException) as error:
                raise self._unreadable(error) from error
            yield row

    def _image(self, cell: Any) -> dict[str, Any] | None:
        """The bytes of an image in an archive; of one that is a file of the dataset only its name."""
        if not isinstance(cell, dict):
            return {"bytes": cell, "path": None}
        path = str(cell.get("path") or "")
        if cell.get("bytes") is not None or not path:
            return {"bytes": cell.get("bytes"), "path": path or None}
        if path.startswith(self._root):
            return {"bytes": None, "path": path.removeprefix(self._root)}
        return {"bytes": None, "path": path}

    def _table(self, rows: list[dict[str, Any]], columns: Sequence[str], image: str) -> pa.Table:
        kinds = {name: IMAGE if name == image else self.schema().field(name).type for name in columns}
        schema = pa.schema(list(kinds.items()))
        try:
            return pa.Table.from_pylist(rows, schema=schema)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise self._unreadable(error) from error

    def _folder(self, split: str, columns: Sequence[str], limit: int | None) -> Path:
        """All that decides where parts begin and end is in its name, so that processes may write the same parts at once."""
        layout = self._layout
        key = [self._remote.name, self._remote.revision, layout.kind, split, layout.splits[split], list(columns), limit,
               [layout.card.get(option) for option in OPTIONS], version("datasets")]  # fmt: skip
        return self._cache / "streamed" / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]

    def _unreadable(self, error: Exception) -> DataError:
        said = " ".join(str(error).split())[:300]
        return DataError(f"{self._remote.name} at {self._remote.revision}: cannot be read as {self._layout.kind} "
                         f"({type(error).__name__}: {said}); choose another configuration, split or revision")


def _publish(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file beside its place and moves it there whole."""
    beside = path.with_name(f".{os.getpid()}-{path.name}")
    write(beside)
    beside.replace(path)


def _take(rows: Iterator[dict[str, Any]], image: str, most: int) -> list[dict[str, Any]]:
    """The rows of the next part."""
    part: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        part.append(row)
        size += len((row[image] or {}).get("bytes") or b"")
        if len(part) == most or size >= PART_BYTES:
            break
    return part
