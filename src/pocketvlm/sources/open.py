"""Opens the source that a run file names."""

from __future__ import annotations

from pathlib import Path

from pocketvlm.errors import NotAvailableYet
from pocketvlm.run_file import DigitsSource, FolderSource, RecordsSource, Source
from pocketvlm.sources.digits import Digits
from pocketvlm.sources.folder import Folder
from pocketvlm.sources.record import SourceReader
from pocketvlm.sources.records import Records


def open_source(source: Source, folder: Path, classes: list[str]) -> SourceReader:
    """Opens `source`; relative paths in it start at `folder`, `classes` are the task's class names in order.

    Raises RunFileError (wrong path, column or classes), DataError (wrong content), NotAvailableYet (later kinds).
    """
    if isinstance(source, DigitsSource):
        return Digits(source, classes)
    if isinstance(source, FolderSource):
        return Folder(source, folder, classes)
    if isinstance(source, RecordsSource):
        return Records(source, folder, classes)
    raise NotAvailableYet(f"run.labeller.source.kind: {source.kind} is not available yet; "
                          "digits, folder and records are")
