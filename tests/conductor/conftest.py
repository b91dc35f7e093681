"""The plan of a release named digits, and what a conductor needs to run against the fake API."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_api import FakeApi
from shapes import SHORT, release_plan

from pocketvlm.cluster.api import Api, Limits
from pocketvlm.cluster.conductor import Conductor, Patience
from pocketvlm.cluster.metrics import RunMetrics
from pocketvlm.cluster.plan import ConductorPlan
from pocketvlm.progress import Progress


@pytest.fixture
def plan() -> ConductorPlan:
    return release_plan()


@pytest.fixture
def fake() -> Iterator[FakeApi]:
    with FakeApi() as api:
        yield api


@dataclass
class Running:
    """A conductor in a thread."""

    stream: io.StringIO
    metrics: RunMetrics
    thread: threading.Thread = field(init=False)
    ended: BaseException | None = None
    finished: bool = False

    @property
    def log(self) -> str:
        return self.stream.getvalue()

    def join(self, seconds: float = 15.0) -> Running:
        self.thread.join(seconds)
        assert not self.thread.is_alive(), f"it still runs:\n{self.log}"
        return self


@pytest.fixture
def conduct(fake: FakeApi) -> Iterator[Callable[..., Running]]:
    """Starts conductors; whatever still runs at the end of the test ends with the fake."""
    started: list[Running] = []

    def start(plan: ConductorPlan | None = None, patience: Patience = SHORT, **limits: Any) -> Running:
        chosen = plan or release_plan()
        running = Running(io.StringIO(), RunMetrics(chosen))
        api = Api(chosen, fake.client(), Limits(**({"connect_s": 2.0, "answer_s": 2.0} | limits)))
        conductor = Conductor(chosen, api, Progress("conductor", running.stream), running.metrics, patience)

        def body() -> None:
            try:
                conductor.run()
                running.finished = True
            except BaseException as error:
                running.ended = error

        running.thread = threading.Thread(target=body, daemon=True)
        running.thread.start()
        started.append(running)
        return running

    yield start
    fake.forbid_everything()
    for running in started:
        running.join()
