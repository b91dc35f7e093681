from __future__ import annotations

import io
import time
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from pocketvlm.run_file import Split
from pocketvlm.sources.digits import _load
from pocketvlm.stages.labelling.copies import Copies, group_copies, look
from pocketvlm.stages.labelling.split import assign_splits


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


def mirrored(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def cut(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """Cut off at the four sides, in percent."""
    across, down = image.width / 100, image.height / 100
    return image.crop(
        (round(left * across), round(top * down), image.width - round(right * across), image.height - round(bottom * down))
    )


def halved(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2))


def pieces_of_photographs() -> list[Image.Image]:
    """32 pieces of 160x106 pixels, none of which overlap, of the two photographs that scikit-learn brings."""
    from sklearn.datasets import load_sample_images

    whole = [Image.fromarray(pixels_HWC) for pixels_HWC in load_sample_images().images]
    corners = [(x, y) for y in range(0, 424, 106) for x in range(0, 640, 160)]
    return [image.crop((x, y, x + 160, y + 106)) for image in whole for x, y in corners]


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


KINDRED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "mirrored": mirrored,
    "mirrored, JPEG 60": lambda image: jpeg(mirrored(image), 60),
    "mirrored, halved, JPEG 75": lambda image: jpeg(mirrored(halved(image)), 75),
    "2 % off each side": lambda image: cut(image, 2, 2, 2, 2),
    "5 % off each side": lambda image: cut(image, 5, 5, 5, 5),
    "8 % off each side": lambda image: cut(image, 8, 8, 8, 8),
    "8 % off the left": lambda image: cut(image, 8, 0, 0, 0),
    "8 % off the bottom": lambda image: cut(image, 0, 0, 0, 8),
    "8 % off two sides": lambda image: cut(image, 0, 8, 8, 0),
    "uneven": lambda image: cut(image, 1, 7, 5, 3),
    "uneven, JPEG 60": lambda image: jpeg(cut(image, 6, 0, 2, 4), 60),
    "uneven, halved, JPEG 75": lambda image: jpeg(halved(cut(image, 3, 5, 0, 7)), 75),
    "uneven, mirrored": lambda image: mirrored(cut(image, 7, 2, 4, 0)),
    "uneven, mirrored, halved, JPEG 75": lambda image: jpeg(halved(mirrored(cut(image, 0, 6, 8, 1))), 75),
}


@pytest.mark.parametrize("name", KINDRED)
def test_mirrored_and_cut_copies_are_kept_with_their_image_and_contradict_nothing(name: str) -> None:
    originals = [photo(seed) for seed in range(12)]
    copies = found([*originals, *(KINDRED[name](image) for image in originals)], labels=[0] * 12 + [1] * 12)
    assert copies.groups == [[index, index + 12] for index in range(12)]
    assert not copies.contradicts


def test_no_copy_of_a_photograph_crosses_splits() -> None:
    originals = pieces_of_photographs()
    kinds = {**COPIES, **KINDRED}
    images, source_of, labels = list(originals), list(range(32)), [index % 2 for index in range(32)]
    for index, image in enumerate(originals):
        for turn in range(3):  # of every kind three to five
            images.append(list(kinds.values())[(3 * index + turn) % len(kinds)](image))
            source_of.append(index)
            labels.append(index % 2)
    groups = found(images, labels).groups
    assert all(len({source_of[index] for index in group}) == 1 for group in groups), "different photographs were joined"
    names = ["even", "odd"]
    splits = assign_splits(groups, [f"{i:064x}" for i in range(len(images))], [names[i] for i in labels], names, Split())
    crossing = [index for index in range(32, len(images)) if splits[index] != splits[source_of[index]]]
    assert not crossing
    assert all({splits[i] for i in range(len(images)) if labels[i] == label} == set(splits) for label in (0, 1))


def test_more_than_a_tenth_cut_off_makes_another_image() -> None:
    assert found([photo(0), cut(photo(0), 15, 15, 15, 15)]).groups == [[0], [1]]


def test_a_small_thing_that_was_added_to_a_cut_copy_makes_another_image() -> None:
    image = photo(0)
    spotted = cut(image, 5, 0, 3, 2)
    spotted.paste((255, 255, 255), (100, 100, 130, 130))
    assert found([image, spotted]).groups == [[0], [1]]


def test_copies_of_a_mirrored_copy_belong_to_the_image_too() -> None:
    image, other = photo(0), photo(1)
    images = [other, jpeg(cut(mirrored(image), 5, 5, 5, 5), 75), halved(mirrored(image)), image]
    assert found(images).groups == [[0], [1, 2, 3]]


@pytest.mark.parametrize("name", COPIES)
def test_copy_of_a_photograph_is_found_among_others(name: str) -> None:
    originals = [photo(seed) for seed in range(12)]
    groups = found([*originals, *(COPIES[name](image) for image in originals)]).groups
    assert groups == [[index, index + 12] for index in range(12)]


def test_different_photographs_are_no_copies() -> None:
    images = [photo(seed) for seed in range(60)] + pieces_of_photographs()
    assert found(images).groups == [[index] for index in range(92)]


def test_skies_without_detail_are_not_joined_by_being_laid_upon_each_other() -> None:
    def sky(seed: int) -> Image.Image:
        slope_H11 = np.linspace(170, 190, 120)[:, None, None]
        noise_HWC = np.random.default_rng(seed).normal(0, 6, (120, 160, 3))
        return Image.fromarray(np.clip(slope_H11 + noise_HWC + [3.0 * seed, 0, 20], 0, 255).astype(np.uint8))

    assert len(found([sky(seed) for seed in range(10)]).groups) == 10


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
    assert copies.groups == [[0, 1], [2, 3]]


def test_cut_copies_are_found_among_thousands_in_seconds() -> None:
    random = np.random.default_rng(0)
    count = 3000
    coarse_NSSC = random.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    looks = [look(Image.fromarray(coarse_SSC).resize((96, 72), Image.Resampling.BICUBIC)) for coarse_SSC in coarse_NSSC]
    last = Image.fromarray(coarse_NSSC[7]).resize((96, 72), Image.Resampling.BICUBIC)
    looks.append(look(mirrored(cut(last, 4, 0, 8, 3))))
    start = time.process_time()
    copies = group_copies(
        np.array([one.phash for one in looks], np.uint64), np.stack([one.pixels_SSC for one in looks]),
        np.array([one.size_px for one in looks]), np.arange(count + 1),
    )  # fmt: skip
    assert [group for group in copies.groups if len(group) > 1] == [[7, count]]
    assert time.process_time() - start < 20


def test_an_empty_set_has_no_groups() -> None:
    empty = group_copies(
        np.empty(0, np.uint64), np.empty((0, 24, 24, 3), np.uint8), np.empty((0, 2), np.int64), np.empty(0, np.int64)
    )
    assert empty == Copies([], {})


def test_equal_images_by_the_thousand_do_not_take_long() -> None:
    one = look(photo(0))
    count = 1500
    copies = group_copies(
        np.full(count, one.phash, np.uint64), np.stack([one.pixels_SSC] * count), np.full((count, 2), 64), np.zeros(count)
    )
    assert copies.groups == [list(range(count))]


def test_hash_of_an_image_of_one_colour_is_stable() -> None:
    assert look(Image.new("RGB", (50, 40), (9, 9, 9))).phash == look(Image.new("RGB", (500, 400), (9, 9, 9))).phash
