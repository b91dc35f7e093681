"""What is decided between two optimiser steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from pocketvlm.progress import Progress
from pocketvlm.stages.training.plan import Plan
from pocketvlm.stages.training.state import State
from pocketvlm.stages.training.watch import Watch

PLAN = Plan(index=0, samples=100, batch_size=1, micro_batch_size=1, steps=100, steps_before=0, steps_of_all=100, log_every=10,
            validations=frozenset({100}), checkpoints=frozenset({50}))  # fmt: skip


class SignalAt:
    """A signal that comes just before `asked` is read for this time, counted from 1."""

    def __init__(self, time: int) -> None:
        self._left = time

    @property
    def asked(self) -> bool:
        self._left -= 1
        return self._left <= 0


@pytest.mark.parametrize("time", [1, 2, 3])
def test_a_signal_at_any_moment_stops_only_what_is_saved(time: int, tmp_path: Path) -> None:
    unused: Any = None
    stop: Any = SignalAt(time)
    watch = Watch(PLAN, State(precision="fp32"), validator=unused, partial=unused, progress=Progress(), stop=stop,
                  best=tmp_path / "best", output=tmp_path)  # fmt: skip
    for step in (1, 2, 3):
        control = watch.on_step_end(unused, TrainerState(global_step=step), TrainerControl())
        assert control.should_save == control.should_training_stop
        if control.should_training_stop:
            return
    pytest.fail("the signal was not obeyed")
