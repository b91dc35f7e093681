"""What a finished artifact is: the list of its files, and what it was made from.

A manifest is written last and never changed. Two equal runs give equal bytes, so nothing in it may depend on time,
place or chance.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pocketvlm.artifacts.store import check_key
from pocketvlm.errors import Corrupt

KINDS = ("datasets", "checkpoints", "models", "ggufs", "reports")
FORMATS = {"datasets": 3, "checkpoints": 1, "models": 1, "ggufs": 1, "reports": 1}
"""Version of what the files of a kind look like; a change gives every artifact of the kind a new id.

datasets: 2 since the canvas rounds halves up, 3 since training images may have variants of the question.
"""


class FileEntry(BaseModel):
    """One file of an artifact. `name` is its path in the artifact, `size` in bytes, `sha256` in hex."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @field_validator("name")
    @classmethod
    def _stays_inside(cls, name: str) -> str:
        # A manifest is data from outside: a name such as `../../.bashrc` must not reach a disk.
        return check_key(name)


class Manifest(BaseModel):
    """`manifest.json` of an artifact."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    kind: str
    id: str
    inputs: dict[str, str]
    """Name of a stage -> id of its artifact."""
    settings: dict[str, Any]
    versions: dict[str, str]
    facts: dict[str, Any]
    files: list[FileEntry]

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal manifests have equal bytes."""
        return canonical_json(self.model_dump())

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Manifest:
        """Raises Corrupt, naming `where`, if these are not the bytes of a manifest."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise Corrupt(f"{where} is not a manifest ({error.errors()[0]['msg']}); delete it and run again") from error


def canonical_json(data: Any) -> bytes:
    """JSON with sorted keys, one space of indent and a newline at the end. Raises ValueError for NaN or infinity."""
    text = json.dumps(data, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def artifact_id(kind: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """16 hex digits of sha256 over all that determines the content of an artifact."""
    content = {"kind": kind, "format": FORMATS[kind], "settings": dict(settings), "inputs": dict(inputs)}
    return hashlib.sha256(canonical_json(content)).hexdigest()[:16]
