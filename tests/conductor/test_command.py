"""`pocketvlm conduct` as a process: exit codes, signals, metrics, and what it must not import."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_api import FakeApi
from shapes import STAGES, chain, complete, ended, failed, plan_json, release_plan, released, running

from pocketvlm.cluster.api import Api, connect
from pocketvlm.cluster.check import check_rights
from pocketvlm.cluster.metrics import RunMetrics, serve
from pocketvlm.cluster.plan import SetUpWrong

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(fake: FakeApi, tmp_path: Path) -> Iterator[Start]:
    """Starts `pocketvlm conduct` with a kubeconfig for the fake; the end of the test ends it."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "fake",
        "clusters": [{"name": "fake", "cluster": {"server": fake.url}}],
        "users": [{"name": "fake", "user": {"token": "canary-token"}}],
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake", "namespace": "demo"}}],
    }))  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KUBERNETES_")}

    def run(*arguments: str, program: list[str] | None = None, linger_s: float = 0, port: int = 0) -> subprocess.Popen[str]:
        plan = plan_json() | {"metrics": {"port": port, "linger_s": linger_s}}
        path = tmp_path / f"conductor-{len(started)}.json"
        path.write_text(json.dumps(plan))
        command = program or ["-m", "pocketvlm", "conduct"]
        started.append(subprocess.Popen(
            [sys.executable, *command, *arguments, str(path)], text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=environment | {"KUBECONFIG": str(kubeconfig)},
        ))  # fmt: skip
        return started[-1]

    started: list[subprocess.Popen[str]] = []
    yield run
    for process in started:
        process.kill()
        process.communicate()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def test_a_finished_run_exits_0_with_no_heavy_import(fake: FakeApi, start: Start) -> None:
    """The conductor's image has neither torch nor boto3, and needs neither."""
    program = (
        "import sys; from pocketvlm.cli import main; code = main(['conduct', sys.argv[1]]);"
        "print(sorted({'boto3', 'botocore', 'torch', 'pyarrow', 'numpy', 'transformers', 'sklearn'} & set(sys.modules)));"
        "raise SystemExit(code)"
    )
    fake.put(*(complete(stage) for stage in STAGES))
    process = start(program=["-c", program])
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "[]\n"), errors
    assert "all 5 stages are complete" in errors


def test_a_failed_stage_exits_10_with_its_reason_last(fake: FakeApi, start: Start) -> None:
    fake.put(*chain(failed("labeller", "PodFailurePolicy")), ended(released("labeller"), 2, "error: run.task: is empty"))
    process = start()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 10
    assert "conductor      error: run.task: is empty" in errors
    assert errors.splitlines()[-1].startswith("error: the labeller failed with exit 2")
    assert "canary-token" not in errors


def test_a_check_asks_for_every_right_and_changes_nothing(fake: FakeApi, start: Start) -> None:
    fake.put(*chain())
    process = start("--check")
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (0, "release digits: 5 stages; all 11 rights are there\n", "")
    assert not fake.patches


def test_a_check_names_the_rights_that_are_missing(fake: FakeApi) -> None:
    fake.forbidden = {("list", "events"): 99, ("get", "pods/log"): 99}
    with pytest.raises(SetUpWrong) as refusal:
        check_rights(release_plan(), Api(release_plan(), fake.client()))
    assert str(refusal.value) == "the conductor's Role in namespace demo lacks: get pods/log, list events"


def test_sigterm_ends_it_at_once_with_143(fake: FakeApi, start: Start) -> None:
    """While it watches, and while it lingers for a last scrape of its metrics."""
    fake.put(*chain(released("labeller")), running(released("labeller")))
    port = free_port()
    watching, lingering = start(port=port), start(linger_s=60)
    fake.wait_for(lambda: fake.count("watch", "jobs") == 2, seconds=30)
    assert 'pocketvlm_stage_state{stage="labeller",state="running"} 1.0' in scrape(port)
    stop(watching, "stopped; stages run on, and the next conductor goes on from here\n")
    fake.put(*(complete(stage) for stage in STAGES))
    assert lingering.stderr is not None
    while "the metrics can be read for another 1 min 00 s" not in lingering.stderr.readline():
        assert lingering.poll() is None
    stop(lingering, "")


def stop(process: subprocess.Popen[str], last_words: str) -> None:
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)  # it would linger for 60
    assert process.returncode == 143
    assert errors.endswith(last_words)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SetUpWrong, match=f"metrics.port {port} cannot be used"), serve(RunMetrics(release_plan()), port):
            pass


def test_without_a_cluster_it_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "absent"))
    with pytest.raises(SetUpWrong, match="no way to the Kubernetes API: this is no pod with a service account token"):
        connect()
