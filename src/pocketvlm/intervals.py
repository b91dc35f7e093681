"""How sure a share is that was counted on few images."""

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
