"""What only a store over a network can get wrong."""

from __future__ import annotations

import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from pydantic import SecretStr

from pocketvlm.artifacts.open import open_store
from pocketvlm.artifacts.s3 import S3Store
from pocketvlm.artifacts.s3_errors import explain
from pocketvlm.artifacts.store import KeyMissing
from pocketvlm.environment import Environment
from pocketvlm.errors import BucketMissing, ConditionIgnored, CredentialsError, StoreUnavailable, UserError


def test_missing_bucket_is_named(moto_endpoint, tmp_path: Path) -> None:
    store = moto_endpoint.store(bucket="nobody-made-this")
    (tmp_path / "file").write_bytes(b"x")
    for call in (store.probe, lambda: store.read("key"), lambda: list(store.list("")),
                 lambda: store.upload(tmp_path / "file", "key")):
        with pytest.raises(BucketMissing, match=r"no bucket nobody-made-this; create it"):
            call()


def test_missing_bucket_is_named_by_minio(minio_endpoint) -> None:
    with pytest.raises(BucketMissing, match="nobody-made-this"):
        minio_endpoint.store(bucket="nobody-made-this").probe()


@pytest.mark.parametrize(("wrong", "hint"), [("access_key_id", "AWS_ACCESS_KEY_ID"),
                                             ("secret_access_key", "AWS_SECRET_ACCESS_KEY")])
def test_wrong_credentials_are_refused_without_showing_them(minio_endpoint, wrong: str, hint: str) -> None:
    store = minio_endpoint.store(**{wrong: SecretStr("canary-of-the-wrong-key")})
    with pytest.raises(CredentialsError, match=hint) as caught:
        store.probe()
    assert "canary" not in str(caught.value)


def test_half_a_pair_of_keys_is_refused() -> None:
    with pytest.raises(CredentialsError, match="AWS_SECRET_ACCESS_KEY is not set"):
        S3Store("s3://bucket", access_key_id=SecretStr("only-this"))


@pytest.mark.parametrize("url", ["s3://", "s3:///prefix"])
def test_url_without_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="name a bucket"):
        S3Store(url)


def test_endpoint_that_is_no_url_is_refused() -> None:
    with pytest.raises(UserError, match="AWS_ENDPOINT_URL_S3"):
        S3Store("s3://bucket", endpoint_url="object-store:9000")


def test_closed_port_fails_within_the_deadline(unused_port: int) -> None:
    store = _store(f"http://127.0.0.1:{unused_port}", deadline_s=2)
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match=rf"127.0.0.1:{unused_port}.*check that the store runs"):
        store.probe()
    assert time.monotonic() - started < 30  # by default it would be 75


