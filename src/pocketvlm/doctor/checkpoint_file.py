"""A checkpoint folder in Hugging Face layout as it lies on the disk: its JSON files, and where each tensor is. No torch.

Of safetensors only the headers are read; `rows` reads a few rows of one tensor.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketvlm import safetensors_header

DTYPES = {"F32": ("<f4", 4), "F16": ("<f2", 2), "BF16": ("<u2", 2), "F64": ("<f8", 8)}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Weight:
    """A tensor in a safetensors file; `start` counts bytes from the beginning of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    def rows(self, places: Sequence[int], rows: int) -> NDArray[np.float32]:
        """The tensor seen as `rows` rows: those at `places`, as fp32. Raises KeyError for a dtype that is no float."""
        form, width = DTYPES[self.dtype]
        row_bytes = self.size // rows
        found = np.empty((len(places), row_bytes // width), dtype=np.float32)
        with self.file.open("rb") as file:
            for i, place in enumerate(places):
                file.seek(self.start + place * row_bytes)
                values = np.frombuffer(file.read(row_bytes), dtype=form)
                found[i] = (values.astype(np.uint32) << 16).view(np.float32) if self.dtype == "BF16" else values
        return found

    def equals(self, other: Weight) -> bool:
        """Bit for bit."""
        return (self.dtype, self.shape) == (other.dtype, other.shape) and self._bytes() == other._bytes()

    def _bytes(self) -> bytes:
        with self.file.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)


@dataclass(frozen=True)
class Checkpoint:
    """The folder; a file that is not there reads as {}."""

    path: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        return self.read("config.json")

    @property
    def architecture(self) -> str:
        """Class of the whole model."""
        names = self.config.get("architectures")
        return str(names[0]) if isinstance(names, list) and names else ""

    @property
    def pre_tokenizer(self) -> dict[str, Any] | None:
        """How tokenizer.json says that text is cut; None where it does not."""
        found = self.read("tokenizer.json").get("pre_tokenizer")
        return found if isinstance(found, dict) else None

    @cached_property
    def files(self) -> list[Path]:
        """Those of its weights."""
        return sorted(file for file in self.path.glob("*.safetensors") if file.is_file())

    @cached_property
    def preprocessor(self) -> dict[str, Any]:
        """What the converter of the pin takes: processor_config.json's image_processor laid over preprocessor_config.json."""
        inner = self.read("processor_config.json").get("image_processor")
        return {**self.read("preprocessor_config.json"), **(inner if isinstance(inner, dict) else {})}

    @cached_property
    def weights(self) -> dict[str, Weight]:
        """Tensors of all *.safetensors by name. A file that ends inside its header or has none gives none."""
        found: dict[str, Weight] = {}
        for file in self.files:
            found |= _header(file)
        return found

    @cached_property
    def cut(self) -> list[str]:
        """Names of safetensors files that end before their last tensor does, or in their header."""
        ends: dict[Path, int] = {}
        for weight in self.weights.values():
            ends[weight.file] = max(ends.get(weight.file, 0), weight.start + weight.size)
        return [file.name for file in self.files if file.stat().st_size < ends.get(file, 1 << 62)]

    def pickles(self) -> list[str]:
        """Names of files with weights that only code can open."""
        return sorted(file.name for pattern in PICKLES for file in self.path.glob(pattern) if file.name != "training_args.bin")

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder, {} if it is none."""
        try:
            content = json.loads((self.path / name).read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def block(self, key: str) -> dict[str, Any]:
        """A block of config.json, {} if it is none."""
        found = self.config.get(key)
        return found if isinstance(found, dict) else {}

    def chat_template(self) -> tuple[str, str]:
        """The template and the file that holds it; ("", "") where there is none."""
        file = self.path / "chat_template.jinja"
        if file.is_file():
            return file.read_text(errors="replace"), file.name
        for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
            if isinstance(template := self.read(name).get("chat_template"), str):
                return template, name
        return "", ""


def _header(file: Path) -> dict[str, Weight]:
    try:
        entries = safetensors_header.read_file(file).entries
    except ValueError:
        return {}
    return {name: Weight(file, entry.dtype, entry.shape, entry.start, entry.size) for name, entry in entries.items()}
