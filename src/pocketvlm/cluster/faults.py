"""How a run ends badly: what is wrong, in the words of who knows it best, and what a person has to do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pocketvlm.cluster.objects import GATES, Container, Pod
from pocketvlm.cluster.plan import ConductorPlan, SetUpWrong, StagePlan
from pocketvlm.cluster.trouble import Case, Trouble
from pocketvlm.cluster.words import Commands, exit_meaning, split_log
from pocketvlm.errors import PocketVLMError
from pocketvlm.progress import duration


class StageFailed(PocketVLMError):
    """A stage cannot be finished; its reason has been told."""

    exit_code = 10


@dataclass(frozen=True)
class Fault:
    """The end of a run that went wrong."""

    stage: str
    job: str
    headline: str
    """One sentence: who, and what is wrong."""
    facts: tuple[tuple[str, str], ...] = ()
    """Label and text; a text without a label goes on with the one above."""
    to_do: tuple[str, ...] = ()
    again: str = ""
    """The way to another try."""
    more: tuple[str, ...] = ()
    """Commands that show more."""
    pod: str = ""
    """Whose log to quote."""
    container: str = ""
    last_words: str = ""
    """The end of that log, as the pod's status has it; used if the log itself is out of reach."""
    set_up: bool = False
    """Not the stage is wrong but the cluster's settings."""

    def error(self) -> PocketVLMError:
        """What the conductor ends with, after the report."""
        if self.set_up:
            return SetUpWrong(f"{self.headline.rstrip('.')}; what to do is above")
        return StageFailed(f"{self.headline.rstrip('.')}; what to do is above")

    def report(self, log: str = "", left: Sequence[str] = ()) -> list[str]:
        """The lines of the report. `log`: the end of the pod's log; `left`: stages that run on."""
        before, said = split_log(log or self.last_words)
        lines = [f"FAILED: {self.headline}", *(f"    {line}" for line in said)]
        note = [f"the {' and the '.join(left)} goes on until helm uninstall"] if left else []
        rows = [*self.facts, *_labelled("before", before), *_labelled("to do", self.to_do), *_labelled("note", note),
                *_labelled("again", [self.again]), *_labelled("more", self.more)]  # fmt: skip
        return [*lines, *(f"  {label:<8}{text}" for label, text in rows)]


def _labelled(label: str, texts: tuple[str, ...] | list[str]) -> Iterator[tuple[str, str]]:
    yield from zip((label, *[""] * len(texts)), texts, strict=False)


def failed(case: Case) -> Fault:
    """A Job with the condition Failed."""
    job = case.job
    pod = _guilty(case)
    broken = pod.broken if pod else None
    headline, to_do = _why(case, pod, broken)
    more = [case.commands.describe("job", job.name)]
    if pod and pod.leave_by is None:  # a pod that its deadline ended goes, and its log with it
        more.insert(0, case.commands.logs(pod.name, broken.name if broken and len(pod.containers) > 1 else ""))
    return Fault(
        stage=case.stage.name,
        job=job.name,
        headline=headline,
        facts=tuple(_facts(case, pod, broken)),
        to_do=tuple(to_do),
        again=case.commands.again,
        more=tuple(more),
        pod=pod.name if pod else "",
        container=broken.name if broken else "",
        last_words=broken.ended_message if broken else "",
    )


def _guilty(case: Case) -> Pod | None:
    """The pod that Kubernetes names in its reason, else the one that failed last."""
    broken = [pod for pod in case.pods if pod.phase == "Failed" or pod.broken]
    named = [pod for pod in broken if pod.name in case.job.message]
    return max(named or broken, key=lambda pod: pod.ended, default=None)


def _facts(case: Case, pod: Pod | None, broken: Container | None) -> Iterator[tuple[str, str]]:
    job = case.job
    tries = max(job.failed, sum(pod.phase == "Failed" for pod in case.pods))
    parts = [job.reason]
    if tries:
        parts.append(f"{tries} attempt{'s' if tries > 1 else ''}")
    if job.ended is not None and job.started is not None:
        parts.append(duration(job.ended - job.started))
    yield "job", f"{job.name}: {', '.join(parts)}"
    if job.message:
        yield "", job.message
    if pod:
        yield "pod", _where(pod) + (f", container {broken.name}" if broken else "")
        if broken and (pod.reason or pod.message):
            yield "", f"{pod.reason}: {pod.message}".strip(": ")


def _where(pod: Pod) -> str:
    return f"{pod.name}{f' on {pod.node}' if pod.node else ''}"


def _why(case: Case, pod: Pod | None, broken: Container | None) -> tuple[str, list[str]]:
    """One sentence, and what to do."""
    stage, job = case.stage.name, case.job
    if job.reason == "DeadlineExceeded":
        limit = f" of {duration(job.deadline_s)}" if job.deadline_s else ""
        to_do = f"give it more time in {case.value('activeDeadlineSeconds')}: what it has saved is in the store"
        return f"the {stage} ran past its deadline{limit}", [to_do]
    if broken is None or not broken.exit_code:
        reason, message = (pod.reason, pod.message) if pod and pod.reason else (job.reason, job.message)
        return f"the {stage} failed, {reason}: {message}".rstrip(": "), []
    meaning = exit_meaning(broken.exit_code, broken.ended_reason)
    if job.failed_shards:
        return f"shard {job.failed_shards} of the {stage} failed with exit {meaning}", list(_advice(case, broken))
    if job.reason == "BackoffLimitExceeded" and job.failed > 1:
        return f"the {stage} failed {job.failed} times, the last time with exit {meaning}", list(_advice(case, broken))
    return f"the {stage} failed with exit {meaning}", list(_advice(case, broken))


