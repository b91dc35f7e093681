"""What a report shows, gathered from the artifacts of a run. Everything but `times` is equal for equal runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pocketvlm.artifacts.checkpoint_layout import CurvePoint
from pocketvlm.report.results import GateResult, Metrics, Prediction


@dataclass(frozen=True)
class FileRow:
    """One GGUF file; `size_mb` in 10^6 bytes."""

    name: str
    size_mb: float
    bits_per_weight: float
    matrices: int = 0
    fallbacks: int = 0
    """Weight matrices that are not of the type in the file's name."""


@dataclass(frozen=True)
class WrongAnswer:
    """A test image that a shipped type got wrong."""

    prediction: Prediction
    picture: bytes | None
    """PNG."""


@dataclass(frozen=True)
class Refused:
    """Images in quarantine for one reason."""

    reason: str
    count: int
    source_id: str
    """Of the first one."""
    detail: str


@dataclass(frozen=True)
class Side:
    """One of two runs that stand beside each other: its first shipped type, on the test images of both."""

    run: str
    type: str
    answer: str
    """What it writes: `label`, `reasoning` or `fields`."""
    accuracy: float
    only: int
    """Images that only it got right."""
    prompt_tokens: int
    """At most."""
    answer_tokens: float | None
    """Median."""


@dataclass(frozen=True)
class Beside:
    """This run and another one."""

    own: Side
    other: Side
    images: int
    """Test images of both with one label."""
    interval: tuple[float, float]
    """95 % of the difference of accuracies, this run's minus the other's, by a paired bootstrap."""
    p_value: float
    """McNemar, exact, two-sided."""


@dataclass(frozen=True)
class Times:
    """What differs between equal runs."""

    latency: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Type -> milliseconds and threads, from the evaluator's measurements."""
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Stage -> its artifact's measurements."""
    beside: Mapping[str, float] = field(default_factory=dict)
    """Latency of the other run's type, as in `latency`."""


@dataclass(frozen=True)
class ReportData:
    """All that the template reads."""

    name: str
    run: str
    metrics: Metrics
    gates: list[GateResult]
    files: list[FileRow]
    question: str
    prompt: str
    """Bytes of prompt.txt."""
    grammar: str
    """Bytes of grammar.gbnf."""
    device: Mapping[str, int | None]
    answer_threshold: float
    parity_definition: str
    layout_definition: str
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Split -> class -> images."""
    images_total: int = 0
    """Of the source."""
    quarantine: list[Refused] = field(default_factory=list)
    near_copy_groups: int = 0
    labels: Mapping[str, Any] = field(default_factory=dict)
    """Facts of the dataset about teachers and corrections: stages/labelling/tally.py."""
    curve: list[CurvePoint] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)
    """One line for each phase of training."""
    wrong: list[WrongAnswer] = field(default_factory=list)
    """Those that are shown."""
    wrong_total: int = 0
    beside: Beside | None = None
    parity_limit: float | None = None
    """None: parity is measured and refuses nothing."""
    provenance: list[tuple[str, str]] = field(default_factory=list)
    times: Times | None = None

    def without_times(self) -> ReportData:
        """For the release, whose bytes are equal for equal runs."""
        return dataclasses.replace(self, times=None)

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        return all(gate.passed for gate in self.gates)

    @property
    def shipped(self) -> list[str]:
        """Types that the run file asks for."""
        return [name for name in self.metrics.order if self.metrics.types[name].shipped]

    def file(self, name: str) -> FileRow | None:
        """The row of a GGUF file."""
        return next((row for row in self.files if row.name == name), None)
