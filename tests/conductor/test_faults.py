# ruff: noqa: E501  (reports are quoted as they are printed)
"""What a person reads when something goes wrong, word for word."""

from __future__ import annotations

from typing import Any

import pytest
from shapes import (
    chain,
    complete,
    ended,
    failed,
    homeless,
    job,
    pod,
    release_plan,
    released,
    running,
    snapshot,
    waiting,
)

from pocketvlm.cluster.faults import Fault, no_right
from pocketvlm.cluster.machine import assess
from pocketvlm.cluster.objects import read_pod
from pocketvlm.cluster.table import ended_badly, table, trouble_lines

PLAN = release_plan()
TRAINER = released("trainer")
AGAIN = "  again   helm uninstall digits -n demo --wait, then the same helm install: what was finished is found in the store and skipped"
IMAGE = "localhost:5000/pocketvlm-trainr:dev"
PULL = f'Back-off pulling image "{IMAGE}": ErrImagePull: not found'
NO_GPU = "0/3 nodes are available: 1 node(s) had untolerated taint {nvidia.com/gpu: true}, 2 Insufficient nvidia.com/gpu."
RULE = "Container trainer for pod demo/digits-trainer-x7k2p failed with exit code {} matching FailJob rule at index 0"


def fault_of(*jobs: Any, gone: Any = (), without: str = "", **options: Any) -> Fault:
    there = [one for one in chain(complete("labeller"), *jobs) if one["metadata"]["name"] != without]
    fault = assess(PLAN, snapshot(there, **options), frozenset(gone)).fault
    assert fault is not None
    return fault


def by_exit_code(code: int, message: str = "", **options: Any) -> Fault:
    return fault_of(failed("trainer", "PodFailurePolicy", RULE.format(code)), pods=[ended(TRAINER, code, message, **options)])


def stuck(state: Any, **options: Any) -> Fault:
    return fault_of(TRAINER, pods=[pod(TRAINER, state=state, **options)], now=601)


