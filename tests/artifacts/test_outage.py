"""A real MinIO that dies and comes back, as its pod does when a node goes: what was under way ends whole."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import FULL

from pocketvlm.artifacts.artifact import publish
from pocketvlm.artifacts.s3 import S3Store
from pocketvlm.artifacts.store import Store
from pocketvlm.errors import StoreUnavailable

SIZE = 200_000_000
"""Half a second and more, so that a kill comes in the middle."""


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "model.gguf"
    path.parent.mkdir()
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return path


def store(minio: Any, bucket: str, **options: Any) -> S3Store:
    found: S3Store = minio.endpoint.store(bucket, part_bytes=8 << 20, **options)
    return found


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def under_way(work: Callable[[], Any]) -> Iterator[Future[Any]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


def wait_until(true: Callable[[], bool], work: Future[Any]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert not work.done(), "it was over before the kill"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_an_upload_that_its_store_left_ends_whole_when_the_store_is_back(minio: Any, large: Path, tmp_path: Path) -> None:
    minio.start()
    bucket = minio.endpoint.create_bucket()
    arguments = {"inputs": {}, "settings": {}, "facts": {}}
    with under_way(lambda: publish(store(minio, bucket), "ggufs", "id1", large.parent, **arguments)) as work:
        wait_until(lambda: any(minio.data.rglob("part.*")), work)
        minio.kill()
        time.sleep(8)
        assert not work.done(), "eight seconds without a store are nothing to give up for"
        minio.start()
        artifact = work.result(120)
    fetched = artifact.fetch(tmp_path / "out")
    assert sha256(fetched / "model.gguf") == sha256(large)


def test_a_download_that_its_store_left_ends_whole_when_the_store_is_back(minio: Any, large: Path, tmp_path: Path) -> None:
    minio.start()
    there = store(minio, minio.endpoint.create_bucket())
    there.upload(large, "key")
    out = tmp_path / "out"
    out.mkdir()
    with under_way(lambda: there.download("key", out / "file")) as work:
        wait_until(lambda: any(path.stat().st_size > 1 << 20 for path in out.iterdir()), work)
        minio.kill()
        time.sleep(3)
        minio.start()
        work.result(120)
    assert sha256(out / "file") == sha256(large)
    assert [path.name for path in out.iterdir()] == ["file"]


def test_a_store_that_stays_away_is_given_up_after_the_deadline_however_large_the_file(minio: Any, large: Path) -> None:
    """200 MB at the slowest allowed rate would be minutes: what counts is that nothing moves."""
    minio.start()
    bucket = minio.endpoint.create_bucket()
    with under_way(lambda: store(minio, bucket, deadline_s=5, timeout_s=3).upload(large, "key")) as work:
        wait_until(lambda: any(minio.data.rglob("part.*")), work)
        minio.kill()
        clock = time.monotonic()
        with pytest.raises(StoreUnavailable, match="cannot upload key: no answer"):
            work.result(120)
    assert time.monotonic() - clock < 40


def test_small_requests_and_conditional_writes_wait_for_the_store(minio: Any) -> None:
    minio.start()
    _during_absence(minio, store(minio, minio.endpoint.create_bucket()), 8.0)


@pytest.mark.skipif(not FULL, reason="a campaign: POCKETVLM_TEST_FULL=1; eight seconds of absence always run")
def test_a_minute_without_the_store_is_carried_over(minio: Any) -> None:
    minio.start()
    _during_absence(minio, store(minio, minio.endpoint.create_bucket()), 60.0)


def _during_absence(minio: Any, there: Store, away_s: float) -> None:
    """Everything that a stage asks of its store, begun just after it died."""
    there.write("old", b"1")
    tagged = there.read_tagged("old")
    assert tagged is not None
    minio.kill()
    back = threading.Timer(away_s, minio.start)
    back.start()
    work: dict[str, Callable[[], Any]] = {
        "create": lambda: there.create("new", b"1"), "replace": lambda: there.replace("old", b"2", tagged[1]),
        "write": lambda: there.write("other", b"1"), "list": lambda: [stored.key for stored in there.list("old")],
    }  # fmt: skip
    clock = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        found = {name: pool.submit(call) for name, call in work.items()}
        results = {name: future.result() for name, future in found.items()}
    back.join()
    assert time.monotonic() - clock >= away_s
    assert results == {"create": True, "replace": True, "write": None, "list": ["old"]}
    assert (there.read("old"), there.read("new")) == (b"2", b"1")
