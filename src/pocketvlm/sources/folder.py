"""Images in class sub-folders, as Kaggle sets come: `<path>/<class>/.../<image>`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pocketvlm.errors import RunFileError
from pocketvlm.run_file import FolderSource
from pocketvlm.sources.class_folders import ClassFolders, is_litter
from pocketvlm.sources.record import Context, Problem, Record, SourceReader, fingerprint_files, read_inside


class Folder(SourceReader):
    """Walks the folder once when opened. Links to folders are not followed, links to files only inside the folder."""

    def __init__(self, source: FolderSource, context: Context) -> None:
        """Raises RunFileError for a wrong path or class folder, DataError when there are no class folders."""
        path = context.folder / source.path
        if not path.is_dir():
            raise RunFileError(f"run.labeller.source.path: {source.path} is not a folder; "
                               "name the folder that holds the class folders, relative to the run file")
        self._root = path.resolve()
        there = (entry.name for entry in self._root.iterdir() if entry.is_dir() and not is_litter(entry.name))
        self._folders = ClassFolders(source, context, there, named=source.path, key="path")
        self._files = sorted(_walk(self._root))

    def fingerprint(self) -> str:
        return fingerprint_files(((name, self._root / name) for name in self._files), self._root)

    def __len__(self) -> int:
        return len(self._files)

    def records(self, places: range) -> Iterator[Record]:
        for name in map(self._files.__getitem__, places):
            yield self._folders.record(name, self._read)

    def _read(self, name: str) -> bytes | Problem:
        path = self._root / name
        if path.is_dir():
            return Problem("linked_folder", "links to folders are not followed")
        return read_inside(path, self._root)


def _walk(root: Path) -> Iterator[str]:
    """Names of files and of links to folders, relative to `root`, separated by `/`."""
    for current, folders, files in os.walk(root, followlinks=False):
        folders[:] = [name for name in folders if not is_litter(name)]
        links = [name for name in folders if (Path(current) / name).is_symlink()]
        for name in [*files, *links]:
            if not is_litter(name):
                yield (Path(current) / name).relative_to(root).as_posix()