def _advice(case: Case, broken: Container) -> Iterator[str]:
    code = broken.exit_code
    if broken.ended_reason == "OOMKilled":
        limit = broken.limits.get("memory")
        yield f"it needed more memory{f' than {limit}' if limit else ''}: raise {case.value('resources.limits.memory')}"
    elif code == 2:
        yield "change what that error names, in the run file or in the chart's values"
    elif code == 3:
        yield "correct the data or the source: another try on the same data gives the same"
    elif code == 4:
        yield "latest.json was not moved: phones keep the release before. What was measured is in the report, in the store"
        yield "train a better model, or change run.evaluator.gates if a gate asks for too much"
    elif code in (126, 127, 128):
        yield f"{broken.ended_message or 'the image does not hold what the chart starts'}: look at {case.value('image')}"
    elif code == 137:
        yield "something killed it: its node ran out of memory, or it did not end within its grace period"
    else:
        yield "if the cause has passed (a store, a node), try again: it goes on from what was saved"


def missing(plan: ConductorPlan, stage: StagePlan) -> Fault:
    """A Job that is not there."""
    commands = Commands.of(plan)
    return Fault(
        stage=stage.name,
        job=stage.job,
        headline=f"the Job {stage.job} of the {stage.name} is not in namespace {plan.namespace}",
        facts=(("why", "somebody deleted it; or a clean-up of finished Jobs did, such as ttlSecondsAfterFinished"),),
        again=commands.again,
        more=(commands.kubectl("get jobs,events"),),
    )


def started_early(case: Case, before: str) -> Fault:
    """A stage that somebody else has started before its turn."""
    job = case.job
    to_do = ["leave spec.suspend of the stages' Jobs to the conductor; GitOps tools must ignore it (Argo CD: ignoreDifferences "
             "on /spec/suspend)"]  # fmt: skip
    if job.queue:
        to_do = [f"queue {job.queue} admitted it although the annotation {GATES} holds it back, which Kueue respects from "
                 "0.19 on, and in 0.17 and 0.18 with the feature gate AdmissionGatedBy",
                 "update Kueue, or install into a namespace without a LocalQueue named `default`"]  # fmt: skip
    return _hands_off(case, f"the {case.stage.name} was started before the {before} was complete, and not by the conductor",
                      "false", to_do)  # fmt: skip


def suspended_again(case: Case) -> Fault:
    """A released stage that somebody else has suspended."""
    return _hands_off(case, f"the {case.stage.name} was suspended again after its release, and not by the conductor", "true", [
        "with Kueue and its manageJobsWithoutQueueName: name a queue in kueue.queueName, so that Kueue admits the stages",
        "with helm upgrade, Argo CD or Flux: they must leave spec.suspend alone (Argo CD: ignoreDifferences on /spec/suspend)",
    ])  # fmt: skip


def _hands_off(case: Case, headline: str, suspend: str, to_do: list[str]) -> Fault:
    job = case.job
    who = job.suspender or "somebody whom the API server does not name"
    return Fault(
        stage=case.stage.name,
        job=job.name,
        headline=headline,
        facts=(("why", f"spec.suspend of {job.name} is {suspend}, set by {who}"),),
        to_do=tuple(to_do),
        again=case.commands.again,
        more=(case.commands.kubectl(f"get job {job.name} -o yaml --show-managed-fields"),),
        set_up=True,
    )


def never_started(case: Case, trouble: Trouble) -> Fault:
    """A stage that could not start until its deadline."""
    facts = [("reason", f"{trouble.reason}: {trouble.says}".rstrip(": "))]
    facts += [("pod", _where(pod)) for pod in case.pods if pod.name == trouble.pod]
    return Fault(
        stage=case.stage.name,
        job=case.job.name,
        headline=f"the {case.stage.name} could not start within {duration(trouble.limit_s or 0)}: {trouble.what}",
        facts=tuple(facts),
        to_do=(trouble.to_do, f"or, if it only needs more time, raise {trouble.limit_name}"),
        again=case.commands.again,
        more=(trouble.more,),
    )


def no_right(plan: ConductorPlan, says: str) -> SetUpWrong:
    """The API server refuses what the conductor must be able to do. The message names verb and resource."""
    who = re.search(r'User "([^"]+)" cannot (\w+) resource "([^"]+)"', says)
    if not who:
        return SetUpWrong(f"the API server refuses the conductor: {says}")
    user, verb, resource = who.groups()
    check = Commands.of(plan).kubectl(f"auth can-i {verb} {resource} --as {user}")
    return SetUpWrong(f"the conductor has no right to {verb} {resource}; its Role must give it, as the chart's own does. "
                      f"The API server says: {says}\n  check   {check}")  # fmt: skip
