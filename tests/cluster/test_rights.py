"""Least rights and no secrets: what the service accounts may do is exactly the list, and no key is to be read anywhere."""

from __future__ import annotations

import base64
import json
import subprocess

import pytest

from pocketvlm.stages.stage import STAGES

from .conftest import Namespace, Release, stored_at

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

CANARY = "canary-4f1d0c"


def allowed(release: Release, account: str) -> set[tuple[str, str, str, str]]:
    """(verb, group, resource, name) of every rule in the namespace but those that everybody has."""
    user = f"system:serviceaccount:{release.namespace.name}:{release.name}-{account}"
    asked = {"namespace": release.namespace.name}
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": asked}
    command = ["kubectl", "--as", user, "create", "--raw", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", "-f", "-"]
    done = subprocess.run(command, input=json.dumps(review), capture_output=True, text=True, check=True)
    return {
        (verb, group, resource, name)
        for rule in json.loads(done.stdout)["status"]["resourceRules"]
        for verb in rule["verbs"]
        for group in rule.get("apiGroups", [])
        for resource in rule["resources"]
        for name in rule.get("resourceNames", ["*"])
        if not resource.startswith("selfsubject")
    }


def test_the_conductor_may_do_exactly_this(small_on_cluster: Release) -> None:
    jobs = {(verb, "batch", "jobs", "*") for verb in ("list", "watch")}
    jobs |= {("patch", "batch", "jobs", f"small-{stage}") for stage in STAGES}
    pods = {("list", "", "pods", "*"), ("get", "", "pods/log", "*")}
    events = {(verb, "", "events", "*") for verb in ("create", "list")}
    assert allowed(small_on_cluster, "conductor") == jobs | pods | events


def test_the_stages_may_do_nothing(small_on_cluster: Release) -> None:
    assert allowed(small_on_cluster, "stages") == set()
    for stage in STAGES:
        (pod,) = small_on_cluster.pods(stage)
        assert pod["spec"]["automountServiceAccountToken"] is False
        mounts = [mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]]
        assert not any(path.startswith("/var/run/secrets/kubernetes.io") for path in mounts)


@pytest.mark.parametrize(
    "attempt",
    [
        ["get", "secrets"],
        ["create", "job", "mine", "--image=localhost:5000/pocketvlm-labeller:dev"],
        ["delete", "job", "small-trainer"],
        ["patch", "job", "other-trainer", "--type=merge", "-p", "{}"],
        ["get", "configmaps"],
        ["exec", "nobody", "--", "true"],
    ],
)
def test_what_is_not_on_the_list_is_refused(small_on_cluster: Release, attempt: list[str]) -> None:
    user = f"system:serviceaccount:{small_on_cluster.namespace.name}:small-conductor"
    done = small_on_cluster.namespace.kubectl("--as", user, *attempt, check=False)
    assert done.returncode != 0
    assert "forbidden" in done.stderr.lower()


def test_no_secret_value_is_in_any_object_log_or_environment(namespace: Namespace, small_on_cluster: Release) -> None:
    """A run with a canary as its secret key: the store refuses it, and nothing that can be read repeats it."""
    namespace.kubectl("create", "secret", "generic", "canary", "--from-literal=access-key-id=pocketvlm",
                      f"--from-literal=secret-access-key={CANARY}")  # fmt: skip
    values = {"store": {**stored_at("canary")["store"], "existingSecret": "canary"}}
    release = namespace.install("canary", values)
    assert release.finish(120) == "Failed"
    assert "exit code 2" in release.logs()
    read = [release.logs(), release.logs("labeller"), namespace.helm("get", "all", "canary").stdout]
    read += [namespace.kubectl("get", kind, "--output", "json").stdout for kind in ("jobs,pods,configmaps", "events")]
    for text in read:
        assert CANARY not in text
        assert base64.b64encode(CANARY.encode()).decode() not in text
    release.uninstall()
