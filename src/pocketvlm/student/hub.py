"""What is fetched of a pinned repository on the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from pocketvlm import hub_errors as errors
from pocketvlm.environment import Environment
from pocketvlm.hub_errors import FOLDER, hub_token
from pocketvlm.run_file import Student

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def fetch_snapshot(student: Student, patterns: Sequence[str], environment: Environment) -> Path:
    """The folder with the repository's files of these patterns; those that are there already are kept.

    Raises HubUnavailable when another try may succeed, else UserError.
    """
    from huggingface_hub import snapshot_download

    with hub_errors(student, environment):
        return Path(snapshot_download(
            student.model, revision=student.revision, allow_patterns=list(patterns), token=hub_token(environment),
            cache_dir=environment.cache / FOLDER,
        ))  # fmt: skip


def weight_files(snapshot: Path) -> list[str]:
    """Names of the repository's files of weights, by the index in its snapshot if it has one."""
    index = snapshot / INDEX
    return sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else [SINGLE]


def fetch_shapes(student: Student, names: Sequence[str], environment: Environment) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in these files by tensor name; only their headers are fetched. Raises as `fetch_snapshot`."""
    from huggingface_hub import HfApi

    api = HfApi(token=hub_token(environment))
    shapes: dict[str, tuple[int, ...]] = {}
    with hub_errors(student, environment):
        for name in names:
            header = api.parse_safetensors_file_metadata(student.model, name, revision=student.revision)
            shapes |= {tensor: tuple(info.shape) for tensor, info in header.tensors.items()}
    return shapes


def hub_errors(student: Student, environment: Environment) -> AbstractContextManager[None]:
    """Turns what the Hub's client raises into our family: HubUnavailable when another try may succeed, else UserError."""
    return errors.hub_errors(
        f"run.student.model: {student.model} at {student.revision}", "a local folder", environment.cache
    )
