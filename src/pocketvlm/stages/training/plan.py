"""When a phase logs, validates and checkpoints: steps that depend on the run file and the number of samples only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pocketvlm.run_file import Trainer

POINTS = 200
"""Points of the loss curve, over all phases."""


@dataclass(frozen=True)
class Plan:
    """One phase. Steps are optimiser steps, counted from 1 in the phase."""

    index: int
    samples: int
    """Pairs of question and answer that train: one for each image, and its variants."""
    batch_size: int
    steps: int
    steps_before: int
    """Of the phases before."""
    steps_of_all: int
    log_every: int
    validations: frozenset[int]
    checkpoints: frozenset[int]
    """Besides those at validations."""

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.samples // self.batch_size)

    def epoch_of(self, step: int) -> float:
        """Passes over the training split after this step."""
        return round(step / self.steps_per_epoch, 4)

    def samples_after(self, step: int) -> int:
        """Samples seen after this step."""
        epochs, rest = divmod(step, self.steps_per_epoch)
        return epochs * self.samples + min(rest * self.batch_size, self.samples)


def plan_phases(settings: Trainer, samples: int) -> list[Plan]:
    """The plans of all phases."""
    per_epoch = -(-samples // settings.batch_size)
    steps = [math.ceil(phase.epochs * per_epoch) for phase in settings.phases]
    return [
        Plan(
            index=index,
            samples=samples,
            batch_size=settings.batch_size,
            steps=own,
            steps_before=sum(steps[:index]),
            steps_of_all=sum(steps),
            log_every=max(1, sum(steps) // POINTS),
            validations=_every(settings.validate_every * per_epoch, own) | {own},
            checkpoints=_every(settings.checkpoint_every_steps or own, own),
        )
        for index, own in enumerate(steps)
    ]


def _every(interval: float, steps: int) -> frozenset[int]:
    """Multiples of a number of steps, each rounded to a whole step."""
    count = int(steps / interval)
    return frozenset(max(1, round(interval * (i + 1))) for i in range(count))
