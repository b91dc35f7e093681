"""Images as a pair gets them: decoded as the labeller decodes them, on the device's canvas, as the bytes of a PNG."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from pocketvlm.errors import UserError
from pocketvlm.run_file import Labeller
from pocketvlm.sources.class_folders import is_litter
from pocketvlm.sources.images import decode, measure
from pocketvlm.sources.record import Problem, read_inside
from pocketvlm.student.pixels import letterbox

ImageLike = str | Path | bytes | Image.Image
"""A path, the bytes of a file, or an image of Pillow's."""

MAX_PIXELS: int = Labeller.model_fields["max_pixels"].default
"""More are refused before they are decoded, as the labeller does."""
LARGE_PIXELS = 16_000_000
"""Of larger images one at a time is decoded: each takes up to 8 bytes a pixel for a moment."""
SUFFIXES = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""What is taken out of a folder. Those that cannot be read are reported as failed, since a person takes them for images."""
PNG_LEVEL = 1
"""Of zlib: the server on this machine reads it once. A 12-megapixel photograph is written in a third of the time of level 6."""

_large = threading.Lock()


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Files as they are named, and what looks like an image in folders and theirs, sorted by path. Links to folders are not
    followed. Raises UserError for a folder without images, and for one that cannot be read."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(_walk(path))
        if not inside:
            raise UserError(f"{path}: holds no image ({', '.join(SUFFIXES)}); name another folder, or files")
        found += inside
    return found


def _walk(root: Path) -> Iterable[Path]:
    def unread(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); let this user read it, or name the images")

    for current, folders, files in os.walk(root, onerror=unread, followlinks=False):
        folders[:] = [name for name in folders if not is_litter(name)]
        for name in files:
            if not is_litter(name) and os.path.splitext(name)[1].lower() in SUFFIXES:  # noqa: PTH122 (names of a walk are texts)
                yield Path(current) / name


def prepare(image: ImageLike, device: Mapping[str, int | None]) -> bytes | Problem:
    """The image on the canvas of `device` (a release's block), as a PNG; or why there is none."""
    data = _bytes(image)
    if isinstance(data, Problem):
        return data
    size = measure(data, MAX_PIXELS)
    if isinstance(size, Problem):
        return size
    canvas_px, longest_edge_px = device.get("canvas_px"), device.get("longest_edge_px")
    if canvas_px is None and longest_edge_px and max(size) > min(size) * longest_edge_px:
        return Problem("too_thin", f"{size[0]}x{size[1]} has no pixels left at a longest edge of {longest_edge_px} px")
    if size[0] * size[1] > LARGE_PIXELS:
        with _large:
            return _on_canvas(data, canvas_px)
    return _on_canvas(data, canvas_px)


def _on_canvas(data: bytes, canvas_px: int | None) -> bytes | Problem:
    image = decode(data, MAX_PIXELS)
    if isinstance(image, Problem):
        return image
    return _png(image if canvas_px is None else letterbox(image, canvas_px), PNG_LEVEL)


def _bytes(image: ImageLike) -> bytes | Problem:
    if isinstance(image, bytes):
        return image
    if isinstance(image, Image.Image):
        # Through a file, so that an image of Pillow's is turned upright and made RGB by the same lines as a file is.
        plain = image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16") else image.convert("RGB")
        return _png(plain, PNG_LEVEL, exif=image.getexif().tobytes())
    path = Path(image)
    return read_inside(path, path.resolve().parent)


def _png(image: Image.Image, level: int, **options: bytes) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=level, **options)
    return out.getvalue()
