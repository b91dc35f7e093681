"""Object stores for tests: a folder, moto's S3 server, and a real MinIO where its binary is on PATH; and runs of the demo."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.config import Config
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from pydantic import SecretStr
from werkzeug.serving import WSGIRequestHandler, make_server

from pocketvlm.artifacts.artifact import Artifact, find
from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.artifacts.manifest import KINDS
from pocketvlm.artifacts.run_record import read_record, run_id
from pocketvlm.artifacts.s3 import S3Store
from pocketvlm.artifacts.store import Store
from pocketvlm.environment import read_environment
from pocketvlm.llamacpp.toolchain import find_toolchain
from pocketvlm.run_file import read_run_file
from pocketvlm.stages.stage import STAGES

# As the door does, before any test imports torch: see environment.calm_idle_threads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A shell's background job ignores it, and what it starts would, too: some tests interrupt what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
# Servers and run files for the tests of several rooms, some of which are scripts too.
sys.path[:0] = [str(ROOT / "tests" / "teacher"), str(ROOT / "tests" / "sources"), str(ROOT / "tests" / "fixtures")]
sys.path.append(str(ROOT))  # bench
from runs import SMALL, job  # noqa: E402
from turns import pytest_collection_modifyitems, pytest_configure, pytest_xdist_make_scheduler  # noqa: E402, F401

StoreFactory = Callable[..., Store]


@dataclass(frozen=True)
class Endpoint:
    """An S3 server on loopback and keys that it accepts."""

    url: str
    access_key_id: str = "pocketvlm-test"
    secret_access_key: str = "pocketvlm-canary-secret"

    def create_bucket(self) -> str:
        bucket = f"bucket-{uuid.uuid4().hex[:12]}"
        client = boto3.client(
            "s3", endpoint_url=self.url, region_name="us-east-1", aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            # MinIO says that it is ready, and on a busy machine answers 503 for seconds more.
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 10, "mode": "standard"}),
        )
        client.create_bucket(Bucket=bucket)
        client.close()
        return bucket

    def store(self, bucket: str | None = None, **options: Any) -> S3Store:
        """A store in a new bucket, or in the one named."""
        keys = {"access_key_id": SecretStr(self.access_key_id), "secret_access_key": SecretStr(self.secret_access_key)}
        return S3Store(f"s3://{bucket or self.create_bucket()}/some/prefix", endpoint_url=self.url, **(keys | options))


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


class _Moto:
    """moto's S3 as a WSGI application.

    moto looks and then writes; S3 does both in one step, so here one conditional PUT runs at a time. `ignored` names
    headers that are dropped on the way, as servers without conditional writes do.
    """

    def __init__(self, ignored: tuple[str, ...] = ()) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._ignored = ignored
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        for header in self._ignored:
            environ.pop(header, None)
        if environ["REQUEST_METHOD"] != "PUT":
            return self._app(environ, start_response)
        with self._lock:
            return self._app(environ, start_response)


@contextmanager
def _served(app: _Moto) -> Iterator[Endpoint]:
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Endpoint(f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[Endpoint]:
    """moto's threaded S3 server."""
    with _served(_Moto()) as endpoint:
        yield endpoint


@pytest.fixture(params=["HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"])
def careless_endpoint(request: pytest.FixtureRequest) -> Iterator[Endpoint]:
    """An S3 server that ignores one of the two conditions."""
    with _served(_Moto(ignored=(request.param,))) as endpoint:
        yield endpoint


