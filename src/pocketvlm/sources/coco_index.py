"""COCO's annotations: 450 MB of JSON in a zip, nearly all of it outlines; read once as a stream, kept as an index of some MB.

What is kept of an image: id, file, licence, where it lies at Flickr, and which categories people have marked in it.
"""

from __future__ import annotations

import codecs
import fcntl
import gzip
import hashlib
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from pocketvlm.errors import DataError, RunFileError, UserError
from pocketvlm.run_file import CocoSource
from pocketvlm.sources.record import Context
from pocketvlm.sources.web.download import download
from pocketvlm.sources.web.fetch import Fetcher

FORMAT = 1
"""Of the index; another number and it is made anew."""
MAX_DOWNLOAD_BYTES = 1_000_000_000
"""COCO's zip has 252,907,541."""
MAX_JSON_BYTES = 4_000_000_000
"""The larger of its files unpacks to 448,810,932."""
MAX_ELEMENT_CHARACTERS = 64_000_000
"""Of one annotation; the longest outlines of COCO have some hundred thousand."""
CHUNK_BYTES = 1_000_000
SPACE = re.compile(r"[ \t\r\n]*")
OUTLINE = re.compile(r'"segmentation":\s*\[[][0-9.,eE+\s-]*\](?=\s*(?:,\s*"|\}))')
"""Numbers in brackets and nothing else, up to what follows in the same object: never half of them, at the end of a chunk."""


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One image as the annotations know it; `categories` are ids, sorted."""

    id: int
    file_name: str
    licence: int
    flickr_url: str
    categories: tuple[int, ...]


@dataclass(frozen=True)
class CocoIndex:
    """What is known of a split."""

    licences: dict[int, str]
    """Id -> name and address."""
    categories: dict[str, int]
    images: list[CocoImage]


def is_remote(annotations: str) -> bool:
    """Whether the setting is an address, not a file."""
    return "://" in annotations


def load_index(source: CocoSource, context: Context) -> CocoIndex:
    """The index of the source's split, from the cache, or made there of the annotations, which are downloaded if need be.

    Raises DataError (not what the sha256 says, or no annotations), SourceUnavailable, UserError (the cache cannot be written).
    """
    folder = context.environment.cache / "coco" / source.annotations_sha256[:16]
    kept = folder / f"{source.split}-{FORMAT}.json.gz"
    if index := _read(kept):
        return index
    with _alone(folder, context):
        index = _read(kept)  # another process may have made it meanwhile
        if index is None:
            path = _annotations(source, context, folder)
            context.progress.line(f"reading COCO's annotations of {source.split}, once for all runs")
            index = build_index(path, source.split)
            _keep(index, kept)
    return index


def build_index(path: Path, split: str) -> CocoIndex:
    """Reads the annotations of a split from COCO's zip, or from the JSON itself. Raises DataError when they are none."""
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                return _index(file)
        member = f"annotations/instances_{split}2017.json"
        with zipfile.ZipFile(path) as archive:
            if member not in archive.namelist():
                raise DataError(f"run.labeller.source.annotations: {path.name} holds no {member}; name COCO's own zip")
            with archive.open(member) as file:
                return _index(cast(BinaryIO, file))
    except (ValueError, LookupError, TypeError, AttributeError, EOFError, zlib.error, zipfile.BadZipFile,
            RuntimeError) as error:  # the last one: nested without end, or packed in a way that zipfile does not read
        raise DataError(f"run.labeller.source.annotations: {path.name} cannot be read as annotations of COCO "
                        f"({type(error).__name__}: {str(error)[:200]}); name COCO's own file") from error  # fmt: skip


def _index(file: BinaryIO) -> CocoIndex:
    """Raises ValueError, KeyError, TypeError or AttributeError for what is not laid out as COCO's."""
    licences: dict[int, str] = {}
    categories: dict[str, int] = {}
    images: dict[int, dict[str, Any]] = {}
    marked: dict[int, int] = {}  # image id -> a bit for each category: sets would take 30 MB more
    for section, item in _items(file):
        if section == "annotations":
            image = item["image_id"]
            marked[image] = marked.get(image, 0) | 1 << _small(item["category_id"])
        elif section == "images":
            images[item["id"]] = {key: item.get(key) for key in ("file_name", "license", "flickr_url")}
        elif section == "licenses":
            licences[int(item["id"])] = f"{item['name']} ({item['url']})"
        elif section == "categories":
            categories[str(item["name"])] = _small(item["id"])
    if not images or not categories:
        raise ValueError("there are no images or no categories in it")
    if strangers := {place for mask in set(marked.values()) for place in _bits(mask)} - set(categories.values()):
        raise ValueError(f"annotations of a category {min(strangers)} that is not described")
    return CocoIndex(licences, categories, [
        CocoImage(int(id), str(image["file_name"]), int(image["license"]), str(image["flickr_url"] or ""), _bits(marked.get(id)))
        for id, image in images.items()
    ])  # fmt: skip


