"""List, act, watch, and list again. All state is the cluster's: what is remembered here only keeps the log from repeating.

A watch is a doorbell: what it says is not read, only that something changed. So events that come twice, late or out of
order cannot mislead, and every error ends in the next list.
"""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from pocketvlm.cluster.api import Api, Away, Refused, connect
from pocketvlm.cluster.faults import no_right
from pocketvlm.cluster.machine import assess, pods_to_ask_about
from pocketvlm.cluster.metrics import RunMetrics, serve
from pocketvlm.cluster.objects import Job, Snapshot
from pocketvlm.cluster.plan import ConductorPlan, SetUpWrong, read_plan
from pocketvlm.cluster.teller import Teller
from pocketvlm.errors import PocketVLMError
from pocketvlm.progress import Progress, duration

STOPPED = 143
NO_RIGHT = (401, 403)


@dataclass(frozen=True)
class Patience:
    """How long the conductor bears with what may pass by itself."""

    away_s: float = 1800.0
    """An API server that does not answer. Stages run on meanwhile."""
    rights_s: float = 20.0
    """A right that is refused: a new Role takes a moment to reach every API server."""
    lost_rights_s: float = 300.0
    """The same after all rights have been there: an API server that has just started may not know its Roles yet."""
    arrival_s: float = 60.0
    """A Job that was never seen: helm install may still be at work."""
    absence_s: float = 5.0
    """A Job that was seen and is not there."""
    conflicts: int = 8
    """Refused releases in a row of what looked releasable. Where a webhook does not answer, `away_s` counts too."""
    longest_pause_s: float = 30.0
    settle_s: float = 0.1
    """Between a change and the next list: changes come in bursts."""


