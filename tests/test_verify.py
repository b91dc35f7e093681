"""Verifying a pulled release: what is refused before a model is asked. The replay itself is in tests/chain."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketvlm.artifacts.files import hash_file
from pocketvlm.artifacts.release import Release, ReleasedType, ReleaseFile
from pocketvlm.errors import Corrupt, UserError
from pocketvlm.llamacpp.toolchain import Toolchain
from pocketvlm.verify import verify

ROLES = {"text-q8_0.gguf": "text_model", "mmproj-q8_0.gguf": "mmproj", "prompt.txt": "prompt", "golden/golden.json": "golden"}


@pytest.fixture
def pulled(tmp_path: Path) -> Path:
    (tmp_path / "golden").mkdir()
    files = []
    for name, role in ROLES.items():
        (tmp_path / name).write_text(f"bytes of {name}")
        files.append(ReleaseFile(**hash_file(tmp_path / name, name).model_dump(), role=role))
    release = Release(
        name="digits", version="1", run="digits-0", family="SmolVLM", base="tiny", device={"max_new_tokens": 8}, prompt_tokens=34,
        classes=["a", "b"], sampling={"max_new_tokens": 8}, answer_threshold=0.5, llama_cpp="0" * 40, files=files,
        types={"q8_0": ReleasedType(text_model="text-q8_0.gguf", mmproj="mmproj-q8_0.gguf", accuracy=1.0)},
    )  # fmt: skip
    (tmp_path / "release.json").write_bytes(release.to_bytes())
    return tmp_path


def refused(folder: Path, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        verify(folder, Toolchain(folder / "no-llama.cpp"), threads=1)


def test_a_folder_without_a_release_says_how_to_get_one(tmp_path: Path) -> None:
    refused(tmp_path, UserError, "pocketvlm pull NAME")


@pytest.mark.parametrize("name", ROLES)
def test_every_changed_file_is_named(pulled: Path, name: str) -> None:
    (pulled / name).write_text("other bytes")
    refused(pulled, Corrupt, name)


def test_a_missing_file_is_named(pulled: Path) -> None:
    (pulled / "mmproj-q8_0.gguf").unlink()
    refused(pulled, Corrupt, "mmproj-q8_0.gguf is missing")


def test_a_folder_without_any_type_says_which_there_are(pulled: Path) -> None:
    (pulled / "text-q8_0.gguf").unlink()
    refused(pulled, UserError, "pull at least one of q8_0")
