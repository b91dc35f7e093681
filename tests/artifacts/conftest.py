"""A release to publish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pocketvlm.artifacts.files import hash_file
from pocketvlm.artifacts.release import Release, ReleasedType, ReleaseFile

ROLES = {"model-q8_0.gguf": "text_model", "model-q4_0.gguf": "text_model", "mmproj-q8_0.gguf": "mmproj",
         "prompt.txt": "prompt", "golden/0.png": "golden"}


def make_release(folder: Path, text: str = "weights", **fields: Any) -> Release:
    """Writes the files of a release into `folder` and describes them."""
    files = []
    for name, role in ROLES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text} {name}")
        kind = name.partition("-")[2].removesuffix(".gguf") or None
        files.append(ReleaseFile(**hash_file(folder / name, name).model_dump(), role=role, type=kind))
    types = {kind: ReleasedType(text_model=f"model-{kind}.gguf", mmproj="mmproj-q8_0.gguf", accuracy=0.97,
                                accuracy_interval=(0.95, 0.98), agreement=0.99) for kind in ("q8_0", "q4_0")}
    return Release(**{
        "name": "digits", "run": "digits-00000000", "family": "smolvlm", "base": "tiny",
        "device": {"canvas_px": 64, "longest_edge_px": 64, "max_new_tokens": 8}, "prompt_tokens": 30,
        "classes": ["zero", "one"], "sampling": {"temperature": 0}, "answer_threshold": 0.5, "llama_cpp": "0" * 40,
        "types": types, "files": files} | fields)


@pytest.fixture(name="make_release")
def _make_release():
    return make_release
