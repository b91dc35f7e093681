"""What the phone gets: a folder of plain file names in the store, and one moving name, `latest.json`.

Layout and order of writing:

    releases/<name>/<version>/claim.json         create: whose content this version is, before any file is uploaded
    releases/<name>/<version>/<files>            under their own names, so that curl users have stable URLs
    releases/<name>/<version>/measurements.json  times and rates; for people, not hashed
    releases/<name>/<version>/SHA256SUMS         for `sha256sum -c`, release.json included
    releases/<name>/<version>/release.json       create: present = complete; never changed
    releases/<name>/latest.json                  compare-and-set, last

The claim keeps two runs that were given one version from uploading over each other. `latest.json` lists every version
that it has pointed at, in the same compare-and-set that moves it. So each version becomes the latest exactly once: a
rerun of an old run finds itself in the list and leaves the name alone; a rerun after a kill between release.json and
latest.json does not find itself, and moves it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pocketvlm.artifacts.files import hash_file, upload_files
from pocketvlm.artifacts.manifest import FileEntry, canonical_json
from pocketvlm.artifacts.store import KeyMissing, Store
from pocketvlm.errors import Corrupt, UserError
from pocketvlm.run_file import Task

RESERVED = ("claim.json", "measurements.json", "release.json", "SHA256SUMS")
NAME = r"^[A-Za-z0-9][-A-Za-z0-9._]{0,63}$"


class ReleaseFile(FileEntry):
    """One file of a release. `type` is the tensor type of a GGUF (`q8_0`), else None."""

    role: Literal["text_model", "mmproj", "prompt", "grammar", "golden", "model_card", "report"]
    type: str | None = None


class ReleasedType(BaseModel):
    """A pair that passed the gates, as measured on llama.cpp on the test split. Its times are in measurements.json."""

    model_config = ConfigDict(frozen=True)

    text_model: str
    """Name of the text GGUF in `files`."""
    mmproj: str
    """Name of its mmproj in `files`; types may share one."""
    accuracy: float
    accuracy_interval: tuple[float, float] | None = None
    """95 %."""
    agreement: float | None = None
    """Share of answers equal to those of the merged model by transformers."""


class Release(BaseModel):
    """`release.json`. Keys that a newer PocketVLM adds are ignored, so an older `pull` still works."""

    model_config = ConfigDict(frozen=True)

    format: int = 1
    name: str = Field(pattern=NAME)
    version: str = Field(default="", pattern=rf"^$|{NAME}")
    """Empty until published: then `run.version`, or 12 hex digits of the content."""
    run: str
    """Id of the run that made it."""
    family: str
    base: str
    revision: str | None = None
    device: dict[str, int | None]
    """The run file's `device` block."""
    prompt_tokens: int
    """Tokens of the prompt with one image, measured on llama-server."""
    classes: list[str]
    """Empty for `extract`."""
    task: dict[str, Any] | None = None
    """The run file's `task` block, without what only teacher and training read. None: an old release, which names a class."""
    sampling: dict[str, Any]
    """Settings of the request to llama-server."""
    answer_threshold: float
    """Below this confidence the app should say that it does not know."""
    temperature: float | None = None
    """Fitted on the validation split: divide log-probabilities by it before they are compared with the threshold. None where no
    class is chosen."""
    llama_cpp: str
    """Commit that it was measured on."""
    types: dict[str, ReleasedType]
    files: list[ReleaseFile]

    @field_validator("files")
    @classmethod
    def _names_are_free(cls, files: list[ReleaseFile]) -> list[ReleaseFile]:
        names = [file.name for file in files]
        wrong = sorted({name for name in names if name in RESERVED or names.count(name) > 1})
        if wrong:
            raise ValueError(f"file names {wrong} are reserved or used twice")
        return files

    @model_validator(mode="after")
    def _pairs_are_there(self) -> Self:
        names = {file.name for file in self.files}
        for kind, pair in self.types.items():
            if not {pair.text_model, pair.mmproj} <= names:
                raise ValueError(f"types.{kind} names a file that is not in files")
        return self

    def asked(self) -> Task:
        """What is asked of an image. Releases from before `task` had labels only, and their question is in prompt.txt."""
        if self.task is not None:
            return Task.model_validate(self.task)
        return Task(classes=dict.fromkeys(self.classes, ""), question="as in prompt.txt")

    def types_in(self, folder: Path) -> list[str]:
        """Types whose text model is in a folder that this release was pulled into. Raises UserError when there is none."""
        there = [name for name, pair in self.types.items() if (folder / pair.text_model).is_file()]
        if not there:
            raise UserError(f"{folder}: holds no type of {self.name}; pull at least one of {', '.join(self.types)}")
        return there

    @property
    def root(self) -> str:
        return f"releases/{self.name}/{self.version}/"

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal releases have equal bytes."""
        return canonical_json(self.model_dump())


class Latest(BaseModel):
    """`latest.json`: the released version that a phone should get."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str = Field(pattern=NAME)
    release: str
    """Key of its release.json in the store."""
    release_sha256: str
    sums_sha256: str = ""
    """Of SHA256SUMS, so that who has only curl and sha256sum checks everything from this one file. Empty: an old release."""
    history: list[str]
    """Every version that was ever the latest, oldest first; the last one is."""


