"""What happens between two optimiser steps: losses are noted, answers validated, checkpoints kept, signals obeyed."""

from __future__ import annotations

import json
import math
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pocketvlm.artifacts.checkpoint_layout import CurvePoint, Validation
from pocketvlm.artifacts.partial import Partial
from pocketvlm.errors import UserError
from pocketvlm.progress import Progress
from pocketvlm.stages.training import state as states
from pocketvlm.stages.training.loop import PhaseTrainer
from pocketvlm.stages.training.plan import Plan
from pocketvlm.stages.training.stop import Stop
from pocketvlm.stages.training.validate import Validator
from pocketvlm.student.adapters import save_trained


class Watch(TrainerCallback):  # type: ignore[misc]
    """The HF Trainer calls it after every optimiser step; `state` is what a resume gets."""

    def __init__(
        self,
        plan: Plan,
        state: states.State,
        *,
        validator: Validator,
        partial: Partial,
        progress: Progress,
        stop: Stop,
        best: Path,
        output: Path,
    ) -> None:
        """`best` is the file of the best weights so far, `output` the folder with the finished phases."""
        self._plan, self.state = plan, state
        self._validator, self._partial, self._progress, self._stop = validator, partial, progress, stop
        self._best, self._output = best, output
        self._started = self._logged = time.monotonic()
        self._seconds_before = state.seconds
        self._logged_step = state.step
        self.trainer: PhaseTrainer | None = None

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Notes the rate of this step, before the schedule moves on."""
        self.state.rate = max(self._of_trainer().lr_scheduler.get_last_lr())

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Logs, validates and asks for a checkpoint where the plan says so, and at once when a signal came."""
        self.state.step = state.global_step
        validates = state.global_step in self._plan.validations
        if validates or state.global_step % self._plan.log_every == 0:
            self._log(validates)
        # Read once: a signal between two reads would stop the loop with nothing saved.
        stops = self._stop.asked
        if validates or state.global_step in self._plan.checkpoints or stops:
            control.should_save = True
        if stops:
            control.should_training_stop = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Completes what the HF Trainer wrote and hands it to the store."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._take_losses()
        self.state.seconds = self._seconds_before + time.monotonic() - self._started
        states.complete(folder, self.state, self._best, self._output)
        self._partial.save(self._plan.steps_before + state.global_step, folder)
        shutil.rmtree(folder)

    def catch_up(self) -> None:
        """Does the validation that the state still owes; the learner must have the weights of the state's step."""
        self._of_trainer().state.global_step = self.state.step
        self._log(validates=True)

    def _log(self, validates: bool) -> None:
        """Adds a point to the curve; none when a signal stops its validation, which the state then owes."""
        self._take_losses()
        measured = self._measure()
        loss = math.fsum(self.state.pending) / len(self.state.pending)
        point = CurvePoint(phase=self._plan.index, step=self.state.step, epoch=self._plan.epoch_of(self.state.step),
                           loss=loss, learning_rate=self.state.rate)  # fmt: skip
        if validates:
            found = self._validator(self._of_trainer().learner, self.state.step, stopped=lambda: self._stop.asked)
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
            save_trained(self._of_trainer().learner.student, self._best)
        return point.model_copy(update={"validation_accuracy": found.accuracy, "validation_loss": found.loss})

    def _measure(self) -> dict[str, Any]:
        """Times, rate and memory; no rate where this attempt has trained nothing since the last point."""
        now = time.monotonic()
        samples = self._plan.samples_after(self.state.step) - self._plan.samples_after(self._logged_step)
        return {
            "phase": self._plan.index,
            "step": self.state.step,
            "seconds": round(self._seconds_before + now - self._started, 3),
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
        self._of_trainer().log({name: value for name, value in numbers.items() if name not in skipped} | memory_mb())

    def _take_losses(self) -> None:
        """Sums the micro-batches of each step. One wait for the device for all steps since the last time."""
        losses = self._of_trainer().losses
        if losses:
            sums = self._plan.sum_steps(torch.stack(losses).tolist(), self.state.step)
            losses.clear()
            for step, loss in enumerate(sums, start=self.state.step - len(sums) + 1):
                self._refuse_no_number("the loss", loss, step)
            self.state.pending += sums

    def _refuse_no_number(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise UserError(f"run.trainer.phases[{self._plan.index}]: {what} is {value} at step {step}; "
                            "lower learning_rate or add warmup_steps")  # fmt: skip

    def _of_trainer(self) -> PhaseTrainer:
        assert self.trainer is not None, "set before training starts"
        return self.trainer


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
