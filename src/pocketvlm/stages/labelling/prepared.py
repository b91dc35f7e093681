"""One image on the device's canvas."""

from __future__ import annotations

import hashlib
import io
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from PIL import Image

from pocketvlm.run_file import Recipe
from pocketvlm.sources.images import decode, measure
from pocketvlm.sources.record import Problem, Record
from pocketvlm.stages.labelling.copies import Look, look
from pocketvlm.student.pixels import letterbox

LARGE_PIXELS = 16_000_000
"""Larger images are decoded one at a time, in one thread, since malloc gives each thread a heap of its own: four threads
peaked at 1.2 GB on images of 49 megapixels, one at 0.76 GB, and a stage must do with 1 GB."""


JPEG_QUALITY = 90
"""Of what teachers see; part of the key of their answers, since those follow the bytes."""


@dataclass(frozen=True)
class Prepared:
    """A usable image. The record's own bytes are gone."""

    record: Record
    sha256: str
    """Of the original bytes."""
    png: bytes
    """RGB, on the canvas."""
    look: Look
    jpegs: tuple[bytes, ...] = ()
    """What each teacher sees."""


def prepare(record: Record, recipe: Recipe, large: Executor) -> Prepared | Problem:
    """Decodes a record and puts it on the canvas, or says why not; `large` has one thread, for large images."""
    if record.data is None:
        return record.problem or Problem("missing_file", "the source gave no bytes")
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


def _on_canvas(data: bytes, recipe: Recipe) -> tuple[bytes, Look, tuple[bytes, ...]] | Problem:
    image = decode(data, recipe.labeller.max_pixels)
    if isinstance(image, Problem):
        return image
    canvas_px, labeller = recipe.device.canvas_px, recipe.labeller
    teachers = labeller.teachers
    jpeg_of = {px: _jpeg(image, px) for px in {teacher.image_px for teacher in teachers}}
    png = _png(image if canvas_px is None else letterbox(image, canvas_px))
    return png, look(image), tuple(jpeg_of[teacher.image_px] for teacher in teachers)


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")  # of the pixels alone: no EXIF, place or profile of the original
    return out.getvalue()


def _jpeg(image: Image.Image, longest_px: int) -> bytes:
    """At most `longest_px` on the longer side, at a quality that hides nothing from the teacher: 4:4:4, 90."""
    scale = longest_px / max(image.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return out.getvalue()
