"""A GGUF file as it lies on the disk: its keys, and where each tensor is. Needs no llama.cpp, and survives a cut file.

The format is that of ggml's docs/gguf.md, versions 2 and 3, little-endian. Tensor data are read only when asked for.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
MAX_DEPTH = 4
"""Of lists in lists. llama.cpp writes none."""
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip
"""Number of a tensor type -> name, weights in a block, bytes of a block (ggml-common.h of the pin)."""


class NotGguf(Exception):
    """These bytes are no GGUF file, or end before its header does; says which."""


@dataclass(frozen=True)
class Tensor:
    """`shape` is the file's: the length of a row first. `start` counts bytes from the beginning of the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    block: int
    block_bytes: int
    start: int

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        return self.shape[0] // self.block * self.block_bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return self.weights // self.block * self.block_bytes

    @property
    def bits(self) -> float:
        """Of one weight, scales included."""
        return 8 * self.block_bytes / self.block


@dataclass(frozen=True)
class Gguf:
    """The header of a file."""

    path: Path
    keys: dict[str, Any]
    tensors: dict[str, Tensor]
    missing_bytes: int
    """How far the file ends before its last tensor does; 0: it is whole."""

    @property
    def is_mmproj(self) -> bool:
        return self.keys.get("general.architecture") == "clip" or self.keys.get("general.type") == "mmproj"

    @property
    def bits_per_weight(self) -> float:
        """Mean over all tensors."""
        weights = sum(tensor.weights for tensor in self.tensors.values())
        return 8 * sum(tensor.size for tensor in self.tensors.values()) / max(weights, 1)

    def number(self, name: str) -> float | None:
        """A key that is a finite number; None where it is missing or anything else."""
        value = self.keys.get(name)
        return value if isinstance(value, int | float) and math.isfinite(value) else None

    def text_key(self, name: str) -> Any:
        """A key of the text architecture: `rope.freq_base` of a llama is `llama.rope.freq_base`."""
        return self.keys.get(f"{self.keys.get('general.architecture')}.{name}")

    def tokens(self) -> list[str]:
        """The vocabulary by id; empty where there is none."""
        found = self.keys.get("tokenizer.ggml.tokens")
        return found if isinstance(found, list) else []


def read_gguf(path: Path) -> Gguf:
    """Reads the header. Raises NotGguf."""
    size = path.stat().st_size
    with path.open("rb") as file:
        reader = _Reader(file, size)
        if reader.take(4) != MAGIC:
            raise NotGguf("does not begin with `GGUF`")
        if (version := reader.number("<I")) not in VERSIONS:
            raise NotGguf(f"has version {version}, known are 2 and 3 (little-endian)")
        tensors, keys = reader.number("<Q"), reader.number("<Q")
        values = {reader.text(): reader.value(reader.number("<I")) for _ in range(keys)}
        infos = [_info(reader) for _ in range(tensors)]
        alignment = values.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise NotGguf(f"has general.alignment {alignment!r}, which is no number of bytes")
        data = -(-file.tell() // alignment) * alignment
    found = {name: Tensor(name, shape, *_type(kind, name), start=data + offset) for name, shape, kind, offset in infos}
    end = max((tensor.start + tensor.size for tensor in found.values()), default=0)
    return Gguf(path, values, found, max(0, end - size))


def _info(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    name = reader.text()
    shape = tuple(reader.number("<Q") for _ in range(reader.number("<I")))
    if not math.prod(shape) or not shape:
        raise NotGguf(f"has a tensor {name} without weights (shape {shape})")
    return name, shape, reader.number("<I"), reader.number("<Q")


def _type(kind: int, name: str) -> tuple[str, int, int]:
    if kind not in TYPES:
        raise NotGguf(f"has a tensor {name} of the unknown type {kind}; a newer llama.cpp may have written it")
    return TYPES[kind]


class _Reader:
    """Takes one thing after the other from a file of `size` bytes. Lengths are checked before anything is read."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def take(self, count: int) -> bytes:
        if count > self._size - self._file.tell():
            raise NotGguf("ends inside its header")
        return self._file.read(count)

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        return self.take(self.number("<Q")).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY and depth < MAX_DEPTH:
            return self._array(self.number("<I"), self.number("<Q"), depth + 1)
        if kind not in SCALARS:
            raise NotGguf(f"has a key of the unknown type {kind}")
        return self.number(SCALARS[kind])

    def _array(self, kind: int, count: int, depth: int) -> list[Any]:
        if kind in SCALARS:
            form = SCALARS[kind]
            return list(struct.unpack(f"<{count}{form[1]}", self.take(count * struct.calcsize(form))))
        return [self.value(kind, depth) for _ in range(count)]
