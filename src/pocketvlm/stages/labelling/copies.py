"""Near-copies of one image: resized, recompressed, mirrored; those with cut borders are found in crops.py.

A perceptual hash proposes pairs, pixels confirm them. N images, S the side of a look, K pairs. The hash alone is not
enough: 8x8 digits collide in it by the hundred.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from pocketvlm.stages.labelling.crops import find_crops

SIDE_PX = 24
"""Side of a look: three times that of an 8x8 digit. 16 joins discs with faint spots by the thousand, 32 needs twice the
memory and loses copies of 100x75 pixels."""
BANDS = 8
"""The 64 bits are cut into bands of 8; a pair that agrees in one band is a candidate: all pairs within 7 bits are."""
MAX_BITS = 10
"""Candidates further apart than this are no copies: JPEG of quality 60 and a size of 100x75 flip 2 (42 photographs)."""
MAX_MEAN = 3.0
"""Largest mean difference of two looks of one image, in levels of 255. Measured on photographs: JPEG of quality 60 0.4,
a size of 83x62 0.3, both at 100x75 2.4. The two most similar of scikit-learn's digits: 4.0; different photographs: 50."""
MAX_CELL = 18
"""Largest difference in one cell of a look: a small thing that is there or not makes another image. In the copies above
7, 4 and 18."""
MAX_ASPECT = 0.02
"""Largest difference of log aspect ratios, beside the rounding of the sides to whole pixels."""
CHUNK_PAIRS = 1 << 18
"""Pairs whose hashes are compared at once: some 20 MB."""


@dataclass(frozen=True)
class Look:
    """What is kept of an image to recognise its copies."""

    phash: int
    """64 bits."""
    pixels_SSC: npt.NDArray[np.uint8]
    """The whole image squeezed to SIDE_PX squared, RGB: without the canvas' border, which would count as equal."""
    size_px: tuple[int, int]
    """Width and height before squeezing."""


def _cosines() -> npt.NDArray[np.float64]:
    """The 8 lowest rows of the type II discrete cosine transform of SIDE_PX samples."""
    frequency_F1, sample_S = np.arange(8)[:, None], np.arange(SIDE_PX)
    return np.cos(np.pi * frequency_F1 * (2 * sample_S + 1) / (2 * SIDE_PX))


COSINES_FS = _cosines()


def look(image: Image.Image) -> Look:
    """RGB image -> its look; the hash is the usual pHash: signs of the low frequencies against their median."""
    # BILINEAR blurs a little beyond the cell, which makes it six times as steady under resizing as BOX.
    pixels_SSC = np.asarray(image.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR))
    return Look(int(_hashes(pixels_SSC[None])[0]), pixels_SSC, image.size)


