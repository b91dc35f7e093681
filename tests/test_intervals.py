"""Intervals of shares, against published ones."""

from __future__ import annotations

import pytest

from pocketvlm.intervals import mcnemar, paired_difference, wilson


def test_wilson_interval_is_the_published_one() -> None:
    """Newcombe 1998, table I: 81 of 263 is 0.2553 to 0.3662, 15 of 148 is 0.0624 to 0.1605, 0 of 20 is 0 to 0.1611."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(182, 187) == pytest.approx((0.939, 0.989), abs=5e-4)


def test_wilson_interval_stays_within_0_and_1() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(5, 5)[1] == 1.0
    assert wilson(0, 5)[0] == 0.0


def test_mcnemar_is_the_exact_binomial_test() -> None:
    """p of scipy.stats.binomtest(k, n): 1 of 9 is 0.0390625, 3 of 10 is 0.34375."""
    assert mcnemar(1, 8) == pytest.approx(0.0390625)
    assert mcnemar(7, 3) == pytest.approx(0.34375)
    assert mcnemar(8, 1) == mcnemar(1, 8)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 2000) == pytest.approx(0.0)


def test_interval_of_a_paired_difference_is_near_the_normal_one_of_many_images() -> None:
    """Of 1,000 images, 60 and 100: 0.04, with a deviation of sqrt((160 - 40^2 / 1000) / 1000^2)."""
    low, high = paired_difference(60, 100, 1000)
    half = 1.959964 * (160 - 40**2 / 1000) ** 0.5 / 1000
    assert (low, high) == pytest.approx((0.04 - half, 0.04 + half), abs=0.002)
    assert paired_difference(60, 100, 1000) == (low, high)
    assert paired_difference(100, 60, 1000) == pytest.approx((-high, -low), abs=0.002)


def test_interval_of_a_paired_difference_without_images_or_flips() -> None:
    assert paired_difference(0, 0, 0) == (-1.0, 1.0)
    assert paired_difference(0, 0, 40) == (0.0, 0.0)
