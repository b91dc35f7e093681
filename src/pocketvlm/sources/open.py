"""Opens the source that a run file names."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from pocketvlm.run_file import Source
from pocketvlm.sources.record import Context, SourceReader

READERS = {
    "digits": "digits.Digits",
    "folder": "folder.Folder",
    "records": "records.Records",
    "archive": "archive.Archive",
    "kaggle": "kaggle.Kaggle",
    "coco": "coco.Coco",
    "unsplash": "unsplash.Unsplash",
    "hub": "hub.Hub",
}
"""Kind -> module of this room and class, made of the source's block and a Context. Only what a run file names is imported."""


def open_source(source: Source, context: Context) -> SourceReader:
    """Opens `source`. Asks no server.

    Raises RunFileError (wrong path, column or classes), DataError (wrong content), UserError (a package is missing).
    """
    module, _, name = READERS[source.kind].partition(".")
    return cast(SourceReader, getattr(import_module(f"pocketvlm.sources.{module}"), name)(source, context))
