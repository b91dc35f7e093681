"""The quantiser: merged checkpoint -> a bf16 pair for parity, and a pair for each type that was asked for.

Files of the artifact: `text-bf16.gguf`, `text-<type>.gguf`, `mmproj-f16.gguf`, `mmproj-<type>.gguf`, `audit.json`.
Text and vision are both mandatory: a text model without its mmproj answers without having seen the image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pocketvlm.llamacpp.audit import audit
from pocketvlm.llamacpp.build import read_pin
from pocketvlm.llamacpp.pair import make_pair
from pocketvlm.llamacpp.toolchain import Toolchain, find_toolchain
from pocketvlm.run_file import Recipe
from pocketvlm.stages.stage import Made, Work
from pocketvlm.student.families import read_geometry

KIND = "ggufs"
INPUTS = ("merger",)


def settings(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Types, what the files carry of the device, and the llama.cpp that makes them."""
    del folder
    return {
        "quantiser": recipe.quantiser.model_dump(mode="json"),
        "longest_edge_px": recipe.device.longest_edge_px,
        "llama_cpp": read_pin().commit,
    }


def make(work: Work) -> Made:
    """Converts, quantises and audits. Raises ToolError, and DataError when the vision file has a wrong key."""
    toolchain = find_toolchain(work.environment)
    checkpoint = work.fetch("merger")
    geometry = read_geometry(checkpoint)
    seconds = make_pair(
        toolchain, checkpoint, work.folder, types=work.recipe.quantiser.types, mmproj=work.recipe.quantiser.mmproj,
        mmproj_keys=geometry.family.mmproj_keys(geometry, work.recipe.device), scratch=work.scratch / "convert",
        threads=work.environment.thread_count(), say=work.progress.line,
    )  # fmt: skip
    rows = [_audit(toolchain, path) for path in sorted(work.folder.glob("*.gguf"))]
    for row in rows:
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


def _audit(toolchain: Toolchain, path: Path) -> dict[str, Any]:
    role, _, kind = path.stem.partition("-")
    return audit(toolchain, path, role=role, kind=kind)


def _say(work: Work, row: dict[str, Any]) -> None:
    text = f"{row['name']}: {row['size_mb']:.1f} MB, {row['bits_per_weight']:.2f} bits a weight"
    if row["fallbacks"] and row["role"] == "text":
        text += f"; {row['fallbacks']} of {row['matrices']} matrices fell back to another type"
    work.progress.line(text)