def test_server_that_never_answers_fails_within_the_deadline(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = _store(f"http://127.0.0.1:{silent.getsockname()[1]}", deadline_s=1, timeout_s=0.5)
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            store.read("key")
        assert time.monotonic() - started < 30


def test_download_that_broke_off_goes_on_with_the_range_that_was_missing(breaking_endpoint, tmp_path: Path) -> None:
    endpoint, server = breaking_endpoint
    data = bytes(range(256)) * 14_000
    (tmp_path / "file").write_bytes(data)
    bucket, back = endpoint.create_bucket(), tmp_path / "back"
    endpoint.store(bucket).upload(tmp_path / "file", "key")
    store = endpoint.store(bucket, part_bytes=1 << 20, deadline_s=0.5)
    server.readable_bytes = 2 << 20
    with pytest.raises(StoreUnavailable):
        store.download("key", back)
    assert back.read_bytes() == data[: 2 << 20], "in order, whichever range came first"
    server.readable_bytes, server.read = len(data), []
    store.download("key", back)
    assert back.read_bytes() == data
    assert sorted(server.read) == ["bytes=2097152-3145727", "bytes=3145728-3583999"]


def test_store_without_conditions_is_refused(careless_endpoint) -> None:
    store = careless_endpoint.store()
    with pytest.raises(ConditionIgnored, match=r"does not honour If-(None-)?Match on|does not honour If-Match with"):
        store.probe()
    assert list(store.list("")) == []


def test_write_whose_answer_was_lost_still_knows_that_it_won(moto_endpoint) -> None:
    with _losing_first_answer(moto_endpoint.url) as proxy:
        store = _store(proxy, bucket=moto_endpoint.create_bucket())
        assert store.create("key", b"mine")
    assert store.read_tagged("key") is not None


def test_write_that_lost_while_its_answer_was_lost_knows_that_too(moto_endpoint) -> None:
    bucket = moto_endpoint.create_bucket()
    moto_endpoint.store(bucket).write("key", b"theirs")
    with _losing_first_answer(moto_endpoint.url) as proxy:
        assert not _store(proxy, bucket=bucket).create("key", b"mine")
    assert moto_endpoint.store(bucket).read("key") == b"theirs"


@pytest.mark.parametrize(("code", "status", "expected"), [
    ("NoSuchUpload", 404, StoreUnavailable), ("InvalidPart", 400, StoreUnavailable), ("SlowDown", 503, StoreUnavailable),
    ("NoSuchKey", 404, KeyMissing), ("NoSuchBucket", 404, BucketMissing), ("AccessDenied", 403, CredentialsError),
    ("MethodNotAllowed", 405, UserError),
])  # fmt: skip
def test_an_answer_of_the_store_says_whether_another_try_may_help(code: str, status: int, expected: type) -> None:
    answer = {"Error": {"Code": code, "Message": "words"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    assert type(explain(ClientError(answer, "UploadPart"), "store: cannot upload key", "bucket")) is expected


def test_environment_opens_a_probed_store(moto_endpoint) -> None:
    environment = Environment.model_validate({
        "store": f"s3://{moto_endpoint.create_bucket()}/runs", "endpoint_url": moto_endpoint.url,
        "access_key_id": moto_endpoint.access_key_id, "secret_access_key": moto_endpoint.secret_access_key,
    })
    store = open_store(environment)
    store.write("key", b"x")
    assert store.read("key") == b"x"


def test_reading_needs_no_right_to_write(moto_endpoint, careless_endpoint) -> None:
    environment = Environment.model_validate({
        "store": f"s3://{moto_endpoint.create_bucket()}", "endpoint_url": careless_endpoint.url,
        "access_key_id": "a", "secret_access_key": "b",
    })
    assert list(open_store(environment, read_only=True).list("")) == []


def test_deleting_everything_is_a_mistake_of_ours(store) -> None:
    with pytest.raises(AssertionError):
        store.delete("")


def _store(endpoint: str, bucket: str = "bucket", **options) -> S3Store:
    keys = {"access_key_id": SecretStr("pocketvlm-test"), "secret_access_key": SecretStr("pocketvlm-canary-secret")}
    return S3Store(f"s3://{bucket}/some/prefix", endpoint_url=endpoint, **keys, **options)


class _losing_first_answer:
    """A TCP proxy that hands the first request on, waits for its answer, and hangs up instead of giving it back."""

    def __init__(self, target: str) -> None:
        parts = urllib.parse.urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self._first = True

    def __enter__(self) -> str:
        self._server = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()
        return f"http://127.0.0.1:{self._server.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def _accept(self) -> None:
        for client in self._connections():
            threading.Thread(target=self._serve, args=(client, self._first), daemon=True).start()
            self._first = False

    def _connections(self) -> Iterator[socket.socket]:
        while True:
            try:
                yield self._server.accept()[0]
            except OSError:  # closed by the test's end
                return

    def _serve(self, client: socket.socket, lose: bool) -> None:
        with client, socket.create_connection(self._target) as server:
            answers = threading.Thread(target=_copy, args=(server, client, lose), daemon=True)
            answers.start()
            _copy(client, server, False)
            answers.join()


def _copy(source: socket.socket, target: socket.socket, lose: bool) -> None:
    while data := _received(source):
        if lose and b"100 Continue" not in data:
            target.shutdown(socket.SHUT_RDWR)
            return
        target.sendall(data)
    try:
        target.shutdown(socket.SHUT_WR)
    except OSError:  # the other side hung up first
        return


def _received(source: socket.socket) -> bytes:
    try:
        return source.recv(65536)
    except OSError:
        return b""
