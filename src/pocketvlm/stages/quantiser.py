"""The quantiser: merged checkpoint -> a bf16 pair for parity, and a pair for each type that was asked for.

Files of the artifact: `text-bf16.gguf`, `text-<type>.gguf`, `mmproj-f16.gguf`, `mmproj-<type>.gguf`, `audit.json`.
Text and vision are both mandatory: a text model without its mmproj answers without having seen the image.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from pocketvlm.llamacpp.audit import audit, check_mmproj, read_keys
from pocketvlm.llamacpp.build import read_pin
from pocketvlm.llamacpp.toolchain import Toolchain, find_toolchain
from pocketvlm.run_file import Recipe
from pocketvlm.stages.stage import Made, Work
from pocketvlm.student.families import read_geometry

KIND = "ggufs"
INPUTS = ("merger",)
PARITY = ("bf16", "f16")
"""Types of text and mmproj that are always made: the closest to the checkpoint that llama.cpp has."""


def settings(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Types, tile budget and the llama.cpp that makes the files."""
    del folder
    return {
        "quantiser": recipe.quantiser.model_dump(mode="json"),
        "longest_edge_px": recipe.device.longest_edge_px,
        "llama_cpp": read_pin().commit,
    }


def make(work: Work) -> Made:
    """Converts, quantises and audits. Raises ToolError, and DataError when the audit finds a wrong key."""
    toolchain = find_toolchain(work.environment)
    checkpoint = work.fetch("merger")
    clock = time.monotonic()
    text, mmproj = _convert(work, toolchain, checkpoint)
    seconds = {"convert": time.monotonic() - clock}
    for kind in work.recipe.quantiser.types:
        if kind != "bf16":
            clock = time.monotonic()
            toolchain.run("llama-quantize", [str(text), str(work.folder / f"text-{kind}.gguf"), kind, _threads(work)])
            seconds[kind] = time.monotonic() - clock
    if work.recipe.quantiser.mmproj != "f16":
        kind = work.recipe.quantiser.mmproj
        toolchain.run("llama-quantize", [str(mmproj), str(work.folder / f"mmproj-{kind}.gguf"), kind, _threads(work)])
    rows = [_audit(toolchain, path) for path in sorted(work.folder.glob("*.gguf"))]
    geometry = read_geometry(checkpoint)
    for row in rows:
        if row["role"] == "mmproj":
            keys = read_keys(toolchain, work.folder / row["name"])
            check_mmproj(keys, longest_edge_px=work.recipe.device.longest_edge_px, tile_px=geometry.tile_px)
        _say(work, row)
    (work.folder / "audit.json").write_text(json.dumps({"files": rows}, indent=1, sort_keys=True) + "\n")
    return Made(
        facts={
            "files": {
                row["name"]: {"size_mb": row["size_mb"], "bits_per_weight": row["bits_per_weight"]} for row in rows
            }
        },
        measurements={"seconds": {name: round(value, 3) for name, value in seconds.items()}},
        versions={"llama.cpp": toolchain.commit},
    )


def _convert(work: Work, toolchain: Toolchain, checkpoint: Path) -> tuple[Path, Path]:
    # The converter writes the folder's name into the file, and the run's name is no part of the id.
    source = work.scratch / "convert" / "student"
    source.parent.mkdir()
    shutil.copytree(checkpoint, source, copy_function=_link)
    text, mmproj = work.folder / f"text-{PARITY[0]}.gguf", work.folder / f"mmproj-{PARITY[1]}.gguf"
    toolchain.convert(source, text=text, text_type=PARITY[0], mmproj=mmproj, mmproj_type=PARITY[1])
    work.progress.line(f"converted to {text.name} and {mmproj.name}")
    return text, mmproj


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def _audit(toolchain: Toolchain, path: Path) -> dict[str, Any]:
    role, _, kind = path.stem.partition("-")
    return audit(toolchain, path, role=role, kind=kind)


def _threads(work: Work) -> str:
    return str(work.environment.thread_count())


def _say(work: Work, row: dict[str, Any]) -> None:
    text = f"{row['name']}: {row['size_mb']:.1f} MB, {row['bits_per_weight']:.2f} bits a weight"
    if row["fallbacks"] and row["role"] == "text":
        text += f"; {row['fallbacks']} of {row['matrices']} matrices fell back to another type"
    work.progress.line(text)
