"""Real models of the tiny student for the doctor, and the tools that plant faults into them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pocketvlm.environment import read_environment
from pocketvlm.llamacpp.toolchain import find_toolchain

TEXT, MMPROJ = "text-q8_0.gguf", "mmproj-q8_0.gguf"
Json = dict[str, Any]


@dataclass(frozen=True)
class Models:
    """What the real chain makes of one tiny student: made once, never changed."""

    checkpoint: Path
    pair: Path
    """A folder with TEXT and MMPROJ."""
    parity: Path
    """The same as bf16 and f16."""

    def copy_pair(self, to: Path) -> Path:
        return Path(shutil.copytree(self.pair, to))

    def copy_checkpoint(self, to: Path, changes: Mapping[str, Callable[[Json], None]] | None = None) -> Path:
        """With JSON files changed in place."""
        shutil.copytree(self.checkpoint, to)
        for name, change in (changes or {}).items():
            content = json.loads((to / name).read_text())
            change(content)
            (to / name).write_text(json.dumps(content))
        return to


def make_models(folder: Path) -> Models:
    """The tiny student by the pinned converter and llama-quantize."""
    from pocketvlm.student.tiny import build_tiny

    toolchain = find_toolchain(read_environment())
    checkpoint = build_tiny(folder / "student", seed=0, longest_edge_px=32)
    pair, parity = folder / "pair", folder / "parity"
    pair.mkdir()
    parity.mkdir()
    text, mmproj = parity / "text-bf16.gguf", parity / "mmproj-f16.gguf"
    toolchain.convert(checkpoint, text=text, text_type="bf16", mmproj=mmproj, mmproj_type="f16")
    toolchain.run("llama-quantize", [str(text), str(pair / TEXT), "q8_0", "2"])
    toolchain.run("llama-quantize", [str(mmproj), str(pair / MMPROJ), "q8_0", "2"])
    return Models(checkpoint, pair, parity)


def quantise(path: Path, to: Path, kind: str) -> None:
    find_toolchain(read_environment()).run("llama-quantize", ["--allow-requantize", str(path), str(to), kind, "2"])


def edit_gguf(path: Path, keys: Mapping[str, Any], tensors: Mapping[str, Callable[[Any], None]] | None = None) -> None:
    """Writes the file anew by gguf-py: with scalar keys changed (None: left out) and tensors' data changed in place."""
    gguf = find_toolchain(read_environment()).gguf()
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(path.with_suffix(".new"), arch=reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or keys.get(name, 0) is None:
            continue
        value = keys.get(name, field.contents())
        writer.add_key_value(name, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        data = np.array(tensor.data)
        if tensors and tensor.name in tensors:
            tensors[tensor.name](data)
        writer.add_tensor(tensor.name, data, raw_shape=data.shape, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").replace(path)
