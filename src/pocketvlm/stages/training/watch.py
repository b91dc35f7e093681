"""What happens between two optimiser steps: losses are noted, answers validated, checkpoints kept, signals obeyed."""

from __future__ import annotations

import json
import math
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pocketvlm.artifacts.checkpoint_layout import CurvePoint, Validation
from pocketvlm.artifacts.partial import Partial
from pocketvlm.errors import UserError
from pocketvlm.progress import Progress
from pocketvlm.run_file import EarlyStop
from pocketvlm.stages.training import state as states
from pocketvlm.stages.training.loop import Loop
from pocketvlm.stages.training.plan import Plan
from pocketvlm.stages.training.stop import Stop
from pocketvlm.stages.training.team import Team
from pocketvlm.stages.training.trackers import Tracker
from pocketvlm.stages.training.validate import Validator
from pocketvlm.student.adapters import save_trained


@dataclass(frozen=True)
class Places:
    """Where things are written."""

    best: Path
    """File of the best weights so far."""
    output: Path
    """Folder with the finished phases."""
    checkpoint: Path
    """Folder that a checkpoint is put together in; there is none between two checkpoints."""


class Watch:
    """Is told after every optimiser step; `state` is what a resume gets. All processes of a team keep the same state."""

    def __init__(
        self, plan: Plan, state: states.State, *, loop: Loop, validator: Validator, team: Team, partial: Partial,
        progress: Progress, stop: Stop, places: Places, early_stop: EarlyStop | None = None, trackers: Sequence[Tracker] = (),
    ) -> None:  # fmt: skip
        self._plan, self.state, self._loop, self._team = plan, state, loop, team
        self._validator, self._partial, self._progress, self._stop = validator, partial, progress, stop
        self._places, self._early_stop, self._trackers = places, early_stop, trackers
        self._started = self._logged = time.monotonic()
        self._seconds_before = state.seconds
        self._logged_step = state.step

    @property
    def ended(self) -> bool:
        """No step of the phase is left, or the next one is of no use."""
        return self.state.step >= self._plan.steps or self.state.stopped_early(self._early_stop)

    def after_step(self) -> bool:
        """Logs, validates and saves where the plan says so, and at once when a signal came. Returns whether to go on."""
        self.state.step += 1
        self.state.rate = self._loop.rate
        validates = self.state.step in self._plan.validations
        if validates or self.state.step % self._plan.log_every == 0:
            self._log(validates)
        # Read once: a signal between two reads would stop the loop with nothing saved.
        (stops,) = self._team.any(self._stop.asked)
        if validates or self.state.step in self._plan.checkpoints or stops:
            self._save()
        # The rule looks at validations alone: between two of them nothing of it changes.
        return not stops and self.state.step < self._plan.steps and not (validates and self.ended)

    def catch_up(self) -> None:
        """Does the validation that the state still owes; the learner must have the weights of the state's step."""
        self._log(validates=True)

    def _save(self) -> None:
        self._take_losses()
        self.state.seconds = self._seconds_before + time.monotonic() - self._started
        if not self._team.leads:
            return
        folder = self._places.checkpoint
        folder.mkdir(parents=True)
        save_trained(self._loop.learner.student, folder / states.TRAINED)
        torch.save(self._loop.optimiser.state_dict(), folder / states.OPTIMISER)
        states.complete(folder, self.state, self._places.best, self._places.output)
        self._partial.save(self._plan.steps_before + self.state.step, folder)
        shutil.rmtree(folder)

    def _log(self, validates: bool) -> None:
        """Adds a point to the curve; none when a signal stops its validation, which the state then owes."""
        self._take_losses()
        measured = self._measure()
        loss = math.fsum(self.state.pending) / len(self.state.pending)
        point = CurvePoint(phase=self._plan.index, step=self.state.step, epoch=self._plan.epoch_of(self.state.step),
                           loss=loss, learning_rate=self.state.rate)  # fmt: skip
        if validates:
            found = self._validator(self._loop.learner, self.state.step, stopped=lambda: self._stop.asked)
            if found is None:
                return
            point = self._with_validation(point, found)
        self.state.pending = []
        self.state.curve.append(point)
        self.state.log.append(measured)
        self._tell(point, measured)
        self._logged, self._logged_step = time.monotonic(), self.state.step

    def _with_validation(self, point: CurvePoint, found: Validation) -> CurvePoint:
        self._refuse_no_number("the validation loss", found.loss, found.step)
        if found.beats(self.state.best):
            self.state.best = found
            save_trained(self._loop.learner.student, self._places.best)
        return point.model_copy(update={"validation_accuracy": found.accuracy, "validation_loss": found.loss})

    def _measure(self) -> dict[str, Any]:
        """Times, rate, size of a pass and memory; no rate where this attempt has trained nothing since the last point."""
        now = time.monotonic()
        samples = self._plan.samples_after(self.state.step) - self._plan.samples_after(self._logged_step)
        return {
            "phase": self._plan.index,
            "step": self.state.step,
            "seconds": round(self._seconds_before + now - self._started, 3),
            "micro_batch_size": self._loop.micro_batch_size,
            **({"samples_per_s": round(samples / max(now - self._logged, 1e-9), 2)} if samples else {}),
            **memory_mb(),
        }

    def _tell(self, point: CurvePoint, measured: dict[str, Any]) -> None:
        shown: dict[str, float] = {"loss": point.loss or 0.0, "lr": point.learning_rate or 0.0}
        if "samples_per_s" in measured:
            shown["samples/s"] = measured["samples_per_s"]
        if self.state.best:
            shown["best accuracy"] = self.state.best.accuracy
        unseen = {"phase": self._plan.index + 1, "epoch": point.epoch, "accuracy": point.validation_accuracy,
                  "validation loss": point.validation_loss, **_gpu_bytes()}  # fmt: skip
        done = self._plan.steps_before + self.state.step
        self._progress.step(done, self._plan.steps_of_all, "steps", **shown,
                            unseen={name: value for name, value in unseen.items() if value is not None})  # fmt: skip
        numbers = point.model_dump(exclude_none=True)
        if point.validation_accuracy is not None:
            # Six digits for people; the curve keeps them all.
            short = {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in numbers.items()}
            self._progress.line(json.dumps({**short, **measured}))
        skipped = ("phase", "step", "epoch")
        tracked = {name: value for name, value in numbers.items() if name not in skipped} | memory_mb()
        for tracker in self._trackers:
            tracker(self.state.step, tracked)

    def _take_losses(self) -> None:
        losses = self._loop.take_losses()
        for step, loss in enumerate(losses, start=self.state.step - len(losses) + 1):
            self._refuse_no_number("the loss", loss, step)
        self.state.pending += losses

    def _refuse_no_number(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise UserError(f"run.trainer.phases[{self._plan.index}]: {what} is {value} at step {step}; "
                            "lower learning_rate or add warmup_steps")  # fmt: skip


def _gpu_bytes() -> dict[str, float]:
    """What tensors take on the GPU, now and at most; nothing on a machine without one."""
    if not torch.cuda.is_available():
        return {}
    return {"GPU memory": torch.cuda.memory_allocated(), "GPU peak": torch.cuda.max_memory_allocated()}


def memory_mb() -> dict[str, float]:
    """Peaks of this process in MB (10^6 bytes)."""
    # Kilobytes on Linux, bytes on macOS (getrusage(2)).
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)}
    if torch.cuda.is_available():
        peaks["peak_cuda_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return peaks
