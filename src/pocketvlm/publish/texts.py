"""Every text inside a file that is to be published, also in the headers and columns of GGUF, safetensors, Parquet and PNG."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pocketvlm import safetensors_header
from pocketvlm.errors import Corrupt
from pocketvlm.publish.gguf_strings import gguf_texts

VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")
PNG = b"\x89PNG\r\n\x1a\n"
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"eXIf")
"""Chunks in which cameras and programs leave notes."""


@dataclass(frozen=True)
class Text:
    """One text and where it stands."""

    where: str
    value: str
    vocabulary: bool = False
    """One of the tokens that a model knows, not something that somebody wrote here."""
    column: str | None = None
    """Of a table."""
    opaque: bool = False
    """Nothing could be read; `value` says why."""


def texts_of(path: Path, name: str) -> Iterator[Text]:
    """All texts of a file. What cannot be looked into is one text that is `opaque`."""
    try:
        if name.endswith(".gguf"):
            yield from (Text(f"key {key}", text, vocabulary=listed) for key, text, listed in gguf_texts(path))
        elif name.endswith(".safetensors"):
            yield from _safetensors(path)
        elif name.endswith(".parquet"):
            yield from _parquet(path)
        elif name.endswith(".png"):
            yield from _png(path.read_bytes(), "image")
        else:
            yield from _lines(path, name)
    except (Corrupt, pa.ArrowException, UnicodeDecodeError, ValueError, struct.error) as error:
        yield Text("content", f"cannot be looked into ({error})", opaque=True)


def _lines(path: Path, name: str) -> Iterator[Text]:
    vocabulary = name.rpartition("/")[2] in VOCABULARIES
    for number, line in enumerate(path.read_bytes().decode("utf-8").splitlines(), start=1):
        yield Text(f"line {number}", line, vocabulary=vocabulary)


def _safetensors(path: Path) -> Iterator[Text]:
    header = safetensors_header.read_file(path)
    for key, value in header.metadata.items():
        yield Text(f"metadata {key}", f"{key}: {value}")
    yield from (Text("name of a tensor", tensor) for tensor in header.entries)


def _parquet(path: Path) -> Iterator[Text]:
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        for key, value in (schema.metadata or {}).items():
            yield Text(f"metadata {key.decode()}", value.decode("utf-8", "replace"))
        for number, group in enumerate(range(file.num_row_groups)):
            table = file.read_row_group(group)
            for column in table.column_names:
                values = table[column].to_pylist()
                for row, value in enumerate(values):
                    yield from _cell(f"row {number}.{row}, column {column}", value, column)


def _cell(where: str, value: Any, column: str) -> Iterator[Text]:
    if isinstance(value, str):
        yield Text(where, value, column=column)
    elif isinstance(value, bytes):
        yield from _png(value, where)
    elif isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        for item in inner:
            yield from _cell(where, item, column)
    elif value is not None:
        yield Text(where, "", column=column)


def _png(data: bytes, where: str) -> Iterator[Text]:
    if not data.startswith(PNG):
        raise ValueError(f"{where} is no PNG")
    place = len(PNG)
    while place + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        if kind in PNG_TEXTS:
            yield Text(where, f"carries notes of a camera or a program ({kind.decode()})", opaque=True)
        place += 12 + length
    if place < len(data):
        yield Text(where, f"has {len(data) - place} bytes behind its end", opaque=True)