REPORTS = {
    "a wrong image name": (stuck(waiting("ImagePullBackOff", PULL), image=IMAGE), "", f"""\
FAILED: the trainer could not start within 10 min 00 s: the image "{IMAGE}" cannot be pulled
  reason  ImagePullBackOff: {PULL}
  pod     digits-trainer-x7k2p on node-1
  to do   correct registry, name, tag or digest in the values image or stages.trainer.image; or push it; or name the registry's pull secret in image.pullSecrets
          or, if it only needs more time, raise stages.trainer.startupTimeoutSeconds
{AGAIN}
  more    kubectl -n demo describe pod digits-trainer-x7k2p"""),

    "a missing secret in the environment": (stuck(waiting("CreateContainerConfigError", 'secret "digits-s3" not found')), "", f"""\
FAILED: the trainer could not start within 10 min 00 s: the Secret digits-s3 does not exist
  reason  CreateContainerConfigError: secret "digits-s3" not found
  pod     digits-trainer-x7k2p on node-1
  to do   make it, or correct its name in the values if it is called otherwise
          or, if it only needs more time, raise stages.trainer.startupTimeoutSeconds
{AGAIN}
  more    kubectl -n demo describe pod digits-trainer-x7k2p"""),

    "a missing secret among the mounts": (
        fault_of(TRAINER, pods=[pod(TRAINER, sandbox=False)], now=601, events={
            "uid-digits-trainer-x7k2p": 'MountVolume.SetUp failed for volume "keys" : secret "digits-s3" not found'}), "", f"""\
FAILED: the trainer could not start within 10 min 00 s: the Secret digits-s3 does not exist
  reason  FailedMount: MountVolume.SetUp failed for volume "keys" : secret "digits-s3" not found
  pod     digits-trainer-x7k2p on node-1
  to do   make it, or correct its name in the values if it is called otherwise
          or, if it only needs more time, raise stages.trainer.startupTimeoutSeconds
{AGAIN}
  more    kubectl -n demo describe pod digits-trainer-x7k2p"""),

    "an unschedulable GPU request": (
        fault_of(TRAINER, pods=[homeless(TRAINER, NO_GPU, requests={"nvidia.com/gpu": "1"})], now=1801), "", f"""\
FAILED: the trainer could not start within 30 min 00 s: no node has enough nvidia.com/gpu free
  reason  Unschedulable: {NO_GPU}
  pod     digits-trainer-x7k2p
  to do   it asks for nvidia.com/gpu: 1: add a node that has it, or ask for less in stages.trainer; nodes have a taint that it does not tolerate: add it to stages.trainer.tolerations, or choose its preset
          or, if it only needs more time, raise stages.trainer.unschedulableTimeoutSeconds
{AGAIN}
  more    kubectl -n demo describe pod digits-trainer-x7k2p"""),

    "a bad key in the run file": (
        by_exit_code(2), "trainer    reading\nerror: run.trainer.phases.0.learning_rte: no such key; did you mean learning_rate?\n", f"""\
FAILED: the trainer failed with exit 2: the run file or the environment is wrong
    error: run.trainer.phases.0.learning_rte: no such key; did you mean learning_rate?
  job     digits-trainer: PodFailurePolicy, 1 attempt, 1 min 00 s
          {RULE.format(2)}
  pod     digits-trainer-x7k2p on node-1, container trainer
  before  trainer    reading
  to do   change what that error names, in the run file or in the chart's values
{AGAIN}
  more    kubectl -n demo logs digits-trainer-x7k2p
          kubectl -n demo describe job digits-trainer"""),

    "bad data": (by_exit_code(3, "error: dataset: class 7 has no image"), "", f"""\
FAILED: the trainer failed with exit 3: the data is wrong
    error: dataset: class 7 has no image
  job     digits-trainer: PodFailurePolicy, 1 attempt, 1 min 00 s
          {RULE.format(3)}
  pod     digits-trainer-x7k2p on node-1, container trainer
  to do   correct the data or the source: another try on the same data gives the same
{AGAIN}
  more    kubectl -n demo logs digits-trainer-x7k2p
          kubectl -n demo describe job digits-trainer"""),

    "a gate that refuses": (by_exit_code(4, "error: min_accuracy: 0.71 is below 0.85\nmax_drop: 0.02 is above 0.005"), "", f"""\
FAILED: the trainer failed with exit 4: a gate refused the model
    error: min_accuracy: 0.71 is below 0.85
    max_drop: 0.02 is above 0.005
  job     digits-trainer: PodFailurePolicy, 1 attempt, 1 min 00 s
          {RULE.format(4)}
  pod     digits-trainer-x7k2p on node-1, container trainer
  to do   latest.json was not moved: phones keep the release before. What was measured is in the report, in the store
          train a better model, or change run.evaluator.gates if a gate asks for too much
{AGAIN}
  more    kubectl -n demo logs digits-trainer-x7k2p
          kubectl -n demo describe job digits-trainer"""),

    "out of memory, four times": (
        fault_of(failed("trainer", "BackoffLimitExceeded", "Job has reached the specified backoff limit", count=4),
                 pods=[ended(TRAINER, 137, "step 40\nstep 41", reason="OOMKilled")]), "", f"""\
FAILED: the trainer failed 4 times, the last time with exit 137: killed (OOMKilled)
  job     digits-trainer: BackoffLimitExceeded, 4 attempts, 1 min 00 s
          Job has reached the specified backoff limit
  pod     digits-trainer-x7k2p on node-1, container trainer
  before  step 40
          step 41
  to do   it needed more memory than 8Gi: raise stages.trainer.resources.limits.memory
{AGAIN}
  more    kubectl -n demo logs digits-trainer-x7k2p
          kubectl -n demo describe job digits-trainer"""),

    "a deadline": (
        fault_of(failed("trainer", "DeadlineExceeded", "Job was active longer than specified deadline", ended=86400)), "", f"""\
FAILED: the trainer ran past its deadline of 24 h 00 min
  job     digits-trainer: DeadlineExceeded, 1 attempt, 24 h 00 min
          Job was active longer than specified deadline
  to do   give it more time in stages.trainer.activeDeadlineSeconds: what it has saved is in the store
{AGAIN}
  more    kubectl -n demo describe job digits-trainer"""),

    "a deleted job": (fault_of(gone={"digits-merger"}, without="digits-merger"), "", f"""\
FAILED: the Job digits-merger of the merger is not in namespace demo
  why     somebody deleted it; or a clean-up of finished Jobs did, such as ttlSecondsAfterFinished
{AGAIN}
  more    kubectl -n demo get jobs,events"""),

    "a Kueue that does not know the gate": (
        fault_of(TRAINER, released("merger", queue="default", suspender="kueue"), pods=[running(TRAINER)]), "", f"""\
FAILED: the merger was started before the trainer was complete, and not by the conductor
  why     spec.suspend of digits-merger is false, set by kueue
  to do   queue default admitted it although the annotation kueue.x-k8s.io/admission-gated-by holds it back, which Kueue respects from 0.19 on, and in 0.17 and 0.18 with the feature gate AdmissionGatedBy
          update Kueue, or install into a namespace without a LocalQueue named `default`
{AGAIN}
  more    kubectl -n demo get job digits-merger -o yaml --show-managed-fields"""),

    "a stage started by hand": (fault_of(TRAINER, released("merger", suspender="kubectl-patch"), pods=[running(TRAINER)]), "", f"""\
FAILED: the merger was started before the trainer was complete, and not by the conductor
  why     spec.suspend of digits-merger is false, set by kubectl-patch
  to do   leave spec.suspend of the stages' Jobs to the conductor; GitOps tools must ignore it (Argo CD: ignoreDifferences on /spec/suspend)
{AGAIN}
  more    kubectl -n demo get job digits-merger -o yaml --show-managed-fields"""),

    "a stage suspended after its release": (fault_of(job("trainer", gates=None, suspender="kueue")), "", f"""\
FAILED: the trainer was suspended again after its release, and not by the conductor
  why     spec.suspend of digits-trainer is true, set by kueue
  to do   with Kueue and its manageJobsWithoutQueueName: name a queue in kueue.queueName, so that Kueue admits the stages
          with helm upgrade, Argo CD or Flux: they must leave spec.suspend alone (Argo CD: ignoreDifferences on /spec/suspend)
{AGAIN}
  more    kubectl -n demo get job digits-trainer -o yaml --show-managed-fields"""),
}  # fmt: skip


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_says_what_is_wrong_and_what_to_do(name: str) -> None:
    fault, log, expected = REPORTS[name]
    assert "\n".join(fault.report(log)) == expected


