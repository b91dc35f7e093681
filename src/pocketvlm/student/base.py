"""The checkpoint that training starts from: built in, a folder, or a pinned revision on the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pocketvlm.artifacts.files import hash_file
from pocketvlm.environment import Environment
from pocketvlm.errors import UserError
from pocketvlm.run_file import Recipe, Student, is_hub_shaped
from pocketvlm.student import hub

TINY = "tiny"
TINY_FORMAT = 1
"""Raise it when tiny.py makes other bytes of the same seed."""
WEIGHT_FILES = "*.safetensors"
CHECKPOINT_FILES = (WEIGHT_FILES, "*.json", "*.jinja", "*.txt", "*.model")
"""What is read of a checkpoint: no pickles, no code."""


def is_hub_id(model: str, folder: Path) -> bool:
    """Whether `student.model` names a Hub repository: `owner/name` that is no folder beside the run file."""
    return is_hub_shaped(model) and not (folder / model).exists()


def identity(student: Student, folder: Path) -> dict[str, Any]:
    """What determines the base's bytes, for artifact ids. Raises UserError for an unpinned Hub id or a missing folder."""
    if student.model == TINY:
        return {"model": TINY, "format": TINY_FORMAT, "seed": student.seed}
    if is_hub_id(student.model, folder):
        if not student.revision:
            raise UserError(f"run.student.revision: is missing; pin the commit of {student.model} (40 hex digits)")
        return {"model": student.model, "revision": student.revision}
    if student.revision:
        raise UserError(f"run.student.revision: only a Hub id has one, and {student.model} is a folder beside the run file; "
                        "remove the revision, or move the folder")  # fmt: skip
    path = local_folder(student, folder)
    digests = {file.name: hash_file(file, file.name).sha256 for file in checkpoint_files(path)}
    return {"model": path.name, "files": digests}


def local_folder(student: Student, folder: Path) -> Path:
    """The folder that `student.model` names. Raises UserError when it holds no checkpoint."""
    path = (folder / Path(student.model).expanduser()).resolve()
    if not (path / "config.json").is_file() or not list(path.glob(WEIGHT_FILES)):
        raise UserError(
            f"run.student.model: {student.model} is neither `tiny`, a Hub id (owner/name), nor a folder with config.json "
            "and *.safetensors; correct it"
        )
    return path


def checkpoint_files(path: Path) -> list[Path]:
    """The files of a checkpoint folder that may be read, sorted."""
    return sorted({file for pattern in CHECKPOINT_FILES for file in path.glob(pattern)})


def fetch_base(
    recipe: Recipe, folder: Path, scratch: Path, environment: Environment, *, weights: bool = True
) -> Path:
    """A folder with the base checkpoint; where needed, built in `scratch` or downloaded into the environment's cache.

    weights=False leaves those of a Hub id where they are. Raises HubUnavailable when another try may succeed, UserError
    when a person must act.
    """
    student = recipe.student
    if student.model == TINY:
        from pocketvlm.student import tiny

        return tiny.build_tiny(scratch / "base", seed=student.seed, longest_edge_px=recipe.device.longest_edge_px)
    if not is_hub_id(student.model, folder):
        return local_folder(student, folder)
    patterns = [pattern for pattern in CHECKPOINT_FILES if weights or pattern != WEIGHT_FILES]
    return hub.fetch_snapshot(student, patterns, environment)


def read_shapes(student: Student, path: Path, environment: Environment) -> tuple[dict[str, tuple[int, ...]], int]:
    """Shapes of a checkpoint's tensors by name, and its text model's positions; of weights, only headers are read.

    `path` is what `fetch_base` returned, with or without weights. Raises as `fetch_base` does.
    """
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    files = {file.name: file for file in sorted(path.glob(WEIGHT_FILES))}
    if student.revision:
        missing = [name for name in hub.weight_files(path) if name not in files]
        shapes |= hub.fetch_shapes(student, missing, environment)
    for file in files.values():
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                shapes[name] = tuple(tensors.get_slice(name).get_shape())
    config = json.loads((path / "config.json").read_text())
    return shapes, int(config["text_config"].get("max_position_embeddings", 8192))
