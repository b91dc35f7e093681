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
from pocketvlm.safetensors_header import Entry

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def fetch_snapshot(student: Student, patterns: Sequence[str], environment: Environment) -> Path:
    """The folder with the repository's files of these patterns, those in its root; what is there already is kept.

    Raises HubUnavailable when another try may succeed, else UserError.
    """
    from huggingface_hub import snapshot_download

    with hub_errors(student, environment):
        return Path(snapshot_download(
            student.model, revision=student.revision, allow_patterns=list(patterns), ignore_patterns=["*/*"],
            token=hub_token(environment), cache_dir=environment.cache / FOLDER,
        ))  # fmt: skip


def list_names(student: Student, environment: Environment) -> list[str]:
    """Names of the files in the repository's root. Raises as `fetch_snapshot`."""
    from huggingface_hub import HfApi

    api = HfApi(token=hub_token(environment))
    with hub_errors(student, environment):
        return sorted(name for name in api.list_repo_files(student.model, revision=student.revision) if "/" not in name)


def weight_files(names: Sequence[str], index: bytes | None) -> list[str]:
    """Names of the files of weights: by the bytes of the index if there is one, else those of `names`, else the single one."""
    if index is not None:
        return sorted(set(json.loads(index)["weight_map"].values()))
    return sorted(name for name in names if name.endswith(".safetensors")) or [SINGLE]


def fetch_entries(student: Student, names: Sequence[str], environment: Environment) -> dict[str, Entry]:
    """The tensors in these files by name; only their headers are fetched. Raises as `fetch_snapshot`."""
    from huggingface_hub import HfApi

    api = HfApi(token=hub_token(environment))
    found: dict[str, Entry] = {}
    with hub_errors(student, environment):
        for name in names:
            header = api.parse_safetensors_file_metadata(student.model, name, revision=student.revision)
            for tensor, info in header.tensors.items():
                start, end = info.data_offsets
                found[tensor] = Entry(info.dtype, tuple(info.shape), start, end - start)
    return found


def hub_errors(student: Student, environment: Environment) -> AbstractContextManager[None]:
    """Turns what the Hub's client raises into our family: HubUnavailable when another try may succeed, else UserError."""
    return errors.hub_errors(
        f"run.student.model: {student.model} at {student.revision}", "a local folder", environment.cache
    )
