"""The numbers of the evaluation, from labels, answers and confidences alone. Pure: no files, no models.

Shapes: N images, C classes. A label is a class index; an answer is a class index, or None outside the classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketvlm.phone import Choices

BINS = 15
"""Equal-width bins of the calibration error, as in Guo et al. 2017 (arXiv 1706.04599)."""
TEMPERATURES = (0.1, 10.0)
"""Where a temperature is looked for."""


def confusion(labels: Sequence[int], answers: Sequence[int | None], classes: int) -> list[list[int]]:
    """counts[label][answer], C rows of C + 1 columns; the last column counts answers outside the classes."""
    counts = [[0] * (classes + 1) for _ in range(classes)]
    for label, answer in zip(labels, answers, strict=True):
        counts[label][classes if answer is None else answer] += 1
    return counts


@dataclass(frozen=True)
class ClassScore:
    """One class against all others; what is undefined (a class never answered, or never there) is 0."""

    support: int
    precision: float
    recall: float
    f1: float


def per_class(counts: Sequence[Sequence[int]]) -> list[ClassScore]:
    """Scores of each class from a confusion matrix of `confusion`."""
    scores = []
    for k, row in enumerate(counts):
        right, support, answered = row[k], sum(row), sum(other[k] for other in counts)
        precision = right / answered if answered else 0.0
        recall = right / support if support else 0.0
        f1 = 2 * right / (support + answered) if support + answered else 0.0
        scores.append(ClassScore(support, precision, recall, f1))
    return scores


@dataclass(frozen=True)
class Bin:
    """Images whose confidence lies in (low, high]: how sure they were, and how often right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def reliability(confidences: Sequence[float], correct: Sequence[bool]) -> list[Bin]:
    """The bins that hold images, from low to high."""
    values, right = np.asarray(confidences, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    place = np.clip(np.ceil(values * BINS).astype(int) - 1, 0, BINS - 1)
    bins = []
    for k in range(BINS):
        inside = place == k
        if inside.any():
            sure, often = float(values[inside].mean()), float(right[inside].mean())
            bins.append(Bin(k / BINS, (k + 1) / BINS, int(inside.sum()), sure, often))
    return bins


def expected_calibration_error(confidences: Sequence[float], correct: Sequence[bool]) -> float:
    """Mean distance between confidence and accuracy over the bins, weighted by their images; 0 for no images."""
    bins = reliability(confidences, correct)
    return sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / max(1, len(confidences))


def fit_temperature(answers: Sequence[Choices], correct: Sequence[bool]) -> float:
    """The temperature whose confidences best predict which answers are right (least log loss); 1 for no answers.

    The targets are Platt's (1999), (n_right + 1) / (n_right + 2) and 1 / (n_wrong + 2), so that a validation split
    without a single error does not ask for infinite confidence.
    """
    if not answers:
        return 1.0
    right = sum(correct)
    wrong = len(correct) - right
    confidences = _at_any_temperature(answers)
    targets = np.where(np.asarray(correct), (right + 1) / (right + 2), 1 / (wrong + 2))

    def loss(log_temperature: float) -> float:
        values = np.clip(confidences(math.exp(log_temperature)), 1e-12, 1 - 1e-12)
        return float(-(targets * np.log(values) + (1 - targets) * np.log1p(-values)).mean())

    grid = np.linspace(math.log(TEMPERATURES[0]), math.log(TEMPERATURES[1]), 47)
    best = int(np.argmin([loss(float(point)) for point in grid]))
    low, high = float(grid[max(0, best - 1)]), float(grid[min(len(grid) - 1, best + 1)])
    golden = (math.sqrt(5) - 1) / 2
    while high - low > 1e-4:
        left, right_ = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right_) if loss(left) <= loss(right_) else (left, high)
    return math.exp((low + high) / 2)


def _at_any_temperature(answers: Sequence[Choices]) -> Callable[[float], NDArray[np.float64]]:
    """`phone.confidence` of all answers at once, as a function of the temperature."""
    steps = [(owner, step) for owner, choices in enumerate(answers) for step in choices]
    owners = np.array([owner for owner, _ in steps])
    # Rows are steps, filled up with tokens of no probability; the chosen token is the first column.
    log_probabilities = np.full((len(steps), max(len(step) for _, step in steps)), -np.inf)
    for row, (_, step) in zip(log_probabilities, steps, strict=True):
        row[: len(step)] = step

    def confidences(temperature: float) -> NDArray[np.float64]:
        scaled = log_probabilities / temperature
        chosen = scaled[:, 0] - np.logaddexp.reduce(scaled, axis=1)
        return np.exp(np.bincount(owners, weights=chosen, minlength=len(answers)))

    return confidences
