"""What the chart refuses and how it says so, and what it tells after an install; words that a person acts on are checked."""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import helm_python as helm
import pytest
import yaml

from .conftest import CHART, JOBS, ROOT, STAGES, Render, laid_over, nested, run_file_values
from .matrix import MINIO, MONITORED


def refusal(render: Render, *changes: dict[str, Any], **options: Any) -> str:
    with pytest.raises(helm.HelmRenderError) as error:
        render(*changes, **options)
    return str(error.value)


def test_an_upgrade_is_refused_with_the_way_out(render: Render) -> None:
    said = refusal(render, release="elements", upgrade=True)
    assert "one release is one run: an upgrade would suspend the stages of elements that run now" in said
    assert "helm uninstall elements --namespace models --wait && helm install elements ... --namespace models" in said
    assert "stages that are done are found in the store and skipped" in said


def test_an_upgrade_comes_through_when_it_is_asked_for(render: Render) -> None:
    assert render({"allowUpgrade": True}, upgrade=True).of("Job")


def test_without_a_recipe_nothing_is_made() -> None:
    with helm.Chart.load(CHART) as chart, pytest.raises(helm.HelmRenderError) as error:
        chart.render({}, name="digits")
    assert "run: is missing; the recipe comes from a run file: -f jobs/digits.yaml" in str(error.value)


@pytest.mark.parametrize("cap", [{"per_class": 200}, {"max_cost_usd": 5}])
def test_a_cap_that_several_labellers_cannot_keep_to_is_refused(render: Render, cap: dict[str, Any]) -> None:
    said = refusal(render, {"run": {"labeller": cap}, "stages": {"labeller": {"shards": 2}}})
    assert f"stages.labeller.shards: only a labeller that does all of the work can keep to run.labeller.{next(iter(cap))}" in said


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"teacherKey": "openai"}, "keys: openai is set, and keys.existingSecret is not"),
        ({"existingSecret": "services"}, "keys.existingSecret: no key of the secret services is named; set keys.teacherKey"),
    ],
)
def test_half_of_what_a_key_needs_is_refused(render: Render, keys: dict[str, str], said: str) -> None:
    assert said in refusal(render, {"keys": keys})


@pytest.fixture
def cluster() -> Iterator[str]:
    """A kubeconfig of an API server that knows one thing: in `models` there is an object store of the release `first`."""
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {
        "name": "object-store", "namespace": "models", "annotations": {"meta.helm.sh/release-name": "first"},
    }}  # fmt: skip
    services = {"name": "services", "singularName": "service", "namespaced": True, "kind": "Service", "verbs": ["get"]}
    answers = {
        "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": [services]},
        "/api/v1/namespaces/models/services/object-store": service,
    }

    class Api(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(self.path.partition("?")[0], {"kind": "Status", "status": "Failure", "code": 404})
            self.send_response(answer.get("code", 200))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {}}],
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        })  # fmt: skip
        server.shutdown()
        thread.join()


