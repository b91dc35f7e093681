"""Copies whose borders were cut off, mirrored or not: one look fits upon a part of another.

A few numbers of each look propose pairs; laying the one upon the other, at the cuts that fit best, confirms them.
N images, M chosen ones, S the side of a look, D describing numbers, K pairs; four cuts of a pair: left, top, right and
bottom, in parts of the side. What decides is exact, or float64, so that no machine's rounding decides otherwise.

The figures below are of 160x106 to 80x60 pixel regions of photographs and of generated pictures ("photographs"), cut by up to
8 % on each side, mirrored, halved, as JPEG of quality 60 to 75.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Looks = npt.NDArray[np.uint8]

CUT_STEP = 1 / 384
"""Between two cuts that looks are read at: a sixteenth of a cell."""
MAX_CUT = 36 * CUT_STEP
"""Most that is found cut off a side: 8 %, the rounding to whole pixels, and room for the search."""
MIN_CUT = -4 * CUT_STEP
"""A little below nothing: a look's cells are as wide as its image makes them, to within a pixel."""
START_CUT = 0.04
"""What is assumed to be cut off before anything is known: 8 % and nothing are then one cell of the look away."""
MIN_COSINE = 0.8
"""Of the describing numbers, at START_CUT. 99.9 % of the photographs' copies have more; of 100,000 different images 22
in a million pairs do and are alike in colour. 0.85 loses 6 % of the grey textures that are cut by 8 % at two sides."""
MAX_ASPECT = 0.22
"""Largest difference of log aspect ratios: as if MAX_CUT were cut at both ends of one direction alone. More is another form."""
MAX_TINT = 20.0
"""Largest difference of mean colours, at START_CUT, in levels of 255. Copies of photographs 13, of a disc on black 20."""
MAX_PROPOSALS = 24
"""For each image and way round, the most alike. Only crowds have more (digits, suns) and would cost their square; in
them, cut copies are missed: half and more of 250 suns' that differ in faint spots alone."""
MAX_FIRST = 8.0
"""Largest mean difference after one step of the search; copies of photographs have up to 4.6."""
MAX_MEAN = 4.0
"""As in copies.py, of blurred looks: copies of photographs have up to 3.5, the two most similar digits 6.3."""
MAX_CELL = 8.0
"""Largest difference in a cell, beyond MAX_EDGE of the contrast that both looks have around it. Copies of photographs
have 7, JPEG of 40x30 pixels up to 17. A spot in one of two suns has all of its own height, since the other has no edge there."""
MAX_EDGE = 0.2
"""Edges, read between cells, differ by up to 13 levels in copies of photographs: as much as a faint spot."""
MAX_REST = 0.5
"""Largest part of a look's details that the other does not have: a clear sky fits upon any other. Neighbouring pieces
of one sky have 0.6, copies of photographs 0.15, of their skies up to 0.4 and, as JPEG of quality 60, 1."""
STEPS = 3
"""Of Newton's method. After two, a disc of which 8 % are cut off each side still differs half as much again."""
LENGTH = 3000.0
"""Of the describing numbers as a vector. They are whole numbers, and float32 adds such exactly up to 4096 squared."""
LUMINANCE = np.array([0.299, 0.587, 0.114])
ROWS = 128
"""Images proposed for, or pairs laid upon each other, at once: of 100,000 images 30 MB, in a crowd 170 MB; and 20 MB."""


def find_crops(looks_NSSC: Looks, sizes_N2: Ints, roots_N: Ints) -> Iterator[Ints]:
    """Pairs_K2 of images of which the second is a part of the first, or of its mirror image.

    Only of images that are their own root. The caller may join roots as pairs come: those of one root are passed over.
    """
    chosen_M = np.flatnonzero(roots_N == np.arange(len(roots_N)))
    if len(chosen_M) < 2:
        return
    bench = _Bench(looks_NSSC.shape[1])
    wholes_MD, whole_tints_M3 = bench.described(looks_NSSC, chosen_M, 0.0)
    parts_MD, part_tints_M3 = bench.described(looks_NSSC, chosen_M, START_CUT)
    for mirrored in (False, True):
        signs_D = bench.mirror_D if mirrored else np.ones_like(bench.mirror_D)
        for places_K2 in _proposals((parts_MD, part_tints_M3), (wholes_MD * signs_D, whole_tints_M3)):
            pairs_K2 = chosen_M[places_K2]
            pairs_K2 = pairs_K2[_about_one_shape(sizes_N2[pairs_K2])]
            for start in range(0, len(pairs_K2), ROWS):
                part_J2 = pairs_K2[start : start + ROWS]
                part_J2 = part_J2[roots_N[part_J2[:, 0]] != roots_N[part_J2[:, 1]]]
                if len(part_J2):
                    whole_JSSC, part_JSSC = looks_NSSC[part_J2[:, 0]], looks_NSSC[part_J2[:, 1]]
                    yield part_J2[bench.fit(whole_JSSC, part_JSSC[:, :, ::-1] if mirrored else part_JSSC)]


