"""The checkpoints artifact: what each phase of training learnt, to be laid over the base one after the other. No torch.

```text
training.json                       `Training`: the phases in order, and which tensors of the base each of them changed
phases/<i>/weights.safetensors      a full phase: every trained tensor, fp32, under its name in the base's state dict
phases/<i>/adapter_model.safetensors  a LoRA phase: A and B of every target, fp32, as peft names them ...
phases/<i>/adapter_config.json        ... and their config: `PeftModel.from_pretrained(base, folder)` opens both
                                      a LoRA phase with modules that learnt whole has weights.safetensors with them as well, which
                                      peft does not read: it would part a head from the embeddings that it is tied to (its #2777)
curve.jsonl                         one JSON object a line, see `CurvePoint`
```

The final student is the base with all phases laid over it in order, LoRA phases merged: student/adapters.py does that.
Every phase holds its best weights by validation accuracy, and the next phase started from exactly those.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pocketvlm.artifacts.manifest import canonical_json
from pocketvlm.errors import Corrupt
from pocketvlm.run_file import Part

TRAINING, CURVE = "training.json", "curve.jsonl"
WEIGHTS, ADAPTER, ADAPTER_CONFIG = "weights.safetensors", "adapter_model.safetensors", "adapter_config.json"
ADAPTER_PREFIX = "base_model.model."
"""Leads every tensor name in a file of peft."""


class _Noun(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Validation(_Noun):
    """The validation split, scored inside the grammar as the phone answers."""

    step: int
    """Optimiser steps of the phase before it."""
    accuracy: float
    """Share of right answers, in [0, 1]."""
    loss: float
    """Mean cross-entropy of the right answers' tokens, nats."""

    def beats(self, other: Validation | None) -> bool:
        """Higher accuracy; between equals, lower loss; between equals in both, the earlier one stays."""
        return other is None or (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


class PhaseRecord(_Noun):
    """What one phase did."""

    index: int
    method: Literal["lora", "full"]
    parts: list[Part]
    """Parts that learnt."""
    targets: list[str]
    """LoRA: paths of the linear layers with an adapter. Full: empty."""
    full: list[str] = []
    """LoRA: state-dict names of the tensors that learnt whole beside the adapters, shared ones once."""
    rank: int | None
    alpha: float | None
    """LoRA: the update of a target is B A x alpha / rank. Full: both None."""
    changed: list[str]
    """State-dict names of the base's tensors that this phase changes, sorted: those that learnt whole, and targets' weights."""
    steps: int
    """Optimiser steps of the whole phase."""
    best: Validation
    """The validation whose weights are kept."""

    @property
    def folder(self) -> str:
        """Folder of the phase in the artifact."""
        return f"phases/{self.index}"


class Training(_Noun):
    """`training.json`."""

    precision: Literal["bf16", "fp32"]
    """Of the arithmetic; what was trained is always held, and stored, in fp32."""
    images: dict[str, int]
    """Images of the train and validation splits."""
    phases: list[PhaseRecord]

    @property
    def changed(self) -> set[str]:
        """State-dict names of the base's tensors that training changes; all others stay bit for bit."""
        return {name for phase in self.phases for name in phase.changed}


class CurvePoint(_Noun):
    """A line of `curve.jsonl`. Losses are means over the optimiser steps since the point before; None: not measured here."""

    phase: int
    step: int
    """Optimiser steps of the phase so far."""
    epoch: float
    loss: float | None = None
    """Nats per answer token."""
    learning_rate: float | None = None
    """The highest of the parts' rates at this step."""
    validation_accuracy: float | None = None
    validation_loss: float | None = None


def read_training(folder: Path) -> Training:
    """From the folder of a checkpoints artifact. Raises Corrupt if `training.json` is not what this version writes."""
    path = folder / TRAINING
    try:
        return Training.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise Corrupt(f"{path}: is not a training record ({error}); run the trainer again") from error


def write_training(folder: Path, training: Training) -> None:
    """Writes `training.json`; equal records give equal bytes."""
    (folder / TRAINING).write_bytes(canonical_json(training.model_dump(mode="json")))


def write_curve(folder: Path, points: Iterable[CurvePoint]) -> None:
    """Writes `curve.jsonl`; equal points give equal bytes."""
    lines = (point.model_dump_json(exclude_none=True) for point in points)
    (folder / CURVE).write_text("".join(f"{line}\n" for line in lines), newline="\n")


def read_curve(folder: Path) -> list[CurvePoint]:
    """What `write_curve` wrote."""
    return [CurvePoint.model_validate_json(line) for line in (folder / CURVE).read_text().splitlines()]
