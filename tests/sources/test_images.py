"""Hostile and unusual files: each is decoded to the right pixels or refused with the right reason."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketvlm.sources.images import decode, measure, strict_pillow
from pocketvlm.sources.record import Problem

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
LIMIT = 50_000_000
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def photo(width: int = 64, height: int = 48) -> Image.Image:
    noise_HWC = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise_HWC).resize((width, height), Image.Resampling.BICUBIC)


def png_bomb(side_px: int = 13_000) -> bytes:
    """A grey PNG of zeros: half a gigabyte of RGB from some hundred kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side_px, side_px, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((side_px + 1) * side_px), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def frames(kind: str) -> bytes:
    first, second = Image.new("RGB", (16, 16), RED), Image.new("RGB", (16, 16), BLUE)
    return encoded(first, kind, save_all=True, append_images=[second])


def reason(data: bytes, limit: int = LIMIT) -> str:
    found = decode(data, limit)
    assert isinstance(found, Problem), f"was decoded to {found}"
    assert found.detail
    return found.reason


def pixels(data: bytes) -> np.ndarray:
    found = decode(data, LIMIT)
    assert isinstance(found, Image.Image), found
    assert found.mode == "RGB"
    return np.asarray(found)


JPEG = encoded(photo(), "JPEG")
PNG = encoded(photo(), "PNG")
WEBP = encoded(photo(), "WEBP")
HOSTILE = {
    "no bytes": (b"", "empty_file"),
    "text": (b"this is no image at all, but a readme", "unsupported_format"),
    "html": (b"<!DOCTYPE html><html>404</html>", "unsupported_format"),
    "gif": (encoded(photo(), "GIF"), "unsupported_format"),
    "bmp": (encoded(photo(), "BMP"), "unsupported_format"),
    "tiff": (encoded(photo(), "TIFF"), "unsupported_format"),
    "half a jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "a jpeg without its end": (JPEG[:-40], "truncated"),
    "half a png": (PNG[: len(PNG) // 2], "truncated"),
    "half a webp": (WEBP[: len(WEBP) // 2], "damaged"),
    "a jpeg's first bytes": (JPEG[:10], "truncated"),
    "a png's signature": (PNG[:8], "damaged"),
    "png of two frames": (frames("PNG"), "animated"),
    "webp of two frames": (frames("WEBP"), "animated"),
    "png bomb": (png_bomb(), "too_many_pixels"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_with_its_reason(name: str) -> None:
    data, expected = HOSTILE[name]
    assert reason(data) == expected


@pytest.mark.parametrize("name", HOSTILE)
def test_reasons_are_the_same_in_every_run(name: str) -> None:
    data, _ = HOSTILE[name]
    assert decode(data, LIMIT) == decode(bytes(bytearray(data)), LIMIT)


def test_every_truncation_and_bit_flip_is_decoded_or_refused() -> None:
    random = np.random.default_rng(1)
    for original in (JPEG, PNG, WEBP):
        for _ in range(150):
            data = bytearray(original[: random.integers(1, len(original) + 1)])
            for _ in range(random.integers(0, 4)):
                data[random.integers(len(data))] ^= 1 << random.integers(8)
            assert isinstance(decode(bytes(data), LIMIT), Problem | Image.Image)


def test_bomb_is_refused_by_its_header_alone_before_it_is_decoded() -> None:
    assert measure(png_bomb(), LIMIT) == Problem("too_many_pixels", "13000x13000 is more than 50000000 pixels")


def test_limit_of_pixels_is_the_settings_and_not_pillows() -> None:
    data = encoded(Image.new("L", (100, 100)), "PNG")
    assert measure(data, 10_000) == (100, 100)
    assert reason(data, 9_999) == "too_many_pixels"


def test_strict_pillow_makes_the_bomb_warning_an_error_in_every_thread_and_restores_it() -> None:
    before, found = Image.MAX_IMAGE_PIXELS, []
    with strict_pillow(9_000):
        thread = threading.Thread(target=lambda: found.append(decode(encoded(Image.new("L", (100, 100)), "PNG"), 9_000)))
        thread.start()
        thread.join()
    assert found == [Problem("too_many_pixels", "more than 9000 pixels")]
    assert before == Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert measure(encoded(Image.new("L", (100, 100)), "PNG"), 10_000) == (100, 100)


def test_cmyk_jpeg_becomes_rgb() -> None:
    data = encoded(Image.new("RGB", (32, 32), (200, 40, 40)).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(pixels(data).astype(int) - (200, 40, 40)).max() <= 6


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (257, 1), (25_700, 100), (40_000, 156), (65_535, 255)])
def test_16_bit_grey_is_scaled_and_not_clipped(value: int, expected: int) -> None:
    data = encoded(Image.fromarray(np.full((8, 8), value, np.uint16)), "PNG")
    assert (pixels(data) == expected).all()


def test_palette_with_transparency_lies_on_black() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    data = encoded(image, "PNG", transparency=1)
    assert pixels(data).tolist() == [[[255, 0, 0], [0, 0, 0]]]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_half_transparent_pixel_is_half_as_bright_on_black(kind: str) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = encoded(Image.new("RGBA", (4, 4), (200, 100, 50, 128)), kind, **options)
    assert np.abs(pixels(data).astype(int) - (100, 50, 25)).max() <= 1


def test_grey_with_alpha_lies_on_black() -> None:
    image = Image.new("LA", (2, 1), (200, 255))
    image.putpixel((1, 0), (200, 0))
    assert pixels(encoded(image, "PNG")).tolist() == [[[200] * 3, [0] * 3]]


def test_colour_key_of_an_rgb_png_is_transparent() -> None:
    image = Image.new("RGB", (2, 1), GREEN)
    image.putpixel((0, 0), RED)
    assert pixels(encoded(image, "PNG", transparency=GREEN)).tolist() == [[[255, 0, 0], [0, 0, 0]]]


def test_one_bit_image_is_black_and_white() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert pixels(encoded(image, "PNG")).tolist() == [[[0] * 3, [255] * 3]]


def test_every_exif_orientation_is_turned_upright() -> None:
    upright = Image.new("RGB", (2, 3))
    for index, colour in enumerate([RED, GREEN, BLUE, (255, 255, 0), (0, 255, 255), (255, 0, 255)]):
        upright.putpixel((index % 2, index // 2), colour)
    as_the_camera_wrote_it = {  # orientation -> how the stored picture is made from the upright one
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    for orientation, steps in as_the_camera_wrote_it.items():
        stored = upright
        for step in steps:
            stored = stored.transpose(step)
        exif = Image.Exif()
        exif[0x0112] = orientation
        assert (pixels(encoded(stored, "PNG", exif=exif)) == np.asarray(upright)).all(), orientation


def test_rotated_jpeg_of_a_phone_is_upright() -> None:
    stored = Image.new("RGB", (64, 32), RED)
    stored.paste(BLUE, (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = pixels(encoded(stored, "JPEG", exif=exif))
    assert found.shape == (64, 32, 3)
    assert found[4, 16].argmax() == 2
    assert found[-4, 16].argmax() == 0


def test_first_picture_of_a_phones_multi_picture_jpeg_is_used() -> None:
    found = pixels(frames("MPO"))
    assert found.shape == (16, 16, 3)
    assert found[8, 8].argmax() == 0


@pytest.mark.parametrize("size", [(1, 1), (4000, 30), (30, 4000)])
def test_odd_sizes_are_decoded(size: tuple[int, int]) -> None:
    assert pixels(encoded(Image.new("RGB", size, RED), "PNG")).shape == (size[1], size[0], 3)
