"""Whether two files hold the same weights: a GGUF file beside a checkpoint, or beside another GGUF file.

A few rows of each tensor are taken from the other side, put into this file's type, and compared byte for byte. Types
of which that is not known (k-quants depend on who rounded) tell nothing, and are counted apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketvlm.doctor.checkpoint_file import DTYPES, Checkpoint
from pocketvlm.llamacpp.gguf_file import Gguf, Tensor

ROWS = 16
"""Of a tensor, evenly spread: whatever trains a matrix changes every row."""
EQUAL = 0.99
"""Share of bytes. Two roundings on the way (bf16 to f16 to q8_0) move a byte now and then."""
BLOCK = 32

VISION_NAMES = {
    r"v\.patch_embd\.(\w+)": r"model.vision_model.embeddings.patch_embedding.\1",
    r"v\.position_embd\.weight": "model.vision_model.embeddings.position_embedding.weight",
    r"v\.post_ln\.(\w+)": r"model.vision_model.post_layernorm.\1",
    r"v\.blk\.(\d+)\.ln([12])\.(\w+)": r"model.vision_model.encoder.layers.\1.layer_norm\2.\3",
    r"v\.blk\.(\d+)\.ffn_up\.(\w+)": r"model.vision_model.encoder.layers.\1.mlp.fc1.\2",
    r"v\.blk\.(\d+)\.ffn_down\.(\w+)": r"model.vision_model.encoder.layers.\1.mlp.fc2.\2",
    r"v\.blk\.(\d+)\.attn_([qkv])\.(\w+)": r"model.vision_model.encoder.layers.\1.self_attn.\2_proj.\3",
    r"v\.blk\.(\d+)\.attn_out\.(\w+)": r"model.vision_model.encoder.layers.\1.self_attn.out_proj.\2",
    r"mm\.model\.fc\.weight": "model.connector.modality_projection.proj.weight",
}
TEXT_NAMES = {
    r"token_embd\.weight": "model.text_model.embed_tokens.weight",
    r"output_norm\.weight": "model.text_model.norm.weight",
    r"output\.weight": "lm_head.weight",
    r"blk\.(\d+)\.attn_norm\.weight": r"model.text_model.layers.\1.input_layernorm.weight",
    r"blk\.(\d+)\.ffn_norm\.weight": r"model.text_model.layers.\1.post_attention_layernorm.weight",
    r"blk\.(\d+)\.attn_v\.weight": r"model.text_model.layers.\1.self_attn.v_proj.weight",
    r"blk\.(\d+)\.attn_output\.weight": r"model.text_model.layers.\1.self_attn.o_proj.weight",
    r"blk\.(\d+)\.ffn_(gate|up|down)\.weight": r"model.text_model.layers.\1.mlp.\2_proj.weight",
}
"""Name in GGUF -> name in a checkpoint of Idefics3's layout. Query and key are left out: the converter reorders their rows."""


@dataclass(frozen=True)
class Rows:
    """A tensor of the other side."""

    weights: int
    read: Callable[[Sequence[int], int], NDArray[np.float32]]
    """(places, rows) -> the rows at these places, of so many, as fp32."""


@dataclass(frozen=True)
class Match:
    """How many tensors are the same, how many are not, and of how many that cannot be told."""

    same: int
    differ: list[str]
    unknown: int

    @property
    def told(self) -> bool:
        """Whether there was anything to compare."""
        return bool(self.same or self.differ)


def of_checkpoint(checkpoint: Checkpoint, file: Gguf) -> dict[str, Rows]:
    """The checkpoint's tensors under the names of this GGUF file, as far as they lie in it unchanged."""
    names = VISION_NAMES if file.is_mmproj else TEXT_NAMES
    found: dict[str, Rows] = {}
    for name in file.tensors:
        for pattern, there in names.items():
            if match := re.fullmatch(pattern, name):
                weight = checkpoint.weights.get(match.expand(there))
                if weight is not None and weight.dtype in DTYPES and weight.file.name not in checkpoint.cut:
                    found[name] = Rows(int(np.prod(weight.shape)), weight.rows)
    return found


def of_gguf(file: Gguf) -> dict[str, Rows]:
    """The tensors of another GGUF file that can be read as numbers."""
    return {
        name: Rows(tensor.weights, lambda places, rows, tensor=tensor: _decode(_stored(file, tensor, places), tensor))  # type: ignore[misc]
        for name, tensor in file.tensors.items() if tensor.type in DECODABLE
    }  # fmt: skip


def compare(file: Gguf, other: Mapping[str, Rows]) -> Match:
    """Each tensor of the file against the one of its name."""
    same, unknown, differ = 0, 0, []
    for name, tensor in file.tensors.items():
        theirs = other.get(name)
        rows = tensor.weights // tensor.shape[0]
        if theirs is None or tensor.type not in DECODABLE or theirs.weights != tensor.weights:
            unknown += 1
            continue
        places = sorted({int(place) for place in np.linspace(0, rows - 1, min(rows, ROWS))})
        ours = np.frombuffer(_stored(file, tensor, places), dtype=np.uint8)
        wanted = np.frombuffer(_encode(theirs.read(places, rows), tensor.type), dtype=np.uint8)
        if float(np.mean(ours == wanted)) >= EQUAL:
            same += 1
        else:
            differ.append(name)
    return Match(same, differ, unknown)


def _stored(file: Gguf, tensor: Tensor, places: Sequence[int]) -> bytes:
    with file.path.open("rb") as stream:
        found = []
        for place in places:
            stream.seek(tensor.start + place * tensor.row_bytes)
            found.append(stream.read(tensor.row_bytes))
    return b"".join(found)


DECODABLE = ("F32", "F16", "BF16", "Q8_0")


def _encode(values: NDArray[np.float32], kind: str) -> bytes:
    """Numbers in a type of ggml, rounded as ggml rounds them."""
    if kind == "F32":
        return values.astype("<f4").tobytes()
    if kind == "F16":
        return values.astype("<f2").tobytes()
    if kind == "BF16":
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    blocks = values.reshape(-1, BLOCK)
    scales = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(scales == 0, np.float32(0), np.float32(1) / scales)
    scaled = blocks * inverse
    numbers = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8)
    return np.concatenate([scales.astype("<f2").view(np.uint8), numbers.view(np.uint8)], axis=1).tobytes()


def _decode(data: bytes, tensor: Tensor) -> NDArray[np.float32]:
    row = tensor.shape[0]
    if tensor.type == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(-1, row)
    if tensor.type != "Q8_0":
        return np.frombuffer(data, "<f4" if tensor.type == "F32" else "<f2").astype(np.float32).reshape(-1, row)
    blocks = np.frombuffer(data, np.uint8).reshape(-1, tensor.block_bytes)
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
    return (blocks[:, 2:].copy().view(np.int8) * scales).astype(np.float32).reshape(-1, row)
