"""Where the run stands, and what to do next: from Jobs, pods and the clock, without side effects and without a memory.

Two rules stand above all: the next stage starts only on the condition `Complete` of the one before, and the absence of
pods is never a verdict (a Job whose pod has not been made yet looks like one whose pod is gone).
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from pocketvlm.cluster.faults import Fault, failed, missing, never_started, started_early, suspended_again
from pocketvlm.cluster.objects import Job, Pod, Snapshot
from pocketvlm.cluster.plan import ConductorPlan, StagePlan
from pocketvlm.cluster.trouble import Case, Trouble, find_troubles
from pocketvlm.cluster.words import FINAL_CODES, Commands

STATES = ("missing", "waiting", "queued", "starting", "stuck", "running", "retrying", "complete", "failed")
"""waiting: for its predecessor. queued: released, and Kueue has not admitted it. retrying: between two attempts."""

CALM_S = 240.0
"""How long nothing needs a look if nothing is told. As long as a watch lasts."""


@dataclass(frozen=True)
class StageView:
    """One stage, as it stands."""

    name: str
    job: str
    state: str
    started: float | None = None
    ended: float | None = None
    attempts: int = 0
    """Pods that failed, and one for what runs or has run well."""
    note: str = ""


@dataclass(frozen=True)
class Assessment:
    """What is so, and what follows."""

    stages: tuple[StageView, ...]
    release: Job | None = None
    """To be released now."""
    troubles: tuple[Trouble, ...] = ()
    """Of the stage whose turn it is."""
    fault: Fault | None = None
    """The run ends badly."""
    done: bool = False
    """The run ends well."""
    look_again_s: float = CALM_S
    """When to look again if no watch tells of a change."""


def assess(plan: ConductorPlan, seen: Snapshot, gone: Set[str] = frozenset()) -> Assessment:
    """Where the run stands. `gone`: Jobs whose absence is certain; another one that is absent may still come."""
    commands = Commands.of(plan)
    cases = {stage.name: _case(plan, stage, seen, commands) for stage in plan.stages}
    found = {name: find_troubles(case) if case and _should_run(case.job) else [] for name, case in cases.items()}
    views = tuple(_view(stage, cases[stage.name], found[stage.name]) for stage in plan.stages)
    turn = next((number for number, view in enumerate(views) if view.state != "complete"), None)
    if turn is None:
        return Assessment(views, done=True)
    stage = plan.stages[turn]
    case, troubles = cases[stage.name], found[stage.name]
    fault = _fault(plan, cases, turn, gone, troubles)
    if fault or case is None:
        return Assessment(views, fault=fault, troubles=tuple(troubles), look_again_s=2.0)
    ready = case.job.suspended and plan.gate in case.job.gates
    absent = any(one is None for one in cases.values())
    return Assessment(views, case.job if ready and not absent else None, tuple(troubles),
                      look_again_s=2.0 if absent else _look_again(case, troubles, views[turn]))  # fmt: skip


def _case(plan: ConductorPlan, stage: StagePlan, seen: Snapshot, commands: Commands) -> Case | None:
    job = seen.jobs.get(stage.job)
    if job is None or job.leaving:
        return None
    return Case(stage, job, seen.pods_of(job), seen.events, seen.now, commands, plan.gate)


def _should_run(job: Job) -> bool:
    return not job.suspended and not job.condition


def _view(stage: StagePlan, case: Case | None, troubles: list[Trouble]) -> StageView:
    if case is None:
        return StageView(stage.name, stage.job, "missing")
    job, pods = case.job, case.pods
    state = _state(case, troubles)
    failures = max(job.failed, sum(pod.phase == "Failed" for pod in pods))
    alive = state == "complete" or any(pod.phase != "Failed" and pod.leave_by is None for pod in pods)
    begun = state not in ("waiting", "queued")
    return StageView(
        name=stage.name,
        job=job.name,
        state=state,
        # A Job that has never run has no startTime; one that Kueue put back keeps or loses it, by version.
        started=job.started if begun else None,
        ended=job.ended,
        attempts=max(failures + int(alive), int(begun)),
        note=_note(case, state, troubles),
    )


def _state(case: Case, troubles: list[Trouble]) -> str:
    job, pods = case.job, case.pods
    if job.condition:
        return job.condition.lower()
    if job.suspended:
        return "queued" if job.queue and case.gate not in job.gates else "waiting"
    phases = {pod.phase for pod in pods if pod.leave_by is None}
    if phases & {"Running", "Succeeded"} or job.failing:
        return "running"
    if any(trouble.pod and trouble.limit_s is not None for trouble in troubles):
        return "stuck"
    last = pods[-1].broken if pods and pods[-1].phase == "Failed" else None
    if last and last.exit_code in FINAL_CODES:
        return "running"  # for the moment that Kubernetes takes to say Failed
    return "retrying" if pods and phases <= {"Failed"} else "starting"


def _note(case: Case, state: str, troubles: list[Trouble]) -> str:
    if troubles:
        return f"{troubles[0].reason}{f' of {troubles[0].pod}' if troubles[0].pod else ''}"
    if state == "queued":
        return f"in queue {case.job.queue} of Kueue"
    if state == "failed":
        return case.job.reason
    live = [pod for pod in case.pods if pod.phase in ("Pending", "Running")]
    if len(live) > 1:
        return f"{sum(pod.phase == 'Running' for pod in live)} of {len(live)} pods run"
    if not live or state == "complete":
        return ""
    pod = live[0]
    return f"{pod.name}{f' on {pod.node}' if pod.node else ''}{' is ending' if pod.leave_by is not None else ''}"


def _fault(
    plan: ConductorPlan, cases: Mapping[str, Case | None], turn: int, gone: Set[str], troubles: list[Trouble]
) -> Fault | None:
    """The first thing that ends the run: a failure before a deletion, and both before what other hands did."""
    current = cases[plan.stages[turn].name]
    if current and current.job.condition == "Failed":
        return failed(current)
    for stage in plan.stages:
        if cases[stage.name] is None and stage.job in gone:
            return missing(plan, stage)
    if current is None:
        return None
    for stage in plan.stages[turn + 1 :]:
        later = cases[stage.name]
        if later and (not later.job.suspended or later.job.condition):
            return started_early(later, before=plan.stages[turn].name)
    if current.job.suspended and plan.gate not in current.job.gates and not current.job.queue:
        return suspended_again(current)
    late = [one for one in troubles if one.deadline is not None and current.now >= one.deadline]
    return never_started(current, late[0]) if late else None


def _look_again(case: Case, troubles: list[Trouble], view: StageView) -> float:
    """A watch on Jobs does not tell why a pod cannot start: until all run, pods are looked at every now and then."""
    unsettled = any(pod.phase == "Pending" or pod.leave_by is not None for pod in case.pods)
    if view.state not in ("starting", "stuck", "retrying") and not unsettled:
        return CALM_S
    waited = case.now - max([case.job.started or case.now, *(pod.ended for pod in case.pods)])
    deadlines = [one.deadline - case.now for one in troubles if one.deadline is not None]
    return max(1.0, min([30.0, max(2.0, waited / 10), *deadlines]))


def pods_to_ask_about(plan: ConductorPlan, seen: Snapshot) -> list[Job | Pod]:
    """Whose Events would say more: pods that have a node and nothing else to show, and Jobs that have no pod."""
    asked: list[Job | Pod] = []
    for stage in plan.stages:
        job = seen.jobs.get(stage.job)
        if job is None or not _should_run(job):
            continue
        pods = seen.pods_of(job)
        if not pods and seen.now - (job.started or seen.now) > 5:
            asked.append(job)
        asked += [pod for pod in pods if pod.phase == "Pending" and pod.node and not pod.sandbox and seen.now - pod.created > 5]
    return asked
