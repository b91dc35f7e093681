"""What a person who follows the conductor's log is told, and when: each thing once.

Only this memory is lost with a conductor; the next one tells how things stand, and goes on from there.
"""

from __future__ import annotations

from pocketvlm.cluster.api import Api, Away, Refused
from pocketvlm.cluster.faults import Fault
from pocketvlm.cluster.machine import Assessment, StageView
from pocketvlm.cluster.objects import Job, Pod, Snapshot
from pocketvlm.cluster.plan import ConductorPlan
from pocketvlm.cluster.table import changes, ended_badly, table, trouble_lines
from pocketvlm.cluster.words import Commands
from pocketvlm.progress import Progress, duration


class Teller:
    """Writes the log and the Kubernetes Events of one run."""

    def __init__(self, plan: ConductorPlan, api: Api, progress: Progress) -> None:
        self._plan, self._api, self._progress = plan, api, progress
        self._shown: dict[str, StageView] = {}
        self._told: set[str] = set()
        self._last_words: dict[str, str] = {}
        """uid of a Job -> the end of the log of a pod that is being taken away."""

    def begin(self) -> None:
        """The first line."""
        plan, order = self._plan, ", ".join(stage.name for stage in self._plan.stages)
        self._progress.line(f"run {plan.run} as release {plan.release} in namespace {plan.namespace}: {order}")

    def show(self, found: Assessment, seen: Snapshot) -> None:
        """Tells what is new."""
        self._tell_attempts(seen)
        lines = list(changes(self._shown, found.stages, Commands.of(self._plan)))
        if not self._shown or any(_is_news(view, self._shown[view.name]) for view in found.stages):
            for line in [*lines, *table(found.stages, seen.now)]:
                self._progress.line(line)
        for view in found.stages:
            if view.state == "complete":
                self.event(seen.jobs[view.job], "StageFinished", f"{view.name} complete")
        self._shown = {view.name: view for view in found.stages}
        turn = next((view.name for view in found.stages if view.state != "complete"), "")
        for trouble in found.troubles:
            key = f"{trouble.pod} {trouble.what} {trouble.limit_s is None}"
            if key not in self._told and not found.fault:
                self._told.add(key)
                first, *rest = trouble_lines(turn, trouble, seen.now)
                self._progress.warn(first)
                for line in rest:
                    self._progress.line(line)

    def _tell_attempts(self, seen: Snapshot) -> None:
        """Attempts that ended badly, but for the one that ends the run: the report tells of that."""
        for stage in self._plan.stages:
            job = seen.jobs.get(stage.job)
            if job is None:
                continue
            for pod in seen.pods_of(job):
                if job.failing and pod.phase == "Running" and job.uid not in self._last_words:
                    self._last_words[job.uid] = self._log(pod.name, next(one.name for one in pod.containers if not one.init))
                if pod.phase == "Failed" and pod.uid not in self._told:
                    self._told.add(pod.uid)
                    if self._shown and not (job.condition or job.failing):
                        self._progress.warn(ended_badly(stage.name, pod))

    def released(self, stage: str, job: Job, why: str) -> None:
        """A stage may run now."""
        how = f"to queue {job.queue} of Kueue" if job.queue else "to run"
        self._progress.line(f"released the {stage} {how}: {why}")
        self.event(job, "StageReleased", f"{stage} released {how}: {why}")

    def done(self, stages: tuple[StageView, ...]) -> None:
        """The end that everybody waits for."""
        self._progress.line(f"all {len(stages)} stages are complete{_whole(stages)}")

    def fail(self, fault: Fault, stages: tuple[StageView, ...], seen: Snapshot) -> None:
        """Tells the whole of it and raises."""
        job = seen.jobs.get(fault.job)
        log = self._log(fault.pod, fault.container) if fault.pod else ""
        if job and not log and not fault.last_words:
            log = self._last_words.get(job.uid, "")
        left = [view.name for view in stages if view.state in ("starting", "stuck", "running", "retrying")]
        for line in fault.report(log, left):
            self._progress.line(line)
        if job:
            self.event(job, "StageFailed", fault.headline, warning=True)
        raise fault.error()

    def _log(self, pod: str, container: str) -> str:
        """The end of a log, or nothing: a log that is out of reach must not hide the fault."""
        try:
            return self._api.log(pod, container)
        except (Away, Refused) as error:
            self.warn_once(f"the log of {pod} cannot be read: {error}")
            return ""

    def warnings_about(self, thing: Job | Pod) -> str:
        """What an Event says of a pod or Job, or nothing: without it the log only says less."""
        try:
            return self._api.warnings_about(thing)
        except (Away, Refused) as error:
            self.warn_once(f"the Events of {thing.name} cannot be read: {error}")
            return ""

    def event(self, job: Job, reason: str, message: str, *, warning: bool = False) -> None:
        """An Event that cannot be written is no reason to stop a run."""
        if f"{job.uid} {reason}" in self._told:
            return
        self._told.add(f"{job.uid} {reason}")
        try:
            self._api.tell(job, reason, message, warning=warning)
        except (Away, Refused) as error:
            self.warn_once(f"no Event was written: {error}")

    def warn_once(self, text: str) -> None:
        """A warning that would come again and again."""
        if text not in self._told:
            self._told.add(text)
            self._progress.warn(text)


def _is_news(now: StageView, before: StageView) -> bool:
    """Whether the table is worth printing; that a stage starts has been said by its release."""
    return (now.state, now.attempts) != (before.state, before.attempts) and now.state != "starting"


def _whole(stages: tuple[StageView, ...]) -> str:
    started = [view.started for view in stages if view.started is not None]
    ended = [view.ended for view in stages if view.ended is not None]
    return f" after {duration(max(ended) - min(started))}" if started and ended else ""
