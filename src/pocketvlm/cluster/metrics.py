"""Where the run stands, for Prometheus: the conductor lives as long as the run, and stages come and go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pocketvlm.cluster.machine import STATES, StageView
from pocketvlm.cluster.plan import ConductorPlan, SetUpWrong


class RunMetrics(Collector):
    """Answers each scrape from one assessment, so that the numbers of a scrape belong together."""

    def __init__(self, plan: ConductorPlan) -> None:
        self._plan = plan
        self._stages = tuple(StageView(stage.name, stage.job, "waiting") for stage in plan.stages)

    def update(self, stages: tuple[StageView, ...]) -> None:
        """What the next scrape shows."""
        self._stages = stages

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The metrics. A time that has not come has no sample: 0 would be 1970."""
        run = GaugeMetricFamily("pocketvlm_run_info", "Which run this is.", labels=["run"])
        run.add_metric([self._plan.run], 1)
        state = GaugeMetricFamily("pocketvlm_stage_state", "1 for the state that a stage is in.", labels=["stage", "state"])
        started = GaugeMetricFamily("pocketvlm_stage_start_timestamp_seconds", "When a stage was released.", labels=["stage"])
        ended = GaugeMetricFamily("pocketvlm_stage_end_timestamp_seconds", "When a stage ended.", labels=["stage"])
        attempts = GaugeMetricFamily("pocketvlm_stage_attempts", "Attempts of a stage so far.", labels=["stage"])
        for view in self._stages:
            for name in STATES:
                state.add_metric([view.name, name], float(view.state == name))
            attempts.add_metric([view.name], view.attempts)
            if view.started is not None:
                started.add_metric([view.name], view.started)
            if view.ended is not None:
                ended.add_metric([view.name], view.ended)
        return [run, state, started, ended, attempts]


@contextmanager
def serve(metrics: RunMetrics, port: int) -> Iterator[int]:
    """Serves `/metrics` meanwhile; yields the port. Raises SetUpWrong if it is taken."""
    registry = CollectorRegistry()
    registry.register(metrics)
    try:
        server, thread = start_http_server(port, registry=registry)
    except OSError as error:
        raise SetUpWrong(f"metrics.port {port} cannot be used ({error.strerror}): choose another in the values") from error
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
