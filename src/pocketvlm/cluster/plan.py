"""What there is to conduct. The chart writes it as JSON into a ConfigMap."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pocketvlm.errors import PocketVLMError

SUSPECTS = "the chart writes this file; is the image of the conductor of the same version as the chart?"


class SetUpWrong(PocketVLMError):
    """The plan, the conductor's rights or the cluster's settings are wrong: trying again gives the same."""

    exit_code = 11


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StagePlan(_Block):
    """One stage and the Job that is it."""

    name: str = Field(min_length=1)
    job: str = Field(min_length=1)
    startup_timeout_s: float = Field(gt=0)
    """How long a pod that has a node may be unable to start."""
    unschedulable_timeout_s: float = Field(gt=0)
    """How long a pod may find no node; longer, since a pool of GPUs may have to grow first."""


class MetricsPlan(_Block):
    """Where Prometheus finds the run."""

    port: int = Field(ge=0, le=65535)
    """0: any free port."""
    linger_s: float = Field(ge=0)
    """How long the conductor stays after the end, for a last scrape."""


class ConductorPlan(_Block):
    """One release: the stages in their order."""

    release: str = Field(min_length=1)
    namespace: str = Field(min_length=1)
    run: str = Field(min_length=1)
    stages: tuple[StagePlan, ...] = Field(min_length=1)
    metrics: MetricsPlan
    gate: str = Field(min_length=1)
    """Our name in the annotation that holds a Job back."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for what, names in (("stage", [s.name for s in self.stages]), ("Job", [s.job for s in self.stages])):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise ValueError(f"the {what} {twice[0]} is there twice")
        return self

    def number(self, stage: str) -> int:
        """Place of a stage in the order, from 0."""
        return [one.name for one in self.stages].index(stage)


def read_plan(path: Path) -> ConductorPlan:
    """Reads the plan. Raises SetUpWrong naming the key, or the file that cannot be read."""
    try:
        return ConductorPlan.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SetUpWrong(f"{path}: cannot be read ({error.strerror}); {SUSPECTS}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SetUpWrong(f"{path}: {where + ': ' if where else ''}{first['msg']}; {SUSPECTS}") from error
