"""What holds for every object that the chart renders, whatever the values."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from .conftest import STAGES, Object, Render, Rendered, api_schema
from .matrix import LONG, MATRIX

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
VERSIONS = [version for version in kubernetes_validate.utils.all_versions() if float(version.rsplit(".", 1)[0]) >= 1.31]
"""Chart.yaml asks for 1.31."""
FOREIGN = ("PodMonitor", "PrometheusRule")
"""Kinds that Kubernetes itself does not know."""
RESTRICTED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip


@pytest.fixture(scope="module", params=MATRIX, ids=lambda name: name.replace(" ", "-"))
def rendered(request: pytest.FixtureRequest, render: Render) -> Rendered:
    return render(MATRIX[request.param], release=LONG)


def test_every_object_has_a_name_of_its_own_that_fits(rendered: Rendered) -> None:
    names = Counter((item["kind"], item["metadata"]["name"]) for item in rendered.objects)
    assert [name for name, count in names.items() if count > 1] == []
    for _, name in names:
        assert len(name) <= 63 and LABEL.fullmatch(name), name


def test_the_pods_of_an_indexed_job_have_names_that_fit(rendered: Rendered) -> None:
    for job in rendered.of("Job"):
        last = job["spec"].get("completions", 1) - 1
        assert len(f"{job['metadata']['name']}-{last}-abcde") <= 63


def test_every_object_is_in_the_namespace_and_says_whose_it_is(rendered: Rendered) -> None:
    for item in rendered.objects:
        assert item["metadata"]["namespace"] == "models"
        check_labels(item["metadata"])
    for _, metadata, _ in rendered.pods():
        check_labels(metadata)


def check_labels(metadata: Object) -> None:
    labels = metadata["labels"]
    assert labels["app.kubernetes.io/name"] == labels["app.kubernetes.io/part-of"] == "pocketvlm"
    assert labels["app.kubernetes.io/instance"] == LONG
    assert labels["app.kubernetes.io/managed-by"] == "Helm"
    assert {"app.kubernetes.io/component", "app.kubernetes.io/version", "helm.sh/chart"} <= set(labels)
    assert all(isinstance(value, str) and len(value) <= 63 for value in labels.values())


def test_every_pod_meets_pod_security_restricted(rendered: Rendered) -> None:
    for name, _, spec in rendered.pods():
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True and security.get("runAsUser", 1) != 0, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not set(spec) & {"hostNetwork", "hostPID", "hostIPC", "hostUsers"}, name
        for volume in spec["volumes"]:
            assert set(volume) - {"name"} <= RESTRICTED_VOLUMES, name
    for name, container in rendered.containers():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }, name  # fmt: skip
        assert not any("hostPort" in port for port in container.get("ports", [])), name


def test_only_the_conductor_has_a_token(rendered: Rendered) -> None:
    for account in rendered.of("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    conductors = {spec["serviceAccountName"] for name, _, spec in rendered.pods() if spec["automountServiceAccountToken"]}
    others = {spec["serviceAccountName"] for name, _, spec in rendered.pods() if not spec["automountServiceAccountToken"]}
    assert len(conductors) == len(others) == 1 and conductors != others
    (binding,) = rendered.of("RoleBinding")
    assert {subject["name"] for subject in binding["subjects"]} == conductors


def test_the_conductor_may_do_this_and_nothing_else(rendered: Rendered) -> None:
    (role,) = rendered.of("Role")
    jobs = [rendered.stage(stage)["metadata"]["name"] for stage in STAGES]
    assert role["rules"] == [
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["list", "watch"]},
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["patch"], "resourceNames": jobs},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
        {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "list"]},
    ]
    assert [item["kind"] for item in rendered.objects if "Role" in item["kind"]] == ["Role", "RoleBinding"]


def test_no_number_is_written_as_a_float(rendered: Rendered) -> None:
    assert re.findall(r"[:=(] ?\d+(?:\.\d+)?e\+\d+.*", rendered.text) == []


def test_no_pod_gets_the_variables_of_services(rendered: Rendered) -> None:
    assert all(spec["enableServiceLinks"] is False for _, _, spec in rendered.pods())


def test_no_variable_is_set_twice(rendered: Rendered) -> None:
    for name, container in rendered.containers():
        names = Counter(variable["name"] for variable in container.get("env", []))
        assert [variable for variable, count in names.items() if count > 1] == [], name


def test_every_mount_has_its_volume_and_a_path_of_its_own(rendered: Rendered) -> None:
    for name, _, spec in rendered.pods():
        claims = ["data"] if name.startswith("StatefulSet") and "data" not in {v["name"] for v in spec["volumes"]} else []
        volumes = [*claims, *(volume["name"] for volume in spec["volumes"])]
        assert len(volumes) == len(set(volumes)), name
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            paths = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert len(paths) == len(set(paths)), name
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes), name


def test_every_container_asks_for_memory_and_tells_its_last_words(rendered: Rendered) -> None:
    for name, container in rendered.containers():
        assert container["resources"]["requests"]["memory"] and container["resources"]["limits"]["memory"], name
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError", name
        assert container["imagePullPolicy"] in ("Always", "IfNotPresent", "Never"), name
        assert re.fullmatch(r"[\w./:-]+:[\w.-]+(@sha256:[0-9a-f]{64})?", container["image"]), name


def test_no_container_of_ours_starts_a_shell(rendered: Rendered) -> None:
    for name, container in rendered.containers():
        assert container.get("command") in (None, ["accelerate"]), name


def test_every_job_ends_and_knows_when_to_try_again(rendered: Rendered) -> None:
    for job in rendered.of("Job"):
        spec = job["spec"]
        assert spec["activeDeadlineSeconds"] > 0 and spec["backoffLimit"] > 0
        assert spec["podReplacementPolicy"] == "Failed"
        assert spec["template"]["spec"]["restartPolicy"] == "Never"
        assert "ttlSecondsAfterFinished" not in spec
        final, disrupted = spec["podFailurePolicy"]["rules"]
        codes = [10, 11] if job["metadata"]["name"].endswith("-conductor") else [2, 3, 4]
        assert final == {"action": "FailJob", "onExitCodes": {"operator": "In", "values": codes}}
        assert disrupted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def test_every_stage_waits_behind_suspend_and_gate_and_the_conductor_does_not(rendered: Rendered) -> None:
    for stage in STAGES:
        job = rendered.stage(stage)
        assert job["spec"]["suspend"] is True
        assert job["metadata"]["annotations"]["kueue.x-k8s.io/admission-gated-by"] == "pocketvlm.dev/conductor"
        assert "ownerReferences" not in job["metadata"]
    conductor = rendered.stage("conductor")
    assert "suspend" not in conductor["spec"]
    assert "kueue.x-k8s.io/admission-gated-by" not in conductor["metadata"].get("annotations", {})


def test_who_serves_others_is_probed(rendered: Rendered) -> None:
    """A stage serves nobody but Prometheus, and one that computes for minutes must not be killed for a late answer."""
    probes = {"startupProbe", "livenessProbe", "readinessProbe"}
    for name, container in rendered.containers():
        ports = {port["name"] for port in container.get("ports", [])}
        expected = probes if "s3" in ports else {"readinessProbe"} if name.endswith("container conductor") and ports else set()
        assert set(container) & probes == expected, name
        for probe in expected:
            assert container[probe]["httpGet"]["port"] in ports, name


def test_a_service_finds_pods(rendered: Rendered) -> None:
    for service in rendered.of("Service"):
        wanted = service["spec"]["selector"]
        job = wanted.get("batch.kubernetes.io/job-name")
        labels = [metadata["labels"] for _, metadata, _ in rendered.pods()]
        assert rendered.of("Job", job) if job else any(wanted.items() <= found.items() for found in labels)


@functools.cache
def validate(text: str) -> None:
    """An object in every version; most of them are the same in many sets of values."""
    item = json.loads(text)
    for version in VERSIONS:
        jsonschema.Draft202012Validator(api_schema(version, item["kind"], item["apiVersion"])).validate(item)


def test_every_object_is_valid_in_every_version_of_kubernetes(rendered: Rendered) -> None:
    assert VERSIONS[0].startswith("1.31") and len(VERSIONS) >= 7
    for item in rendered.objects:
        if item["kind"] not in FOREIGN:
            validate(json.dumps(item))


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the schemas that kubeconform would otherwise fetch from the network."""
    return tmp_path_factory.mktemp("schemas")


