"""The contract of a store, on every adapter."""

from __future__ import annotations

import hashlib
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pocketvlm.artifacts.store import KeyMissing, Store

MB = 1_000_000


def test_what_was_written_is_read(store: Store) -> None:
    store.write("a/b", b"one")
    store.write("a/b", b"two")
    assert store.read("a/b") == b"two"


def test_empty_bytes_are_bytes(store: Store, tmp_path: Path) -> None:
    store.write("empty", b"")
    assert store.read("empty") == b""
    store.upload(_file(tmp_path / "nothing", 0), "nothing")
    store.download("nothing", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b""


def test_missing_key_is_said_so(store: Store, tmp_path: Path) -> None:
    with pytest.raises(KeyMissing):
        store.read("no/such/key")
    assert store.read_tagged("no/such/key") is None
    with pytest.raises(KeyMissing):
        store.download("no/such/key", tmp_path / "file")
    assert list(tmp_path.glob("file*")) == []


def test_a_part_of_a_key_is_read_alone(store: Store) -> None:
    store.write("key", b"0123456789")
    assert store.read_part("key", 0, 3) == b"012" and store.read_part("key", 8, 10) == b"89"
    with pytest.raises(KeyMissing):
        store.read_part("no/such/key", 0, 1)


def test_create_succeeds_once(store: Store) -> None:
    assert store.create("key", b"first")
    assert not store.create("key", b"second")
    assert store.read("key") == b"first"


def test_replace_succeeds_on_what_was_read(store: Store) -> None:
    store.write("key", b"one")
    tagged = store.read_tagged("key")
    assert tagged is not None and tagged[0] == b"one"
    assert store.replace("key", b"two", tagged[1])
    assert not store.replace("key", b"three", tagged[1])
    assert store.read("key") == b"two"


def test_replace_does_not_bring_back_what_is_gone(store: Store) -> None:
    store.write("key", b"one")
    tagged = store.read_tagged("key")
    assert tagged is not None
    store.delete("key")
    assert not store.replace("key", b"two", tagged[1])
    assert store.read_tagged("key") is None


def test_probe_accepts_the_store_and_leaves_nothing(store: Store) -> None:
    store.probe()
    assert list(store.list("")) == []


def test_list_gives_keys_of_a_prefix_in_order(store: Store) -> None:
    for key in ("a/b/2", "a-b", "a/b/10", "a/c", "b", "a/b.x"):
        store.write(key, key.encode())
    assert [stored.key for stored in store.list("")] == ["a-b", "a/b.x", "a/b/10", "a/b/2", "a/c", "b"]
    assert [(stored.key, stored.size) for stored in store.list("a/b")] == [("a/b.x", 5), ("a/b/10", 6), ("a/b/2", 5)]
    assert [stored.key for stored in store.list("a/b/")] == ["a/b/10", "a/b/2"]
    assert list(store.list("none/")) == []


def test_delete_takes_a_prefix_and_nothing_else(store: Store) -> None:
    for key in ("a/1", "a/2/3", "ab", "b"):
        store.write(key, b"x")
    store.delete("a/")
    store.delete("none/")
    assert [stored.key for stored in store.list("")] == ["ab", "b"]


@pytest.mark.parametrize("key", ["../out", "a/../../out", "/etc/x", "a//b", "", ".pending/x", "a/./b", "a\\b", "a\nb"])
def test_keys_cannot_leave_the_store(store: Store, key: str) -> None:
    with pytest.raises(ValueError):
        store.write(key, b"x")
    with pytest.raises(ValueError):
        store.read(key)


def test_file_larger_than_a_part_comes_back_whole(store: Store, tmp_path: Path) -> None:
    path = _file(tmp_path / "big", 20 * MB + 1)
    store.upload(path, "big")
    assert [stored.size for stored in store.list("big")] == [20 * MB + 1]
    store.download("big", tmp_path / "back")
    assert _sha256(tmp_path / "back") == _sha256(path)


@pytest.mark.parametrize("kind", ["moto", "minio"])
def test_many_parts_are_moved_in_parallel(kind: str, new_store, tmp_path: Path) -> None:
    store = new_store(kind, part_bytes=5 << 20)
    path = _file(tmp_path / "parts", 23 * MB)
    store.upload(path, "parts")
    tagged = store.read_tagged("parts")
    assert tagged is not None and tagged[1].strip('"').endswith("-5"), "S3 names the number of parts in the ETag"
    store.download("parts", tmp_path / "back")
    assert _sha256(tmp_path / "back") == _sha256(path)


@pytest.mark.parametrize("kind", ["folder", "moto", "minio"])
@pytest.mark.parametrize("have", [7 * MB, 12 * MB, 12 * MB + 1])
def test_download_goes_on_from_what_is_there(kind: str, have: int, new_store, tmp_path: Path) -> None:
    store = new_store(kind, part_bytes=5 << 20)
    path, back = _file(tmp_path / "big", 12 * MB), tmp_path / "back"
    store.upload(path, "big")
    back.write_bytes(bytes(have))  # not the real beginning: what is still there was not fetched again
    store.download("big", back)
    kept = have if have <= 12 * MB else 0
    assert back.read_bytes() == bytes(kept) + path.read_bytes()[kept:]


def test_upload_over_a_key_replaces_it_whole(store: Store, tmp_path: Path) -> None:
    store.write("key", b"a longer text than the file")
    (tmp_path / "file").write_bytes(b"short")
    store.upload(tmp_path / "file", "key")
    assert store.read("key") == b"short"


def test_counting_by_replace_loses_no_count(store: Store) -> None:
    store.write("count", b"0")

    def add_five(_: int) -> None:
        for _ in range(5):
            while True:
                tagged = store.read_tagged("count")
                assert tagged is not None
                if store.replace("count", str(int(tagged[0]) + 1).encode(), tagged[1]):
                    break

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add_five, range(4)))
    assert store.read("count") == b"20"


def _file(path: Path, size: int) -> Path:
    path.write_bytes(random.Random(size).randbytes(size))
    return path


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
