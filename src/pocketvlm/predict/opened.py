"""A release on this machine: pulled into the cache by its name, or in a folder that was pulled before. Every byte checked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketvlm.artifacts.files import hash_file
from pocketvlm.artifacts.open import open_store
from pocketvlm.artifacts.pull import pull, read_release
from pocketvlm.artifacts.release import Release, parse_release
from pocketvlm.environment import Environment
from pocketvlm.errors import Corrupt, UserError
from pocketvlm.phone import SPARE_TOKENS, Question, released_question

ALL = ("all",)
"""For `types`: every type of the release."""
CONTEXT_TOKENS = 4096
"""Context where images come as they are: their prompts differ, and release.json says the longest of those that were measured."""


@dataclass(frozen=True)
class OpenedRelease:
    """A release whose files are in `folder` and are what release.json says."""

    folder: Path
    release: Release
    types: list[str]
    """Those whose pair is there and was asked for, in the release's order."""

    def pair(self, type: str) -> tuple[Path, Path]:
        """Text model and mmproj of a type."""
        files = self.release.types[type]
        return self.folder / files.text_model, self.folder / files.mmproj

    def question(self) -> Question:
        """What is sent with every image."""
        return released_question(self.folder, self.release)

    def context_tokens(self) -> int:
        """Room for prompt and answer."""
        release = self.release
        own = release.prompt_tokens + int(release.sampling["max_new_tokens"]) + SPARE_TOKENS
        return own if release.device.get("canvas_px") else max(CONTEXT_TOKENS, 2 * own)


def open_release(
    name_or_folder: str | Path, environment: Environment, *, version: str | None = None, types: Sequence[str] = ()
) -> OpenedRelease:
    """A release with `types`; none named: the one that was measured as the most accurate.

    What is a folder with a release.json is taken as a pulled release.
    A name is pulled into the environment's cache, where it stays. Raises UserError for what does not exist, Corrupt for
    wrong bytes, and what the store raises.
    """
    folder = Path(name_or_folder).expanduser()
    if (folder / "release.json").is_file():
        if version is not None:
            raise UserError(f"{folder}: is a pulled release and has one version; leave --version out, or name a release")
        return _pulled(folder, types)
    if folder.name != str(name_or_folder):  # more than a name
        state = "has no release.json" if folder.is_dir() else "there is no such folder"
        raise UserError(f"{folder}: {state}; pull a release into it with `pocketvlm pull NAME --to {folder}`")
    return _from_store(str(name_or_folder), environment, version, types)


def _pulled(folder: Path, types: Sequence[str]) -> OpenedRelease:
    release = parse_release((folder / "release.json").read_bytes(), str(folder / "release.json"))
    chosen = _chosen(release, types, release.types_in(folder), f"{folder} holds")
    used = {file for name in chosen for file in (release.types[name].text_model, release.types[name].mmproj)}
    used |= {"prompt.txt", "grammar.gbnf"}
    for file in release.files:
        path = folder / file.name
        if file.name in used and (not path.is_file() or hash_file(path, file.name).sha256 != file.sha256):
            state = "does not have its sha256" if path.is_file() else "is missing"
            raise Corrupt(f"{folder}: {file.name} {state}; pull {release.name} {release.version} again")
    return OpenedRelease(folder, release, chosen)


def _from_store(name: str, environment: Environment, version: str | None, types: Sequence[str]) -> OpenedRelease:
    store = open_store(environment, read_only=True)
    release = read_release(store, name, version)
    chosen = _chosen(release, types, list(release.types), f"release {name} {release.version} has")
    # Two stores may have a release of one name and version.
    place = environment.cache / "releases" / hashlib.sha256(store.url.encode()).hexdigest()[:12] / name / release.version
    # What was pulled for another question stays: `pull` deletes what it is not asked for.
    kept = [kind for kind, pair in release.types.items() if kind in chosen or (place / pair.text_model).is_file()]
    return OpenedRelease(place, pull(store, name, release.version, place, kept), chosen)


def _chosen(release: Release, wanted: Sequence[str], there: list[str], where: str) -> list[str]:
    if tuple(wanted) == ALL:
        return there
    if unknown := [name for name in wanted if name not in there]:
        raise UserError(f"--type {unknown[0]}: {where} {', '.join(there)}; choose one of them")
    # release.json has them sorted by name, so the first one says nothing. Of equals, the first.
    return [name for name in there if name in wanted] or [max(there, key=lambda name: release.types[name].accuracy)]
