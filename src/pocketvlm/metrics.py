"""What `/metrics` of a stage says, named as Prometheus wants it: the unit at the end, `_total` on what only grows.

`Progress` puts the numbers in, the same that a person reads in the log; a server of prometheus-client hands them out.
A stage that ends takes its last numbers with it: what must last is in the manifest and under runs/.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from prometheus_client.core import Metric


@dataclass(frozen=True)
class Series:
    """One name of `/metrics`."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    """Besides `stage`."""
    grows: bool = False
    """A counter; `_total` is added to its name."""


DONE = Series("pocketvlm_stage_done_units", "Units of an activity that are done.", ("activity",))
TOTAL = Series("pocketvlm_stage_total_units", "Units of an activity in all.", ("activity",))
RATE = Series("pocketvlm_stage_units_per_second", "Mean rate of an activity since it began or went on.", ("activity",))
ETA = Series("pocketvlm_stage_eta_seconds", "Time until an activity ends if its rate stays.", ("activity",))

NUMBERS = {
    "loss": Series("pocketvlm_trainer_loss_nats", "Training loss: mean over answer tokens since the point before."),
    "lr": Series("pocketvlm_trainer_learning_rate", "Learning rate of the last step; the highest of the parts."),
    "epoch": Series("pocketvlm_trainer_epoch", "Epochs of the running phase that are done, with fractions."),
    "phase": Series("pocketvlm_trainer_phase", "The running phase, from 1."),
    "samples/s": Series("pocketvlm_trainer_samples_per_second", "Training samples a second since the point before."),
    "best accuracy": Series("pocketvlm_trainer_best_accuracy_ratio", "Best validation accuracy of the running phase."),
    "accuracy": Series("pocketvlm_trainer_validation_accuracy_ratio", "Accuracy at the last validation."),
    "validation loss": Series("pocketvlm_trainer_validation_loss_nats", "Loss at the last validation."),
    "GPU memory": Series("pocketvlm_trainer_gpu_memory_bytes", "GPU memory that tensors take now."),
    "GPU peak": Series("pocketvlm_trainer_gpu_memory_peak_bytes", "Most GPU memory that tensors took so far."),
    "prepared": Series("pocketvlm_labeller_images", "Images of this share that were looked at.", grows=True),
    "quarantined": Series("pocketvlm_labeller_quarantined_images", "Images of this share that cannot be used.", ("reason",),
                          grows=True),
    "answered": Series("pocketvlm_labeller_answers", "Answers that this process has, by where from: the teacher, or the store.",
                       ("origin",), grows=True),
    "retries": Series("pocketvlm_labeller_teacher_retries", "Calls of teachers that followed a failed one.", grows=True),
    "cost USD": Series("pocketvlm_labeller_cost_usd", "US dollars that these answers cost, whoever paid for them.", grows=True),
    "asked": Series("pocketvlm_evaluator_images_asked", "Images of this share that were asked.", ("type",), grows=True),
}  # fmt: skip
"""Name of a number as `Progress.step` is told it -> its series."""


class Metrics:
    """The numbers of one stage; any thread may read them while another writes."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._lock = threading.Lock()
        self._values: dict[Series, dict[tuple[str, ...], float]] = {}

    def set(self, series: Series, value: float, *labels: str) -> None:
        """Keeps the newest value of a series."""
        assert len(labels) == len(series.labels), series.name
        with self._lock:
            self._values.setdefault(series, {})[labels] = value

    def set_number(self, name: str, value: float | Mapping[str, float]) -> None:
        """A number of NUMBERS; a mapping gives its values by label."""
        for labels, one in value.items() if isinstance(value, Mapping) else [("", value)]:
            self.set(NUMBERS[name], one, *([labels] if labels else []))

    def collect(self) -> Iterator[Metric]:
        """What prometheus-client asks a collector for."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        with self._lock:
            values = {series: dict(found) for series, found in self._values.items()}
        for series, found in values.items():
            family: Any = CounterMetricFamily if series.grows else GaugeMetricFamily
            metric = family(series.name, series.help, labels=("stage", *series.labels))
            for labels, value in found.items():
                metric.add_metric((self._stage, *labels), value)
            yield metric


def serve(metrics: Metrics, port: int, warn: Callable[[str], None]) -> None:
    """Serves `/metrics` on all addresses until the process ends.

    A port that cannot be had is worth a warning and not a failed stage.
    """
    from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

    registry = CollectorRegistry()
    registry.register(cast(Any, metrics))  # by its method: a base class would be imported with every command
    ProcessCollector(registry=registry)
    try:
        # In a cluster of IPv6 alone nobody comes over 0.0.0.0. Its thread is a daemon, so nothing waits for it at the end.
        start_http_server(port, "::" if socket.has_dualstack_ipv6() else "0.0.0.0", registry)
    except OSError as error:
        warn(f"POCKETVLM_METRICS_PORT={port}: no /metrics, {error.strerror or error}")