def test_kubeconform_agrees(rendered: Rendered, schemas: Path) -> None:
    if shutil.which("kubeconform") is None:
        pytest.skip("kubeconform is not on PATH")
    for item in rendered.objects:
        place = schemas / f"{item['kind'].lower()}.json"
        if item["kind"] not in FOREIGN and not place.exists():
            place.write_text(json.dumps(api_schema(VERSIONS[-1], item["kind"], item["apiVersion"])))
    command = ["kubeconform", "-strict", "-skip", ",".join(FOREIGN), "-schema-location", f"{schemas}/{{{{.ResourceKind}}}}.json"]
    done = subprocess.run(command, input=rendered.text, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_no_secret_is_in_any_object(rendered: Rendered) -> None:
    """But for the development keys, which are no secret, in the only Secret that the chart ever makes."""
    secrets = rendered.of("Secret")
    assert [secret["metadata"]["name"] for secret in secrets] in ([], ["object-store"])
    rest = yaml.safe_dump([item for item in rendered.objects if item["kind"] != "Secret"]) + rendered.notes
    assert "pocketvlm-development" not in rest
    for name, container in rendered.containers():
        for variable in container.get("env", []):
            if re.search(r"KEY|SECRET|TOKEN|PASSWORD", variable["name"]) and variable["name"] != "FROM_A_SECRET":
                assert variable["name"].endswith("_FILE"), name
                assert variable["value"].startswith(("/run/secrets/pocketvlm/", "/run/secrets/keys/")), name


def test_secrets_are_files_that_are_mounted(rendered: Rendered) -> None:
    for name, _, spec in rendered.pods():
        files: set[Any] = set()
        for volume in spec["volumes"]:
            for source in volume.get("projected", {}).get("sources", []):
                files |= {f"/run/secrets/pocketvlm/{item['path']}" for item in source["secret"]["items"]}
            if volume["name"] == "keys":
                files |= {f"/run/secrets/keys/{item['path']}" for item in volume["secret"]["items"]}
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            named = {v["value"] for v in container.get("env", []) if v["name"].endswith("_FILE")}
            assert named <= files or name.startswith("StatefulSet"), name
