"""What the values make of each stage: GPUs, nodes, shards, images, store, queues, and settings laid over each other."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from pocketvlm.stages.stage import STAGES as OF_THE_FLOW

from .conftest import ROOT, STAGES, Object, Render, nested
from .matrix import LONG


def variables(container: Object) -> dict[str, Any]:
    return {variable["name"]: variable.get("value", variable.get("valueFrom")) for variable in container["env"]}


def test_the_stages_are_those_of_the_flow_in_their_order(render: Render) -> None:
    assert STAGES == OF_THE_FLOW
    plan = json.loads(render().one("ConfigMap", "digits-conductor")["data"]["conductor.json"])
    assert [stage["name"] for stage in plan["stages"]] == list(STAGES)


def test_each_stage_runs_its_command_in_its_image(render: Render) -> None:
    rendered = render({"image": {"registry": "registry.example.com/team/", "tag": "1.2"}})
    for stage in (*STAGES, "conductor"):
        assert rendered.container(stage)["image"] == f"registry.example.com/team/pocketvlm-{stage}:1.2"
    for stage in STAGES:
        assert rendered.container(stage)["args"] == ["stage", stage, "/etc/pocketvlm/run.yaml"]
    assert rendered.container("conductor")["args"] == ["conduct", "/etc/pocketvlm/conductor.json"]


def test_every_command_is_one_of_ours(render: Render) -> None:
    pytest.importorskip("pocketvlm.cluster.plan")
    from pocketvlm.cli import build_parser

    rendered = render({"objectStore": {"enabled": True, "developmentCredentials": True}})
    for name, container in rendered.containers():
        if container["name"] != "minio":
            assert build_parser().parse_args(container["args"]), name


def test_the_plan_is_what_the_conductor_reads(render: Render) -> None:
    plan = pytest.importorskip("pocketvlm.cluster.plan")
    changes = nested("stages.trainer.unschedulableTimeoutSeconds", 7200)
    text = render(changes, release=LONG).one("ConfigMap", "a-release-name-that-takes-all-of-th-c41b39-conductor")
    read = plan.ConductorPlan.model_validate_json(text["data"]["conductor.json"])
    assert (read.release, read.namespace, read.run, read.gate) == (LONG, "models", "digits", "pocketvlm.dev/conductor")
    assert [stage.unschedulable_timeout_s for stage in read.stages] == [1800, 7200, 1800, 1800, 1800]
    assert read.stages[1].job == render(release=LONG).stage("trainer")["metadata"]["name"]


def test_the_role_gives_what_the_conductor_asks_for_and_no_more(render: Render) -> None:
    plans, checks = (pytest.importorskip(f"pocketvlm.cluster.{name}") for name in ("plan", "check"))
    rendered = render()
    text = rendered.one("ConfigMap", "digits-conductor")["data"]["conductor.json"]
    given = {
        (verb, group, *resource.partition("/")[::2], name)
        for rule in rendered.of("Role")[0]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }
    assert given == set(checks.rights(plans.ConductorPlan.model_validate_json(text)))


@pytest.mark.parametrize(
    ("changes", "linger_s"),
    [
        ({}, 0),
        ({"metrics": {"podMonitor": {"enabled": True, "intervalSeconds": 20}}}, 40),
        ({"conductor": {"lingerSeconds": 7}}, 7),
    ],
)
def test_the_conductor_lingers_for_two_scrapes_where_there_are_scrapes(
    render: Render, changes: dict[str, Any], linger_s: int
) -> None:
    plan = json.loads(render(changes).one("ConfigMap", "digits-conductor")["data"]["conductor.json"])
    assert plan["metrics"] == {"port": 9090, "linger_s": linger_s}


def test_two_long_names_that_begin_alike_stay_two(render: Render) -> None:
    first, second = (render(release=f"{LONG[:-1]}{end}").stage("trainer")["metadata"]["name"] for end in "ab")
    assert first != second


def test_a_release_and_a_namespace_of_digits_stay_text(render: Render) -> None:
    rendered = render(release="123", namespace="456")
    assert all(item["metadata"]["namespace"] == "456" for item in rendered.objects)
    assert rendered.stage("trainer")["metadata"]["labels"]["app.kubernetes.io/instance"] == "123"


def test_an_image_of_its_own_brings_its_registry_and_its_digest(render: Render) -> None:
    digest = f"sha256:{'0' * 64}"
    own = {"repository": "other.example.com/trainer", "digest": digest, "pullPolicy": "Always", "pullSecrets": ["other"]}
    rendered = render({"image": {"registry": "registry.example.com", "tag": "1"}, "stages": {"trainer": {"image": own}}})
    container, pod = rendered.container("trainer"), rendered.stage("trainer")["spec"]["template"]["spec"]
    assert (container["image"], container["imagePullPolicy"]) == (f"other.example.com/trainer:1@{digest}", "Always")
    assert pod["imagePullSecrets"] == [{"name": "other"}]
    assert rendered.container("merger")["image"] == "registry.example.com/pocketvlm-merger:1"


def test_a_stage_lies_over_the_defaults_key_by_key(render: Render) -> None:
    rendered = render({
        "defaults": {"nodeSelector": {"pool": "batch"}, "tolerations": [{"key": "batch"}], "backoffLimit": 5},
        "stages": {"merger": {"nodeSelector": {"disk": "fast"}, "tolerations": [{"key": "fast"}], "backoffLimit": 0}},
    })  # fmt: skip
    merger, quantiser = (rendered.stage(stage)["spec"] for stage in ("merger", "quantiser"))
    assert merger["template"]["spec"]["nodeSelector"] == {"pool": "batch", "disk": "fast"}
    assert merger["template"]["spec"]["tolerations"] == [{"key": "fast"}]
    assert quantiser["template"]["spec"]["tolerations"] == [{"key": "batch"}]
    assert (merger["backoffLimit"], quantiser["backoffLimit"]) == (0, 5)


def test_more_variables_and_volumes_are_added_to_those_of_the_defaults(render: Render) -> None:
    rendered = render({
        "defaults": {"extraEnv": [{"name": "A", "value": "1"}, {"name": "B", "value": "1"}],
                     "extraVolumes": [{"name": "a", "emptyDir": {}}], "extraVolumeMounts": [{"name": "a", "mountPath": "/a"}]},
        "stages": {"merger": {"extraEnv": [{"name": "B", "value": "2"}],
                              "extraVolumes": [{"name": "b", "emptyDir": {}}],
                              "extraVolumeMounts": [{"name": "b", "mountPath": "/b"}]}},
    })  # fmt: skip
    merger = rendered.container("merger")
    assert (variables(merger)["A"], variables(merger)["B"]) == ("1", "2")
    assert {"/a", "/b"} <= {mount["mountPath"] for mount in merger["volumeMounts"]}
    assert variables(rendered.container("conductor"))["B"] == "1"


def test_a_spread_is_that_of_the_stages_own_pods_unless_it_says_otherwise(render: Render) -> None:
    spread = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    other = {**spread, "labelSelector": {"matchLabels": {"team": "vision"}}}
    rendered = render({"defaults": {"topologySpreadConstraints": [spread, other]}, "stages": {"labeller": {"shards": 2}}})
    for stage in STAGES:
        first, second = rendered.stage(stage)["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert first["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == stage
        assert second == other


def test_labels_of_a_user_never_replace_ours(render: Render) -> None:
    own = {"app.kubernetes.io/instance": "other", "kueue.x-k8s.io/admission-gated-by": "other", "team": "vision"}
    job = render({"defaults": dict.fromkeys(["jobLabels", "jobAnnotations", "podLabels", "podAnnotations"], own)}).stage("merger")
    for metadata in (job["metadata"], job["spec"]["template"]["metadata"]):
        assert metadata["labels"]["app.kubernetes.io/instance"] == "digits"
        assert metadata["labels"]["team"] == metadata["annotations"]["team"] == "vision"
    assert job["metadata"]["annotations"]["kueue.x-k8s.io/admission-gated-by"] == "pocketvlm.dev/conductor"


@pytest.mark.parametrize(
    ("resources", "source"),
    [
        ({"requests": {"cpu": "3"}, "limits": {"cpu": "4"}}, "limits.cpu"),
        ({"requests": {"cpu": "3"}, "limits": {"cpu": None}}, "requests.cpu"),
        ({"requests": {"cpu": None}, "limits": {"cpu": None}}, None),
    ],
)
def test_threads_follow_the_cpu_that_a_stage_is_given(render: Render, resources: Any, source: str | None) -> None:
    found = variables(render({"defaults": {"resources": resources}}, job="elements").container("merger"))
    assert found.get("POCKETVLM_THREADS") == (source and {"resourceFieldRef": {"resource": source, "divisor": "1"}})


def test_a_stage_knows_its_folders_its_port_and_its_store(render: Render) -> None:
    rendered = render({"store": {"url": "s3://bucket/prefix", "region": "eu-west-1"}, "hub": {"existingSecret": "hub"}})
    for stage in STAGES:
        found = variables(rendered.container(stage))
        found.pop("POCKETVLM_THREADS")
        assert found == {
            "POCKETVLM_STORE": "s3://bucket/prefix", "AWS_REGION": "eu-west-1", "HOME": "/tmp", "POCKETVLM_SCRATCH": "/work",
            "POCKETVLM_CACHE": "/work/cache",
            "HF_HOME": "/work/huggingface", "HF_TOKEN_FILE": "/run/secrets/pocketvlm/hub-token", "POCKETVLM_METRICS_PORT": "9090",
        }  # fmt: skip


def test_keys_of_services_are_files_in_the_pods_of_the_labeller_and_of_no_other(render: Render) -> None:
    rendered = render({"keys": {"existingSecret": "services", "teacherKey": "openai", "unsplashKey": "unsplash"}})
    for stage in STAGES:
        found = variables(rendered.container(stage))
        volumes = {volume["name"]: volume for volume in rendered.stage(stage)["spec"]["template"]["spec"]["volumes"]}
        if stage == "labeller":
            assert found["OPENAI_API_KEY_FILE"] == "/run/secrets/keys/openai"
            assert found["UNSPLASH_ACCESS_KEY_FILE"] == "/run/secrets/keys/unsplash"
            assert {item["path"] for item in volumes["keys"]["secret"]["items"]} == {"openai", "unsplash"}
        else:
            assert not {name for name in found if "API_KEY" in name or "UNSPLASH" in name}
            assert "keys" not in volumes


@pytest.mark.parametrize(
    ("values", "url", "endpoint", "secret"),
    [
        ({}, "s3://pocketvlm", "http://object-store:9000", "object-store"),
        ({"objectStore": {"enabled": True, "developmentCredentials": True}, "store": {"url": "s3://bucket/prefix"}}, "s3://bucket/prefix",
         "http://object-store:9000", "object-store"),
        ({"store": {"url": "s3://bucket", "endpoint": "http://object-store:9000"}}, "s3://bucket",
         "http://object-store:9000", "object-store"),
        ({"store": {"url": "s3://bucket"}}, "s3://bucket", None, None),
        ({"store": {"url": "s3://bucket", "existingSecret": "keys"}}, "s3://bucket", None, "keys"),
        ({"store": {"url": "s3://bucket", "endpoint": "https://s3.example.com"}}, "s3://bucket", "https://s3.example.com", None),
    ],
)  # fmt: skip
def test_the_store_is_the_one_that_the_values_name(
    render: Render, values: dict[str, Any], url: str, endpoint: str | None, secret: str | None
) -> None:
    rendered = render(values)
    found = variables(rendered.container("merger"))
    assert (found["POCKETVLM_STORE"], found.get("AWS_ENDPOINT_URL_S3")) == (url, endpoint)
    assert ("AWS_ACCESS_KEY_ID_FILE" in found, "AWS_SECRET_ACCESS_KEY_FILE" in found) == (secret is not None, secret is not None)
    volumes = rendered.stage("merger")["spec"]["template"]["spec"]["volumes"]
    projected = [volume["projected"]["sources"] for volume in volumes if volume["name"] == "secrets"]
    assert [source["secret"]["name"] for sources in projected for source in sources] == ([secret] if secret else [])


def test_the_bucket_is_made_only_where_the_store_comes_with_the_release(render: Render) -> None:
    def first(*changes: dict[str, Any]) -> list[Any]:
        return list(render(*changes).stage("labeller")["spec"]["template"]["spec"].get("initContainers", []))

    assert first() == []
    (bucket,) = first({"objectStore": {"enabled": True, "developmentCredentials": True}})
    assert bucket["args"] == ["bucket"] and bucket["image"].endswith("pocketvlm-labeller:0.1.0")


def test_one_gpu_needs_no_launcher(render: Render) -> None:
    container = render(nested("stages.trainer.gpus", 1)).container("trainer")
    assert "command" not in container
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]


def launched(container: Object) -> dict[str, Any]:
    """The arguments as accelerate itself reads them, in a process of its own: the import takes seconds."""
    assert container["command"] == ["accelerate"] and container["args"][0] == "launch"
    arguments = [argument.replace("$(JOB_COMPLETION_INDEX)", "2") for argument in container["args"][1:]]
    program = ("import json, sys; from accelerate.commands.launch import launch_command_parser as p; "
               "print(json.dumps(vars(p().parse_args(sys.argv[1:])), default=str))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_several_gpus_on_several_nodes_are_one_launch_that_accelerate_understands(render: Render) -> None:
    rendered = render({"stages": {"trainer": {"gpus": 4, "nodes": 3, "rendezvousPort": 4711, "preset": "l40s"}}})
    read = launched(rendered.container("trainer"))
    assert (read["multi_gpu"], read["num_processes"], read["num_machines"], read["machine_rank"]) == (True, 12, 3, 2)
    assert (read["main_process_ip"], read["main_process_port"]) == ("digits-trainer-0.digits-trainer", 4711)
    assert (read["module"], read["training_script"]) == (True, "pocketvlm")
    assert read["training_script_args"] == ["stage", "trainer", "/etc/pocketvlm/run.yaml"]
    service = rendered.one("Service", "digits-trainer")["spec"]
    assert service["clusterIP"] == "None" and service["publishNotReadyAddresses"] is True
    assert service["selector"] == {"batch.kubernetes.io/job-name": "digits-trainer"}
    job = rendered.stage("trainer")["spec"]
    assert (job["completionMode"], job["completions"], job["parallelism"], job["backoffLimit"]) == ("Indexed", 3, 3, 9)
    assert job["template"]["spec"]["subdomain"] == "digits-trainer"
    assert "backoffLimitPerIndex" not in job  # ranks fail together


def test_several_gpus_on_one_node_need_no_service(render: Render) -> None:
    rendered = render(nested("stages.trainer.gpus", 2))
    arguments = rendered.container("trainer")["args"]
    assert "--machine_rank" not in arguments and arguments[arguments.index("--num_processes") + 1] == "2"
    assert rendered.of("Service") == []
    assert "completionMode" not in rendered.stage("trainer")["spec"]


@pytest.mark.parametrize("stage", ["labeller", "evaluator"])
def test_shards_are_an_indexed_job_that_ends_when_one_is_out_of_tries(render: Render, stage: str) -> None:
    rendered = render(nested(f"stages.{stage}.shards", 4))
    job = rendered.stage(stage)["spec"]
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 4, 4)
    assert (job["backoffLimitPerIndex"], job["maxFailedIndexes"], job["backoffLimit"]) == (3, 0, 12)
    assert variables(rendered.container(stage))["POCKETVLM_SHARDS"] == "4"
    assert "POCKETVLM_SHARDS" not in variables(rendered.container("merger"))


def test_a_preset_is_any_of_its_labels_and_its_tolerations(render: Render) -> None:
    preset = {"nodes": {"a/gpu": ["x", "y"], "b/gpu": ["z"]}, "tolerations": [{"key": "gpu", "operator": "Exists"}]}
    trainer = {"gpus": 1, "preset": "own", "tolerations": [{"key": "team"}]}
    pod = render({"presets": {"own": preset}, "stages": {"trainer": trainer}}).stage("trainer")["spec"]["template"]["spec"]
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert [term["matchExpressions"] for term in terms] == [
        [{"key": "a/gpu", "operator": "In", "values": ["x", "y"]}],
        [{"key": "b/gpu", "operator": "In", "values": ["z"]}],
    ]
    assert pod["tolerations"] == [{"key": "team"}, {"key": "gpu", "operator": "Exists"}]


def test_queues_are_labels_of_the_jobs(render: Render) -> None:
    rendered = render({"kueue": {"queueName": "gpus", "conductorQueueName": "small"}})
    queues = {job["metadata"]["name"]: job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] for job in rendered.of("Job")}
    assert queues == {**{f"digits-{stage}": "gpus" for stage in STAGES}, "digits-conductor": "small"}
    assert not any("kueue.x-k8s.io/queue-name" in job["metadata"]["labels"] for job in render().of("Job"))


def test_helm_test_asks_the_store_and_the_rights(render: Render) -> None:
    rendered = render()
    store, conductor = (rendered.one("Pod", f"digits-test-{name}") for name in ("store", "conductor"))
    assert store["spec"]["containers"][0]["args"] == ["bucket", "--check"]
    assert conductor["spec"]["containers"][0]["args"] == ["conduct", "--check", "/etc/pocketvlm/conductor.json"]
    assert store["spec"]["serviceAccountName"] == "digits-stages"
    assert conductor["spec"]["serviceAccountName"] == "digits-conductor"
    assert store["metadata"]["annotations"]["helm.sh/hook"] == conductor["metadata"]["annotations"]["helm.sh/hook"] == "test"
