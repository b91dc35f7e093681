"""The base's pair, of the same types as a release's: converted from its checkpoint once, into the cache."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pocketvlm.artifacts.artifact import find
from pocketvlm.artifacts.open import open_store
from pocketvlm.artifacts.release import Release
from pocketvlm.environment import Environment
from pocketvlm.errors import UserError
from pocketvlm.interrupt import temporary_folder
from pocketvlm.llamacpp.pair import make_pair, mmproj_file, text_file
from pocketvlm.llamacpp.toolchain import Toolchain
from pocketvlm.predict.opened import OpenedRelease
from pocketvlm.progress import Progress
from pocketvlm.run_file import Device, Student, is_stored
from pocketvlm.student import base, hub
from pocketvlm.student.convertible import make_convertible
from pocketvlm.student.families import read_geometry

FORMAT = 1
"""Raise it when the same base becomes other files."""
TEXT, MMPROJ = "text.gguf", "mmproj.gguf"


def make_base(opened: OpenedRelease, toolchain: Toolchain, environment: Environment, progress: Progress) -> tuple[Path, Path]:
    """Text model and mmproj of the release's base.

    Raises UserError where the base cannot be had here, HubUnavailable, ToolError.
    """
    release, type = opened.release, opened.types[0]
    vision = next(file.type for file in release.files if file.name == release.types[type].mmproj)
    key = [FORMAT, release.base, release.revision, release.device, type, vision, toolchain.commit]
    bases = environment.cache / "bases"
    place = bases / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    if not place.is_dir():
        progress.line(f"making a pair of the base {release.base}, once")
        with temporary_folder(bases, "making-") as work:
            made = _converted(release, (type, vision or "f16"), work, toolchain, environment)
            if not place.is_dir():  # another demo may have been faster
                made.rename(place)
    return place / TEXT, place / MMPROJ


def _converted(release: Release, types: tuple[str, str], work: Path, toolchain: Toolchain, environment: Environment) -> Path:
    """A folder with both files; what was made on the way to them stays in `work`."""
    device = Device.model_validate(release.device)
    source, files, pair = _checkpoint(release, device, work, environment), work / "files", work / "pair"
    geometry = read_geometry(source)
    checkpoint = make_convertible(source, work / "base", geometry, device)
    files.mkdir()
    make_pair(
        toolchain, checkpoint, files, types=[types[0]], mmproj=types[1], scratch=work / "convert",
        mmproj_keys=geometry.family.mmproj_keys(geometry, device), threads=environment.thread_count(),
    )  # fmt: skip
    pair.mkdir()
    text_file(files, types[0]).rename(pair / TEXT)
    mmproj_file(files, types[1]).rename(pair / MMPROJ)
    return pair


def _checkpoint(release: Release, device: Device, work: Path, environment: Environment) -> Path:
    if release.base == base.TINY:
        from pocketvlm.student import tiny

        return tiny.build_tiny(work / "tiny", seed=0, longest_edge_px=device.longest_edge_px)
    if is_stored(release.base):
        artifact = find(open_store(environment, read_only=True), base.KIND, release.base.partition("/")[2])
        if artifact is None:
            raise UserError(f"{environment.store}: has no {release.base}, which is the base of this release; name the store that "
                            "it was trained in (POCKETVLM_STORE)")  # fmt: skip
        return artifact.fetch(work / "stored")
    if release.revision is None:
        raise UserError(f"the base {release.base} was a folder of the machine that trained this release")
    student = Student(model=release.base, revision=release.revision)
    return hub.fetch_snapshot(student, list(base.CHECKPOINT_FILES), environment)
