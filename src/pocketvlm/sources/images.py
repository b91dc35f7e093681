"""Decodes images that nobody vouches for: into upright 8-bit RGB, or into a problem. Never into a crash of the run."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from pocketvlm.sources.record import Problem

T = TypeVar("T")
FORMATS = ("JPEG", "PNG", "WEBP")
ORIENTATION = 0x0112
"""The EXIF tag: how the camera was held."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MAGIC = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF....WEBP",
    "GIF": rb"GIF8",
    "BMP": rb"BM",
    "TIFF": rb"II\*\0|MM\0\*",
    "HEIC or AVIF": rb"....ftyp",
    "SVG or XML": rb"\s*<\?xml|\s*<svg",
    "HTML": rb"(?i)\s*<!doctype|\s*<html",
}


@contextlib.contextmanager
def strict_pillow(max_pixels: int) -> Iterator[None]:
    """Sets Pillow's own bomb limit to ours, its warning an error. Enter it once, around all threads that decode."""
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def measure(data: bytes, max_pixels: int) -> tuple[int, int] | Problem:
    """File bytes -> width and height by the header alone, or why the file cannot be used."""
    return _guarded(lambda image: image.size, data, max_pixels)


def decode(data: bytes, max_pixels: int) -> Image.Image | Problem:
    """File bytes -> RGB image (8-bit, upright, transparency on black), or why the file cannot be used.

    Takes up to 8 bytes of memory per pixel for a moment, 3 afterwards.
    """
    return _guarded(_upright_rgb, data, max_pixels)


def _guarded(step: Callable[[Image.Image], T], data: bytes, max_pixels: int) -> T | Problem:
    """Opens the file and runs one step of Pillow on it.

    The one place of the project that catches whatever comes: Pillow's decoders raise OSError, SyntaxError, ValueError,
    struct.error, zlib.error, EOFError and others on hostile files, and one file must not end the run. Only MemoryError
    goes on: it says something about the machine, and another try may well succeed.
    """
    if not data:
        return Problem("empty_file", "has no bytes")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return _unusable(image, max_pixels) or step(image)
    except MemoryError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Problem("too_many_pixels", f"more than {max_pixels} pixels")
    except UnidentifiedImageError:
        return _unidentified(data)
    except Exception as error:
        text = re.sub(r"0x[0-9a-f]+", "0x", str(error))[:200]  # addresses differ from run to run
        reason = "truncated" if "truncated" in text.lower() or isinstance(error, EOFError) else "damaged"
        return Problem(reason, f"{type(error).__name__}: {text}")


def _unusable(image: Image.Image, max_pixels: int) -> Problem | None:
    """What the header alone forbids; nothing is decoded yet."""
    width, height = image.size
    if width * height > max_pixels:
        return Problem("too_many_pixels", f"{width}x{height} is more than {max_pixels} pixels")
    frames = getattr(image, "n_frames", 1)
    # MPO is a JPEG with more pictures behind it (depth, a second lens), as phones write it: the first is the photo.
    if frames > 1 and image.format != "MPO":
        return Problem("animated", f"{image.format} of {frames} frames")
    return None


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()
    turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    upright = image if turn is None else image.transpose(turn)
    return _rgb(upright, transparent=image.has_transparency_data)


def _rgb(image: Image.Image, *, transparent: bool) -> Image.Image:
    """Any mode -> RGB. Colour profiles are ignored, as llama.cpp's own decoder (stb_image) ignores them."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255, which makes nearly every 16-bit image white.
        grey_HW = np.clip(np.asarray(image).astype(np.uint32), 0, 65535)
        return Image.fromarray(((grey_HW * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if transparent:
        # On black, since the canvas' border is black: an object that was cut out then has one background, not two.
        # What lies under transparent pixels is arbitrary, often left over, and never seen by a person.
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        background = Image.new("RGB", layer.size, (0, 0, 0))
        background.paste(layer, mask=layer.getchannel("A"))
        return background
    return image if image.mode == "RGB" else image.convert("RGB")  # a large copy is spared


def _unidentified(data: bytes) -> Problem:
    kind = next((kind for kind, magic in MAGIC.items() if re.match(magic, data, re.DOTALL)), None)
    if kind in FORMATS:
        return Problem("damaged", f"starts as {kind}, but its header cannot be read")
    return Problem("unsupported_format", f"{kind or 'no image format that we know'}; JPEG, PNG and WebP are read")