def content_version(release: Release) -> str:
    """12 hex digits of sha256 over the release without its version: other content, other version."""
    blank = release.model_copy(update={"version": ""})
    return hashlib.sha256(blank.to_bytes()).hexdigest()[:12]


def publish_release(
    store: Store, release: Release, folder: Path, measurements: Mapping[str, Any] | None = None
) -> Release:
    """Publishes the files of `folder` that `release` lists, and points `latest.json` at it if it never was the latest.

    Returns the release with its version. Does nothing if all is done already. Raises UserError if the version belongs
    to other content, Corrupt if a file of `folder` is not what `release` says.
    """
    content = content_version(release)
    release = release.model_copy(update={"version": release.version or content})
    data = release.to_bytes()
    try:
        done = store.read(f"{release.root}release.json")
    except KeyMissing:
        _upload(store, release, content, folder, measurements)
        store.create(f"{release.root}release.json", data)
        done = store.read(f"{release.root}release.json")
    if done != data:
        raise _taken(store, release)
    _announce(store, release, data)
    return release


def _upload(
    store: Store, release: Release, content: str, folder: Path, measurements: Mapping[str, Any] | None
) -> None:
    for file in release.files:
        if hash_file(folder / file.name, file.name).sha256 != file.sha256:
            raise Corrupt(f"{folder / file.name} is not the file that was measured; run the evaluator again")
    claim = canonical_json({"content": content})
    if not store.create(f"{release.root}claim.json", claim) and store.read(f"{release.root}claim.json") != claim:
        raise _taken(store, release)
    # Under one claim all attempts upload equal bytes, and an upload is whole or absent.
    present = {stored.key: stored.size for stored in store.list(release.root)}
    upload_files(store, folder, [(file, release.root + file.name) for file in release.files], present)
    if measurements:
        store.create(f"{release.root}measurements.json", canonical_json(dict(measurements)))
    store.write(f"{release.root}SHA256SUMS", _sums(release))


def _sums(release: Release) -> bytes:
    """SHA256SUMS: every file and release.json, in the form that `sha256sum -c` reads."""
    sums = {file.name: file.sha256 for file in release.files}
    sums["release.json"] = hashlib.sha256(release.to_bytes()).hexdigest()
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode()


def _taken(store: Store, release: Release) -> UserError:
    return UserError(f"{store.url}: version {release.version} of {release.name} belongs to other content; "
                     "choose another run.version, or leave it out to take it from the content")


def _announce(store: Store, release: Release, data: bytes) -> None:
    key = f"releases/{release.name}/latest.json"
    while True:
        tagged = store.read_tagged(key)
        history = parse_latest(store, release.name, tagged[0]).history if tagged else []
        if release.version in history:
            return
        latest = canonical_json(Latest(
            name=release.name, version=release.version, release=f"{release.root}release.json",
            release_sha256=hashlib.sha256(data).hexdigest(), sums_sha256=hashlib.sha256(_sums(release)).hexdigest(),
            history=[*history, release.version],
        ).model_dump(mode="json"))
        moved = store.replace(key, latest, tagged[1]) if tagged else store.create(key, latest)
        if moved:  # otherwise another release moved it since: read again
            return


def parse_latest(store: Store, name: str, data: bytes) -> Latest:
    """Raises Corrupt."""
    try:
        return Latest.model_validate_json(data)
    except ValidationError as error:
        raise Corrupt(f"{store.url}: releases/{name}/latest.json is not readable ({error.errors()[0]['msg']}); "
                      "delete it and run the release that should be the latest again") from error


def parse_release(data: bytes, where: str) -> Release:
    """Raises Corrupt, naming `where`."""
    try:
        return Release.model_validate_json(data)
    except ValidationError as error:
        raise Corrupt(f"{where} is not readable ({error.errors()[0]['msg']}); "
                      "release again under another version") from error
