"""The texts of a GGUF file's header, without its tensors: who looks for leaks need not trust a library to show them all.

Format: ggml's docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pocketvlm.errors import Corrupt

STRING, ARRAY = 8, 9
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of the other types of value."""
MAX_TEXT_BYTES = 64_000_000
"""A longer text is a broken file."""


def gguf_texts(path: Path) -> Iterator[tuple[str, str, bool]]:
    """(key, text, whether it is one of a list) of every key and text value. Raises Corrupt for what is no GGUF file."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise Corrupt(f"{path.name}: is no GGUF file")
        version, _tensors, pairs = struct.unpack("<IQQ", _exactly(file, 20, path))
        if version not in (2, 3):
            raise Corrupt(f"{path.name}: is GGUF version {version}; 2 and 3 can be read")
        for _ in range(pairs):
            key = _text(file, path)
            yield "key", key, False
            yield from ((key, text, listed) for text, listed in _value(file, _u32(file, path), path))


def _value(file: BinaryIO, kind: int, path: Path, *, listed: bool = False) -> Iterator[tuple[str, bool]]:
    if kind == STRING:
        yield _text(file, path), listed
    elif kind == ARRAY:
        inner, count = _u32(file, path), struct.unpack("<Q", _exactly(file, 8, path))[0]
        if inner in WIDTHS:
            _exactly(file, count * WIDTHS[inner], path)
        else:
            for _ in range(count):
                yield from _value(file, inner, path, listed=True)
    elif kind in WIDTHS:
        _exactly(file, WIDTHS[kind], path)
    else:
        raise Corrupt(f"{path.name}: has a value of the unknown type {kind}")


def _text(file: BinaryIO, path: Path) -> str:
    length = struct.unpack("<Q", _exactly(file, 8, path))[0]
    return _exactly(file, length, path).decode("utf-8", "replace")


def _u32(file: BinaryIO, path: Path) -> int:
    return int(struct.unpack("<I", _exactly(file, 4, path))[0])


def _exactly(file: BinaryIO, length: int, path: Path) -> bytes:
    data = file.read(length) if length <= MAX_TEXT_BYTES else b""
    if len(data) != length:
        raise Corrupt(f"{path.name}: ends in the middle of its header")
    return data
