"""A JSON, JSONL or CSV file with one record for each image: `image_id, image_path`, a label, and what else is known."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketvlm.errors import DataError, RunFileError
from pocketvlm.run_file import RecordsSource
from pocketvlm.sources.field_labels import field_labels
from pocketvlm.sources.record import (
    ClassNames,
    Context,
    Problem,
    Record,
    SourceReader,
    fingerprint_files,
    hint,
    read_inside,
)


@dataclass(frozen=True)
class Row:
    """One record of the file and where it stands: `line 7` or `record 7`."""

    where: str
    fields: dict[str, Any] | None
    """None: the line could not be read."""


class Records(SourceReader):
    """Reads the whole file when opened, the images one by one while iterating."""

    def __init__(self, source: RecordsSource, context: Context) -> None:
        """Raises RunFileError for a wrong path or label column, DataError for a file that is not what its name says."""
        path = context.folder / source.path
        if not path.is_file():
            raise RunFileError(f"run.labeller.source.path: {source.path} is not a file; "
                               "name it relative to the run file")
        images = context.folder / source.images if source.images is not None else path.parent
        if not images.is_dir():
            raise RunFileError(f"run.labeller.source.images: {source.images} is not a folder; "
                               "name the folder that `image_path` starts in, relative to the run file")
        self._source = source
        self._labelled = context.labelled
        self._root = images.resolve()
        self._classes = ClassNames(context.classes)
        self._fields = field_labels(source.field_columns, context)
        self._label_column = source.label_column or ("label" if self._fields is None else None)
        self._bytes = path.read_bytes()
        self._rows = _read_rows(source.path, self._bytes)
        _check_columns(source, self._rows, self._label_columns())
        self._rows.sort(key=lambda row: _text(row.fields, "image_id"))

    def _label_columns(self) -> dict[str, str]:
        """Columns that the label is read from -> the key that names them."""
        if not self._labelled:
            return {}
        if self._label_column is not None:
            return {self._label_column: "label_column"}
        assert self._fields is not None, "classes have a column"
        return dict.fromkeys(self._fields.columns, "field_columns")

    def fingerprint(self) -> str:
        names = sorted({_text(row.fields, "image_path") for row in self._rows} - {""})
        return fingerprint_files(((name, self._root / name) for name in names), self._root, head=self._bytes)

    def __len__(self) -> int:
        return len(self._rows)

    def records(self, places: range) -> Iterator[Record]:
        for place in places:
            yield self._record(self._rows[place])

    def _record(self, row: Row) -> Record:
        if row.fields is None:
            return Record(row.where, problem=Problem("bad_line", f"{row.where}: cannot be read"))
        source_id = _text(row.fields, "image_id") or row.where
        for column in ("image_id", "image_path"):
            if not _text(row.fields, column):
                return Record(source_id, problem=Problem("missing_field", f"{row.where}: {column} is missing or empty"))
        known = self._known(row) if self._labelled else {}
        if isinstance(known, Problem):
            return Record(source_id, problem=Problem(known.reason, f"{row.where}: {known.detail}"))
        name = _text(row.fields, "image_path")
        data = read_inside(self._root / name, self._root)
        if isinstance(data, Problem):
            return Record(source_id, problem=Problem(data.reason, f"{row.where}: {name[:200]}: {data.detail}"))
        return Record(
            source_id,
            data,
            url=_text(row.fields, "url") or None,
            author=_text(row.fields, "author") or None,
            licence=_text(row.fields, "licence") or _text(row.fields, "license") or self._source.licence,
            **known,
        )

    def _known(self, row: Row) -> dict[str, Any] | Problem:
        """Label, reason and confidence of a record, or why they cannot be used."""
        label = self._label(row.fields or {})
        if isinstance(label, Problem):
            return label
        confidence = _confidence(_text(row.fields, "confidence"))
        if isinstance(confidence, Problem):
            return confidence
        return {"label": label, "reason": _text(row.fields, "reason") or None, "confidence": confidence}


    def _label(self, fields: dict[str, Any]) -> str | Problem:
        if self._fields is not None:
            column = self._label_column
            return self._fields.of_cells(fields) if column is None else self._fields.of_cell(column, fields.get(column))
        assert self._label_column is not None, "classes have a column"
        if not (written := _text(fields, self._label_column)):
            return Problem("missing_field", f"{self._label_column} is missing or empty")
        found = self._classes.match(written)
        shown = written[:100]
        return found or Problem("unknown_label", f"{shown} is not in run.task.classes{self._classes.hint(shown)}")


def _read_rows(name: str, data: bytes) -> list[Row]:
    readers = {".json": _json_rows, ".jsonl": _jsonl_rows, ".ndjson": _jsonl_rows, ".csv": _csv_rows}
    reader = readers.get(Path(name).suffix.lower())
    if reader is None:
        raise RunFileError(f"run.labeller.source.path: {name} must end in .json, .jsonl, .ndjson or .csv")
    try:
        rows = reader(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: is not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except (ValueError, RecursionError, csv.Error) as error:
        raise DataError(f"{name}: cannot be read as {Path(name).suffix[1:]}: {error}; repair the file") from error
    if not any(row.fields for row in rows):
        raise DataError(f"{name}: holds no records; it needs image_id, image_path and a label in each")
    return rows


def _json_rows(text: str) -> list[Row]:
    items = json.loads(text)
    if not isinstance(items, list):
        raise ValueError(f"the top level is a {type(items).__name__}, not a list of records")
    return [Row(f"record {i}", item if isinstance(item, dict) else None) for i, item in enumerate(items, start=1)]


def _jsonl_rows(text: str) -> list[Row]:
    """A line that is no JSON object costs this one record, not the run: such files are often cut off by a crash."""
    rows = []
    for number, line in enumerate(io.StringIO(text), start=1):
        if line.strip():
            try:
                item = json.loads(line)
            except (ValueError, RecursionError):
                item = None
            rows.append(Row(f"line {number}", item if isinstance(item, dict) else None))
    return rows


def _csv_rows(text: str) -> list[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows = []
    for fields in reader:  # a surplus cell stands under the key None: the columns cannot be trusted
        rows.append(Row(f"line {reader.line_num}", None if None in fields else dict(fields)))
    return rows


def _check_columns(source: RecordsSource, rows: list[Row], of_label: dict[str, str]) -> None:
    """Raises when a column that every record needs is in none of them; `of_label` with the key that names each."""
    columns = sorted({str(column) for row in rows for column in row.fields or ()})
    there = ", ".join(columns)
    for column, key in of_label.items():
        if column not in columns:
            raise RunFileError(f"run.labeller.source.{key}: {source.path} has no column {column}, but {there}"
                               f"{hint(column, columns)}")
    for column in ("image_id", "image_path"):
        if column not in columns:
            raise DataError(f"{source.path}: has no column {column}, but {there}; rename the column or add it")


def _text(fields: dict[str, Any] | None, column: str) -> str:
    """The trimmed text of a field; numbers as written; an empty string when there is none."""
    value = (fields or {}).get(column)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    # A JSON file can hold half of a surrogate pair, which neither UTF-8 nor Parquet can.
    return str(value).strip().encode("utf-8", "backslashreplace").decode()


def _confidence(text: str) -> float | Problem | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:  # also NaN
        return Problem("bad_confidence", f"confidence {text[:40]} is not a number from 0 to 1")
    return value