def test_a_report_names_the_stages_that_go_on() -> None:
    lines = REPORTS["a deleted job"][0].report(left=["trainer"])
    assert "  note    the trainer goes on until helm uninstall" in lines


def test_the_last_line_of_the_conductor_is_the_headline() -> None:
    assert str(REPORTS["a deadline"][0].error()) == "the trainer ran past its deadline of 24 h 00 min; what to do is above"


def test_a_warning_says_what_happens_by_itself_and_when_the_run_fails() -> None:
    found = assess(PLAN, snapshot(chain(complete("labeller"), TRAINER), now=20, pods=[
        pod(TRAINER, state=waiting("CreateContainerConfigError", 'secret "digits-s3" not found'))]))  # fmt: skip
    assert trouble_lines("trainer", found.troubles[0], snapshot([], now=20).now) == [
        "the trainer cannot run: the Secret digits-s3 does not exist (CreateContainerConfigError)",
        '  Kubernetes says: secret "digits-s3" not found',
        "  to do: make it, or correct its name in the values if it is called otherwise; its pod then starts by itself within two minutes",
        "  more: kubectl -n demo describe pod digits-trainer-x7k2p",
        "  if nothing changes the run fails in 9 min 40 s (stages.trainer.startupTimeoutSeconds)",
    ]


WAITING = {
    # what the kubelet says: what a person reads
    ("InvalidImageName", ""): f'"{IMAGE}" is no name of an image',
    ("ErrImageNeverPull", ""): f'the image "{IMAGE}" is not on the node and must not be pulled',
    ("CreateContainerConfigError", 'configmap "digits-run" not found'): "the ConfigMap digits-run does not exist",
    ("CreateContainerConfigError", "couldn't find key token in Secret demo/hub"): "Secret hub has no key token",
    ("CreateContainerConfigError", "container has runAsNonRoot and image will run as root (pod: ..., container: trainer)"):
        "its image runs as root, or under a name instead of a number",
    ("CreateContainerConfigError", "something new"): "its container's settings cannot be put together",
    ("CreateContainerError", "context deadline exceeded"): "the container trainer cannot be made",
}  # fmt: skip


@pytest.mark.parametrize("said", WAITING)
def test_what_a_kubelet_says_becomes_what_is_wrong(said: tuple[str, str]) -> None:
    fault = stuck(waiting(*said), image=IMAGE)
    assert fault.headline == f"the trainer could not start within 10 min 00 s: {WAITING[said]}"


MOUNTS = {
    'MountVolume.SetUp failed for volume "x" : configmap "digits-run" not found': "the ConfigMap digits-run does not exist",
    'MountVolume.SetUp failed for volume "x" : references non-existent secret key: access-key-id':
        "Secret digits-s3 has no key access-key-id",
    "Failed to create pod sandbox: plugin type=calico failed": "its volumes are not mounted, or its network is not there",
}  # fmt: skip


@pytest.mark.parametrize("said", MOUNTS)
def test_what_an_event_says_of_a_mount_becomes_what_is_wrong(said: str) -> None:
    volumes = [{"name": "x", "secret": {"secretName": "digits-s3"}}, {"name": "y", "secret": {"secretName": "z", "optional": True}}]
    fault = fault_of(TRAINER, pods=[pod(TRAINER, sandbox=False, volumes=volumes)], now=601, events={"uid-digits-trainer-x7k2p": said})
    assert fault.headline.endswith(MOUNTS[said])
    assert said in "\n".join(fault.report())