def _about_one_shape(sizes_K22: Ints) -> npt.NDArray[np.bool_]:
    aspects_K2 = np.log(sizes_K22[..., 0] / sizes_K22[..., 1])
    same_K: npt.NDArray[np.bool_] = np.abs(aspects_K2[:, 0] - aspects_K2[:, 1]) <= MAX_ASPECT
    return same_K


def _proposals(
    parts: tuple[npt.NDArray[np.float32], Floats], wholes: tuple[npt.NDArray[np.float32], Floats]
) -> Iterator[Ints]:
    """Pairs_K2 of a part of the first that is about the whole of the second; each has numbers_MD and tints_M3.

    Every part meets every whole that is about as bright.
    """
    (parts_MD, part_tints_M3), (wholes_MD, whole_tints_M3) = parts, wholes
    rows_M, columns_M = _by_brightness(part_tints_M3), _by_brightness(whole_tints_M3)
    part_light_M, whole_light_M = part_tints_M3[rows_M] @ LUMINANCE, whole_tints_M3[columns_M] @ LUMINANCE
    sorted_MD = wholes_MD[columns_M]
    for start in range(0, len(rows_M), ROWS):
        own_R = rows_M[start : start + ROWS]
        lights_R = part_light_M[start : start + ROWS]
        first = int(np.searchsorted(whole_light_M, lights_R[0] - MAX_TINT))
        last = int(np.searchsorted(whole_light_M, lights_R[-1] + MAX_TINT, side="right"))
        row_K, column_K = _most_alike(parts_MD[own_R] @ sorted_MD[first:last].T)
        pairs_K2 = np.stack([own_R[row_K], columns_M[first + column_K]], axis=1)
        tints_K3 = np.abs(part_tints_M3[pairs_K2[:, 0]] - whole_tints_M3[pairs_K2[:, 1]])
        yield pairs_K2[(pairs_K2[:, 0] != pairs_K2[:, 1]) & (tints_K3.max(axis=1) <= MAX_TINT)]


def _by_brightness(tints_M3: Floats) -> Ints:
    return np.argsort(tints_M3 @ LUMINANCE, kind="stable")


def _most_alike(products_RC: npt.NDArray[np.float32]) -> tuple[Ints, Ints]:
    """Rows_K and columns_K of products of at least MIN_COSINE, the MAX_PROPOSALS largest of a row and what equals them."""
    least = np.float32(MIN_COSINE * LENGTH**2)
    row_K, column_K = np.divmod(np.flatnonzero(products_RC >= least), max(1, products_RC.shape[1]))
    counts_R = np.bincount(row_K, minlength=len(products_RC))
    if (counts_R <= MAX_PROPOSALS).all():
        return row_K, column_K
    least_R = np.full(len(products_RC), least)
    found_K = products_RC[row_K, column_K]
    ends_R = np.cumsum(counts_R)
    for row in np.flatnonzero(counts_R > MAX_PROPOSALS):
        own_K = found_K[ends_R[row] - counts_R[row] : ends_R[row]]
        least_R[row] = np.partition(own_K, -MAX_PROPOSALS)[-MAX_PROPOSALS]
    kept_K = found_K >= least_R[row_K]
    return row_K[kept_K], column_K[kept_K]


