"""The `run:` block as a whole, and its last stages."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pocketvlm.run_file.block import Block, Name
from pocketvlm.run_file.labeller import Labeller
from pocketvlm.run_file.task import Device, Student, Task
from pocketvlm.run_file.trainer import Trainer

GgufType = Literal["bf16", "f16", "q8_0", "q6_k", "q5_k_m", "q5_0", "q4_k_m", "q4_0", "iq4_nl"]


class Quantiser(Block):
    """Which GGUF files are made. The bf16 pair is always made, for parity."""

    types: list[GgufType] = Field(default=["q8_0"], min_length=1)
    """Types of the text model that are released, together: one type that fails a gate keeps them all back."""
    mmproj: Literal["f16", "q8_0"] = "q8_0"
    """Type of the vision model and connector."""

    @field_validator("types")
    @classmethod
    def _once(cls, kinds: list[GgufType]) -> list[GgufType]:
        if len(set(kinds)) != len(kinds):
            raise ValueError("a type is named twice")
        return kinds


class Gates(Block):
    """What a pair must reach to be released. All are measured on the GGUF on llama.cpp, on the test split."""

    min_accuracy: float = Field(default=0.0, ge=0, le=1)
    """Accuracy of each released type."""
    max_drop: float | None = Field(default=0.02, ge=0, le=1)
    """Accuracy of the merged model by transformers minus that of the type."""
    min_agreement: float | None = Field(default=0.98, ge=0, le=1)
    """Share of equal answers, GGUF against transformers, of each type."""
    max_parity_nats: float | None = Field(default=None, gt=0)
    """Largest difference of log-probabilities of one answer token, bf16 pair against transformers; default: 0.01 for a family
    that is device-exact, and no limit for another, whose parity is measured and stated."""
    max_blind_accuracy: float | None = Field(default=None, ge=0, le=1)
    """Accuracy on grey images; default: the share of the most frequent class + 0.15, and no limit for `extract`."""
    min_sight: float | None = Field(default=0.25, le=1)
    """Share of the errors on grey images that seeing the image removes: (accuracy - blind) / (1 - blind), of each type. A model
    that answers without looking has 0, however common its answer is."""
    max_expected_calibration_error: float | None = Field(default=None, ge=0, le=1)
    """After temperature scaling. Not for `extract`."""
    min_valid: float | None = Field(default=None, ge=0, le=1)
    """Share of answers inside the grammar that can be read; default: all. For `extract` and `answer: reasoning`, where what is
    written out may be cut off at `max_new_tokens`."""
    min_valid_free: float | None = Field(default=None, ge=0, le=1)
    """The same without the grammar."""
    min_field_accuracy: float | None = Field(default=None, ge=0, le=1)
    """For `extract`: share of right values of the field that has the fewest."""
    min_list_f1: float | None = Field(default=None, ge=0, le=1)
    """For `extract`: F1 of the texts of all list fields together, normalised."""

    def unmeasurable(self, task: Task) -> dict[str, str]:
        """Gates that nothing is measured for in this task, and why."""
        lists = any(field.type == "list" for field in task.fields.values())
        idle = {} if lists else {"min_list_f1": "the task has no list field"}
        if task.kind == "extract":
            return idle | {"max_expected_calibration_error": "only a chosen class has a calibrated confidence"}
        idle |= dict.fromkeys(("min_field_accuracy", "min_list_f1"), "only kind: extract has fields")
        written = {} if task.answer == "reasoning" else dict.fromkeys(("min_valid", "min_valid_free"), "every label can be read")
        return idle | written


class Evaluator(Block):
    """How the files are measured."""

    gates: Gates = Gates()
    """A refused model is not released."""
    max_images: int | None = Field(default=None, ge=10)
    """Measure on this many test images at most, chosen by hash; default: all."""
    parity_images: int = Field(default=16, ge=1, le=1000)
    """Test images on which log-probabilities are compared."""
    golden_images: int = Field(default=4, ge=1, le=64)
    """Test images that are released with their expected answers."""
    answer_threshold: float = Field(default=0.5, ge=0, le=1)
    """Below this confidence the app should say that it does not know; shipped in release.json."""
    beside: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][-A-Za-z0-9._]{0,63}$")
    """Another finished run in this store, by its id or as the name of a release: its accuracy, tokens and times stand beside
    these in the report, on the test images of both."""


class Recipe(Block):
    """The `run:` block."""

    name: Name
    """Lower-case letters, digits and hyphens, at most 40; names the release."""
    version: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][-A-Za-z0-9._]{0,63}$")
    """Version of the release; default: from its content."""
    task: Task
    """What is asked, and what may be answered."""
    device: Device = Device()
    """How the phone sees an image."""
    student: Student
    """The model."""
    labeller: Labeller
    """Images and labels."""
    trainer: Trainer
    """Training."""
    quantiser: Quantiser = Quantiser()
    """GGUF files."""
    evaluator: Evaluator = Evaluator()
    """Measurement and gates."""

    @model_validator(mode="after")
    def _gates_can_be_measured(self) -> Self:
        gates = self.evaluator.gates
        for key, why in gates.unmeasurable(self.task).items():
            # The record of a run holds the defaults too.
            if key in gates.model_fields_set and getattr(gates, key) not in (None, Gates.model_fields[key].default):
                raise ValueError(f"evaluator.gates.{key}: {why}; remove it")
        return self

    @model_validator(mode="after")
    def _labels_are_of_the_task(self) -> Self:
        for key, why in self.labeller.unfit(self.task):
            raise ValueError(f"labeller.{key}: {why}")
        return self

    @model_validator(mode="after")
    def _none_is_the_teachers_word(self) -> Self:
        taken = [name for name in self.task.classes if name.casefold() == "none"]
        if taken and (self.labeller.teacher is not None or self.labeller.corrections is not None):
            raise ValueError(f"task.classes: {taken[0]} is what a teacher or a person says when no class fits; rename the class")
        return self


class RunFile(BaseModel):
    """A run file. Keys beside `run:` belong to the Helm chart and are not read here."""

    model_config = ConfigDict(extra="allow", frozen=True)

    run: Recipe
    folder: Path = Field(default=Path(), exclude=True)
    """Folder of the file; relative paths in it start here."""
