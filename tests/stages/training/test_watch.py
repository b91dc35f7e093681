"""What is decided between two optimiser steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pocketvlm.artifacts.checkpoint_layout import CurvePoint
from pocketvlm.progress import Progress
from pocketvlm.run_file import EarlyStop
from pocketvlm.stages.training.plan import Plan
from pocketvlm.stages.training.state import State
from pocketvlm.stages.training.team import Team
from pocketvlm.stages.training.watch import Places, Watch

PLAN = Plan(index=0, samples=100, batch_size=1, steps=100, steps_before=0, steps_of_all=100, log_every=10,
            validations=frozenset({100}), checkpoints=frozenset({50}))  # fmt: skip


class SignalAt:
    """A signal that comes just before `asked` is read for this time, counted from 1."""

    def __init__(self, time: int) -> None:
        self._left = time

    @property
    def asked(self) -> bool:
        self._left -= 1
        return self._left <= 0


class Steps:
    """A loop of which nothing is left to learn."""

    rate = 0.0

    def __init__(self) -> None:
        self.learner = self
        self.student = torch.nn.Linear(2, 2)
        self.optimiser = torch.optim.AdamW(self.student.parameters())

    def take_losses(self) -> list[float]:
        return []


class Kept:
    """A store that remembers the steps."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def save(self, step: int, folder: Path) -> None:
        self.steps.append(step)


@pytest.mark.parametrize("time", [1, 2, 3])
def test_a_signal_at_any_moment_stops_only_what_is_saved(time: int, tmp_path: Path) -> None:
    unused: Any = None
    stop: Any = SignalAt(time)
    loop: Any = Steps()
    kept: Any = Kept()
    watch = Watch(PLAN, State(precision="fp32"), loop=loop, validator=unused, team=Team(torch.device("cpu")), partial=kept,
                  progress=Progress(), stop=stop,
                  places=Places(tmp_path / "best", tmp_path, tmp_path / "checkpoint"))  # fmt: skip
    for step in (1, 2, 3):
        if not watch.after_step():
            assert kept.steps == [step] and step == time
            return
        assert kept.steps == []
    pytest.fail("the signal was not obeyed")


def curve(*accuracies: float, losses: tuple[float, ...] = ()) -> State:
    points = [
        CurvePoint(phase=0, step=n, epoch=n, validation_accuracy=accuracy, validation_loss=losses[n] if losses else 1.0)
        for n, accuracy in enumerate(accuracies)
    ]
    return State(precision="fp32", curve=points)


@pytest.mark.parametrize(
    ("state", "rule", "ends"),
    [
        (curve(0.5, 0.6, 0.6), EarlyStop(patience=2), False),
        (curve(0.5, 0.6, 0.6, 0.5), EarlyStop(patience=2), True),
        (curve(0.5, 0.6, 0.6, 0.5, 0.7), EarlyStop(patience=2), False),
        (curve(0.6, 0.6, 0.6, losses=(1.0, 0.9, 0.8)), EarlyStop(patience=2), False),
        (curve(0.6, 0.6, 0.6, losses=(1.0, 0.9, 0.8)), EarlyStop(patience=2, min_gain=0.01), True),
        (curve(0.6, 0.605, 0.61), EarlyStop(patience=2, min_gain=0.01), False),
        (curve(0.6, 0.605, 0.609), EarlyStop(patience=2, min_gain=0.01), True),
        (curve(0.6, 0.5, 0.4, 0.3), None, False),
    ],
    ids=["one waits", "two wait", "a gain in between", "a lower loss counts", "but not where accuracy is asked for",
         "small gains add up", "or do not", "no rule"],
)  # fmt: skip
def test_a_phase_ends_when_its_validations_no_longer_gain(state: State, rule: EarlyStop | None, ends: bool) -> None:
    assert state.stopped_early(rule) == ends
    assert not state.model_copy(update={"phase": 1}).stopped_early(rule), "the next phase counts its own"
