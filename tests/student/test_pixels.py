"""Canvas and tiles; that they equal llama.cpp's is tested on llama-server in tests/real_size."""

from __future__ import annotations

import numpy as np
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


def test_blind_image_holds_nothing_of_the_picture() -> None:
    assert len(set(pixels.blind(noise(20, 10)).getdata())) == 1