def _small(number: Any) -> int:
    """An id of a category: COCO's end at 90, and a bit of that place must not fill the memory."""
    if not isinstance(number, int) or not 0 <= number < 4096:
        raise ValueError(f"{number!r} is no id of a category")
    return number


def _bits(mask: int | None) -> tuple[int, ...]:
    mask = mask or 0
    return tuple(place for place in range(mask.bit_length()) if mask >> place & 1)


def _items(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    """The key and the elements of each list at the top of a JSON object, one by one; what else is there is passed over."""
    text = _Text(file.read)
    text.expect("{")
    while text.peek() != "}":
        section = text.value()
        text.expect(":")
        if text.peek() != "[":
            text.value()
        else:
            text.expect("[")
            while text.peek() != "]":
                yield section, text.value()
                if text.peek() != "]":
                    text.expect(",")
            text.expect("]")
        if text.peek() != "}":
            text.expect(",")


class _Text:
    """JSON text that comes in chunks. Raises ValueError where it is not JSON."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._scan = json.JSONDecoder().raw_decode
        self._buffer, self._at = "", 0
        self._bytes = 0
        self._ended = False

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            self._at = SPACE.match(self._buffer, self._at).end()  # type: ignore[union-attr]  # it matches nothing, too
            if self._at < len(self._buffer) or self._ended:
                return self._buffer[self._at : self._at + 1]
            self._more()

    def expect(self, character: str) -> None:
        found = self.peek()
        if found != character:
            raise ValueError(f"{found or 'the end'!r} where {character!r} belongs")
        self._at += 1

    def value(self) -> Any:
        """The next value, whole; as much is read as it takes."""
        self.peek()
        while True:
            left = len(self._buffer) - self._at
            try:
                value, end = self._scan(self._buffer, self._at)
            except ValueError:
                if self._ended or left > MAX_ELEMENT_CHARACTERS:
                    raise
            else:
                if end < len(self._buffer) or self._ended:  # else a number may go on in the next chunk
                    self._at = end
                    return value
            self._more(left)

    def _more(self, at_least: int = 0) -> None:
        """Reads on; as much again as there is of a long value, so that no value is scanned for each of its chunks."""
        data = self._read(max(CHUNK_BYTES, at_least))
        self._bytes += len(data)
        if self._bytes > MAX_JSON_BYTES:
            raise ValueError(f"more than {MAX_JSON_BYTES} bytes")
        self._ended = not data
        text = self._buffer[self._at :] + self._decode(data, final=not data)
        self._buffer = OUTLINE.sub('"segmentation":0', text)  # unread: 40 million numbers take most of the time
        self._at = 0


def _annotations(source: CocoSource, context: Context, folder: Path) -> Path:
    """The file that was meant, wherever it lies, with the sha256 that it must have."""
    if not is_remote(source.annotations):
        path = context.folder / source.annotations
        found = _sha256(path)
        if found != source.annotations_sha256:
            raise RunFileError(f"run.labeller.source.annotations_sha256: {source.annotations} has {found}; "
                               "if that is the file that you mean, write this")
        return path
    path = folder / "annotations"
    if not path.exists():
        context.progress.line(f"downloading COCO's annotations to {path}, once for all runs")
    with Fetcher(source.fetch, {urlsplit(source.annotations).netloc}) as fetcher:
        download(fetcher, source.annotations, path, source.annotations_sha256, MAX_DOWNLOAD_BYTES)
    return path


def _sha256(path: Path) -> str:
    """Raises RunFileError where there is no such file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RunFileError(f"run.labeller.source.annotations: {path.name} cannot be read ({error.strerror}); name COCO's zip or "
                           "one of its instances_*2017.json, relative to the run file, or an address") from error


@contextmanager
def _alone(folder: Path, context: Context) -> Iterator[None]:
    """One process at a time in a folder of the cache, which is made; a killed one leaves no lock. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"POCKETVLM_CACHE: {folder} cannot be made ({error.strerror}); name a folder that can be "
                        "written") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            context.progress.line(f"waiting for another process to make {folder}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _keep(index: CocoIndex, path: Path) -> None:
    """Written beside and moved, so that no reader meets half of it."""
    content = {
        "licences": list(index.licences.items()),
        "categories": list(index.categories.items()),
        "images": [[image.id, image.file_name, image.licence, image.flickr_url, image.categories] for image in index.images],
    }
    part = path.with_name(f"{path.name}.part")
    with gzip.open(part, "wt", encoding="ascii", compresslevel=5) as file:
        json.dump(content, file, separators=(",", ":"))
    part.replace(path)


def _read(path: Path) -> CocoIndex | None:
    """The kept index; None where there is none, or where a disk has spoilt it: then it is made anew."""
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            content = json.load(file)
    except (OSError, EOFError, ValueError, zlib.error):
        return None
    images = [CocoImage(id, name, licence, url, tuple(marked)) for id, name, licence, url, marked in content["images"]]
    return CocoIndex(dict(content["licences"]), dict(content["categories"]), images)