class _Bench:
    """Looks of S squared are described and laid upon each other here; it holds what depends on S alone."""

    def __init__(self, side: int) -> None:
        self._side = side
        self._middle_S = (np.arange(side) + 0.5) / side
        self._blur_SS = _blur(side)
        self._planes_I3 = _planes(side - 2)
        cuts_G = CUT_STEP * np.arange(round(MIN_CUT / CUT_STEP), round(MAX_CUT / CUT_STEP) + 1)
        cuts_GG2 = np.stack(np.meshgrid(cuts_G, cuts_G, indexing="ij"), axis=-1)
        self._readings_GGSS = self._blur_SS @ self._reading(cuts_GG2)
        frequency_F1 = np.arange(5)[:, None]
        scale_F1 = np.sqrt(np.where(frequency_F1 == 0, 1, 2) / side)
        self._cosines_FS = scale_F1 * np.cos(np.pi * frequency_F1 * self._middle_S)
        y_FF, x_FF = np.mgrid[:5, :5]
        self._grey_FF = (y_FF + x_FF > 0) & (y_FF + x_FF < 5)
        self._colour_FF = (y_FF + x_FF > 0) & (y_FF + x_FF < 3)
        # Photographs have most of their contrast in the lowest frequencies, and all would be alike by those.
        self._weights_FF = np.sqrt(np.hypot(y_FF, x_FF))
        self.mirror_D = self._numbers(*[(1.0 - 2 * (x_FF % 2))[None]] * 3)[0].astype(np.float32)
        """Mirroring an image multiplies its numbers by these."""

    def described(self, looks_NSSC: Looks, chosen_M: Ints, cut: float) -> tuple[npt.NDArray[np.float32], Floats]:
        """Numbers_MD and mean colours_M3 of the looks, `cut` on all sides: low frequencies, whatever the contrast."""
        weights_SS = self._reading(np.full(2, cut))
        numbers, tints = [], []
        for start in range(0, len(chosen_M), 1024):
            looks_K3SS = _planar(looks_NSSC[chosen_M[start : start + 1024]])
            cut_K3SS = weights_SS @ looks_K3SS @ weights_SS.T
            tints.append(cut_K3SS.mean(axis=(2, 3)))
            light_KSS = np.einsum("kcij,c->kij", cut_K3SS, LUMINANCE)
            channels = light_KSS, cut_K3SS[:, 0] - cut_K3SS[:, 1], cut_K3SS[:, 2] - light_KSS
            low = [self._cosines_FS @ channel_KSS @ self._cosines_FS.T for channel_KSS in channels]
            low_KD = self._numbers(low[0] * self._weights_FF, 0.7 * low[1], 0.7 * low[2])
            length_K1 = np.maximum(np.sqrt((low_KD**2).sum(axis=1, keepdims=True)), 1e-3)
            numbers.append(np.round(low_KD / length_K1 * LENGTH).astype(np.float32))
        return np.concatenate(numbers), np.concatenate(tints)

    def _numbers(self, light_KFF: Floats, red_KFF: Floats, blue_KFF: Floats) -> Floats:
        return np.concatenate(
            [light_KFF[:, self._grey_FF], red_KFF[:, self._colour_FF], blue_KFF[:, self._colour_FF]], axis=1
        )

    def fit(self, whole_KSSC: Looks, part_KSSC: Looks) -> npt.NDArray[np.bool_]:
        """Which pairs are one picture, of which the second shows a part."""
        whole_KSS, part_KSS = whole_KSSC @ LUMINANCE, self._blurred(part_KSSC @ LUMINANCE)
        pairs = whole_KSS, part_KSS, *self._slopes(part_KSS)
        cuts_K4 = self._step(np.full((len(whole_KSS), 4), START_CUT), *pairs)
        near_K: npt.NDArray[np.bool_] = np.abs(_inner(self._laid(whole_KSS, cuts_K4) - part_KSS)).mean(axis=(1, 2)) <= MAX_FIRST
        if not near_K.any():
            return near_K
        cuts_J4, left = cuts_K4[near_K], [values[near_K] for values in pairs]
        for _ in range(STEPS - 1):
            cuts_J4 = self._step(cuts_J4, *left)
        near_K[near_K] = self._same(whole_KSSC[near_K], part_KSSC[near_K], cuts_J4)
        return near_K

    def _same(self, whole_KSSC: Looks, part_KSSC: Looks, cuts_K4: Floats) -> npt.NDArray[np.bool_]:
        """Which pairs show the same, once they are laid upon each other: on average, in every cell, in their details."""
        laid_K3SS, part_K3SS = self._laid(_planar(whole_KSSC), cuts_K4), self._blurred(_planar(part_KSSC))
        apart_K3SS = np.abs(_inner(laid_K3SS - part_K3SS))
        edges_K3SS = np.minimum(_contrast(laid_K3SS), _contrast(part_K3SS))
        beyond_K = (apart_K3SS - MAX_EDGE * edges_K3SS).max(axis=(1, 2, 3), initial=0)
        # Details are what is left of a look without its even slope from side to side.
        part_K3I = _inner(part_K3SS).reshape(-1, 3, len(self._planes_I3))
        details_K = (part_K3I**2).sum(axis=(1, 2)) - ((part_K3I @ self._planes_I3) ** 2).sum(axis=(1, 2))
        rest_K = (apart_K3SS**2).sum(axis=(1, 2, 3))
        same_K: npt.NDArray[np.bool_] = (
            (apart_K3SS.mean(axis=(1, 2, 3)) <= MAX_MEAN) & (beyond_K <= MAX_CELL) & (rest_K <= MAX_REST**2 * details_K)
        )
        return same_K

    def _step(
        self, cuts_K4: Floats, whole_KSS: Floats, part_KSS: Floats, slopes_K4I: Floats, square_K44: Floats
    ) -> Floats:
        """Better cuts: a step of Newton's method on the sum of squared differences."""
        apart_KI1 = _inner(self._laid(whole_KSS, cuts_K4) - part_KSS).reshape(*slopes_K4I.shape[::2], 1)
        better_K4: Floats = cuts_K4 - np.linalg.solve(square_K44, slopes_K4I @ apart_KI1)[..., 0]
        return np.clip(better_K4, MIN_CUT, MAX_CUT)

    def _slopes(self, part_KSS: Floats) -> tuple[Floats, Floats]:
        """How each inner cell changes with each of the cuts, and the products of these; nearly the same at all cuts."""
        across_KSS = (part_KSS[:, 1:-1, 2:] - part_KSS[:, 1:-1, :-2]) * self._side / 2
        down_KSS = (part_KSS[:, 2:, 1:-1] - part_KSS[:, :-2, 1:-1]) * self._side / 2
        x_S, y_S1 = self._middle_S[1:-1], self._middle_S[1:-1, None]
        slopes = across_KSS * (1 - x_S), down_KSS * (1 - y_S1), -across_KSS * x_S, -down_KSS * y_S1
        slopes_K4I = np.stack(slopes, axis=1).reshape(len(part_KSS), 4, -1)
        square_K44 = slopes_K4I @ slopes_K4I.transpose(0, 2, 1)
        # A look without detail in one direction has no slopes there: the cut then stays where it is.
        damping_K = 1e3 + 2.5e-4 * np.trace(square_K44, axis1=1, axis2=2)
        return slopes_K4I, square_K44 + np.eye(4) * damping_K[:, None, None]

    def _laid(self, wholes: Floats, cuts_K4: Floats) -> Floats:
        """The part that is left inside the cuts of each whole (KSS or K3SS), as a blurred look of its own."""
        at_K4 = np.round((cuts_K4 - MIN_CUT) / CUT_STEP).astype(np.int64)
        down_KSS, across_KSS = (self._readings_GGSS[at_K4[:, axis], at_K4[:, axis + 2]] for axis in (1, 0))
        if wholes.ndim == 4:
            down_KSS, across_KSS = down_KSS[:, None], across_KSS[:, None]
        laid: Floats = down_KSS @ wholes @ across_KSS.swapaxes(-1, -2)
        return laid

    def _reading(self, cuts: Floats) -> Floats:
        """Weights_SS that read a line of S cells, cut at both ends, at S even places: cubic, through the cells."""
        first, last = cuts[..., :1], cuts[..., 1:]
        places = (first + (1 - first - last) * self._middle_S) * self._side - 0.5
        away = np.abs(np.clip(places, 0, self._side - 1)[..., None] - np.arange(self._side))
        near = (1.5 * away - 2.5) * away**2 + 1
        far = ((2.5 - 0.5 * away) * away - 4) * away + 2
        weights: Floats = np.where(away < 1, near, np.where(away < 2, far, 0))
        even: Floats = weights / weights.sum(axis=-1, keepdims=True)
        return even

    def _blurred(self, looks: Floats) -> Floats:
        """Without what is finer than two cells, which does not survive being read between the cells."""
        blurred: Floats = self._blur_SS @ looks @ self._blur_SS
        return blurred