class Conductor:
    """Conducts one release to its end."""

    def __init__(
        self, plan: ConductorPlan, api: Api, progress: Progress, metrics: RunMetrics, patience: Patience | None = None
    ) -> None:
        self._plan, self._api, self._progress, self._metrics = plan, api, progress, metrics
        self._patience = patience or Patience()
        self._teller = Teller(plan, api, progress)
        self._absent: dict[str, float] = {}
        self._seen: set[str] = set()
        self._failures = 0
        self._away_since: float | None = None
        self._refused_since: float | None = None
        self._had_rights = False
        self._conflicts = 0
        self._conflict_since = 0.0
        self._short_watches = 0

    def run(self) -> None:
        """Returns when all stages are complete. Raises StageFailed, SetUpWrong, or PocketVLMError if the API stays away."""
        self._teller.begin()
        while True:
            try:
                if self._round():
                    return
            except Away as error:
                self._bear_absence(str(error))
            except Refused as error:
                self._bear_refusal(error)

    def _round(self) -> bool:
        """One list, what follows from it, and one watch. True: the run is done."""
        seen, version = self._look()
        found = assess(self._plan, seen, self._gone(seen))
        self._metrics.update(found.stages)
        self._teller.show(found, seen)
        if found.fault:
            self._teller.fail(found.fault, found.stages, seen)
        if found.done:
            self._teller.done(found.stages)
            return True
        if found.release:
            self._release(found.release)
            return False
        self._conflicts = 0
        self._watch(version, found.look_again_s)
        self._refused_since, self._had_rights = None, True
        return False

    def _look(self) -> tuple[Snapshot, str]:
        seen, version = self._api.look()
        if self._away_since is not None:
            self._progress.line(f"the API server answers again after {duration(time.monotonic() - self._away_since)}")
        self._away_since, self._failures = None, 0
        events = {one.uid: self._teller.warnings_about(one) for one in pods_to_ask_about(self._plan, seen)}
        return replace(seen, events={uid: text for uid, text in events.items() if text}), version

    def _gone(self, seen: Snapshot) -> frozenset[str]:
        """Jobs that are not there, and not because they have not been made yet."""
        now = time.monotonic()
        here = {name for name, job in seen.jobs.items() if not job.leaving}
        self._seen |= here
        self._absent = {stage.job: self._absent.get(stage.job, now) for stage in self._plan.stages if stage.job not in here}
        return frozenset(
            name for name, since in self._absent.items()
            if now - since >= (self._patience.absence_s if name in self._seen else self._patience.arrival_s)
        )  # fmt: skip

    def _watch(self, version: str, seconds: float) -> None:
        """Ends with the next list whatever happens; a watch that ends as soon as it begins must not become a storm of lists."""
        begun = time.monotonic()
        try:
            changed = self._api.wait_for_change(version, seconds)
        except Away:
            changed = False  # a dropped watch is everyday; whether the API server is there, the list will say
        except Refused as error:
            if error.status in NO_RIGHT:
                raise
            changed = False  # 410 most of all: that version is forgotten
        if changed:
            self._short_watches = 0
            time.sleep(self._patience.settle_s)
        elif time.monotonic() - begun < 0.5:
            self._short_watches += 1
            self._pause(self._short_watches)
        else:
            self._short_watches = 0

    def _release(self, job: Job) -> None:
        stage = next(stage for stage in self._plan.stages if stage.job == job.name)
        number = self._plan.number(stage.name)
        why = f"the {self._plan.stages[number - 1].name} is complete" if number else "it is the first"
        try:
            self._api.release(job)
        except (Away, Refused) as error:
            if isinstance(error, Refused) and error.status in NO_RIGHT:
                raise
            self._bear_conflict(job, error)
            return
        self._conflicts = 0
        self._teller.released(stage.name, job, why)

    def _bear_conflict(self, job: Job, error: Away | Refused) -> None:
        """Somebody was faster, or a webhook said no or nothing. What is so now, the next list says."""
        now = time.monotonic()
        self._conflict_since = now if not self._conflicts else self._conflict_since
        self._conflicts += 1
        if self._conflicts >= self._patience.conflicts:
            says = f"the Job {job.name} cannot be released; the API server says: {error}"
            if isinstance(error, Refused):
                raise SetUpWrong(says) from error
            if now - self._conflict_since > self._patience.away_s:
                raise PocketVLMError(says) from error
            self._teller.warn_once(f"{says}; this goes on trying")
        self._pause(self._conflicts - 1)

    def _bear_absence(self, reason: str) -> None:
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
            self._progress.warn(f"no answer from the API server ({reason}); stages run on without it, and this goes on trying")
        if now - self._away_since > self._patience.away_s:
            raise PocketVLMError(
                f"the API server has not answered for {duration(now - self._away_since)}; stages that run are not affected, and "
                f"Kubernetes starts the conductor again"
            )
        self._failures += 1
        self._pause(self._failures)

    def _bear_refusal(self, error: Refused) -> None:
        if error.status not in NO_RIGHT:
            self._bear_absence(f"{error.status}: {error}")
            return
        now = time.monotonic()
        if self._refused_since is None:
            self._refused_since = now
        patience_s = self._patience.lost_rights_s if self._had_rights else self._patience.rights_s
        if now - self._refused_since >= patience_s:
            raise no_right(self._plan, str(error))
        self._teller.warn_once(f"{error}; trying for {duration(patience_s)}, since rights take a moment to arrive")
        time.sleep(min(2.0, patience_s / 4))

    def _pause(self, failures: int) -> None:
        """Doubling, and uneven, so that the conductors of many releases do not come back at once."""
        time.sleep(min(self._patience.longest_pause_s, 0.25 * 2 ** min(failures, 10)) * random.uniform(0.5, 1.0))


def conduct(path: Path) -> None:
    """Conducts the release that the plan describes. Raises what `Conductor.run` raises."""
    signal.signal(signal.SIGTERM, _stop)
    plan = read_plan(path)
    progress, metrics = Progress("conductor"), RunMetrics(plan)
    with serve(metrics, plan.metrics.port):
        try:
            Conductor(plan, Api(plan, connect()), progress, metrics).run()
        except PocketVLMError:
            _linger(plan, progress)
            raise
        _linger(plan, progress)


def _linger(plan: ConductorPlan, progress: Progress) -> None:
    """Stays for a last scrape: Prometheus forgets a pod that is gone before it came by."""
    if plan.metrics.linger_s:
        progress.line(f"the metrics can be read for another {duration(plan.metrics.linger_s)}")
        time.sleep(plan.metrics.linger_s)


def _stop(number: int, frame: FrameType | None) -> None:
    """At once: there is nothing to save, and the next conductor finds everything in the cluster."""
    del number, frame
    os.write(2, b"conductor  stopped; stages run on, and the next conductor goes on from here\n")
    os._exit(STOPPED)
