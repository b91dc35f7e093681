"""Reads a path and says which known faults it has.

A path is a folder with *.gguf, one GGUF file or the two of a pair, a checkpoint folder in Hugging Face layout, or a
pulled release. A folder may be several of these at once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from pocketvlm.artifacts.release import Release
from pocketvlm.doctor import checkpoint as checkpoints
from pocketvlm.doctor import pair as pairs
from pocketvlm.doctor.checkpoint_file import Checkpoint
from pocketvlm.doctor.finding import Diagnosis, Finding, render, render_json
from pocketvlm.doctor.origin import Base, check_origin
from pocketvlm.doctor.template import check_prompt
from pocketvlm.errors import UserError
from pocketvlm.llamacpp.gguf_file import Gguf, NotGguf, read_gguf

__all__ = ["Diagnosis", "Finding", "examine", "render", "render_json"]


@dataclass
class _Opened:
    """What was found in a path."""

    texts: list[Gguf] = field(default_factory=list)
    mmprojs: list[Gguf] = field(default_factory=list)
    checkpoint: Checkpoint | None = None
    folder: Path | None = None
    """That of the path, if it is one: prompt.txt and release.json lie there."""
    broken: list[Finding] = field(default_factory=list)

    @property
    def words(self) -> str:
        parts = [f"text model {file.path.name}" for file in self.texts]
        parts += [f"mmproj {file.path.name}" for file in self.mmprojs]
        if self.checkpoint is not None:
            parts.append(f"checkpoint {self.checkpoint.path.name} ({self.checkpoint.architecture or 'no architecture'})")
        return ", ".join(parts) or "nothing that could be read"


def examine(paths: Path | Sequence[Path], *, checkpoint: Path | None = None, base: Path | None = None) -> Diagnosis:
    """All known faults of a path, or of the two files of a pair.

    `checkpoint` is what the pair was converted from (default: the checkpoint in the same folder, if there is one);
    `base` the model before training, as a pair, an mmproj or a checkpoint. Raises UserError for a path with neither
    *.gguf nor config.json.
    """
    opened = _open([paths] if isinstance(paths, Path) else list(paths))
    source = Checkpoint(_checkpoint_folder(checkpoint, "--checkpoint")) if checkpoint else opened.checkpoint
    before = _open_base(base) if base else None
    diagnosis = Diagnosis(opened.words, list(opened.broken))
    if opened.checkpoint is not None:
        diagnosis.add(checkpoints.check_checkpoint(opened.checkpoint))
    if opened.texts or opened.mmprojs:
        diagnosis.add(_check_ggufs(opened, source, before, diagnosis.unseen))
    elif not opened.broken and (base or checkpoint):
        key = "--base" if base else "--checkpoint"
        raise UserError(f"{key}: is compared with a GGUF pair, and there is none; give the pair, or remove it")
    if opened.folder is not None:
        diagnosis.add(_check_beside(opened, opened.folder))
    diagnosis.sort()
    return diagnosis


def _open(paths: list[Path]) -> _Opened:
    opened = _Opened()
    for path in paths:
        if path.is_dir():
            opened.folder = path
            if (path / "config.json").is_file():
                opened.checkpoint = Checkpoint(path)
            files = sorted(file for file in path.glob("*.gguf") if not file.is_dir())
            if not files and opened.checkpoint is None:
                raise UserError(f"{path}: holds neither *.gguf nor config.json; name a folder of a model")
        elif path.is_file():
            files = [path]
        else:
            raise UserError(f"{path}: there is no such file or folder; correct it")
        for file in files:
            _add(opened, file)
    return opened


def _add(opened: _Opened, path: Path) -> None:
    try:
        file = read_gguf(path)
    except OSError as error:
        opened.broken.append(Finding("not-gguf", "fault", path.name, f"cannot be read ({error.strerror})",
                                     "llama.cpp cannot load it", "download it again, or give yourself the right"))  # fmt: skip
        return
    except NotGguf as error:
        opened.broken.append(Finding("gguf-truncated" if "ends" in str(error) else "not-gguf", "fault", path.name, str(error),
                                     "llama.cpp refuses to load it", "download it again; a page of HTML or a pointer of Git LFS "
                                     "often lies in its place"))  # fmt: skip
        return
    (opened.mmprojs if file.is_mmproj else opened.texts).append(file)


def _open_base(path: Path) -> Base:
    opened = _open([path])
    wrong = [f"{finding.where} {finding.wrong}" for finding in opened.broken]
    wrong += [f"{file.path.name} ends before its last tensor does" for file in (*opened.texts, *opened.mmprojs)
              if file.missing_bytes]  # fmt: skip
    if wrong:
        raise UserError(f"--base {path}: {wrong[0]}; name a sound model")
    return Base([*opened.texts, *opened.mmprojs], opened.checkpoint)


def _checkpoint_folder(path: Path, key: str) -> Path:
    if not (path / "config.json").is_file():
        raise UserError(f"{key} {path}: has no config.json; name a checkpoint folder in Hugging Face layout")
    return path


def _check_ggufs(opened: _Opened, source: Checkpoint | None, base: Base | None, unseen: list[str]) -> Iterator[Finding]:
    if not opened.mmprojs and opened.texts:
        yield Finding("mmproj-missing", "fault", opened.texts[0].path.name, "has no mmproj beside it",
                      "llama.cpp answers every question without having seen the image, and says so nowhere",
                      "convert the checkpoint a second time, with --mmproj, and ship both; or name both files here")  # fmt: skip
    if not opened.texts and opened.mmprojs:
        yield Finding("text-missing", "note", opened.mmprojs[0].path.name, "was given without its text model",
                      "only the vision file was looked at", "name both files, or their folder")  # fmt: skip
    for file in (*opened.texts, *opened.mmprojs):
        yield from pairs.check_file(file)
    for mmproj in opened.mmprojs:
        yield from pairs.check_mmproj(mmproj, source, idefics3=pairs.is_idefics3(None, mmproj))
    for text, partner in _partners(opened):
        yield from pairs.check_text(text, source, idefics3=pairs.is_idefics3(text, partner))
        if partner is not None:
            yield from pairs.check_pair(text, partner)
    for one, other in itertools.product(_whole(opened.texts), _whole(opened.mmprojs)):
        yield from check_origin(one, other, source, base, unseen)
    unseen[:] = list(dict.fromkeys(unseen))


def _whole(files: list[Gguf]) -> list[Gguf | None]:
    """Those whose tensors can be read; [None] if there are none."""
    return [file for file in files if not file.missing_bytes] or [None]


def _partners(opened: _Opened) -> Iterator[tuple[Gguf, Gguf | None]]:
    """Each text model with the mmproj that fits it, or else with the first."""
    for text in opened.texts:
        wide = text.text_key("embedding_length")
        fitting = [file for file in opened.mmprojs if file.keys.get("clip.vision.projection_dim") == wide]
        yield text, next(iter([*fitting, *opened.mmprojs]), None)


def _check_beside(opened: _Opened, folder: Path) -> Iterator[Finding]:
    """prompt.txt and release.json."""
    release = folder / "release.json"
    trained = None
    if release.is_file():
        try:
            found = Release.model_validate_json(release.read_bytes())
        except (ValidationError, json.JSONDecodeError) as error:
            yield Finding("release", "fault", release.name, f"is no release's ({type(error).__name__})",
                          "the app cannot read it", "pull the release again")  # fmt: skip
        else:
            yield from _check_release(found, folder)
            trained = next((file.sha256 for file in found.files if file.role == "prompt"), None)
    prompt = folder / "prompt.txt"
    if prompt.is_file() and hashlib.sha256(prompt.read_bytes()).hexdigest() != trained:
        idefics3 = any(pairs.is_idefics3(text, mmproj) for text, mmproj in _partners(opened))
        yield from check_prompt(prompt.read_text(errors="replace"), prompt.name, idefics3=idefics3)


def _check_release(release: Release, folder: Path) -> Iterator[Finding]:
    """Files of types that were not pulled may be away; what is there must be what the release lists."""
    paired = {name for pair in release.types.values() for name in (pair.text_model, pair.mmproj)}
    for file in release.files:
        path = folder / file.name
        if not path.is_file():
            if file.name not in paired:
                yield Finding("release", "fault", file.name, "is listed in release.json and not there",
                              "the app lacks a part of the release", "pull the release again")  # fmt: skip
        elif path.stat().st_size != file.size or (
            file.name not in paired and hashlib.sha256(path.read_bytes()).hexdigest() != file.sha256
        ):
            yield Finding("release", "fault", file.name, "is not the file that release.json lists",
                          "the app runs another model or prompt than the one that was measured",
                          "pull the release again; `pocketvlm verify` checks every sha256")  # fmt: skip
