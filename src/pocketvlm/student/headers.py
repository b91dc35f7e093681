"""The header of a safetensors file: what tensors it holds and where, without reading them. No torch.

Eight bytes say how long the header is, little-endian; then comes JSON; then the tensors' bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_BYTES = 100_000_000
"""The format's own limit."""


@dataclass(frozen=True)
class Entry:
    """A tensor; `start` and `size` are bytes of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def read_entries(read: Callable[[int, int], bytes]) -> dict[str, Entry]:
    """Tensors by name; `read(start, end)` gives bytes of the file. Raises ValueError when it does not begin with a header."""
    start = read(0, 8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 0 < length <= MAX_BYTES:
        raise ValueError("does not begin with the header of a safetensors file")
    data = read(8, 8 + length)
    content: dict[str, Any] = json.loads(data) if len(data) == length else {}
    if not isinstance(content, dict) or not content:
        raise ValueError("ends inside its header")
    return {
        name: Entry(entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0],
                    entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in content.items() if name != "__metadata__"
    }  # fmt: skip


def read_file(path: Path) -> dict[str, Entry]:
    """Those of a file. Raises as `read_entries`."""
    with path.open("rb") as file:

        def read(start: int, end: int) -> bytes:
            file.seek(start)
            return file.read(end - start)

        return read_entries(read)
