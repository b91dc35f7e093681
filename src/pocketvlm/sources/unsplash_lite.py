"""Unsplash's Lite dataset: 25,000 photographs of nature as tables of their addresses and keywords, free of keys and quotas.

The tables have half a gigabyte; they are read row by row, and only `photos.tsv*` and `keywords.tsv*` of them.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from pocketvlm.errors import DataError, RunFileError
from pocketvlm.progress import Progress
from pocketvlm.run_file import UnsplashSource
from pocketvlm.sources.record import hint
from pocketvlm.sources.turns import in_turn, untaken
from pocketvlm.sources.unsplash_photo import Photo

PHOTO_COLUMNS = ("photo_id", "photo_url", "photo_image_url", "photographer_username", "photographer_first_name",
                 "photographer_last_name")  # fmt: skip
KEYWORD_COLUMNS = ("photo_id", "keyword", "ai_service_1_confidence", "ai_service_2_confidence", "suggested_by_user")
TRUE = {"t", "true", "1"}
SITE = "https://unsplash.com"


class Lite:
    """The unpacked dataset."""

    def __init__(self, folder: Path, name: str) -> None:
        """`name` is what the run file calls it. Raises RunFileError when its tables are not there."""
        self._name = name
        self._photos, self._keywords = (sorted(folder.glob(f"{table}.tsv*")) for table in ("photos", "keywords"))
        for table, files in (("photos", self._photos), ("keywords", self._keywords)):
            if not files:
                raise RunFileError(f"run.labeller.source.lite: {name} holds no {table}.tsv000; name the folder of the unpacked "
                                   "Lite dataset, relative to the run file")

    def fingerprint(self) -> str:
        """Sha256 of the tables that are read."""
        total = hashlib.sha256()
        for path in (*self._photos, *self._keywords):
            with path.open("rb") as file:
                total.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return total.hexdigest()

    def choose(self, source: UnsplashSource, progress: Progress) -> Iterator[Photo]:
        """Photographs that have one of the queries as a keyword, the queries in turn; the order is that of a hash of their ids.

        Raises DataError for tables of another layout.
        """
        queries = list(dict.fromkeys(_key(query) for query in source.queries))
        ids = self._ids(queries, source.min_keyword_confidence, progress)
        photos = {photo.id: photo for photo in self._described(set().union(*ids))}
        taken: set[str] = set()
        return in_turn([untaken(((id, photos[id]) for id in sorted(own & photos.keys(), key=_hash)), taken) for own in ids])

    def _ids(self, queries: Sequence[str], confidence: float, progress: Progress) -> list[set[str]]:
        """For each query, the photographs that have it as a keyword."""
        ids: dict[str, set[str]] = {query: set() for query in queries}
        words: set[str] = set()
        for photo, keyword, first, second, by_user in self._rows(self._keywords, KEYWORD_COLUMNS):
            word = _key(keyword)
            words.add(word)
            if word in ids and (by_user.lower() in TRUE or max(_percent(first), _percent(second)) >= confidence):
                ids[word].add(photo)
        for query, own in ids.items():
            if not own:
                progress.warn(f"no photograph of {self._name} has the keyword {query!r}"
                              f"{hint(query, words - {query}) if query not in words else ' with that confidence'}")
        return list(ids.values())

    def _described(self, ids: set[str]) -> Iterator[Photo]:
        for id, page, image, user, first, last in self._rows(self._photos, PHOTO_COLUMNS):
            if id in ids:
                author = " ".join(f"{first} {last}".split()) or user
                yield Photo(id=id, image=image, page=page or f"{SITE}/photos/{id}", author=author, profile=f"{SITE}/@{user}")

    def _rows(self, files: Sequence[Path], columns: Sequence[str]) -> Iterator[list[str]]:
        """The columns of every row. Raises DataError."""
        for path in files:
            try:
                with path.open(encoding="utf-8", newline="") as file:
                    rows = csv.reader(file, delimiter="\t")
                    places = _places(path, next(rows, []), columns)
                    for row in rows:
                        if len(row) > max(places):
                            yield [row[place] for place in places]
            except (ValueError, csv.Error) as error:
                raise DataError(f"{self._name}/{path.name}: cannot be read as a table: {error}; unpack it again") from error


def _places(path: Path, header: Sequence[str], columns: Sequence[str]) -> list[int]:
    """Where the columns are; others come and go with the dataset's versions."""
    for column in columns:
        if column not in header:
            raise DataError(f"run.labeller.source.lite: {path.name} has no column {column}; its first line must be that of "
                            "Unsplash's Lite dataset")
    return [header.index(column) for column in columns]


def _percent(text: str) -> float:
    """A confidence; an empty field, as where a service has not said a keyword, is below all others."""
    try:
        return float(text) if text else -1.0
    except ValueError:
        return -1.0


def _key(word: str) -> str:
    return " ".join(word.split()).casefold()


def _hash(id: str) -> bytes:
    return hashlib.sha256(id.encode()).digest()