def _hashes(looks_NSSC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    parts = []
    for start in range(0, len(looks_NSSC), 4096):
        # Grey as Pillow computes it, in whole numbers.
        weighted_KSS = looks_NSSC[start : start + 4096] @ np.array([19595, 38470, 7471], np.uint32)
        grey_KSS = ((weighted_KSS + 0x8000) >> 16).astype(np.float64)
        # Rounded, so that frequencies that are zero by symmetry are zero on every machine and not +-1e-13.
        low_KF = np.round(COSINES_FS @ grey_KSS @ COSINES_FS.T, 3).reshape(len(grey_KSS), -1)
        bits_KF = low_KF > np.median(low_KF, axis=1, keepdims=True)
        parts.append(np.packbits(bits_KF, axis=1).view(">u8")[:, 0].astype(np.uint64))
    return np.concatenate(parts)


@dataclass(frozen=True)
class Copies:
    """What `group_copies` found among N images."""

    groups: list[list[int]]
    """Images that must not be parted, whatever their labels: near-copies, mirrored and cut ones, and copies of copies.
    Singles included; sorted, each group sorted."""
    contradicts: dict[int, int]
    """Index -> smallest index of a direct near-copy that has another label. A mirrored or cut copy contradicts nothing:
    an arrow may well be of another class than its mirror image, and a thing may have been cut off."""


def group_copies(
    hashes_N: npt.NDArray[np.uint64],
    looks_NSSC: npt.NDArray[np.uint8],
    sizes_N2: npt.NDArray[np.int64],
    labels_N: npt.NDArray[np.int64],
) -> Copies:
    """Groups images with all their near-copies, and copies of copies; 100,000 different images take a minute.

    Labels contradict only between direct copies: a chain of small steps may well end in another class.
    """
    count = len(hashes_N)
    roots_N, contradicts_N = np.arange(count), np.full(count, count)
    for pairs_K2 in _copies(hashes_N, looks_NSSC, sizes_N2, mirrored=False):
        _join(roots_N, pairs_K2)
        other_K2 = pairs_K2[labels_N[pairs_K2[:, 0]] != labels_N[pairs_K2[:, 1]]]
        for one, other in (0, 1), (1, 0):
            np.minimum.at(contradicts_N, other_K2[:, one], other_K2[:, other])
    for pairs_K2 in _copies(hashes_N, looks_NSSC, sizes_N2, mirrored=True):
        _join(roots_N, pairs_K2)
    # One image stands for its copies: what is cut from them is cut from it.
    for pairs_K2 in find_crops(looks_NSSC, sizes_N2, roots_N):
        _join(roots_N, pairs_K2)
    return Copies(_groups(roots_N), {int(i): int(contradicts_N[i]) for i in np.flatnonzero(contradicts_N < count)})


def _copies(
    hashes_N: npt.NDArray[np.uint64], looks_NSSC: npt.NDArray[np.uint8], sizes_N2: npt.NDArray[np.int64], *, mirrored: bool
) -> Iterator[npt.NDArray[np.int64]]:
    """Pairs_K2 of which the second is a copy of the first, or of its mirror image."""
    if not len(hashes_N):
        return
    seen_NSSC = looks_NSSC[:, :, ::-1] if mirrored else looks_NSSC
    coarse_NSSC = _coarse(looks_NSSC)
    seen_coarse_NSSC = coarse_NSSC[:, :, ::-1] if mirrored else coarse_NSSC
    brightness_N = looks_NSSC.reshape(len(looks_NSSC), -1).mean(axis=1)
    for pairs_K2 in _candidates(hashes_N, _hashes(seen_NSSC) if mirrored else hashes_N, brightness_N):
        # Coarse looks first: their differences are at most those of the looks, and there are 16 times fewer of them.
        shaped_J2 = pairs_K2[_same_shape(sizes_N2[pairs_K2])]
        near_J2 = shaped_J2[_alike(shaped_J2, coarse_NSSC, seen_coarse_NSSC, slack=1)]
        yield near_J2[_alike(near_J2, looks_NSSC, seen_NSSC, slack=0)]


def _coarse(looks_NSSC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Looks of SIDE_PX / 4 squared; each value is a mean of 16, less than 1 too low."""
    side = SIDE_PX // 4
    sums_NSSC = looks_NSSC.reshape(-1, side, 4, side, 4, 3).sum(axis=(2, 4), dtype=np.uint16)
    coarse_NSSC: npt.NDArray[np.uint8] = (sums_NSSC // 16).astype(np.uint8)
    return coarse_NSSC


def _candidates(
    hashes_N: npt.NDArray[np.uint64], others_N: npt.NDArray[np.uint64], brightness_N: npt.NDArray[np.float64]
) -> Iterator[npt.NDArray[np.int64]]:
    """Pairs_K2, i < j, of which a hash of i and an other of j agree in a band and differ in few bits, about equally bright.

    The mean difference of two looks is at least the difference of their means, so sorting a bucket by brightness loses
    no pair and keeps a bucket in which half of the set lies (suns on black sky) from costing its square.
    """
    for band in range(BANDS):
        keys_N, other_keys_N = (_band(some_N, band) * 1000.0 + brightness_N for some_N in (hashes_N, others_N))
        # A key rises with the band and, inside it, with brightness; 1000 apart, so that no window spans two bands.
        order_N, other_order_N = np.argsort(keys_N, kind="stable"), np.argsort(other_keys_N, kind="stable")
        starts_N = np.searchsorted(other_keys_N[other_order_N], keys_N[order_N] - MAX_MEAN)
        ends_N = np.searchsorted(other_keys_N[other_order_N], keys_N[order_N] + MAX_MEAN, side="right")
        for pairs_K2 in _windows(starts_N, ends_N):
            left_K, right_K = order_N[pairs_K2[:, 0]], other_order_N[pairs_K2[:, 1]]
            left_K, right_K = left_K[left_K < right_K], right_K[left_K < right_K]
            differing_K = hashes_N[left_K] ^ others_N[right_K]
            near_K = np.bitwise_count(differing_K) <= MAX_BITS
            for earlier in range(band):  # pairs that agree in an earlier band were seen there
                near_K &= _band(differing_K, earlier) != 0
            yield np.stack([left_K[near_K], right_K[near_K]], axis=1)


def _band(hashes_N: npt.NDArray[np.uint64], band: int) -> npt.NDArray[np.uint64]:
    return (hashes_N >> np.uint64(8 * band)) & np.uint64(0xFF)


def _windows(starts_N: npt.NDArray[np.int64], ends_N: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """Pairs_K2 of (i, j) with starts[i] <= j < ends[i], about CHUNK_PAIRS at a time."""
    counts_N = ends_N - starts_N
    total_N = np.cumsum(counts_N)
    start = 0
    while start < len(ends_N):
        done = int(total_N[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(total_N, done + CHUNK_PAIRS, side="right")))
        counts_M = counts_N[start:stop]
        left_K = np.repeat(np.arange(start, stop), counts_M)
        first_K = np.repeat(np.cumsum(counts_M) - counts_M, counts_M)
        yield np.stack([left_K, starts_N[left_K] + np.arange(len(left_K)) - first_K], axis=1)
        start = stop


def _same_shape(sizes_K22: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which pairs have one aspect ratio, but for the rounding of sides to whole pixels."""
    aspects_K2 = np.log(sizes_K22[..., 0] / sizes_K22[..., 1])
    rounding_K = (1 / sizes_K22.min(axis=2)).max(axis=1)
    same_K: npt.NDArray[np.bool_] = np.abs(aspects_K2[:, 0] - aspects_K2[:, 1]) <= MAX_ASPECT + rounding_K
    return same_K


def _alike(
    pairs_K2: npt.NDArray[np.int64], looks_NSSC: npt.NDArray[np.uint8], others_NSSC: npt.NDArray[np.uint8], slack: int
) -> npt.NDArray[np.bool_]:
    """Which pairs, a look of the first and an other of the second, are equal to the eye: on average, and in every cell."""
    alike_K = np.zeros(len(pairs_K2), dtype=np.bool_)
    for start in range(0, len(pairs_K2), 8192):
        part = slice(start, start + 8192)
        left_KSSC, right_KSSC = looks_NSSC[pairs_K2[part, 0]], others_NSSC[pairs_K2[part, 1]]
        apart_KD = (np.maximum(left_KSSC, right_KSSC) - np.minimum(left_KSSC, right_KSSC)).reshape(len(left_KSSC), -1)
        sums_K = apart_KD.sum(axis=1, dtype=np.uint32)
        alike_K[part] = (sums_K <= (MAX_MEAN + slack) * apart_KD.shape[1]) & (apart_KD.max(axis=1) <= MAX_CELL + slack)
    return alike_K


def _join(roots_N: npt.NDArray[np.int64], pairs_K2: npt.NDArray[np.int64]) -> None:
    """Joins the groups of each pair, in place. `roots_N` gives the smallest index of each image's group.

    In whole arrays, since a set of N equal images has N squared / 2 pairs.
    """
    while True:
        ends_K2 = np.sort(roots_N[pairs_K2], axis=1)
        apart_K = ends_K2[:, 0] != ends_K2[:, 1]
        if not apart_K.any():
            return
        pairs_K2, ends_K2 = pairs_K2[apart_K], ends_K2[apart_K]
        np.minimum.at(roots_N, ends_K2[:, 1], ends_K2[:, 0])
        while (roots_N != roots_N[roots_N]).any():
            roots_N[:] = roots_N[roots_N]


def _groups(roots_N: npt.NDArray[np.int64]) -> list[list[int]]:
    members: dict[int, list[int]] = {}
    for index, root in enumerate(roots_N.tolist()):
        members.setdefault(root, []).append(index)
    return [members[root] for root in sorted(members)]
