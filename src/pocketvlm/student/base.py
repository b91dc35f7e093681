"""The checkpoint that training starts from: built in, a folder, a pinned revision on the Hub, or an artifact of the store.

What comes from the Hub is published once as `models/<id>`, and read from the store from then on: by later stages, other
runs and other pods. Two pods that fetch at once publish the same bytes under the same id, and the first one's count.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketvlm import safetensors_header
from pocketvlm.artifacts.artifact import Artifact, find, publish
from pocketvlm.artifacts.files import hash_file
from pocketvlm.artifacts.manifest import artifact_id
from pocketvlm.artifacts.store import Store
from pocketvlm.environment import Environment
from pocketvlm.errors import UserError
from pocketvlm.run_file import Recipe, Student, is_hub_shaped, is_stored
from pocketvlm.safetensors_header import Entry
from pocketvlm.student import hub
from pocketvlm.student.families import read_geometry
from pocketvlm.student.licence import CARD, NOT_STATED, licence_of

TINY = "tiny"
TINY_FORMAT = 2
"""Raise it when tiny.py makes other bytes of the same seed."""
KIND = "models"
WEIGHT_FILES = "*.safetensors"
CHECKPOINT_FILES = (WEIGHT_FILES, "*.json", "*.jinja", "*.txt", "*.model")
"""What is read of a checkpoint: no pickles, no code."""
CARDS = (CARD, "LICENSE*", "NOTICE*")
"""What is kept with it."""
BASES = "bases"
"""In the cache: what was fetched of the store, a folder for each artifact."""


@dataclass(frozen=True)
class BaseFacts:
    """What a base says about itself; of its weights, only the headers were read."""

    shapes: dict[str, tuple[int, ...]]
    """Tensor name -> shape."""
    positions: int
    """Of its text model."""
    weights_bytes: int
    licence: str
    """As its model card states it."""
    origin: str
    """Where it is, in words."""

    @property
    def line(self) -> str:
        """For `plan`."""
        return f"base: {self.origin}; {self.weights_bytes / 1e6:.1f} MB of weights; licence: {self.licence}"


def is_hub_id(model: str, folder: Path) -> bool:
    """Whether `student.model` names a Hub repository: `owner/name` that is no folder beside the run file."""
    return is_hub_shaped(model) and not (folder / model).exists()


def identity(student: Student, folder: Path) -> dict[str, Any]:
    """What determines the base's bytes, for artifact ids. Raises UserError for an unpinned Hub id or a missing folder.

    The same wherever those bytes are: a Hub id is named by its revision, in the store or not.
    """
    if student.model == TINY:
        return {"model": TINY, "format": TINY_FORMAT, "seed": student.seed}
    if is_stored(student.model):
        return {"model": student.model}
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


def display_name(student: Student, folder: Path) -> str:
    """The base without the folder of this machine: a Hub id, `models/<id>`, or the last name of a folder."""
    known = is_stored(student.model) or is_hub_id(student.model, folder)
    return student.model if known else Path(student.model).name


def local_folder(student: Student, folder: Path) -> Path:
    """The folder that `student.model` names. Raises UserError when it holds no checkpoint."""
    path = (folder / Path(student.model).expanduser()).resolve()
    if not (path / "config.json").is_file() or not list(path.glob(WEIGHT_FILES)):
        raise UserError(
            f"run.student.model: {student.model} is neither `tiny`, a Hub id (owner/name), an artifact of the store "
            "(models/<16 hex digits>), nor a folder with config.json and *.safetensors (pickles are never opened); correct it"
        )
    index = path / hub.INDEX
    if index.is_file() and not (path / hub.SINGLE).is_file():
        gone = [name for name in hub.weight_files([], index.read_bytes()) if not (path / name).is_file()]
        if gone:
            raise UserError(f"run.student.model: {index.name} names {', '.join(gone)}, which {path} has not; fetch it again")
    return path


def checkpoint_files(path: Path) -> list[Path]:
    """The files of a checkpoint folder that may be read, sorted."""
    return sorted({file for pattern in CHECKPOINT_FILES for file in path.glob(pattern)})


def fetch_base(
    recipe: Recipe, folder: Path, scratch: Path, environment: Environment, store: Store, *, weights: bool = True
) -> Path:
    """A folder with the base checkpoint; where needed, built in `scratch`, or fetched of the store or the Hub into the cache.

    What comes from the Hub is in the store afterwards. weights=False leaves weights where they are, and the store as it is.
    Raises HubUnavailable or StoreUnavailable when another try may succeed, UserError when a person must act.
    """
    student = recipe.student
    if student.model == TINY:
        from pocketvlm.student import tiny

        return tiny.build_tiny(scratch / "base", seed=student.seed, longest_edge_px=recipe.device.longest_edge_px)
    if not is_stored(student.model) and not is_hub_id(student.model, folder):
        return local_folder(student, folder)
    if artifact := _stored(student, folder, store):
        names = [file.name for file in artifact.files if weights or not file.name.endswith(".safetensors")]
        return artifact.fetch(environment.cache / BASES / artifact.id, names)
    snapshot = _small_files(student, environment)
    if weights:
        _weight_names(student, snapshot, environment)
        snapshot = hub.fetch_snapshot(student, [*CHECKPOINT_FILES, *CARDS], environment)
        _publish(student, snapshot, scratch / "base", store)
    return snapshot


def _stored(student: Student, folder: Path, store: Store) -> Artifact | None:
    """The artifact of a Hub id, None where nobody has fetched it yet; or the one that is named. Raises UserError."""
    if is_stored(student.model):
        artifact = find(store, KIND, student.model.partition("/")[2])
        if artifact is None:
            raise UserError(f"run.student.model: {store.url} has no {student.model}; name one that `pocketvlm plan` of its run "
                            "shows as done, or another base")  # fmt: skip
        return artifact
    return find(store, KIND, artifact_id(KIND, _settings(student), {})) if is_hub_id(student.model, folder) else None


def _settings(student: Student) -> dict[str, Any]:
    return {"hub": student.model, "revision": student.revision}


def _small_files(student: Student, environment: Environment) -> Path:
    """All but the weights. Raises UserError for a family that cannot be used or wants code of its own, before weights come."""
    patterns = [pattern for pattern in CHECKPOINT_FILES if pattern != WEIGHT_FILES]
    snapshot = hub.fetch_snapshot(student, [*patterns, *CARDS], environment)
    read_geometry(snapshot)
    return snapshot


def _weight_names(student: Student, snapshot: Path, environment: Environment) -> list[str]:
    """Names of the files of weights. Raises UserError where there are only others than safetensors."""
    names = hub.list_names(student, environment)
    if not any(name.endswith(".safetensors") for name in names):
        raise UserError(f"run.student.model: {student.model} at {student.revision} has no *.safetensors, and pickles are never "
                        "opened: they can run any code; name a revision that has them, or convert it into a folder")
    index = snapshot / hub.INDEX
    return hub.weight_files(names, index.read_bytes() if index.is_file() else None)


def _publish(student: Student, snapshot: Path, staging: Path, store: Store) -> None:
    """Puts the snapshot's files into the store; the cache of the Hub's client holds them by links."""
    staging.mkdir(parents=True, exist_ok=True)
    files = sorted({*checkpoint_files(snapshot), *(file for pattern in CARDS for file in snapshot.glob(pattern))})
    for file in files:
        (staging / file.name).symlink_to(file.resolve())
    facts = {"licence": licence_of(snapshot), "weights_bytes": sum(file.stat().st_size for file in snapshot.glob(WEIGHT_FILES))}
    settings = _settings(student)
    publish(store, KIND, artifact_id(KIND, settings, {}), staging, inputs={}, settings=settings, facts=facts)


def read_facts(student: Student, folder: Path, path: Path, environment: Environment, store: Store) -> BaseFacts:
    """What a base says; `path` is what `fetch_base` returned, with or without weights. Raises as `fetch_base` does."""
    entries: dict[str, Entry] = {}
    for file in sorted(path.glob(WEIGHT_FILES)):
        entries |= _entries(file)
    licence, origin = licence_of(path), f"folder {path.name}"
    if student.model == TINY:
        licence, origin = "none needed, its weights are random", "built in"
    elif artifact := _stored(student, folder, store):
        entries |= _remote_entries(artifact, path)
        licence, origin = _licence(artifact, store), f"{display_name(student, folder)}, in the store"
    elif is_hub_id(student.model, folder):
        missing = [name for name in _weight_names(student, path, environment) if not (path / name).is_file()]
        entries |= hub.fetch_entries(student, missing, environment)
        origin = f"{student.model}, to be fetched from the Hub once"
    family = read_geometry(path).family
    if foreign := next((name for name in entries if not family.owns(name)), None):
        raise UserError(f"run.student.model: {path.name} has a tensor {foreign}, which no part of {family.name} has, the family "
                        "that its config.json names; fetch or save it again")  # fmt: skip
    config = json.loads((path / "config.json").read_text())
    text = config.get("text_config", config)
    return BaseFacts(
        {name: entry.shape for name, entry in entries.items()}, int(text.get("max_position_embeddings", 8192)),
        sum(entry.size for entry in entries.values()), licence, origin,
    )  # fmt: skip


def _entries(file: Path) -> dict[str, Entry]:
    try:
        header = safetensors_header.read_file(file)
    except ValueError as error:
        raise UserError(f"{file}: {error}; fetch or save it again") from error
    if file.stat().st_size < header.end:
        raise UserError(f"{file}: ends before its last tensor does; fetch or save it again")
    return header.entries


def _remote_entries(artifact: Artifact, path: Path) -> dict[str, Entry]:
    """Of the artifact's weights that are not in `path`."""
    entries: dict[str, Entry] = {}
    for file in artifact.files:
        if file.name.endswith(".safetensors") and not (path / file.name).is_file():
            header = safetensors_header.read_header(
                lambda start, end, name=file.name: artifact.read_part(name, start, end)  # type: ignore[misc]
            )
            entries |= header.entries
    return entries


def _licence(artifact: Artifact, store: Store) -> str:
    """As it was stated when it came, or that of the base that a merged model was made from."""
    base = artifact.manifest.settings.get("student", {})
    if "licence" in artifact.facts or not base:
        return str(artifact.facts.get("licence", NOT_STATED))
    student = Student.model_construct(model=str(base.get("model")), revision=base.get("revision"))
    if base.get("revision"):
        before = find(store, KIND, artifact_id(KIND, _settings(student), {}))
    else:
        before = find(store, KIND, student.model.partition("/")[2]) if is_stored(student.model) else None
    return _licence(before, store) if before else NOT_STATED
