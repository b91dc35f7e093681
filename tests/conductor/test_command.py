"""`pocketvlm conduct` as a process: exit codes, signals, metrics, and what it must not import."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_api import FakeApi
from shapes import STAGES, chain, complete, ended, failed, plan_json, released, running

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(fake: FakeApi, tmp_path: Path) -> Start:
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
        (tmp_path / "conductor.json").write_text(json.dumps(plan))
        command = program or ["-m", "pocketvlm", "conduct"]
        return subprocess.Popen(
            [sys.executable, *command, *arguments, str(tmp_path / "conductor.json")], text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=environment | {"KUBECONFIG": str(kubeconfig)},
        )  # fmt: skip

    return run


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


def test_missing_rights_exit_11(fake: FakeApi, start: Start) -> None:
    fake.forbidden = {("list", "events"): 99, ("get", "pods/log"): 99}
    process = start("--check")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 11
    assert errors == "error: the conductor's Role in namespace demo lacks: get pods/log, list events\n"


def test_a_check_asks_for_every_right_and_changes_nothing(fake: FakeApi, start: Start) -> None:
    fake.put(*chain())
    process = start("--check")
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (0, "release digits: 5 stages; all 11 rights are there\n", "")
    assert not fake.patches


def test_sigterm_ends_it_at_once_with_143_and_the_next_one_goes_on(fake: FakeApi, start: Start) -> None:
    fake.put(*chain(released("labeller")), running(released("labeller")))
    port = free_port()
    process = start(port=port, linger_s=60)
    fake.wait_for(lambda: fake.count("watch", "jobs") == 1, seconds=30)
    assert 'pocketvlm_stage_state{stage="labeller",state="running"} 1.0' in scrape(port)
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 143 and time.monotonic() - begun < 1
    assert errors.endswith("stopped; stages run on, and the next conductor goes on from here\n")


def test_it_lingers_for_a_last_scrape(fake: FakeApi, start: Start) -> None:
    fake.put(*(complete(stage) for stage in STAGES))
    port = free_port()
    process = start(port=port, linger_s=30)
    assert process.stderr is not None
    for line in process.stderr:
        if "the metrics can be read for another 30 s" in line:
            break
    assert scrape(port).count('state="complete"} 1.0') == 5
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 143


def test_a_port_that_is_taken_is_named(fake: FakeApi, start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        process = start(port=taken.getsockname()[1])
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 11
    assert f"metrics.port {taken_port(errors)} cannot be used" in errors


def taken_port(errors: str) -> str:
    return errors.split("metrics.port ")[1].split()[0]


def test_without_a_cluster_it_says_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "conductor.json").write_text(json.dumps(plan_json()))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KUBE")}
    done = subprocess.run(
        [sys.executable, "-m", "pocketvlm", "conduct", str(tmp_path / "conductor.json")], capture_output=True, text=True,
        env=environment | {"HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 11
    assert done.stderr.startswith("error: no way to the Kubernetes API")


