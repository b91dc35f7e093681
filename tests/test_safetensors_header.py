"""The header of a safetensors file, sound and not."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pocketvlm.safetensors_header import Entry, read_file

SOUND = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def test_tensors_texts_and_the_length_of_the_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float16)}, path, metadata={"format": "np"})
    header = read_file(path)
    assert {name: (entry.dtype, entry.shape, entry.size) for name, entry in header.entries.items()} == {
        "a": ("F32", (2, 3), 24), "b": ("F16", (4,), 8)
    }
    assert header.metadata == {"format": "np"} and header.end == path.stat().st_size
    place: Entry = header.entries["b"]
    assert path.read_bytes()[place.start : place.start + place.size] == np.ones(4, np.float16).tobytes()


@pytest.mark.parametrize("content", [
    [], 1, {"__metadata__": 1}, {"a": None}, {"a": {}}, {"a": {**SOUND, "dtype": 1}}, {"a": {**SOUND, "shape": 6}},
    {"a": {**SOUND, "shape": [2, -3]}}, {"a": {**SOUND, "shape": [2, 4]}}, {"a": {**SOUND, "data_offsets": [24]}},
    {"a": {**SOUND, "data_offsets": [24, 0]}}, {"a": {**SOUND, "data_offsets": ["0", "24"]}},
])  # fmt: skip
def test_a_header_that_makes_no_sense_is_refused(tmp_path: Path, content: Any) -> None:
    data = json.dumps(content).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(data)) + data + bytes(24))
    with pytest.raises(ValueError, match="has a"):
        read_file(tmp_path / "a")


@pytest.mark.parametrize("data", [
    b"", b"version https://git-lfs.github.com/spec/v1\n", struct.pack("<Q", 50) + b"{", struct.pack("<Q", 2) + b"{]",
    struct.pack("<Q", 100_000) + b"[" * 100_000,
])  # fmt: skip
def test_what_has_no_header_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ValueError):
        read_file(tmp_path / "a")
