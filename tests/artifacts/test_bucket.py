"""`pocketvlm bucket`: the first thing that a release does in a new object store."""

from __future__ import annotations

import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.artifacts.bucket import make_bucket
from pocketvlm.cli import main
from pocketvlm.environment import Environment


@pytest.fixture(params=["moto", "minio"])
def endpoint(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"{request.param}_endpoint")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs `pocketvlm bucket ...` against an endpoint; returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def run(endpoint: Any, bucket: str, *arguments: str, secret: str | None = None) -> int:
        monkeypatch.setenv("POCKETVLM_STORE", f"s3://{bucket}/some/prefix")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", endpoint.access_key_id)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret or endpoint.secret_access_key)
        return main(["bucket", *arguments])

    return run


def name() -> str:
    return f"made-{uuid.uuid4().hex[:12]}"


def test_a_missing_bucket_is_made_once_and_then_found(endpoint: Any, command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bucket = name()
    assert command(endpoint, bucket, "--check", "--deadline-s", "5") == 2
    assert f"there is no bucket {bucket}; create it" in capsys.readouterr().err
    assert command(endpoint, bucket) == 0
    assert "the bucket is made, conditional writes are honoured" in (said := capsys.readouterr().err)
    assert f"waiting for store s3://{bucket}/some/prefix at {endpoint.url}, at most 120 s" in said
    assert command(endpoint, bucket) == 0
    assert "the bucket was there" in capsys.readouterr().err
    assert command(endpoint, bucket, "--check") == 0
    assert "answers, is there, and honours conditional writes" in capsys.readouterr().err
    assert list(endpoint.store(bucket).list("")) == []


def test_many_pods_that_make_one_bucket_at_once_all_succeed(endpoint: Any) -> None:
    environment = Environment.model_validate({
        "store": f"s3://{name()}", "endpoint_url": endpoint.url, "access_key_id": endpoint.access_key_id,
        "secret_access_key": endpoint.secret_access_key,
    })  # fmt: skip
    said: list[str] = []
    threads = [threading.Thread(target=lambda: said.append(make_bucket(environment, 10, lambda line: None))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 6


@pytest.mark.parametrize(("check", "code"), [(["--check"], 2), ([], 1)])
def test_a_store_that_does_not_answer_is_waited_for_up_to_the_deadline(
    unused_port: int, moto_endpoint: Any, command: Any, capsys: pytest.CaptureFixture[str], check: list[str], code: int
) -> None:
    """Only the check needs a person: a Job that makes the bucket is tried again."""
    nobody = type(moto_endpoint)(f"http://127.0.0.1:{unused_port}")
    clock = time.monotonic()
    assert command(nobody, "bucket", *check, "--deadline-s", "1.5") == code
    assert 1 < time.monotonic() - clock < 60  # by default it would be 120
    assert "no answer" in (said := capsys.readouterr().err) and "check that the store runs" in said


def test_a_store_that_ignores_conditions_is_refused(
    careless_endpoint: Any, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(careless_endpoint, name()) == 2
    assert "does not honour If-" in capsys.readouterr().err
    bucket = careless_endpoint.create_bucket()
    assert command(careless_endpoint, bucket, "--check") == 2
    assert "use a store with conditional writes" in capsys.readouterr().err


def test_wrong_keys_are_refused_without_showing_them(
    minio_endpoint: Any, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ([], ["--check"]):
        assert command(minio_endpoint, name(), *arguments, secret="canary-of-the-wrong-secret") == 2
        assert "AWS_SECRET_ACCESS_KEY" in (said := capsys.readouterr().err)
        assert "canary" not in said


def test_a_folder_has_no_bucket_to_make_and_can_be_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POCKETVLM_STORE", str(tmp_path / "store"))
    assert main(["bucket"]) == 2
    assert "is a folder and has no bucket; name s3://bucket/prefix" in capsys.readouterr().err
    assert main(["bucket", "--check"]) == 0


def test_a_bucket_in_another_region_is_made_there(moto_endpoint: Any) -> None:
    environment = Environment.model_validate({
        "store": f"s3://{name()}", "endpoint_url": moto_endpoint.url, "region": "eu-central-1",
        "access_key_id": "a", "secret_access_key": "b",
    })  # fmt: skip
    assert "is made" in make_bucket(environment, 10, lambda line: None)


def test_a_store_that_comes_up_late_is_waited_for(minio: Any, command: Any) -> None:
    """Its pod may be scheduled after ours; while MinIO starts it answers 503."""
    late = threading.Timer(3, minio.start, kwargs={"wait": False})
    late.start()
    try:
        assert command(minio.endpoint, "late", "--deadline-s", "60") == 0
    finally:
        late.join()


def test_an_address_where_something_else_answers_is_refused(
    moto_endpoint: Any, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    class Nothing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Nothing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert command(type(moto_endpoint)(f"http://127.0.0.1:{server.server_port}"), name()) == 2
        server.shutdown()
    assert "is no S3 service; check AWS_ENDPOINT_URL_S3" in capsys.readouterr().err
