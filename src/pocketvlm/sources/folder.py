"""Images in class sub-folders, as Kaggle sets come: `<path>/<class>/.../<image>`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pocketvlm.errors import DataError, RunFileError
from pocketvlm.run_file import FolderSource
from pocketvlm.sources.record import ClassNames, Problem, Record, SourceReader, fingerprint_files, hint, read_inside

LITTER = {"__MACOSX", "Thumbs.db", "desktop.ini"}
"""What file managers leave behind; with hidden files (.DS_Store) it is passed over without a word."""


class Folder(SourceReader):
    """Walks the folder once when opened. Links to folders are not followed, links to files only inside the folder."""

    def __init__(self, source: FolderSource, folder: Path, classes: list[str]) -> None:
        """Raises RunFileError for a wrong path or class folder, DataError when there are no class folders."""
        path = folder / source.path
        if not path.is_dir():
            raise RunFileError(f"run.labeller.source.path: {source.path} is not a folder; "
                               "name the folder that holds the class folders, relative to the run file")
        self._source = source
        self._root = path.resolve()
        self._class_of = _class_folders(source, self._root, ClassNames(classes))
        self._files = sorted(_walk(self._root, self._class_of))

    def fingerprint(self) -> str:
        return fingerprint_files(((name, self._root / name) for name in self._files), self._root)

    def __len__(self) -> int:
        return len(self._files)

    def records(self, places: range) -> Iterator[Record]:
        for name in map(self._files.__getitem__, places):
            top, inside, _ = name.partition("/")
            path, source_id = self._root / name, _printable(name)
            if path.is_dir():
                yield Record(source_id, problem=Problem("linked_folder", "links to folders are not followed"))
            elif not inside:
                yield Record(source_id, problem=Problem("no_class_folder", "lies beside the class folders, not in one"))
            else:
                data = read_inside(path, self._root)
                if isinstance(data, Problem):
                    yield Record(source_id, problem=data)
                else:
                    yield Record(source_id, data, label=self._class_of[top], licence=self._source.licence)


def _class_folders(source: FolderSource, root: Path, classes: ClassNames) -> dict[str, str]:
    """Folder name -> class name. Raises as `Folder` does."""
    there = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not _litter(entry.name))
    if not there:
        raise DataError(f"run.labeller.source.path: {source.path} has no class folders; "
                        "put the images into one folder for each class")
    lines = []
    key = "run.labeller.source.class_folders"
    for folder, name in source.class_folders.items():
        if folder not in there:
            lines.append(f"{key}.{folder}: no such folder in {source.path}{hint(folder, there)}")
        if name not in classes.names:
            lines.append(f"{key}.{folder}: {name} is not in run.task.classes{classes.hint(name)}")
    class_of = {folder: source.class_folders.get(folder) or classes.match(folder) for folder in there}
    for folder, found in class_of.items():
        if found is None:
            lines.append(f"{key}: folder {_printable(folder)} of {source.path} is no class; "
                         f"map it to a class here or move it away{classes.hint(folder)}")
    if lines:
        raise RunFileError("\n".join(lines))
    return {folder: found for folder, found in class_of.items() if found is not None}


def _walk(root: Path, class_of: dict[str, str]) -> Iterator[str]:
    """Names of files and of links to folders, relative to `root`, separated by `/`."""
    for entry in root.iterdir():
        if not _litter(entry.name) and (entry.is_symlink() or not entry.is_dir()):
            yield entry.name
    for top in class_of:
        if (root / top).is_symlink():
            continue
        for current, folders, files in os.walk(root / top, followlinks=False):
            folders[:] = [name for name in folders if not _litter(name)]
            links = [name for name in folders if (Path(current) / name).is_symlink()]
            for name in [*files, *links]:
                if not _litter(name):
                    yield (Path(current) / name).relative_to(root).as_posix()


def _litter(name: str) -> bool:
    return name.startswith(".") or name in LITTER


def _printable(name: str) -> str:
    """Names on Linux are bytes; those that are no UTF-8 must not break a JSON or Parquet writer."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
