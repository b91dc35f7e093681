"""Images in folders, one for each class, wherever the folders are: on disk, in an archive, in a Kaggle dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from pocketvlm.errors import DataError, RunFileError
from pocketvlm.sources.record import ClassNames, Context, Problem, Record, hint

LITTER = {"__MACOSX", "Thumbs.db", "desktop.ini"}
"""What file managers leave behind; with hidden files (.DS_Store) it is passed over without a word."""


OUTRIGHT = ("linked_folder", "unsafe_name")
"""Problems that say more of a file than that it lies beside the class folders."""


class Settings(Protocol):
    """What the sources of this layout have in common."""

    @property
    def class_folders(self) -> dict[str, str]: ...

    @property
    def licence(self) -> str | None: ...


class ClassFolders:
    """What the folder that a file lies in says of it. With a teacher it says nothing, and files may lie anywhere."""

    def __init__(self, settings: Settings, context: Context, there: Iterable[str], *, named: str, key: str) -> None:
        """`there` are the folders at the top, `named` is what they lie in, `key` the setting that named it.

        Raises RunFileError for a wrong class folder, DataError when there are no class folders.
        """
        self._licence = settings.licence
        self._labelled = context.labelled
        self._class_of: dict[str, str] = {}
        if self._labelled:
            self._class_of = _class_of(settings, ClassNames(context.classes), sorted(there), named, key)
        elif settings.class_folders:
            raise RunFileError("run.labeller.source.class_folders: is without effect, since the teacher labels; remove it")

    def record(self, name: str, read: Callable[[str], bytes | Problem]) -> Record:
        """The record of the file at `name`, relative to the top and separated by `/`."""
        top, inside, _ = name.partition("/")
        source_id, data = printable(name), read(name)
        if self._labelled and not inside and (isinstance(data, bytes) or data.reason not in OUTRIGHT):
            return Record(source_id, problem=Problem("no_class_folder", "lies beside the class folders, not in one"))
        if isinstance(data, Problem):
            return Record(source_id, problem=data)
        return Record(source_id, data, label=self._class_of[top] if self._labelled else "", licence=self._licence)


def is_litter(name: str) -> bool:
    """Of one file or folder, without the folders that it lies in."""
    return name.startswith(".") or name in LITTER


def printable(name: str) -> str:
    """Names on Linux are bytes; those that are no UTF-8 must not break a JSON or Parquet writer."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _class_of(settings: Settings, classes: ClassNames, there: list[str], named: str, key: str) -> dict[str, str]:
    """Folder name -> class name. Raises as `ClassFolders` does."""
    if not there:
        raise DataError(f"run.labeller.source.{key}: {named} has no class folders; put the images into one folder for each class")
    lines = []
    setting = "run.labeller.source.class_folders"
    for folder, name in settings.class_folders.items():
        if folder not in there:
            lines.append(f"{setting}.{folder}: no such folder in {named}{hint(folder, there)}")
        if name not in classes.names:
            lines.append(f"{setting}.{folder}: {name} is not in run.task.classes{classes.hint(name)}")
    class_of = {folder: settings.class_folders.get(folder) or classes.match(folder) for folder in there}
    for folder, found in class_of.items():
        if found is None:
            lines.append(f"{setting}: folder {printable(folder)} of {named} is no class; "
                         f"map it to a class here or move it away{classes.hint(folder)}")
    if lines:
        raise RunFileError("\n".join(lines))
    return {folder: found for folder, found in class_of.items() if found is not None}
