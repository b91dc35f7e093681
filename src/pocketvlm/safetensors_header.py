"""The header of a safetensors file: what tensors it holds and where, without reading them, whichever room asks.

Eight bytes say how long the header is, little-endian; then comes JSON; then the tensors' bytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_BYTES = 100_000_000
"""The format's own limit."""
METADATA = "__metadata__"
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Bytes of a number, where the type says it."""


@dataclass(frozen=True)
class Entry:
    """A tensor; `start` and `size` are bytes of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Header:
    """Of one file."""

    entries: dict[str, Entry]
    """By the tensor's name."""
    metadata: dict[str, Any]
    """Free texts of whoever wrote it."""

    @property
    def end(self) -> int:
        """Bytes that the file must have for its last tensor."""
        return max((entry.start + entry.size for entry in self.entries.values()), default=0)


def read_header(read: Callable[[int, int], bytes]) -> Header:
    """`read(start, end)` gives bytes of the file. Raises ValueError when it does not begin with a header that makes sense."""
    start = read(0, 8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 0 < length <= MAX_BYTES:
        raise ValueError("does not begin with the header of a safetensors file")
    data = read(8, 8 + length)
    if len(data) < length:
        raise ValueError("ends inside its header")
    try:
        content = json.loads(data)
    except RecursionError as error:
        raise ValueError("has a header that is nested too deep") from error
    metadata = content.pop(METADATA, {}) if isinstance(content, dict) else None
    if not isinstance(metadata, dict):
        raise ValueError("has a header that is none of a safetensors file")
    return Header({name: _entry(name, value, 8 + length) for name, value in content.items()}, metadata)


def read_file(path: Path) -> Header:
    """That of a file. Raises as `read_header`."""
    with path.open("rb") as file:

        def read(start: int, end: int) -> bytes:
            file.seek(start)
            return file.read(end - start)

        return read_header(read)


def _entry(name: str, value: Any, data: int) -> Entry:
    match value:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)]} if (
            all(isinstance(side, int) and side >= 0 for side in shape)
            and 0 <= start <= end and (dtype not in WIDTHS or end - start == math.prod(shape) * WIDTHS[dtype])
        ):  # fmt: skip
            return Entry(dtype, tuple(shape), data + start, end - start)
    raise ValueError(f"has a tensor {name!r} whose type, shape and place do not fit each other")
