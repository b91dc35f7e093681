"""The evaluation's numbers against published values, hand-made ones, and scikit-learn's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from pocketvlm.phone import confidence
from pocketvlm.stages.evaluation.metrics import (
    BINS,
    confusion,
    expected_calibration_error,
    fit_temperature,
    per_class,
    reliability,
)


def test_scores_of_classes_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 6, 300)
    answers = np.where(rng.random(300) < 0.7, labels, rng.integers(0, 5, 300))  # class 5 is rarely answered
    counts = confusion(labels.tolist(), answers.tolist(), 6)
    assert [row[:6] for row in counts] == confusion_matrix(labels, answers, labels=range(6)).tolist()
    precision, recall, f1, support = precision_recall_fscore_support(labels, answers, labels=range(6), zero_division=0)
    for score, expected in zip(per_class(counts), zip(precision, recall, f1, support, strict=True), strict=True):
        assert (score.precision, score.recall, score.f1, score.support) == pytest.approx(expected)


def test_answers_outside_the_classes_lower_recall_and_no_precision() -> None:
    counts = confusion([0, 0, 1], [0, None, 1], 2)
    assert counts == [[1, 0, 1], [0, 1, 0]]
    first, second = per_class(counts)
    assert (first.recall, first.precision, second.f1) == (0.5, 1.0, 1.0)


def test_a_class_that_is_never_there_nor_answered_scores_nothing() -> None:
    score = per_class(confusion([0], [0], 2))[1]
    assert (score.support, score.precision, score.recall, score.f1) == (0, 0.0, 0.0, 0.0)


def test_calibration_error_of_two_bins_by_hand() -> None:
    # Three images at 0.95, two right: |2/3 - 0.95|. One at 0.5, right: |1 - 0.5|.
    error = expected_calibration_error([0.95, 0.95, 0.95, 0.5], [True, True, False, True])
    assert error == pytest.approx((3 * abs(2 / 3 - 0.95) + 0.5) / 4)


def test_bins_are_closed_on_the_right_and_hold_0_and_1() -> None:
    bins = reliability([0.0, 1 / BINS, 1.0], [False, True, True])
    assert [(found.low, found.high, found.count) for found in bins] == [(0.0, 1 / BINS, 2), (1 - 1 / BINS, 1.0, 1)]


def test_calibration_error_of_nothing_is_nothing() -> None:
    assert expected_calibration_error([], []) == 0.0


def test_confidence_is_the_product_of_softmaxes_over_the_allowed_tokens() -> None:
    # 0.6 of 0.6 + 0.2 allowed, then the only allowed token.
    assert confidence([[math.log(0.6), math.log(0.2)], [math.log(0.01)]]) == pytest.approx(0.75)
    assert confidence([[math.log(0.6), math.log(0.2)]], 0.5) == pytest.approx(0.36 / (0.36 + 0.04))


def answers_of(logits: np.ndarray, labels: np.ndarray) -> tuple[list[list[list[float]]], list[bool]]:
    """Greedy answers of one token each."""
    chosen = logits.argmax(1)
    rows = [[[row[k], *np.delete(row, k)]] for row, k in zip(logits, chosen, strict=True)]
    return rows, (chosen == labels).tolist()


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0, 4.0])
def test_temperature_finds_the_factor_by_which_a_model_is_too_sure(factor: float) -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 1.6, (4000, 5))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([rng.choice(5, p=share) for share in shares])
    choices, right = answers_of(factor * logits, labels)
    assert fit_temperature(choices, right) == pytest.approx(factor, rel=0.12)


def test_temperature_lowers_the_calibration_error_of_a_model_that_is_too_sure() -> None:
    rng = np.random.default_rng(6)
    logits = rng.normal(0, 1.6, (3000, 4))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([rng.choice(4, p=share) for share in shares])
    choices, right = answers_of(3 * logits, labels)
    temperature = fit_temperature(choices[:1500], right[:1500])
    before = expected_calibration_error([confidence(c) for c in choices[1500:]], right[1500:])
    after = expected_calibration_error([confidence(c, temperature) for c in choices[1500:]], right[1500:])
    assert after < 0.05 < before


def test_temperature_stays_finite_when_every_answer_is_right() -> None:
    choices = [[[0.0, -6.0]]] * 50
    temperature = fit_temperature(choices, [True] * 50)
    assert confidence(choices[0], temperature) == pytest.approx(51 / 52, abs=1e-3)


def test_temperature_of_no_answers_is_1() -> None:
    assert fit_temperature([], []) == 1.0