class Minio:
    """A real MinIO that can be killed and started again on its port and data; skips without its binary."""

    def __init__(self, folder: Path) -> None:
        binary = shutil.which("minio")
        if binary is None:
            pytest.skip("the minio binary is not on PATH")
        port = closed_port()
        self.endpoint = Endpoint(f"http://127.0.0.1:{port}")
        self.data = folder / "data"
        """Where it keeps what it was given."""
        self._log = folder / "log"
        self._command = [binary, "server", str(self.data), "--address", f"127.0.0.1:{port}",
                         "--console-address", f"127.0.0.1:{closed_port()}"]  # fmt: skip
        self._environment = {"HOME": str(folder), "PATH": "/usr/bin:/bin", "MINIO_ROOT_USER": self.endpoint.access_key_id,
                             "MINIO_ROOT_PASSWORD": self.endpoint.secret_access_key}  # fmt: skip
        self._server: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> None:
        with self._log.open("ab") as log:
            self._server = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 30
        while wait and time.monotonic() < deadline and self._server.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.endpoint.url}/minio/health/ready", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        if wait:
            pytest.fail(f"MinIO did not start:\n{self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        """SIGKILL, as when its node dies."""
        if self._server:
            self._server.kill()
            self._server.wait(20)

    def stop(self) -> None:
        if self._server:
            self._server.terminate()
            self._server.wait(20)

class _Breaking(_Moto):
    """moto's S3 that fails to read what lies at or beyond a byte."""

    def __init__(self) -> None:
        super().__init__()
        self.readable_bytes = 0
        self.read: list[str] = []
        """Ranges that were read."""

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        asked = environ.get("HTTP_RANGE", "") if environ["REQUEST_METHOD"] == "GET" else ""
        if asked and int(asked.removeprefix("bytes=").split("-")[0]) >= self.readable_bytes:
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        if asked:
            self.read.append(asked)
        return super().__call__(environ, start_response)


@pytest.fixture
def breaking_endpoint() -> Iterator[tuple[Endpoint, _Breaking]]:
    """An S3 server that can read no further than it is told, and that server."""
    app = _Breaking()
    with _served(app) as endpoint:
        yield endpoint, app


@pytest.fixture(scope="session")
def minio_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """A real MinIO; skips without its binary."""
    server = Minio(tmp_path_factory.mktemp("minio"))
    try:
        server.start()
        yield server.endpoint
    finally:
        server.stop()


@pytest.fixture(scope="session")
def s3_endpoint(request: pytest.FixtureRequest) -> Endpoint:
    """A real MinIO where its binary is there, else moto's server: for what costs too much to be shown on both."""
    endpoint: Endpoint = request.getfixturevalue("minio_endpoint" if shutil.which("minio") else "moto_endpoint")
    return endpoint


@pytest.fixture
def minio(tmp_path: Path) -> Iterator[Minio]:
    """A MinIO of this test alone, not started yet."""
    server = Minio(tmp_path)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(server.data, ignore_errors=True)


def closed_port() -> int:
    """A loopback port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def unused_port() -> int:
    """A loopback port on which nobody listens."""
    return closed_port()


@pytest.fixture(scope="session")
def tied_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny student whose output head is its token embeddings, as small text models have it: no tensor of its own."""
    from safetensors.torch import load_file, save_file

    from pocketvlm.student.tiny import build_tiny

    folder = build_tiny(tmp_path_factory.mktemp("tied") / "tiny", seed=0, longest_edge_px=32)
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> StoreFactory:
    """`new_store("folder" | "moto" | "minio", **options)`: an empty store; options go to the adapter."""

    def make(kind: str, **options: Any) -> Store:
        if kind == "folder":
            return FolderStore(tmp_path / f"store-{uuid.uuid4().hex[:8]}")
        endpoint: Endpoint = request.getfixturevalue(f"{kind}_endpoint")
        return endpoint.store(**options)

    return make


@pytest.fixture(params=["folder", "moto", "minio"])
def store(request: pytest.FixtureRequest, new_store: StoreFactory) -> Store:
    """An empty store of each kind."""
    return new_store(request.param)


@pytest.fixture
def folder_store(new_store: StoreFactory) -> Store:
    """An empty folder store, for tests that are not about stores."""
    return new_store("folder")


@dataclass(frozen=True)
class Place:
    """A folder with a run file, a store and a scratch folder of its own."""

    folder: Path
    run_file: Path

    def command(self, *arguments: str) -> tuple[list[str], dict[str, str]]:
        """The command line, and its environment."""
        places = {"POCKETVLM_STORE": str(self.folder / "store"), "POCKETVLM_SCRATCH": str(self.folder / "scratch")}
        return [sys.executable, "-m", "pocketvlm", *arguments], {**os.environ, **places}

    def start(self, *arguments: str, **variables: object) -> subprocess.Popen[str]:
        """As the leader of a session, so that what it starts can be found."""
        command, environment = self.command(*arguments)
        return subprocess.Popen(
            command, env={**environment, **{name: str(value) for name, value in variables.items()}}, cwd=self.folder,
            text=True, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def pocketvlm(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command, environment = self.command(*arguments)
        return subprocess.run(command, env=environment, cwd=self.folder, text=True, capture_output=True)

    @property
    def store(self) -> FolderStore:
        return FolderStore(self.folder / "store")

    def artifact(self, stage: str) -> Artifact:
        record = read_record(self.store, run_id(read_run_file(self.run_file).run), stage)
        assert record is not None
        artifact = find(self.store, record.kind, record.id)
        assert artifact is not None
        return artifact

    def manifests(self) -> dict[str, bytes]:
        """Every artifact's manifest: it lists the sha256 of every published file."""
        keys = [stored.key for kind in KINDS for stored in self.store.list(f"{kind}/")]
        return {key: self.store.read(key) for key in keys if key.endswith("manifest.json")}

    def metrics(self) -> dict[str, Any]:
        metrics: dict[str, Any] = json.loads(self.artifact("evaluator").read("metrics.json"))
        return metrics


def place(folder: Path, *changes: dict[str, Any], name: str = "digits") -> Place:
    """A place with jobs/<name>.yaml, its `run:` block changed."""
    folder.mkdir(parents=True, exist_ok=True)
    run_file = folder / "run.yaml"
    run_file.write_text(yaml.safe_dump(job(name, *changes), sort_keys=False))
    return Place(folder, run_file)


@pytest.fixture(scope="session")
def built() -> None:
    """The pinned llama.cpp must be there: `make llama-cpp`."""
    find_toolchain(read_environment())


def kept(name: str, factory: pytest.TempPathFactory) -> Path:
    """A folder for a run: below POCKETVLM_TEST_RUNS, where that is set, so that the next session finds the run done."""
    kept = os.environ.get("POCKETVLM_TEST_RUNS")
    return Path(kept) / name if kept else factory.mktemp(name)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory, built: None) -> Place:
    """jobs/digits.yaml as it is, run to its end."""
    there = place(kept("digits", tmp_path_factory))
    done = there.pocketvlm("run", str(there.run_file))
    assert done.returncode == 0, done.stderr[-4000:]
    (there.folder / "log.txt").write_text(done.stderr + done.stdout)
    return there


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, built: None) -> Place:
    """The small run, undisturbed, stage by stage; `seconds.json` says how long each took here."""
    there = place(kept("small", tmp_path_factory), SMALL)
    if (there.folder / "seconds.json").exists():
        return there
    seconds = {}
    for stage in STAGES:
        clock = time.monotonic()
        done = there.pocketvlm("stage", stage, str(there.run_file))
        seconds[stage] = time.monotonic() - clock
        assert done.returncode == 0, done.stderr[-4000:]
    (there.folder / "seconds.json").write_text(json.dumps(seconds))
    return there
