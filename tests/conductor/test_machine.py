"""The state machine, as tables: Jobs and pods as `kubectl get -o json` prints them, and what follows from them."""

from __future__ import annotations

from typing import Any

import pytest
from shapes import (
    GATE,
    STAGES,
    chain,
    complete,
    ended,
    failed,
    failing,
    homeless,
    job,
    pod,
    release_plan,
    released,
    running,
    snapshot,
    waiting,
)

from pocketvlm.cluster.machine import Assessment, assess, pods_to_ask_about
from pocketvlm.cluster.objects import Snapshot

PLAN = release_plan()
LABELLER, TRAINER, MERGER = released("labeller"), released("trainer"), released("merger")
DONE = complete("labeller")


def look(*first: Any, gone: Any = (), **options: Any) -> Assessment:
    return assess(PLAN, snapshot(chain(*first), **options), frozenset(gone))


def states(found: Assessment) -> list[str]:
    return [view.state for view in found.stages]


TABLE = {
    # what is so: (Jobs, pods, states of the first two stages, stage to release)
    "nothing has begun": ([], [], "waiting waiting", "labeller"),
    "released, no pod yet": ([LABELLER], [], "starting waiting", None),
    "its pod is pending": ([LABELLER], [pod(LABELLER)], "starting waiting", None),
    "its first container works": ([LABELLER], [pod(LABELLER, state=waiting("PodInitializing"), init_state={"running": {}})],
                                  "starting waiting", None),
    "its pod runs": ([LABELLER], [running(LABELLER)], "running waiting", None),
    "its pod has ended well": ([LABELLER], [ended(LABELLER, 0)], "running waiting", None),
    "its pod was interrupted": ([LABELLER], [ended(LABELLER, 75)], "retrying waiting", None),
    "its pod has ended for good": ([LABELLER], [ended(LABELLER, 2)], "running waiting", None),
    "its second pod runs": ([LABELLER], [ended(LABELLER, 1), running(LABELLER, "y", created=9)], "running waiting", None),
    "its only pod is being deleted": ([LABELLER], [running(LABELLER, leave_by=70)], "retrying waiting", None),
    "its image is not there": ([LABELLER], [pod(LABELLER, state=waiting("ImagePullBackOff"))], "stuck waiting", None),
    "it is complete": ([DONE], [], "complete waiting", "trainer"),
    "it is failing": ([failing("labeller", "BackoffLimitExceeded")], [], "running waiting", None),
    "it has failed": ([failed("labeller", "BackoffLimitExceeded")], [], "failed waiting", None),
    "the next one runs": ([DONE, TRAINER], [running(TRAINER)], "complete running", None),
    "Kueue has not admitted it": ([job("labeller", gates=None, queue="gpus")], [], "queued waiting", None),
    "Kueue has a gate of someone else": ([job("labeller", gates="other.dev/x", queue="gpus")], [], "queued waiting", None),
    "our gate is on a queued Job": ([job("labeller", gates=f"a.dev/x, {GATE}", queue="gpus")], [], "waiting waiting", "labeller"),
    "somebody resumed the Job whose turn it is": ([job("labeller", suspend=False)], [], "starting waiting", None),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_the_state_of_a_run_follows_from_what_is_listed(name: str) -> None:
    jobs, pods, expected, release = TABLE[name]
    found = look(*jobs, pods=pods)
    assert states(found) == [*expected.split(), "waiting", "waiting", "waiting"]
    assert (found.release.name if found.release else None) == (f"digits-{release}" if release else None)
    assert not found.done
    assert (found.fault is not None) == (name == "it has failed")


@pytest.mark.parametrize("number", range(len(STAGES)))
def test_each_stage_is_released_when_all_before_it_are_complete(number: int) -> None:
    found = look(*(complete(stage) for stage in STAGES[:number]))
    assert found.release is not None and found.release.name == f"digits-{STAGES[number]}"


def test_the_run_is_done_when_all_are_complete() -> None:
    found = look(*(complete(stage) for stage in STAGES))
    assert found.done and found.release is None and found.fault is None


def test_a_pod_that_succeeded_is_no_reason_to_go_on() -> None:
    """status.succeeded comes before the condition, while Kubernetes still counts."""
    labeller = released("labeller")
    labeller["status"]["succeeded"] = 1
    assert look(labeller, pods=[ended(labeller, 0)]).release is None


@pytest.mark.parametrize("condition", ["SuccessCriteriaMet", "FailureTarget", "Suspended"])
def test_other_conditions_than_complete_and_failed_decide_nothing(condition: str) -> None:
    labeller = released("labeller")
    labeller["status"]["conditions"].append({"type": condition, "status": "True", "reason": "X"})
    found = look(labeller)
    assert found.release is None and found.fault is None


def test_a_condition_that_is_false_is_none() -> None:
    labeller = released("labeller")
    labeller["status"]["conditions"] += [{"type": kind, "status": "False"} for kind in ("Complete", "Failed")]
    found = look(labeller)
    assert found.release is None and found.fault is None


@pytest.mark.parametrize("now", [1, 600, 86_000, 900_000])
def test_the_absence_of_pods_is_never_a_verdict(now: int) -> None:
    found = look(LABELLER, now=now)
    assert found.fault is None and states(found)[0] == "starting"


def test_the_pods_of_a_job_of_the_same_name_before_are_not_its_own() -> None:
    old = pod(LABELLER, state=waiting("ImagePullBackOff"))
    old["metadata"]["labels"]["batch.kubernetes.io/controller-uid"] = "uid-of-the-release-before"
    assert states(look(LABELLER, pods=[old]))[0] == "starting"


@pytest.mark.parametrize("absent", STAGES)
def test_while_a_job_may_still_be_made_nothing_is_released(absent: str) -> None:
    jobs = [one for one in chain() if one["metadata"]["name"] != f"digits-{absent}"]
    found = assess(PLAN, snapshot(jobs))
    assert found.release is None and found.fault is None and found.look_again_s <= 2


@pytest.mark.parametrize("absent", STAGES)
def test_a_job_that_is_gone_ends_the_run_whatever_its_stage(absent: str) -> None:
    jobs = [one for one in chain() if one["metadata"]["name"] != f"digits-{absent}"]
    fault = assess(PLAN, snapshot(jobs), frozenset({f"digits-{absent}"})).fault
    assert fault is not None and fault.stage == absent and fault.error().exit_code == 10


def test_a_finished_stage_whose_job_is_gone_does_not_make_the_next_one_look_early() -> None:
    jobs = [one for one in chain(complete("labeller"), TRAINER) if one["metadata"]["name"] != "digits-labeller"]
    assert assess(PLAN, snapshot(jobs, [running(TRAINER)])).fault is None
    fault = assess(PLAN, snapshot(jobs, [running(TRAINER)]), frozenset({"digits-labeller"})).fault
    assert fault is not None and fault.job == "digits-labeller"


def test_a_job_that_is_being_deleted_is_as_good_as_gone() -> None:
    leaving = job("labeller")
    leaving["metadata"]["deletionTimestamp"] = "2026-11-21T10:00:30Z"
    assert look(leaving).release is None
    assert look(leaving, gone={"digits-labeller"}).fault is not None


def test_a_failure_is_told_before_a_deletion() -> None:
    jobs = [one for one in chain(failed("labeller", "BackoffLimitExceeded")) if one["metadata"]["name"] != "digits-merger"]
    fault = assess(PLAN, snapshot(jobs), frozenset({"digits-merger"})).fault
    assert fault is not None and fault.stage == "labeller"


@pytest.mark.parametrize("early", [released("merger"), complete("merger"), failed("merger", "PodFailurePolicy")])
def test_a_stage_that_somebody_else_started_ends_the_run(early: Any) -> None:
    fault = look(LABELLER, early, pods=[running(LABELLER)]).fault
    assert fault is not None and fault.stage == "merger" and fault.error().exit_code == 11


@pytest.mark.parametrize("queue", [None, "gpus"])
def test_a_released_stage_that_is_suspended_again_ends_the_run_unless_kueue_owns_it(queue: str | None) -> None:
    found = look(job("labeller", gates=None, queue=queue, suspender="kueue"))
    assert (found.fault is None) == (queue is not None)
    if found.fault:
        assert found.fault.error().exit_code == 11


STUCK = {
    # what Kubernetes shows: (pod, seconds that it may last, None: it is told and no verdict)
    "an image that cannot be pulled": (pod(LABELLER, state=waiting("ErrImagePull")), 600),
    "an image that is retried": (pod(LABELLER, state=waiting("ImagePullBackOff")), 600),
    "a name that is no image's": (pod(LABELLER, state=waiting("InvalidImageName")), 600),
    "a missing secret": (pod(LABELLER, state=waiting("CreateContainerConfigError", 'secret "s3" not found')), 600),
    "a command that is refused": (pod(LABELLER, state=waiting("CreateContainerError", "mount denied")), 600),
    "an image of the init container": (pod(LABELLER, init_state=waiting("ImagePullBackOff")), 600),
    "volumes that are not mounted": (pod(LABELLER, sandbox=False), 600),
    "no node": (homeless(LABELLER, "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."), 1800),
    "a pull that takes its time": (pod(LABELLER, sandbox=True), None),
    "a pod that is held back by a scheduling gate": (homeless(LABELLER, "x"), None),
}
STUCK["a pod that is held back by a scheduling gate"][0]["status"]["conditions"][-1]["reason"] = "SchedulingGated"


@pytest.mark.parametrize("name", STUCK)
def test_a_pod_that_cannot_start_fails_the_run_at_its_deadline_and_not_before(name: str) -> None:
    stuck, limit = STUCK[name]
    for now in (45, 599, 601, 1799, 1801, 100_000):
        fault = look(LABELLER, pods=[stuck], now=now).fault
        assert (fault is not None) == (limit is not None and now >= limit), now
        if fault:
            assert fault.error().exit_code == 10


@pytest.mark.parametrize("name", [name for name, (_, limit) in STUCK.items() if limit])
def test_a_pod_that_cannot_start_is_told_at_once(name: str) -> None:
    found = look(LABELLER, pods=[STUCK[name][0]], now=31)
    assert states(found)[0] == "stuck" and len(found.troubles) == 1


def test_an_event_tells_of_a_volume_before_its_absence_does() -> None:
    stuck = pod(LABELLER, sandbox=False)
    said = 'MountVolume.SetUp failed for volume "keys" : secret "digits-s3" not found'
    assert look(LABELLER, pods=[stuck], now=10).troubles == ()
    (trouble,) = look(LABELLER, pods=[stuck], now=10, events={stuck["metadata"]["uid"]: said}).troubles
    assert trouble.reason == "FailedMount" and trouble.what == "the Secret digits-s3 does not exist"


def test_a_place_that_is_just_being_freed_is_no_news() -> None:
    assert look(LABELLER, pods=[homeless(LABELLER, "0/1 nodes are available: 1 Insufficient cpu.")], now=2).troubles == ()


def test_a_shard_may_wait_for_a_place_while_others_work() -> None:
    message = "0/1 nodes are available: 1 Insufficient cpu."
    at_work = [running(LABELLER, "0-a"), homeless(LABELLER, message, "1-b")]
    found = look(LABELLER, pods=at_work, now=10_000)
    assert found.fault is None and states(found)[0] == "running" and found.troubles[0].deadline is None
    just_ended = [ended(LABELLER, 0, suffix="0-a", at_s=9_990), homeless(LABELLER, message, "1-b")]
    assert look(LABELLER, pods=just_ended, now=10_000).fault is None
    assert look(LABELLER, pods=just_ended, now=9_990 + 1801).fault is not None


def test_a_shard_that_cannot_pull_ends_the_run_although_others_work() -> None:
    pods = [running(LABELLER, "0-a"), pod(LABELLER, "1-b", state=waiting("ImagePullBackOff"))]
    assert look(LABELLER, pods=pods, now=601).fault is not None


def test_a_job_without_a_pod_is_told_with_the_reason_and_no_verdict() -> None:
    said = 'Error creating: pods "digits-labeller-x" is forbidden: exceeded quota: compute'
    found = look(LABELLER, now=20, events={LABELLER["metadata"]["uid"]: said})
    assert found.fault is None and found.troubles[0].says == said


def test_a_pod_that_does_not_leave_its_node_is_told_and_no_verdict() -> None:
    pods = [running(LABELLER, leave_by=100)]
    assert look(LABELLER, pods=pods, now=150).troubles == ()
    found = look(LABELLER, pods=pods, now=100_000)
    assert found.fault is None and "node-1" in found.troubles[0].to_do


@pytest.mark.parametrize(("pods", "attempts"), [
    ([], 1), ([pod(LABELLER)], 1), ([running(LABELLER)], 1), ([ended(LABELLER, 1)], 1),
    ([ended(LABELLER, 1), running(LABELLER, "y")], 2), ([ended(LABELLER, 1), ended(LABELLER, 75, suffix="y")], 2),
])  # fmt: skip
def test_attempts_are_the_pods_that_failed_and_the_one_at_work(pods: list[Any], attempts: int) -> None:
    assert look(LABELLER, pods=pods).stages[0].attempts == attempts


def test_attempts_whose_pods_are_gone_still_count() -> None:
    labeller = released("labeller")
    labeller["status"]["failed"] = 3
    assert look(labeller, pods=[running(labeller)]).stages[0].attempts == 4


def test_times_are_the_clusters() -> None:
    found = look(complete("labeller", started=10, ended=70), released("trainer", started=72))
    base = found.stages[0].started
    assert base is not None
    assert [(view.started and view.started - base, view.ended and view.ended - base) for view in found.stages[:3]] == [
        (0, 60), (62, None), (None, None)]  # fmt: skip


@pytest.mark.parametrize(("now", "expected"), [(1, 2.0), (100, 10.0), (599, 1.0)])
def test_a_pending_pod_is_looked_at_more_seldom_the_longer_it_waits_and_at_its_deadline(now: int, expected: float) -> None:
    found = look(LABELLER, pods=[pod(LABELLER, state=waiting("ImagePullBackOff"))], now=now)
    assert found.look_again_s == expected


def test_a_running_stage_is_left_to_the_watch() -> None:
    assert look(LABELLER, pods=[running(LABELLER)]).look_again_s == 240


def test_events_are_asked_for_only_where_nothing_else_tells() -> None:
    def asked(*pods: Any, now: float = 20) -> list[str]:
        seen: Snapshot = snapshot(chain(LABELLER), list(pods), now=now)
        return [one.name for one in pods_to_ask_about(PLAN, seen)]

    assert asked() == ["digits-labeller"]
    assert asked(pod(LABELLER, sandbox=False)) == ["digits-labeller-x7k2p"]
    assert asked(pod(LABELLER, sandbox=False), now=3) == []
    assert asked(pod(LABELLER, sandbox=True)) == []
    assert asked(homeless(LABELLER, "0/1 nodes")) == []
    assert asked(running(LABELLER)) == []
