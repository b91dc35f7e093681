"""Pixels as the phone's runtime makes them: the app's canvas, then llama.cpp's tiles. Pillow and NumPy, no torch.

The tiles follow `mtmd_image_preprocessor_idefics3` of the pinned llama.cpp (tools/mtmd/mtmd-image.cpp), which since
#27594 resizes bit for bit as Pillow does: longest side to the budget, up to whole tiles, tiles in rows, then the
overview. Every resize is LANCZOS and none keeps a border: only the app's canvas pads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Tiles = npt.NDArray[Any]
"""What a vision tower reads, tile after tile: Pixels, or another processor's numbers."""
FILTER = Image.Resampling.LANCZOS
BLACK = (0, 0, 0)


@dataclass(frozen=True)
class Grid:
    """How one image is cut: `rows` x `cols` tiles and one overview."""

    resized_px: tuple[int, int]
    """Width and height after the first resize."""
    rows: int
    cols: int

    @property
    def tiles(self) -> int:
        """Tiles with the overview: what the encoder of the phone runs on."""
        return self.rows * self.cols + 1

    @property
    def words(self) -> str:
        """For a person."""
        return f"{self.rows}x{self.cols} tiles and the overview"


def letterbox(image: Image.Image, canvas_px: int) -> Image.Image:
    """RGB image -> RGB square of `canvas_px`: longest side fits, centred, the rest black.

    Each side is rounded to the nearest pixel, halves up as Java's and Kotlin's round do, and is at least 1. The filter is
    Pillow's LANCZOS (three lobes, widened when shrinking), rows first, 8 bits between the passes. Where the border is odd,
    its smaller half is at the left or at the top. The app makes the same square from docs/release.md.
    """
    longest = max(image.size)
    # In whole numbers: Python's round() takes halves to the even neighbour, and a product of floats may miss the half.
    width, height = (max(1, (2 * side * canvas_px + longest) // (2 * longest)) for side in image.size)
    canvas = Image.new("RGB", (canvas_px, canvas_px), BLACK)
    canvas.paste(_resize(image, (width, height)), ((canvas_px - width) // 2, (canvas_px - height) // 2))
    return canvas


def canvas_example(canvas_px: int) -> tuple[Image.Image, Image.Image]:
    """A generated RGB image of an awkward size, and its canvas: what an app's own letterbox can be held against.

    Twice the canvas wide, about 5/8 of that high: its height comes out at exactly half a pixel, which only rounding up
    makes right, and the border of an even canvas is odd. Sharp edges, fine lines and colours show another filter.
    """
    width, height = 2 * canvas_px, 4 * (5 * canvas_px // 16) + 1
    y_HW, x_HW = np.mgrid[:height, :width]
    red = (3 * x_HW + 5 * y_HW) % 256
    green = (x_HW * x_HW + y_HW * y_HW) // 16 % 256
    blue = 255 * ((x_HW ^ y_HW) * 5 % 7 < 3)
    original = Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8))
    return original, letterbox(original, canvas_px)


def grid(width: int, height: int, *, tile_px: int, longest_edge_px: int) -> Grid:
    """Raises ValueError when the image is so thin that llama.cpp would scale its short side to nothing."""
    ratio = width / height
    if width >= height:
        resized_width, resized_height = longest_edge_px, int(longest_edge_px / ratio)
        resized_height += resized_height % 2
    else:
        resized_width, resized_height = int(longest_edge_px * ratio), longest_edge_px
        resized_width += resized_width % 2
    if not resized_width or not resized_height:
        raise ValueError(
            f"{width}x{height} is too thin for a longest edge of {longest_edge_px} px; set device.canvas_px"
        )
    return Grid((resized_width, resized_height), -(-resized_height // tile_px), -(-resized_width // tile_px))


def tiles(image: Image.Image, *, tile_px: int, longest_edge_px: int) -> tuple[Pixels, Grid]:
    """RGB image -> tiles_NHWC (uint8; N = rows * cols + 1, row by row, the overview last) and their grid."""
    cut = grid(*image.size, tile_px=tile_px, longest_edge_px=longest_edge_px)
    refined = _resize(_resize(image, cut.resized_px), (cut.cols * tile_px, cut.rows * tile_px))
    overview = np.asarray(_resize(refined, (tile_px, tile_px)))
    pixels_HWC = np.asarray(refined)
    rows_RCHWC = pixels_HWC.reshape(cut.rows, tile_px, cut.cols, tile_px, 3).swapaxes(1, 2)
    tiles_NHWC = np.concatenate([rows_RCHWC.reshape(-1, tile_px, tile_px, 3), overview[None]])
    return tiles_NHWC, cut


def distinct(tiles: Tiles) -> tuple[Tiles, list[int]]:
    """The tiles without repetitions, and for each tile of the layout its place among them."""
    kept: list[int] = []
    places: list[int] = []
    for i, tile in enumerate(tiles):
        same = next((p for p, k in enumerate(kept) if (tiles[k] == tile).all()), None)
        places.append(len(kept) if same is None else same)
        if same is None:
            kept.append(i)
    return tiles[kept], places


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """LANCZOS, rows before columns, as llama.cpp does it.

    In one call, Pillow 13 takes the columns of some tall images first (its #9549), which moves pixels by up to 3 of 255.
    """
    across = image if image.width == size[0] else image.resize((size[0], image.height), FILTER)
    return across if across.height == size[1] else across.resize(size, FILTER)


def blind(image: Image.Image) -> Image.Image:
    """The same size, mid grey: what a model sees when its images are lost on the way."""
    return Image.new("RGB", image.size, (128, 128, 128))
