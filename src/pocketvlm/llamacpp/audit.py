"""What is really inside a GGUF file: keys, tensor types, size, bits per weight. Read with the gguf module of the pin."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from pocketvlm.errors import DataError
from pocketvlm.llamacpp.toolchain import Toolchain

LEADING = {
    "bf16": "BF16", "f16": "F16", "q8_0": "Q8_0", "q6_k": "Q6_K", "q5_k_m": "Q5_K", "q5_0": "Q5_0", "q4_k_m": "Q4_K",
    "q4_0": "Q4_0", "iq4_nl": "IQ4_NL",
}  # fmt: skip
"""Type of a GGUF file -> the tensor type that its name promises."""
BLOCK = {"BF16": 1, "F16": 1, "Q8_0": 32, "Q6_K": 256, "Q5_K": 256, "Q5_0": 32, "Q4_K": 256, "Q4_0": 32, "IQ4_NL": 32}
"""Weights in a block; a row holds whole blocks (ggml-common.h of the pin)."""
KEPT = (
    "general.architecture", "general.file_type", "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.add_bos_token",
    "clip.projector_type", "clip.vision.image_size", "clip.vision.patch_size", "clip.vision.preproc_image_size",
    "clip.vision.projector.scale_factor", "clip.vision.attention.layer_norm_epsilon", "llama.rope.freq_base",
    "llama.attention.layer_norm_rms_epsilon", "llama.context_length", "llama.block_count", "llama.embedding_length",
)  # fmt: skip
"""Keys that decide what the file answers, as far as it has them."""


def read_keys(toolchain: Toolchain, path: Path) -> dict[str, Any]:
    """All scalar keys of a GGUF file."""
    return _keys(toolchain.gguf().GGUFReader(path))


def audit(toolchain: Toolchain, path: Path, *, role: str, kind: str) -> dict[str, Any]:
    """One row of `audit.json`.

    `fallbacks` counts weight matrices whose rows are no multiple of the block of the type that the file's name promises, so
    that llama.cpp took another type: it makes many a Q4_K_M a 6-bit file. Matrices that the type's recipe gives more bits
    on purpose, as the output matrix, are none.
    """
    reader = toolchain.gguf().GGUFReader(path)
    types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    matrices = [tensor for tensor in reader.tensors if len(tensor.shape) > 1]
    promised = LEADING[kind]
    weights = sum(math.prod(int(side) for side in tensor.shape) for tensor in reader.tensors)
    stored_bytes = sum(int(tensor.n_bytes) for tensor in reader.tensors)
    keys = _keys(reader)
    return {
        "name": path.name, "role": role, "type": kind, "size_bytes": path.stat().st_size,
        "size_mb": round(path.stat().st_size / 1e6, 3), "bits_per_weight": round(8 * stored_bytes / weights, 3),
        "tensors": dict(sorted(types.items())), "matrices": len(matrices),
        "fallbacks": sum(
            tensor.tensor_type.name != promised and int(tensor.shape[0]) % BLOCK[promised] != 0 for tensor in matrices
        ),
        "keys": {key: keys[key] for key in KEPT if key in keys},
    }  # fmt: skip


def check_mmproj(keys: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises DataError when the vision file would see images otherwise than the student was trained on, by its family's keys."""
    wrong = [f"{key} is {keys.get(key)!r}, not {value!r}" for key, value in wanted.items() if keys.get(key) != value]
    if wrong:
        raise DataError("the mmproj file does not see images as the student did: " + "; ".join(wrong))


def _keys(reader: Any) -> dict[str, Any]:
    """Scalars only: vocabularies are long and have their own check (token ids against the server)."""
    values = {name: field.contents() for name, field in reader.fields.items() if len(field.types) == 1}
    return {name: value for name, value in values.items() if not name.startswith("GGUF.")}
