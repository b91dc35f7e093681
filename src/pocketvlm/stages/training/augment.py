"""Looks of a training image: the image itself, and variants of it as a phone's camera and app would have made them.

A variant follows from seed, image and its own number alone. What the letterbox left black is no part of the photo and stays
black: only what lies inside is turned, lit, blurred, resized and compressed. JPEG is written at the dataset's size, not at the
camera's, which makes its marks coarser than a phone's.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from pocketvlm.run_file import Augment

TURNS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_180)
"""What is seen of EXIF orientations 6, 8 and 3 where they are forgotten; phones write no others but for mirrored selfies."""
APP_FILTERS = (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BOX, Image.Resampling.BICUBIC)
SMALLEST = 0.5
"""Of the size that an app's own resize goes down to."""
BLUR = 0.01
"""Largest radius, of the longer side: 2.6 px at 256."""


def look(image: Image.Image, augment: Augment | None, *, seed: int, sha256: str, number: int) -> Image.Image:
    """The look with this number of an RGB image; 0 is the image itself. Of the same size."""
    if augment is None or number == 0:
        return image
    draw = np.random.default_rng([seed % 2**32, number, int(sha256[:16], 16)])
    photo = _photo(_turned(image.crop(content(image)), augment, draw, square=image.width == image.height), augment, draw)
    result = Image.new("RGB", image.size)
    result.paste(photo, ((image.width - photo.width) // 2, (image.height - photo.height) // 2))
    return result


def content(image: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is not black border, whose two sides are equal within a pixel (pixels.letterbox)."""
    width, height = image.size
    found = image.getbbox() or (0, 0, width, height)
    left, top = min(found[0], width - found[2]), min(found[1], height - found[3])
    # Where the border is odd, its larger half is at the right or at the bottom.
    return left, top, width - left - (width - found[2] > left), height - top - (height - found[3] > top)


def _turned(photo: Image.Image, augment: Augment, draw: np.random.Generator, *, square: bool) -> Image.Image:
    """An image that is no square is turned upside down only: its size stays."""
    turns = TURNS if square else TURNS[-1:]
    turn = turns[draw.integers(len(turns))]
    return photo.transpose(turn) if draw.random() < augment.turned else photo


def _photo(photo: Image.Image, augment: Augment, draw: np.random.Generator) -> Image.Image:
    # Every number is drawn whether it is used or not: a changed share leaves the other properties of a variant as they are.
    brightness, contrast = 1 + augment.light * draw.uniform(-1, 1, 2)
    tint = 1 + augment.light / 3 * draw.uniform(-1, 1, 3)
    blurred, radius = draw.random() < augment.blurred, BLUR * max(photo.size) * draw.random()
    resized, scale, kind = draw.random() < augment.resized, draw.uniform(SMALLEST, 1), draw.integers(len(APP_FILTERS))
    quality = int(draw.integers(augment.jpeg_min, augment.jpeg_max + 1))
    if augment.light:
        photo = ImageEnhance.Contrast(ImageEnhance.Brightness(photo).enhance(brightness)).enhance(contrast)
        bands = [band.point([min(255, round(value * factor)) for value in range(256)])
                 for band, factor in zip(photo.split(), tint, strict=True)]  # fmt: skip
        photo = Image.merge("RGB", bands)
    if blurred:
        photo = photo.filter(ImageFilter.GaussianBlur(radius))
    if resized:
        size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
        photo = photo.resize(size, APP_FILTERS[kind]).resize(photo.size, APP_FILTERS[kind])
    return _through_jpeg(photo, quality)


def _through_jpeg(photo: Image.Image, quality: int) -> Image.Image:
    """With colour at half the resolution, as phones write it."""
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=quality, subsampling=2)
    with Image.open(file) as read:
        return read.convert("RGB")