def test_a_second_object_store_in_the_namespace_is_refused_with_the_way_to_the_first(cluster: str) -> None:
    values = laid_over(run_file_values("digits"), MINIO)
    with helm.Config(kubeconfig_content=cluster, namespace="models") as config, helm.Chart.load(CHART) as chart:
        with pytest.raises(helm.HelmRenderError) as error:
            config.render(chart, values, name="second", namespace="models")
        assert config.render(chart, values, name="first", namespace="models")
        assert config.render(chart, values, name="second", namespace="elsewhere")
    assert "namespace models has an object store already (of release first); use it: --set objectStore.enabled=false" in str(
        error.value
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objectStore": {"enabled": True}}, "objectStore.enabled: it needs keys; name a secret in store.existingSecret, or set "
         "objectStore.developmentCredentials to true to try things out"),
        ({**MINIO, "store": {"existingSecret": "keys"}},
         "objectStore.developmentCredentials and store.existingSecret both bring keys; remove one of them"),
        (nested("stages.trainer.preset", "h100"), 'stages.trainer.preset: there is no "h100" in presets; there are a100, l40s'),
        (nested("stages.trainer.nodes", 2), "stages.trainer.nodes: 2 nodes and no GPU; set stages.trainer.gpus"),
        ({"stages": {"trainer": {"preset": "a100", "affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}}}},
         "stages.trainer: preset and affinity.nodeAffinity both choose nodes; remove one of them"),
        (nested("defaults.extraEnv", [{"name": "POCKETVLM_STORE", "value": "x"}]),
         "extraEnv or defaults.extraEnv: POCKETVLM_STORE is set twice, or by the chart; remove it"),
        (nested("stages.merger.extraEnv", [{"name": "A"}, {"name": "A"}]),
         "stages.merger.extraEnv or defaults.extraEnv: A is set twice, or by the chart; remove it"),
        (nested("defaults.activeDeadlineSeconds", None),
         "activeDeadlineSeconds and defaults.activeDeadlineSeconds: null takes the value away, and there has to be one"),
        ({"metrics": {"podMonitor": {"enabled": True, "renderMode": "failIfMissing"}}}, "metrics.podMonitor: the cluster has no "
         "monitoring.coreos.com/v1; install the Prometheus operator, or set metrics.podMonitor.renderMode to skipIfMissing"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_what_to_change(render: Render, changes: dict[str, Any], said: str) -> None:
    assert said in refusal(render, changes)


def test_the_notes_give_the_next_commands_of_this_release(render: Render) -> None:
    notes = render(MINIO, release="second").notes
    assert "kubectl -n models logs -f --pod-running-timeout=10m job/second-conductor" in notes
    for stage in STAGES:
        assert f"kubectl -n models logs -f job/second-{stage}" in notes
    assert "kubectl -n models wait --for=condition=Complete --timeout=24h job/second-conductor" in notes
    assert "helm test second --namespace models --logs" in notes
    assert "helm uninstall second --namespace models --wait" in notes
    assert "kubectl -n models port-forward service/object-store 9000" in notes
    assert "POCKETVLM_STORE=s3://pocketvlm pocketvlm pull digits --to models" in notes


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        (MINIO, "the object store has development credentials, which everybody knows"),
        ({"objectStore": {**MINIO["objectStore"], "persistence": {"enabled": False}}}, "the object store keeps nothing"),
        ({}, "image.registry is empty"),
        (nested("stages.trainer.gpus", 2), "the trainer of this version refuses more than one process"),
        (
            {"metrics": {"podMonitor": {"enabled": True}}},
            "metrics.podMonitor: left out, the cluster has no monitoring.coreos.com/v1",
        ),
        ({"kueue": {"queueName": "gpus"}}, "kueue.conductorQueueName is empty"),
    ],
)
def test_the_notes_warn(render: Render, changes: dict[str, Any], warning: str) -> None:
    assert f"Warning: {warning}" in render(changes).notes


def test_the_notes_warn_of_nothing_where_all_is_well(render: Render) -> None:
    assert "Warning" not in render({"image": {"registry": "r"}, "store": {"url": "s3://bucket"}}).notes


def test_monitoring_is_left_out_where_the_cluster_does_not_know_it(render: Render) -> None:
    rendered = render({"metrics": {"podMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}}})
    assert rendered.of("PodMonitor") == rendered.of("PrometheusRule") == []
    asked = render(MONITORED)
    assert len(asked.of("PodMonitor")) == len(asked.of("PrometheusRule")) == 1


def test_alerts_and_dashboard_ask_for_metrics_that_there_are(render: Render) -> None:
    pytest.importorskip("pocketvlm.cluster.metrics")
    pytest.importorskip("pocketvlm.metrics")
    source = "".join(path.read_text() for path in (ROOT / "src" / "pocketvlm").rglob("*metrics.py"))
    asked = set(re.findall(r"pocketvlm_\w+", render(MONITORED).text))
    assert len(asked) >= 10
    assert {name for name in asked if f'"{name}"' not in source and f'"{name.removesuffix("_total")}"' not in source} == set()


def test_the_dashboard_shows_this_release(render: Render) -> None:
    (text,) = render(MONITORED, release="second").one("ConfigMap", "second-dashboard")["data"].values()
    dashboard = json.loads(text)
    assert dashboard["title"] == "PocketVLM second" and len(dashboard["uid"]) <= 40
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            assert 'namespace="models",release="second"' in target["expr"]
    assert "@" not in text


@pytest.mark.parametrize("job", JOBS)
def test_helm_finds_nothing_to_say_about_the_chart(job: str) -> None:
    values = yaml.safe_load((ROOT / "jobs" / f"{job}.yaml").read_text())
    report = helm.lint(CHART, values, strict=True)
    assert report["errors"] == []
    assert [message["error"] for message in report["messages"] if message["severity"] > 1] == []


def test_the_values_for_a_laptop_go_with_every_run_file(render: Render) -> None:
    laptop = helm.values_from_yaml((CHART / "values-kind.yaml").read_text())
    for job in JOBS:
        rendered = render(laptop, job=job)
        assert rendered.container("merger")["image"] == "localhost:5000/pocketvlm-merger:dev"
        assert rendered.of("StatefulSet", "object-store") and rendered.of("Secret", "object-store")


def test_the_chart_asks_for_the_kubernetes_that_it_is_checked_with() -> None:
    with helm.Chart.load(CHART) as chart:
        assert chart.metadata["kubeVersion"] == ">=1.31.0-0"
