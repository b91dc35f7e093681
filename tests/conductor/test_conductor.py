"""The loop, with the real Kubernetes client against a fake API server over HTTP: what goes wrong there must not be seen."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fake_api import FakeApi
from prometheus_client import CollectorRegistry
from shapes import (
    GATE,
    GATES,
    SHORT,
    STAGES,
    T0,
    chain,
    complete,
    ended,
    failed,
    failing,
    homeless,
    job,
    pod,
    released,
    running,
    waiting,
)

from pocketvlm.cluster.conductor import Patience

Conduct = Callable[..., Any]
JOBS = [f"digits-{stage}" for stage in STAGES]


def autopilot(fake: FakeApi) -> None:
    """A cluster on which every released stage runs and ends well."""

    def run(name: str) -> None:
        stage = name.removeprefix("digits-")
        base = fake.now - T0
        now = released(stage, started=base)
        fake.put(now, running(now, created=base))
        fake.now += 60
        fake.put(complete(stage, started=base, ended=base + 60), ended(now, 0, created=base, at_s=base + 60))

    fake.on_release = run


def test_stages_run_one_after_the_other_to_the_end(fake: FakeApi, conduct: Conduct) -> None:
    autopilot(fake)
    fake.put(*chain())
    conductor = conduct().join()
    assert conductor.finished, conductor.log
    assert [name for name, _ in fake.patches] == JOBS
    assert "all 5 stages are complete after 5 min 00 s" in conductor.log
    order = [line for line in conductor.log.splitlines() if "released the" in line]
    assert order[1] == "conductor  released the trainer to run: the labeller is complete"


def test_a_stage_is_released_by_one_patch_that_tests_what_was_seen(fake: FakeApi, conduct: Conduct) -> None:
    fake.put(*chain())
    before = fake.job("digits-labeller")["metadata"]["resourceVersion"]
    conduct()
    fake.wait_for(lambda: bool(fake.patches))
    assert fake.patches == [("digits-labeller", [
        {"op": "test", "path": "/metadata/resourceVersion", "value": before},
        {"op": "test", "path": "/spec/suspend", "value": True},
        {"op": "remove", "path": "/metadata/annotations/kueue.x-k8s.io~1admission-gated-by"},
        {"op": "replace", "path": "/spec/suspend", "value": False},
    ])]  # fmt: skip


@pytest.mark.parametrize(("gates", "left"), [
    (GATE, None), (f"{GATE},other.dev/x", "other.dev/x"), (f"a.dev/x, {GATE} ,b.dev/y", "a.dev/x,b.dev/y"),
])  # fmt: skip
def test_with_a_queue_only_our_gate_goes_and_suspend_is_kueues(
    fake: FakeApi, conduct: Conduct, gates: str, left: str | None
) -> None:
    fake.put(*chain(job("labeller", gates=gates, queue="gpus")))
    conductor = conduct()
    fake.wait_for(lambda: bool(fake.patches))
    now = fake.job("digits-labeller")
    assert now["spec"]["suspend"] is True
    assert now["metadata"]["annotations"].get(GATES) == left
    assert all(one["op"] == "test" or one["path"] != "/spec/suspend" for one in fake.patches[0][1])
    fake.wait_for(lambda: "waits in queue gpus of Kueue" in conductor.log, what=conductor.log)
    admitted = released("labeller", queue="gpus")
    fake.put(admitted, running(admitted))
    fake.wait_for(lambda: "the labeller runs" in conductor.log)
    fake.delete("pods", "digits-labeller-x7k2p")
    fake.put(job("labeller", gates=None, queue="gpus"))
    fake.wait_for(lambda: "was put back by Kueue" in conductor.log)
    assert len(fake.patches) == 1


def test_a_conductor_that_starts_anywhere_goes_on_from_there(fake: FakeApi, conduct: Conduct) -> None:
    """Killed at any moment: what the next one does depends on the cluster alone."""
    autopilot(fake)
    for number in range(6):
        fake.put(*(complete(stage) if place < number else job(stage) for place, stage in enumerate(STAGES)))
        fake.patches.clear()
        assert conduct().join().finished
        assert [name for name, _ in fake.patches] == JOBS[number:]


def test_two_conductors_at_once_release_each_stage_once(fake: FakeApi, conduct: Conduct) -> None:
    autopilot(fake)
    fake.put(*chain())
    both = [conduct(), conduct()]
    assert all(one.join().finished for one in both)
    assert [name for name, _ in fake.patches] == JOBS


def test_a_job_that_changes_between_list_and_patch_is_looked_at_again(fake: FakeApi, conduct: Conduct) -> None:
    autopilot(fake)
    fake.put(*chain())
    left = [3]

    def touch(name: str) -> None:
        if left[0] and name == "digits-labeller":
            left[0] -= 1
            fake.put(fake.job(name))

    fake.before_patch = touch
    assert conduct().join().finished
    assert fake.count("patch", "jobs") == 5 + 3


def test_a_conflict_is_looked_at_again(fake: FakeApi, conduct: Conduct) -> None:
    autopilot(fake)
    fake.put(*chain())
    fake.answers["patch", "jobs"] = [(409, "the object has been modified; please apply your changes to the latest version")]
    assert conduct().join().finished


def test_a_release_that_is_refused_for_ever_ends_with_the_servers_words(fake: FakeApi, conduct: Conduct) -> None:
    fake.put(*chain())
    fake.answers["patch", "jobs"] = [(422, 'admission webhook "x" denied the request')] * 99
    conductor = conduct(patience=Patience(conflicts=3, longest_pause_s=0.01)).join()
    assert conductor.ended.exit_code == 11
    assert 'the Job digits-labeller cannot be released; the API server says: admission webhook "x" denied' in str(conductor.ended)


def test_a_webhook_that_does_not_answer_for_a_while_is_waited_for(fake: FakeApi, conduct: Conduct) -> None:
    autopilot(fake)
    fake.put(*chain())
    fake.answers["patch", "jobs"] = [(500, 'failed calling webhook "mjob.kb.io": connection refused')] * 10
    conductor = conduct().join()
    assert conductor.finished
    assert conductor.log.count("this goes on trying") == 1 and "no answer from the API server" not in conductor.log


def test_a_webhook_that_never_answers_ends_this_try(fake: FakeApi, conduct: Conduct) -> None:
    fake.put(*chain())
    fake.answers["patch", "jobs"] = [(500, 'failed calling webhook "mjob.kb.io": connection refused')] * 10_000
    conductor = conduct(patience=replace(SHORT, away_s=0.2, longest_pause_s=0.02)).join()
    assert conductor.ended.exit_code == 1 and "mjob.kb.io" in str(conductor.ended)


def test_a_watch_that_is_refused_becomes_a_look_now_and_then(fake: FakeApi, conduct: Conduct) -> None:
    autopilot(fake)
    fake.put(*chain())
    fake.answers["watch", "jobs"] = [(400, "a proxy that knows no watches")] * 10_000
    assert conduct().join().finished


def test_rights_that_are_lost_for_a_moment_do_not_end_a_run(fake: FakeApi, conduct: Conduct) -> None:
    """An API server that has just started knows its Roles a little later than it answers."""
    autopilot(fake)
    fake.put(*chain(released("labeller")), running(released("labeller")))
    conductor = conduct(patience=replace(SHORT, rights_s=0.0, lost_rights_s=2))
    fake.wait_for(lambda: fake.count("watch", "jobs") == 1)
    fake.put(fake.job("digits-labeller"))
    fake.wait_for(lambda: fake.count("watch", "jobs") == 2)
    fake.forbidden["list", "jobs"] = 2
    fake.put(complete("labeller"))
    assert conductor.join().finished


def test_events_that_cannot_be_read_do_not_end_a_run(fake: FakeApi, conduct: Conduct) -> None:
    autopilot(fake)
    fake.put(*chain(released("labeller")), pod(released("labeller"), sandbox=False))
    fake.now = T0 + 20
    fake.answers["list", "events"] = [(500, "etcdserver: request timed out")] * 10_000
    conductor = conduct()
    fake.wait_for(lambda: "the Events of digits-labeller-x7k2p cannot be read" in conductor.log)
    fake.put(complete("labeller"))
    assert conductor.join().finished and "no answer from the API server" not in conductor.log


BAD_WATCHES = ["gone", "gone-http", "drop", "garbage", "end", "replay"]


@pytest.mark.parametrize("mode", BAD_WATCHES)
def test_a_watch_that_ends_badly_ends_in_a_list(fake: FakeApi, conduct: Conduct, mode: str) -> None:
    fake.put(*chain(released("labeller")), running(released("labeller")))
    fake.watches = [mode] * 3
    conductor = conduct()
    fake.wait_for(lambda: fake.count("watch", "jobs") >= 4)
    autopilot(fake)
    fake.put(complete("labeller"))
    assert conductor.join().finished
    assert "warning" not in conductor.log


def test_a_watch_from_a_forgotten_version_ends_in_a_list(fake: FakeApi, conduct: Conduct) -> None:
    autopilot(fake)
    fake.put(*chain(released("labeller")), running(released("labeller")))
    conductor = conduct()
    fake.wait_for(lambda: fake.count("watch", "jobs") == 1)
    fake.put(complete("labeller"))
    fake.compact()
    assert conductor.join().finished


def test_a_watch_that_is_open_on_our_side_only_is_given_up(fake: FakeApi, conduct: Conduct) -> None:
    """Through a firewall that forgot the connection nothing ever arrives, not even its end."""
    autopilot(fake)
    fake.put(*chain(released("labeller")), running(released("labeller")))
    fake.watches = ["half-open"]
    conductor = conduct(silence_s=0.3)
    fake.wait_for(lambda: fake.count("watch", "jobs") == 1)
    fake.put(complete("labeller"))
    assert conductor.join().finished


def test_watches_that_end_at_once_do_not_become_a_storm_of_lists(fake: FakeApi, conduct: Conduct) -> None:
    fake.put(*chain(released("labeller")), running(released("labeller")))
    fake.watches = ["end"] * 10_000
    conduct(patience=replace(SHORT, longest_pause_s=30))
    time.sleep(1.5)
    assert 2 <= fake.count("list", "jobs") <= 5


def test_events_that_come_late_twice_or_backwards_change_nothing(fake: FakeApi, conduct: Conduct) -> None:
    autopilot(fake)
    for one in chain():
        fake.put(one, complete(one["metadata"]["name"].removeprefix("digits-")), one)
    fake.watches = ["replay"] * 200
    assert conduct().join().finished
    assert [name for name, _ in fake.patches] == JOBS


def away_by_hanging_up(fake: FakeApi) -> Callable[[], None]:
    fake.hang_up()
    return fake.listen


def away_by_silence(fake: FakeApi) -> Callable[[], None]:
    fake.silent = True
    fake.end_watches()
    return lambda: setattr(fake, "silent", False)


def away_by_errors(fake: FakeApi) -> Callable[[], None]:
    for verb, what in (("list", "jobs"), ("list", "pods"), ("watch", "jobs")):
        fake.answers[verb, what] = [(503, "the server is currently unable to handle the request")] * 10_000
    fake.end_watches()
    return fake.answers.clear


@pytest.mark.parametrize("away", [away_by_hanging_up, away_by_silence, away_by_errors])
def test_an_api_server_that_is_away_for_a_while_is_told_once_and_waited_for(fake: FakeApi, conduct: Conduct, away: Any) -> None:
    autopilot(fake)
    fake.put(*chain(released("labeller")), running(released("labeller")))
    conductor = conduct()
    fake.wait_for(lambda: fake.count("watch", "jobs") == 1)
    back = away(fake)
    fake.wait_for(lambda: "no answer from the API server" in conductor.log)
    time.sleep(0.4)
    fake.put(complete("labeller"))
    back()
    assert conductor.join().finished
    assert conductor.log.count("no answer from the API server") == 1
    assert conductor.log.count("the API server answers again after") == 1


def test_an_api_server_that_stays_away_ends_this_try_and_not_the_run(fake: FakeApi, conduct: Conduct) -> None:
    fake.hang_up()
    conductor = conduct(patience=Patience(away_s=0.3, longest_pause_s=0.05)).join()
    assert conductor.ended.exit_code == 1
    assert "stages that run are not affected, and Kubernetes starts the conductor again" in str(conductor.ended)


@pytest.mark.parametrize(("verb", "resource"), [("list", "jobs"), ("watch", "jobs"), ("patch", "jobs"), ("list", "pods")])
def test_a_missing_right_names_verb_and_resource(fake: FakeApi, conduct: Conduct, verb: str, resource: str) -> None:
    fake.put(*chain(*([released("labeller")] if verb == "watch" else [])))
    fake.forbidden[verb, resource] = 10_000
    conductor = conduct().join()
    assert conductor.ended.exit_code == 11
    assert f"the conductor has no right to {verb} {resource}" in str(conductor.ended)
    check = f"kubectl -n demo auth can-i {verb} {resource} --as system:serviceaccount:demo:digits-conductor"
    assert check in str(conductor.ended)


def test_a_right_that_arrives_late_is_waited_for(fake: FakeApi, conduct: Conduct) -> None:
    autopilot(fake)
    fake.put(*chain())
    fake.forbidden = {("list", "jobs"): 2, ("patch", "jobs"): 1}
    assert conduct(patience=Patience(rights_s=2, longest_pause_s=0.05)).join().finished


def test_rights_that_are_not_needed_may_be_missing(fake: FakeApi, conduct: Conduct) -> None:
    """Events and logs make the log better; a run does not fail for want of them."""
    autopilot(fake)
    fake.put(*chain(failing("labeller", "BackoffLimitExceeded")), ended(released("labeller"), 1, "Traceback\nboom"))
    fake.forbidden = {("create", "events"): 10_000, ("list", "events"): 10_000, ("get", "pods/log"): 10_000}
    conductor = conduct()
    fake.wait_for(lambda: fake.count("watch", "jobs") >= 1)
    fake.put(failed("labeller", "BackoffLimitExceeded"))
    conductor.join()
    assert conductor.ended.exit_code == 10
    assert "boom" in conductor.log
    assert conductor.log.count("no Event was written") == 1


def test_without_the_right_to_read_events_a_missing_mount_is_told_by_what_is_mounted(fake: FakeApi, conduct: Conduct) -> None:
    keys = [{"name": "keys", "secret": {"secretName": "digits-s3"}}, {"name": "run", "configMap": {"name": "digits-run"}}]
    fake.put(*chain(released("labeller")), pod(released("labeller"), sandbox=False, volumes=keys))
    fake.forbidden["list", "events"] = 10_000
    fake.now = T0 + 40
    conductor = conduct()
    fake.wait_for(lambda: "warning" in conductor.log)
    assert "look whether all that it mounts exists: Secret digits-s3, ConfigMap digits-run" in conductor.log
    assert fake.count("list", "events") == 1


def test_a_job_that_is_deleted_by_hand_ends_the_run(fake: FakeApi, conduct: Conduct) -> None:
    fake.put(*chain(released("labeller")), running(released("labeller")))
    conductor = conduct()
    fake.wait_for(lambda: fake.count("watch", "jobs") == 1)
    fake.delete("jobs", "digits-merger")
    conductor.join()
    assert conductor.ended.exit_code == 10
    assert "FAILED: the Job digits-merger of the merger is not in namespace demo" in conductor.log


def test_jobs_that_are_made_after_the_conductor_are_waited_for(fake: FakeApi, conduct: Conduct) -> None:
    """Helm makes Jobs in the order of their names: the conductor's comes before all but none of the stages'."""
    autopilot(fake)
    jobs = chain()
    fake.put(*jobs[:2])
    conductor = conduct(patience=replace(SHORT, arrival_s=60))
    fake.wait_for(lambda: fake.count("watch", "jobs") >= 1)
    assert not fake.patches
    fake.put(*jobs[2:])
    assert conductor.join().finished


def test_a_job_that_never_comes_ends_the_run(fake: FakeApi, conduct: Conduct) -> None:
    fake.put(*chain()[:4])
    conductor = conduct().join()
    assert conductor.ended.exit_code == 10 and "digits-evaluator" in str(conductor.ended)


def test_a_retry_is_told_with_the_last_words_of_the_attempt_before(fake: FakeApi, conduct: Conduct) -> None:
    fake.put(*chain(released("labeller")), running(released("labeller")))
    conductor = conduct()
    fake.wait_for(lambda: fake.count("watch", "jobs") == 1)
    labeller = released("labeller")
    labeller["status"]["failed"] = 1
    fake.put(ended(labeller, 75, "saved step 40\nerror: stopped by SIGTERM"), labeller)
    fake.wait_for(lambda: "ended" in conductor.log)
    assert (
        "warning: an attempt of the labeller ended, exit 75: interrupted after saving its work; pod digits-labeller-x7k2p "
        "said: error: stopped by SIGTERM"
    ) in conductor.log
    fake.put(running(labeller, "y", created=9), labeller)
    fake.wait_for(lambda: " 2 " in conductor.log.splitlines()[-5])


def test_the_log_of_a_pod_that_its_deadline_takes_away_is_kept(fake: FakeApi, conduct: Conduct) -> None:
    """Kubernetes deletes the pod with its log; between its decision and the end the conductor reads it."""
    fake.put(*chain(released("labeller")), running(released("labeller")))
    fake.logs["digits-labeller-x7k2p"] = "labeller   900/1797 images\n"
    conductor = conduct()
    fake.wait_for(lambda: fake.count("watch", "jobs") == 1)
    fake.put(failing("labeller", "DeadlineExceeded"))
    fake.wait_for(lambda: fake.count("get", "pods/log") == 1)
    fake.delete("pods", "digits-labeller-x7k2p")
    fake.put(failed("labeller", "DeadlineExceeded", "Job was active longer than specified deadline", ended=86400))
    conductor.join()
    assert "FAILED: the labeller ran past its deadline of 24 h 00 min" in conductor.log
    assert "  before  labeller   900/1797 images" in conductor.log


def test_events_are_written_once_on_release_end_and_failure(fake: FakeApi, conduct: Conduct) -> None:
    autopilot(fake)
    fake.put(*chain(complete("labeller")))
    runs = fake.on_release
    fake.on_release = lambda name: runs(name) if name == "digits-trainer" else fake.put(failed("merger", "PodFailurePolicy"))
    conduct().join()
    conduct().join()
    told = [(one["reason"], one["type"], one["involvedObject"]["name"]) for one in fake.objects["events"].values()]
    assert told == [
        ("StageFinished", "Normal", "digits-labeller"), ("StageReleased", "Normal", "digits-trainer"),
        ("StageFinished", "Normal", "digits-trainer"), ("StageReleased", "Normal", "digits-merger"),
        ("StageFailed", "Warning", "digits-merger"),
    ]  # fmt: skip


def test_stuck_pods_are_told_once_and_fail_at_their_deadline(fake: FakeApi, conduct: Conduct) -> None:
    stuck = waiting("ImagePullBackOff", 'Back-off pulling image "localhost:5000/pocketvlm-trainer:dev"')
    fake.put(*chain(released("labeller")), pod(released("labeller"), state=stuck))
    fake.now = T0 + 5
    conductor = conduct()
    fake.wait_for(lambda: "warning" in conductor.log)
    fake.put(fake.job("digits-labeller"))
    fake.wait_for(lambda: fake.count("watch", "jobs") >= 2)
    assert conductor.log.count("warning") == 1
    fake.now = T0 + 600
    fake.put(fake.job("digits-labeller"))
    conductor.join()
    assert conductor.ended.exit_code == 10
    assert "FAILED: the labeller could not start within 10 min 00 s" in conductor.log


def test_a_pod_that_finds_a_node_late_is_no_failure(fake: FakeApi, conduct: Conduct) -> None:
    autopilot(fake)
    labeller = released("labeller")
    fake.put(*chain(labeller), homeless(labeller, "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."))
    fake.now = T0 + 1700
    conductor = conduct()
    fake.wait_for(lambda: "no node has enough nvidia.com/gpu free" in conductor.log)
    fake.now = T0 + 1790
    fake.put(pod(labeller, created=1789))
    fake.now = T0 + 2000
    fake.put(running(labeller), fake.job("digits-labeller"))
    fake.wait_for(lambda: "the labeller runs" in conductor.log)
    fake.put(complete("labeller"))
    assert conductor.join().finished


def test_metrics_show_the_stages_as_they_stand(fake: FakeApi, conduct: Conduct) -> None:
    fake.put(*chain(complete("labeller"), released("trainer", started=61)), running(released("trainer")))
    conductor = conduct()
    fake.wait_for(lambda: fake.count("watch", "jobs") == 1)
    registry = CollectorRegistry()
    registry.register(conductor.metrics)


    def sample(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"pocketvlm_{name}", labels)

    assert [sample("stage_state", stage="labeller", state=state) for state in ("complete", "running")] == [1, 0]
    assert [sample("stage_state", stage="trainer", state=state) for state in ("complete", "running")] == [0, 1]
    assert sample("stage_start_timestamp_seconds", stage="trainer") == T0 + 61
    assert sample("stage_end_timestamp_seconds", stage="labeller") == T0 + 60
    assert sample("stage_end_timestamp_seconds", stage="trainer") is None
    assert [sample("stage_attempts", stage=stage) for stage in ("labeller", "trainer", "merger")] == [1, 1, 0]
    assert sample("run_info", run="digits") == 1


def test_a_look_costs_the_same_beside_two_hundred_other_releases(fake: FakeApi, conduct: Conduct) -> None:
    """Two lists and a watch, of our own five Jobs and their pods."""
    autopilot(fake)

    def bytes_of_a_run() -> int:
        fake.put(*chain())
        before = fake.bytes_sent
        assert conduct().join().finished
        return fake.bytes_sent - before

    alone = bytes_of_a_run()
    for number in range(200):
        fake.put(*(complete(stage, release=f"other-{number}") for stage in STAGES))
    assert abs(bytes_of_a_run() - alone) < alone * 0.3


def test_another_release_in_the_namespace_is_not_touched(fake: FakeApi, conduct: Conduct) -> None:
    autopilot(fake)
    fake.put(*chain(), *chain(release="digits-2"))
    assert conduct().join().finished
    assert [name for name, _ in fake.patches] == JOBS
    assert all(fake.job(f"digits-2-{stage}")["spec"]["suspend"] for stage in STAGES)


def test_a_conductor_is_quiet_while_nothing_changes(fake: FakeApi, conduct: Conduct) -> None:
    fake.put(*chain(released("labeller")), running(released("labeller")))
    conductor = conduct()
    fake.wait_for(lambda: fake.count("watch", "jobs") == 1)
    before, log = len(fake.requests), conductor.log
    time.sleep(0.5)
    assert len(fake.requests) == before and conductor.log == log