def _blur(side: int) -> Floats:
    """Quarter, half, quarter; at the ends the cell itself stands for the missing one. Symmetric."""
    padded = np.pad(np.eye(side), ((1, 1), (0, 0)), mode="edge")
    blur_SS: Floats = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
    return blur_SS


def _planes(side: int) -> Floats:
    """Three orthonormal columns: even brightness, and even slopes across and down."""
    along_S, ones_S = np.linspace(-1, 1, side), np.ones(side)
    columns_I3 = np.stack([np.kron(ones_S, ones_S), np.kron(ones_S, along_S), np.kron(along_S, ones_S)], axis=1)
    planes_I3: Floats = columns_I3 / np.linalg.norm(columns_I3, axis=0)
    return planes_I3


def _planar(looks_KSSC: Looks) -> Floats:
    return looks_KSSC.transpose(0, 3, 1, 2).astype(np.float64)


def _inner(looks: Floats) -> Floats:
    """Without the outermost cells: there, a cut copy never saw what was cut off."""
    return looks[..., 1:-1, 1:-1]


def _contrast(looks: Floats) -> Floats:
    """Largest less smallest of the 3x3 cells around each inner cell."""
    heights = [looks[..., y : looks.shape[-2] - 2 + y, :] for y in range(3)]
    most, least = np.maximum.reduce(heights), np.minimum.reduce(heights)
    thirds = [slice(x, looks.shape[-1] - 2 + x) for x in range(3)]
    contrast: Floats = np.maximum.reduce([most[..., x] for x in thirds]) - np.minimum.reduce([least[..., x] for x in thirds])
    return contrast
