"""Two runs on the images that both were measured on: who is right where, and is the difference more than chance?"""

from __future__ import annotations

from dataclasses import dataclass

from pocketvlm.compare.runs import Run, Seen
from pocketvlm.intervals import mcnemar, paired_difference


@dataclass(frozen=True)
class Flip:
    """A common image that tells two runs apart."""

    baseline: Seen
    answers: tuple[str, str]
    """Of the baseline, of the other."""


@dataclass(frozen=True)
class Against:
    """A run against the baseline, on one type of each."""

    run: Run
    types: tuple[str, str]
    """Of the baseline, of the run."""
    common: int
    """Test images of both."""
    relabelled: list[tuple[Seen, str]]
    """Common images whose labels differ, with the other's label; they are counted in nothing below."""
    both_right: int
    only_baseline: list[Flip]
    only_run: list[Flip]
    both_wrong: list[Flip]
    """With different answers."""
    same_wrong: int
    """Images with one wrong answer of both."""

    @property
    def images(self) -> int:
        """Common images with one label."""
        return self.common - len(self.relabelled)

    @property
    def correct(self) -> tuple[int, int]:
        """Right answers of the baseline and of the run, among `images`."""
        return self.both_right + len(self.only_baseline), self.both_right + len(self.only_run)

    @property
    def difference(self) -> float:
        """Accuracy of the run minus that of the baseline."""
        return (len(self.only_run) - len(self.only_baseline)) / self.images if self.images else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of the difference, by a paired bootstrap."""
        return paired_difference(len(self.only_baseline), len(self.only_run), self.images)

    @property
    def p_value(self) -> float:
        """McNemar, exact, two-sided."""
        return mcnemar(len(self.only_baseline), len(self.only_run))


def against(baseline: Run, run: Run) -> Against:
    """Compares the first type that both ship, or else the first of each."""
    shared = [name for name in baseline.shipped if name in run.shipped]
    types = (shared[0], shared[0]) if shared else (baseline.types[0], run.types[0])
    common = [sha256 for sha256 in baseline.seen if sha256 in run.seen]
    relabelled, both_right, same_wrong = [], 0, 0
    only_baseline: list[Flip] = []
    only_run: list[Flip] = []
    both_wrong: list[Flip] = []
    for sha256 in common:
        first, second = baseline.seen[sha256], run.seen[sha256]
        if first.label != second.label:
            relabelled.append((first, second.label))
            continue
        one, other = first.answers[types[0]], second.answers[types[1]]
        flip = Flip(first, (one.text, other.text))
        if one.right and other.right:
            both_right += 1
        elif one.right:
            only_baseline.append(flip)
        elif other.right:
            only_run.append(flip)
        elif one.text == other.text:
            same_wrong += 1
        else:
            both_wrong.append(flip)
    return Against(run, types, len(common), relabelled, both_right, only_baseline, only_run, both_wrong, same_wrong)
