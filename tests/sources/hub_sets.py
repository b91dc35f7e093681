"""Parquet for the tests of `hub`, and the source opened on it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from mars import CLASSES

from pocketvlm.environment import Environment
from pocketvlm.run_file import HubSource
from pocketvlm.sources.open import open_source
from pocketvlm.sources.record import Context, SourceReader

NAMES = list(CLASSES)
COMMIT = "0" * 40


def parquet(rows: list[dict[str, Any]], features: dict[str, Any] | None = None, *, row_group_rows: int = 100) -> bytes:
    """A Parquet file; without features as something else than `datasets` would write it."""
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if features else None
    table = pa.Table.from_pylist(rows).replace_schema_metadata(metadata)
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=row_group_rows)
    return out.getvalue()


def pictures(count: int, **columns: Callable[[int], Any]) -> list[dict[str, Any]]:
    """Rows with an image, which nobody decodes here, and what else is wanted."""
    return [
        {"image": {"bytes": b"image %d" % i, "path": None}, **{name: make(i) for name, make in columns.items()}}
        for i in range(count)
    ]  # fmt: skip


def opened(folder: Path, classes: list[str] = NAMES, *, labelled: bool = True, **settings: object) -> SourceReader:
    source = HubSource.model_validate({"kind": "hub", **settings})
    return open_source(source, Context(folder, classes, labelled, Environment(cache=folder / "cache")))


def local(folder: Path, data: bytes, classes: list[str], **settings: Any) -> SourceReader:
    (folder / "a.parquet").write_bytes(data)
    return opened(folder, classes, path="a.parquet", **settings)
