"""The learning rate of a step, as a factor of the phase's rate: of the step alone, so that nothing is to be resumed."""

from __future__ import annotations

import math

from pocketvlm.run_file import Phase


def warmup_steps(phase: Phase, steps: int) -> int:
    """Of a phase of so many optimiser steps."""
    return phase.warmup_steps or math.ceil(phase.warmup_share * steps)


def factor(phase: Phase, step: int, *, steps: int, steps_per_epoch: int) -> float:
    """Of the step with this number, counted from 1. The same as transformers' schedules of these names."""
    warmup, done = warmup_steps(phase, steps), step - 1
    if done < warmup:
        return done / warmup
    left = steps - warmup
    if phase.schedule == "linear":
        return max(0.0, (steps - done) / max(1, left))
    if phase.schedule == "cosine":
        return _half_cosine((done - warmup) / max(1, left))
    if phase.schedule == "cosine_with_restarts":
        return _half_cosine((done - warmup) % steps_per_epoch / steps_per_epoch)
    return math.sqrt(warmup / done) if phase.schedule == "inverse_sqrt" else 1.0


def _half_cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))
