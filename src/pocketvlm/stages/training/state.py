"""What a training needs to go on, kept in the store by `Partial`.

```text
state.json            `State`: phase, curve so far, losses not yet in it, best validation, finished phases
trained.safetensors   what learns, fp32
optimiser.pt          AdamW's state, as torch saves it
best.safetensors      what learns at the best validation, unless that is now
phases/               finished phases, as in artifacts/checkpoint_layout.py
```

Rates, order and random numbers follow from the number of the step.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pocketvlm.artifacts.checkpoint_layout import CurvePoint, PhaseRecord, Validation
from pocketvlm.artifacts.manifest import canonical_json
from pocketvlm.artifacts.partial import Partial
from pocketvlm.errors import UserError
from pocketvlm.run_file import EarlyStop
from pocketvlm.stages.training.learner import Precision
from pocketvlm.stages.training.plan import Plan

STATE, TRAINED, OPTIMISER, BEST, PHASES = "state.json", "trained.safetensors", "optimiser.pt", "best.safetensors", "phases"


class State(BaseModel):
    """`state.json`; also what the running process counts in."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[2] = 2
    precision: Precision
    """Stays what the first attempt chose, wherever a later one runs."""
    phase: int = 0
    """Index of the running phase."""
    step: int = 0
    """Optimiser steps of the running phase."""
    micro_batch_size: int | None = None
    """Samples of a pass, where the memory turned out to be too small for what was planned."""
    pending: list[float] = Field(default_factory=list)
    """Losses of the steps since the last point of the curve."""
    rate: float = 0.0
    """The highest of the parts' rates at the last step."""
    best: Validation | None = None
    """Of the running phase."""
    finished: list[PhaseRecord] = Field(default_factory=list)
    curve: list[CurvePoint] = Field(default_factory=list)
    log: list[dict[str, Any]] = Field(default_factory=list)
    """Times, rates and memory at the points of the curve."""
    seconds: float = 0.0
    """Spent in the loop, by all attempts."""

    def stopped_early(self, rule: EarlyStop | None) -> bool:
        """Whether the validations of the running phase have stopped getting better."""
        gained: Validation | None = None
        waited = 0
        for point in self.curve if rule else ():
            if point.phase != self.phase or point.validation_accuracy is None or point.validation_loss is None:
                continue
            found = Validation(step=point.step, accuracy=point.validation_accuracy, loss=point.validation_loss)
            gains = gained is None or found.beats(gained)
            if rule and rule.min_gain and gained is not None:
                gains = found.accuracy >= gained.accuracy + rule.min_gain
            gained, waited = (found, 0) if gains else (gained, waited + 1)
        return rule is not None and waited >= rule.patience

    def owes_validation(self, plan: Plan) -> bool:
        """A signal came before the validation of the last step was done; nothing else of the step is missing."""
        done = self.curve and (self.curve[-1].phase, self.curve[-1].step) == (plan.index, self.step)
        return self.step in plan.validations and not done


@dataclass(frozen=True)
class Resume:
    """A checkpoint on this machine."""

    state: State
    folder: Path


def load(partial: Partial, to: Path) -> Resume | None:
    """The newest whole checkpoint of any attempt, or None. Raises UserError for one that another version wrote."""
    if partial.latest(to) is None:
        return None
    try:
        return Resume(State.model_validate_json((to / STATE).read_bytes()), to)
    except ValidationError as error:
        raise UserError("the training that was begun was begun by another version of pocketvlm, which has to finish it; "
                        f"or delete partial/checkpoints/ from the store to start anew ({error.errors()[0]['msg']})"
                        ) from error  # fmt: skip


def complete(folder: Path, state: State, best: Path, output: Path) -> None:
    """Adds the state, the best weights and the finished phases to the weights and the optimiser in `folder`."""
    (folder / STATE).write_bytes(canonical_json(state.model_dump(mode="json")))
    if state.best is not None and state.best.step != state.step:
        _link(str(best), str(folder / BEST))
    if state.finished:
        shutil.copytree(output / PHASES, folder / PHASES, copy_function=_link)


def restore(resume: Resume, best: Path, output: Path) -> None:
    """Puts the best weights and the finished phases of a checkpoint where this attempt keeps its own."""
    if (resume.folder / PHASES).exists():
        shutil.copytree(resume.folder / PHASES, output / PHASES)
    saved = resume.state.best
    if saved is not None:
        shutil.copyfile(resume.folder / (TRAINED if saved.step == resume.state.step else BEST), best)


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)
