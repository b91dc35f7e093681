"""From a checkpoint to its pairs of GGUF files: a bf16 text model with an f16 mmproj, and from these every other type."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pocketvlm.llamacpp.audit import check_mmproj, read_keys
from pocketvlm.llamacpp.toolchain import Toolchain

CLOSEST = ("bf16", "f16")
"""Types of text and mmproj that are always made: the closest to the checkpoint that llama.cpp has."""


def make_pair(
    toolchain: Toolchain, checkpoint: Path, folder: Path, *, types: Sequence[str], mmproj: str, mmproj_keys: Mapping[str, Any],
    scratch: Path, threads: int, say: Callable[[str], None] = lambda line: None,
) -> dict[str, float]:  # fmt: skip
    """Writes `text-<type>.gguf` for `types` and CLOSEST, `mmproj-<type>.gguf` for `mmproj` and CLOSEST; returns seconds by step.

    `mmproj_keys` are what the vision file must say for images to be seen as the student sees them. `scratch` is an empty or new
    folder on the checkpoint's file system. Raises ToolError, and DataError for a vision file with other keys.
    """
    clock = time.monotonic()
    # The converter writes the folder's name into the file, and the run's name is no part of the id.
    source = scratch / "student"
    scratch.mkdir(parents=True, exist_ok=True)
    shutil.copytree(checkpoint, source, copy_function=_link)
    text, vision = text_file(folder, CLOSEST[0]), mmproj_file(folder, CLOSEST[1])
    toolchain.convert(source, text=text, text_type=CLOSEST[0], mmproj=vision, mmproj_type=CLOSEST[1])
    say(f"converted to {text.name} and {vision.name}")
    seconds = {"convert": time.monotonic() - clock}
    for kind in types:
        if kind != CLOSEST[0]:
            clock = time.monotonic()
            toolchain.run("llama-quantize", [str(text), str(text_file(folder, kind)), kind, str(threads)])
            seconds[kind] = time.monotonic() - clock
    if mmproj != CLOSEST[1]:
        toolchain.run("llama-quantize", [str(vision), str(mmproj_file(folder, mmproj)), mmproj, str(threads)])
    for kind in {mmproj, CLOSEST[1]}:
        check_mmproj(read_keys(toolchain, mmproj_file(folder, kind)), dict(mmproj_keys))
    return seconds


def text_file(folder: Path, kind: str) -> Path:
    """Where the text model of a type lies."""
    return folder / f"text-{kind}.gguf"


def mmproj_file(folder: Path, kind: str) -> Path:
    """Where the vision file of a type lies."""
    return folder / f"mmproj-{kind}.gguf"


def _link(source: str, target: str) -> None:
    """No second copy of the weights. A base's lie in a cache, on another file system maybe, and are links already."""
    if Path(source).is_symlink():
        Path(target).symlink_to(Path(source).resolve())
    else:
        Path(target).hardlink_to(source)
