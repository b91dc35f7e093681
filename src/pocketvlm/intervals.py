"""How sure a share is that was counted on few images, and a difference of two on the same images."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054
"""Standard normal quantile of 0.975: two-sided 95 %."""


def wilson(correct: int, images: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927): unlike the plain one it is right near 0 and 1. (0, 1) for no images."""
    if not images:
        return 0.0, 1.0
    share, z2 = correct / images, Z_95**2
    centre = (share + z2 / (2 * images)) / (1 + z2 / images)
    half = Z_95 / (1 + z2 / images) * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p that two answerers are equally often right, from the images that only one of them got right."""
    images = only_first + only_second
    tail = sum(math.comb(images, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2.0 * (tail / (1 << images)))


def paired_difference(only_first: int, only_second: int, images: int, *, draws: int = 10_000) -> tuple[float, float]:
    """95 % interval of the second's accuracy minus the first's, both on the same images; (-1, 1) for no images.

    Percentiles of a bootstrap that draws images with both their answers, from a fixed seed. Only three kinds of images matter, so
    a draw of all images is a draw of three counts. Where no image tells the two apart it has no width, and says too much.
    """
    if not images:
        return -1.0, 1.0
    import numpy as np

    shares = [only_first / images, only_second / images, (images - only_first - only_second) / images]
    counts = np.random.default_rng(0).multinomial(images, shares, size=draws)
    low, high = np.percentile((counts[:, 1] - counts[:, 0]) / images, [2.5, 97.5])
    return float(low), float(high)
