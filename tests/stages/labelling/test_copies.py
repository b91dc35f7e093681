from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pocketvlm.sources.digits import _load
from pocketvlm.stages.labelling.copies import Copies, group_copies, look


def photo(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    """Clouds of several sizes: as smooth and as detailed as a photograph."""
    random = np.random.default_rng(seed)
    total_HWC = np.full((height, width, 3), 128.0)
    for cells in (3, 6, 15, 40):
        noise_HWC = random.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(noise_HWC).resize((width, height), Image.Resampling.BICUBIC)
        total_HWC += (np.asarray(layer) - 128.0) * 2 / np.sqrt(cells)
    return Image.fromarray(np.clip(total_HWC, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return Image.open(out).convert("RGB")


def found(images: list[Image.Image], labels: list[int] | None = None) -> Copies:
    looks = [look(image) for image in images]
    return group_copies(
        np.array([one.phash for one in looks], np.uint64),
        np.stack([one.pixels_SSC for one in looks]),
        np.array([one.size_px for one in looks]),
        np.array(labels or [0] * len(images)),
    )


COPIES = {
    **{f"JPEG {quality}": lambda image, quality=quality: jpeg(image, quality) for quality in (60, 75, 85, 95)},
    **{
        f"{percent} % {kind.name}": lambda image, percent=percent, kind=kind: image.resize(
            (image.width * percent // 100, image.height * percent // 100), kind
        )
        for percent in (200, 75, 50, 30)
        for kind in (Image.Resampling.LANCZOS, Image.Resampling.BILINEAR)
    },
    "50 % and JPEG 75": lambda image: jpeg(image.resize((image.width // 2, image.height // 2)), 75),
}


@pytest.mark.parametrize("name", COPIES)
def test_copy_of_a_photograph_is_found_among_others(name: str) -> None:
    originals = [photo(seed) for seed in range(12)]
    groups = found([*originals, *(COPIES[name](image) for image in originals)]).groups
    assert groups == [[index, index + 12] for index in range(12)]


def test_different_photographs_are_no_copies() -> None:
    assert found([photo(seed) for seed in range(60)]).groups == [[index] for index in range(60)]


def test_same_shapes_in_another_colour_are_no_copies() -> None:
    image = photo(0)
    red, green, blue = image.split()
    assert found([image, Image.merge("RGB", (blue, green, red))]).groups == [[0], [1]]


def test_a_small_thing_that_was_added_makes_another_image() -> None:
    image = photo(0)
    spotted = image.copy()
    spotted.paste((255, 255, 255), (100, 100, 130, 130))
    assert found([image, spotted]).groups == [[0], [1]]


def test_stretched_image_is_no_copy() -> None:
    assert found([photo(0), photo(0).resize((320, 320))]).groups == [[0], [1]]


def test_thin_strips_are_compared_by_their_content() -> None:
    strips = [photo(seed, 1000, 240).crop((0, 100, 1000, 130)) for seed in range(5)]
    assert found([*strips, strips[2].resize((500, 15))]).groups == [[0], [1], [2, 5], [3], [4]]


def test_handwritten_digits_are_not_chained_together() -> None:
    images_NHW, _ = _load()
    grey_NHW = (images_NHW.astype(np.uint16) * 255 // 16).astype(np.uint8)
    groups = found([Image.fromarray(grey_HW).convert("RGB") for grey_HW in grey_NHW]).groups
    assert len(groups) == 1797


def test_contradiction_is_between_direct_copies_only() -> None:
    images = [photo(0), jpeg(photo(0), 80), photo(1), jpeg(photo(1), 80)]
    copies = found(images, labels=[0, 1, 0, 0])
    assert copies.contradicts == {0: 1, 1: 0}
    assert copies.groups == [[0], [1], [2, 3]]


def test_equal_images_by_the_thousand_do_not_take_long() -> None:
    one = look(photo(0))
    count = 1500
    copies = group_copies(
        np.full(count, one.phash, np.uint64), np.stack([one.pixels_SSC] * count), np.full((count, 2), 64), np.zeros(count)
    )
    assert copies.groups == [list(range(count))]


def test_hash_of_an_image_of_one_colour_is_stable() -> None:
    assert look(Image.new("RGB", (50, 40), (9, 9, 9))).phash == look(Image.new("RGB", (500, 400), (9, 9, 9))).phash
