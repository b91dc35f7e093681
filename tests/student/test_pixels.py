"""Canvas and tiles; that they equal llama.cpp's is tested on llama-server in tests/real_size."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pocketvlm.student import pixels


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width * 10007 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize(
    ("size", "edge", "rows", "cols"),
    [
        # facts/llama-cpp-and-smolvlm.md, measured on llama-server: 1088, 832 and 832 visual tokens of 64 a tile at 2048,
        # 320 at 1024, 128 at 512.
        ((256, 256), 2048, 4, 4),
        ((640, 480), 2048, 3, 4),
        ((1080, 1920), 2048, 4, 3),
        ((256, 256), 1024, 2, 2),
        ((640, 480), 1024, 2, 2),
        ((1080, 1920), 512, 1, 1),
        ((1000, 300), 2048, 2, 4),
    ],
)
def test_grid_is_the_one_that_was_measured_on_llama_server(size: tuple[int, int], edge: int, rows: int, cols: int) -> None:
    cut = pixels.grid(*size, tile_px=512, longest_edge_px=edge)
    assert (cut.rows, cut.cols) == (rows, cols)
    assert cut.tiles == rows * cols + 1


def test_smallest_budget_shows_the_same_pixels_twice() -> None:
    tiles, _ = pixels.tiles(noise(50, 20), tile_px=32, longest_edge_px=32)
    assert tiles.shape == (2, 32, 32, 3)
    assert (tiles[0] == tiles[1]).all()


def test_tiles_run_row_by_row_and_the_overview_is_last() -> None:
    image = Image.new("RGB", (64, 64))
    for place, colour in {(0, 0): (255, 0, 0), (32, 0): (0, 255, 0), (0, 32): (0, 0, 255), (32, 32): (255, 255, 255)}.items():
        image.paste(colour, (*place, place[0] + 32, place[1] + 32))
    tiles, cut = pixels.tiles(image, tile_px=32, longest_edge_px=64)
    assert (cut.rows, cut.cols, len(tiles)) == (2, 2, 5)
    assert [tuple(tile[16, 16]) for tile in tiles[:4]] == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    assert len({tuple(pixel) for pixel in tiles[4].reshape(-1, 3)}) > 3


def test_an_image_too_thin_for_the_budget_is_refused_with_its_size() -> None:
    with pytest.raises(ValueError, match=r"4000x1 is too thin .* device.canvas_px"):
        pixels.grid(4000, 1, tile_px=512, longest_edge_px=512)


def test_letterbox_keeps_the_aspect_and_fills_with_black() -> None:
    boxed = np.asarray(pixels.letterbox(Image.new("RGB", (100, 50), (200, 100, 50)), 64))
    assert boxed.shape == (64, 64, 3)
    assert (boxed[:16] == 0).all()
    assert (boxed[48:] == 0).all()
    assert (boxed[16:48] == (200, 100, 50)).all()


@pytest.mark.parametrize("size", [(1, 1), (4000, 30), (30, 4000), (3, 1)])
def test_letterbox_keeps_at_least_one_pixel_of_every_side(size: tuple[int, int]) -> None:
    boxed = np.asarray(pixels.letterbox(Image.new("RGB", size, (255, 255, 255)), 32))
    assert boxed.shape == (32, 32, 3)
    assert boxed.max() == 255


@pytest.mark.parametrize(
    ("size", "canvas_px", "fitted"),
    [
        ((64, 41), 32, (32, 21)),  # 20.5: half up, where half to even makes 20
        ((64, 43), 32, (32, 22)),
        ((41, 64), 32, (21, 32)),
        ((1000, 333), 64, (64, 21)),
        ((49, 30), 49, (49, 30)),
    ],
)
def test_letterbox_rounds_halves_up_and_puts_the_smaller_border_first(
    size: tuple[int, int], canvas_px: int, fitted: tuple[int, int]
) -> None:
    boxed = np.asarray(pixels.letterbox(Image.new("RGB", size, (255, 255, 255)), canvas_px))
    rows, cols = (np.flatnonzero(boxed.any(axis=axes)) for axes in ((1, 2), (0, 2)))
    assert (len(cols), len(rows)) == fitted
    assert (cols[0], rows[0]) == tuple((canvas_px - side) // 2 for side in fitted)


def by_the_page(image: Image.Image, canvas_px: int) -> npt.NDArray[np.int64]:
    """The canvas as somebody makes it who has read docs/release.md, and no source."""
    source_HWC = np.asarray(image).astype(np.int64)
    longest = max(image.size)
    width, height = (max(1, (2 * side * canvas_px + longest) // (2 * longest)) for side in image.size)
    fitted_HWC = one_pass(one_pass(source_HWC.swapaxes(0, 1), width).swapaxes(0, 1), height)
    canvas_HWC = np.zeros((canvas_px, canvas_px, 3), np.int64)
    left, top = (canvas_px - width) // 2, (canvas_px - height) // 2
    canvas_HWC[top : top + height, left : left + width] = fitted_HWC
    return canvas_HWC


def one_pass(lines_NWC: npt.NDArray[np.int64], m: int) -> npt.NDArray[np.int64]:
    n = len(lines_NWC)
    if n == m:
        return lines_NWC
    scale = n / m
    wide = max(scale, 1)
    reach = 3 * wide
    result = []
    for i in range(m):
        c = (i + 0.5) * scale
        xs = range(max(0, int(c - reach + 0.5)), min(n, int(c + reach + 0.5)))
        weights = [lanczos((x - c + 0.5) / wide) for x in xs]
        total = sum(weights)
        whole = np.array([int(w / total * 2**22 + math.copysign(0.5, w / total)) for w in weights])
        result.append(np.clip((2**21 + np.tensordot(whole, lines_NWC[xs.start : xs.stop], 1)) >> 22, 0, 255))
    return np.stack(result)


def lanczos(t: float) -> float:
    def sinc(t: float) -> float:
        return math.sin(math.pi * t) / (math.pi * t) if t else 1.0

    return sinc(t) * sinc(t / 3) if -3 <= t < 3 else 0.0


@pytest.mark.parametrize("size", [(64, 41), (33, 100), (10, 400), (7, 5), (50, 50), (32, 32), (200, 1)])
def test_the_canvas_can_be_made_from_the_release_page_alone(size: tuple[int, int]) -> None:
    image = noise(*size)
    assert (by_the_page(image, 32) == np.asarray(pixels.letterbox(image, 32))).all()


def test_the_overview_of_a_tall_image_is_resized_rows_first_as_llama_cpp_does() -> None:
    """Pillow 13 alone would take the columns first: 4 rows of tiles shrink by 3, 2 columns by 1."""
    tiles, cut = pixels.tiles(noise(45, 128), tile_px=32, longest_edge_px=128)
    assert (cut.rows, cut.cols) == (4, 2)
    refined_HWC = tiles[:-1].reshape(4, 2, 32, 32, 3).swapaxes(1, 2).reshape(128, 64, 3).astype(np.int64)
    overview_HWC = one_pass(one_pass(refined_HWC.swapaxes(0, 1), 32).swapaxes(0, 1), 32)
    assert (overview_HWC == tiles[-1]).all()


@pytest.mark.parametrize("canvas_px", [8, 31, 32, 256])
def test_canvas_example_shows_a_wrong_rounding_a_wrong_offset_and_a_wrong_filter(canvas_px: int) -> None:
    original, canvas = pixels.canvas_example(canvas_px)
    again = pixels.canvas_example(canvas_px)
    assert (original.tobytes(), canvas.tobytes()) == tuple(image.tobytes() for image in again)
    assert canvas.tobytes() == pixels.letterbox(original, canvas_px).tobytes()
    width, height = original.size
    exact = height * canvas_px / width
    assert exact - int(exact) == 0.5 and round(exact) == int(exact), "another rounding makes another size"
    assert canvas_px % 2 or (canvas_px - int(exact + 0.5)) % 2, "another offset makes another place"
    fitted = (canvas_px, int(exact + 0.5))
    for other in (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.BOX):
        wrong = original.resize(fitted, other)
        right = original.resize(fitted, pixels.FILTER)
        assert np.abs(np.asarray(wrong).astype(int) - np.asarray(right).astype(int)).max() > 16


def test_blind_image_holds_nothing_of_the_picture() -> None:
    assert len(set(pixels.blind(noise(20, 10)).getdata())) == 1
