"""One image on the device's canvas, and a place on disk for all of them while the labeller decides."""

from __future__ import annotations

import hashlib
import io
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from pocketvlm.run_file import Recipe
from pocketvlm.sources.images import decode, measure
from pocketvlm.sources.record import Problem, Record
from pocketvlm.stages.labelling.copies import SIDE_PX, Look, look
from pocketvlm.student.pixels import letterbox

LARGE_PIXELS = 16_000_000
"""Larger images are decoded one at a time, in one thread, since malloc gives each thread a heap of its own: four threads
peaked at 1.2 GB on images of 49 megapixels, one at 0.76 GB, and a stage must do with 1 GB."""


@dataclass(frozen=True)
class Prepared:
    """A usable image. The record's own bytes are gone."""

    record: Record
    sha256: str
    """Of the original bytes."""
    png: bytes
    """RGB, on the canvas."""
    look: Look


def prepare(record: Record, recipe: Recipe, large: Executor) -> Prepared | Problem:
    """Decodes a record and puts it on the canvas, or says why not; `large` has one thread, for large images."""
    if record.data is None:
        return record.problem or Problem("missing_file", "the source gave no bytes")
    threshold = recipe.labeller.min_confidence
    if threshold is not None and record.confidence is not None and record.confidence < threshold:
        return Problem("low_confidence", f"{record.confidence:g} is below min_confidence {threshold:g}")
    size = measure(record.data, recipe.labeller.max_pixels)
    if isinstance(size, Problem):
        return size
    canvas_px, longest_edge_px = recipe.device.canvas_px, recipe.device.longest_edge_px
    if canvas_px is None and max(size) > min(size) * longest_edge_px:
        return Problem("too_thin", f"{size[0]}x{size[1]} has no pixels left at a longest edge of {longest_edge_px} px")
    if size[0] * size[1] > LARGE_PIXELS:
        made = large.submit(_on_canvas, record.data, recipe).result()
    else:
        made = _on_canvas(record.data, recipe)
    if isinstance(made, Problem):
        return made
    return Prepared(replace(record, data=None), hashlib.sha256(record.data).hexdigest(), *made)


def _on_canvas(data: bytes, recipe: Recipe) -> tuple[bytes, Look] | Problem:
    image = decode(data, recipe.labeller.max_pixels)
    if isinstance(image, Problem):
        return image
    canvas_px = recipe.device.canvas_px
    return _png(image if canvas_px is None else letterbox(image, canvas_px)), look(image)


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")  # of the pixels alone: no EXIF, place or profile of the original
    return out.getvalue()


class Spool:
    """Images in one file on disk, what is known of them in memory: about 3 KB for each image of any size."""

    def __init__(self, folder: Path) -> None:
        self.records: list[Record] = []
        self.shas: list[str] = []
        self.hashes: list[int] = []
        self.png_sizes: list[int] = []
        self._sizes_px: list[tuple[int, int]] = []
        self._starts: list[int] = [0]
        self._looks = bytearray()
        self._images = (folder / "images.bin").open("wb+")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._images.close()

    def __len__(self) -> int:
        return len(self.records)

    def add(self, item: Prepared) -> None:
        """Keeps one image; its index is the number of those before."""
        self._images.write(item.png)
        self._looks += item.look.pixels_SSC.tobytes()
        self.records.append(item.record)
        self.shas.append(item.sha256)
        self.hashes.append(item.look.phash)
        self.png_sizes.append(len(item.png))
        self._sizes_px.append(item.look.size_px)
        self._starts.append(self._starts[-1] + len(item.png))

    def png(self, index: int) -> bytes:
        """The image on the canvas."""
        self._images.seek(self._starts[index])
        return self._images.read(self.png_sizes[index])

    def looks(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Hashes_N, looks_NSSC and sizes_N2 for `group_copies`."""
        looks_NSSC = np.frombuffer(self._looks, np.uint8).reshape(len(self), SIDE_PX, SIDE_PX, 3)
        return np.array(self.hashes, np.uint64), looks_NSSC, np.array(self._sizes_px, np.int64).reshape(-1, 2)