PLACES = {
    "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory.":
        "it asks for cpu: 64: add a larger node, or ask for less in stages.trainer; it asks for memory: 8Gi: add a larger node, or "
        "ask for less in stages.trainer",
    "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.":
        "no node has the labels that stages.trainer.nodeSelector, its affinity or its preset ask for: compare "
        "`kubectl get nodes --show-labels`",
    '0/1 nodes are available: persistentvolumeclaim "x" not found.':
        "a volume that it claims is not there: see `kubectl -n demo get pvc`",
    "0/1 nodes are available: 1 node(s) were unschedulable.": "see what Kubernetes says about it",
}  # fmt: skip


@pytest.mark.parametrize("said", PLACES)
def test_what_the_scheduler_says_becomes_what_to_do(said: str) -> None:
    fault = fault_of(TRAINER, pods=[homeless(TRAINER, said, requests={"cpu": "64"})], now=1801)
    assert fault.to_do[0] == PLACES[said]


def test_of_several_pods_the_one_that_kubernetes_names_is_quoted() -> None:
    pods = [ended(TRAINER, 2, "error: a", suffix="0-a", at_s=50), ended(TRAINER, 1, "error: b", suffix="1-b", at_s=99)]
    fault = fault_of(failed("trainer", "PodFailurePolicy", "Container trainer for pod demo/digits-trainer-0-a failed"), pods=pods)
    assert fault.pod == "digits-trainer-0-a" and fault.last_words == "error: a"
    fault = fault_of(failed("trainer", "BackoffLimitExceeded", "Job has reached the specified backoff limit"), pods=pods)
    assert fault.pod == "digits-trainer-1-b"


def test_a_failed_shard_is_named() -> None:
    shards = failed("trainer", "FailedIndexes", "Job has failed indexes")
    shards["status"]["failedIndexes"] = "1,3"
    assert fault_of(shards, pods=[ended(TRAINER, 1)]).headline == "shard 1,3 of the trainer failed with exit 1: unexpected"


def test_an_evicted_pod_is_told_by_its_eviction() -> None:
    evicted = pod(TRAINER, phase="Failed")
    evicted["status"] |= {"reason": "Evicted", "message": "The node was low on resource: ephemeral-storage.", "containerStatuses": []}
    headline = "the trainer failed, Evicted: The node was low on resource: ephemeral-storage."
    assert fault_of(failed("trainer", "BackoffLimitExceeded"), pods=[evicted]).headline == headline
    assert ended_badly("trainer", read_pod(evicted)) == (
        "an attempt of the trainer ended, Evicted: The node was low on resource: ephemeral-storage.; pod digits-trainer-x7k2p"
    )


def test_an_init_container_that_failed_is_named_for_its_log() -> None:
    state = {"terminated": {"exitCode": 2, "reason": "Error", "message": "error: store: no such bucket"}}
    broken = pod(TRAINER, phase="Failed", init_state=state)
    fault = fault_of(failed("trainer", "PodFailurePolicy", RULE.format(2)), pods=[broken])
    assert fault.container == "bucket" and fault.more[0] == "kubectl -n demo logs digits-trainer-x7k2p -c bucket"


def test_an_image_without_our_command_is_told_by_the_runtime() -> None:
    said = 'exec: "pocketvlm": executable file not found in $PATH'
    fault = fault_of(failed("trainer", "BackoffLimitExceeded"), pods=[ended(TRAINER, 128, said, reason="StartError")])
    assert fault.headline == "the trainer failed with exit 128: the container could not be started (StartError)"
    assert fault.to_do[0] == f"{said}: look at stages.trainer.image"


def test_a_traceback_is_quoted_from_its_end() -> None:
    log = "\n".join(f"line {number}" for number in range(50))
    lines = by_exit_code(1).report(log)
    assert "  before  line 38" in lines and "          line 49" in lines and "          line 37" not in lines


def test_a_missing_right_is_told_with_the_command_that_checks_it() -> None:
    says = ('jobs.batch "digits-labeller" is forbidden: User "system:serviceaccount:demo:digits-conductor" cannot patch resource '
            '"jobs" in API group "batch" in the namespace "demo"')  # fmt: skip
    error = no_right(PLAN, says)
    assert error.exit_code == 11
    assert str(error) == (
        "the conductor has no right to patch jobs; its Role must give it, as the chart's own does. The API server says: "
        f"{says}\n  check   kubectl -n demo auth can-i patch jobs --as system:serviceaccount:demo:digits-conductor"
    )


def test_the_table_is_read_at_a_glance() -> None:
    found = assess(PLAN, snapshot(chain(complete("labeller", ended=62), released("trainer", started=64)), now=70, pods=[
        running(released("trainer"), created=65)]))  # fmt: skip
    assert table(found.stages, snapshot([], now=70).now) == [
        "stage      state     for         attempts  2026-11-21 10:01:10 UTC",
        "labeller   complete  1 min 02 s  1",
        "trainer    running   6.0 s       1         digits-trainer-x7k2p on node-1",
        "merger     waiting",
        "quantiser  waiting",
        "evaluator  waiting",
    ]
