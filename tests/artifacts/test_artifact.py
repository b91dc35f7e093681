"""Artifacts: published once, read verified."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pocketvlm.artifacts.artifact import Artifact, find, publish
from pocketvlm.artifacts.manifest import FORMATS, KINDS, Manifest, artifact_id
from pocketvlm.artifacts.store import Store
from pocketvlm.errors import Corrupt, DataError


def test_published_artifact_is_found_and_fetched(store: Store, tmp_path: Path) -> None:
    made = _publish(store, tmp_path / "in", {"a.txt": b"one", "sub/b.bin": b"two" * 1000})
    found = find(store, "datasets", "id1")
    assert found is not None and found.manifest == made.manifest
    to = found.fetch(tmp_path / "out")
    assert {path.relative_to(to).as_posix(): path.read_bytes() for path in to.rglob("*") if path.is_file()} == {
        "a.txt": b"one", "sub/b.bin": b"two" * 1000}
    assert found.read("a.txt") == b"one"
    assert found.facts == {"images": 3}
    assert found.measurements() == {"seconds": 1.5}


def test_equal_runs_give_equal_manifest_bytes(new_store, tmp_path: Path) -> None:
    one, two = new_store("folder"), new_store("folder")
    _publish(one, tmp_path / "x", {"b": b"2", "a": b"1"})
    _publish(two, tmp_path / "y", {"a": b"1", "b": b"2"}, measurements={"seconds": 99})
    assert one.read("datasets/id1/manifest.json") == two.read("datasets/id1/manifest.json")


def test_unfinished_artifact_is_not_found(folder_store: Store) -> None:
    folder_store.write("datasets/id1/0123456789ab/a.txt", b"one")
    assert find(folder_store, "datasets", "id1") is None


def test_fetch_takes_only_the_names_asked_for(folder_store: Store, tmp_path: Path) -> None:
    artifact = _publish(folder_store, tmp_path / "in", {"a": b"1", "b": b"2"})
    artifact.fetch(tmp_path / "out", ["b"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b"]
    with pytest.raises(DataError, match="no file c; it has a, b"):
        artifact.fetch(tmp_path / "out", ["c"])


def test_fetch_keeps_what_is_right_and_replaces_what_is_wrong(folder_store: Store, tmp_path: Path) -> None:
    artifact = _publish(folder_store, tmp_path / "in", {"a": b"1", "b": b"2"})
    out = artifact.fetch(tmp_path / "out")
    (out / "b").write_bytes(b"3")
    before = (out / "a").stat().st_mtime_ns
    artifact.fetch(out)
    assert (out / "a").stat().st_mtime_ns == before
    assert (out / "b").read_bytes() == b"2"


@pytest.mark.parametrize("begun", [b"", b"012345678", b"0123456789", b"another", b"012345678X"],
                         ids=["nothing", "cut at 90 %", "whole", "wrong", "wrong at its end"])  # fmt: skip
def test_fetch_goes_on_where_a_killed_one_was_and_checks_the_whole(store: Store, tmp_path: Path, begun: bytes) -> None:
    artifact = _publish(store, tmp_path / "in", {"a": b"0123456789"})
    part = tmp_path / "out" / f"a.{artifact.files[0].sha256[:12]}.part"
    part.parent.mkdir()
    part.write_bytes(begun)
    artifact.fetch(tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {"a": b"0123456789"}


def test_two_fetches_into_one_folder_do_not_trip_over_each_other(folder_store: Store, tmp_path: Path) -> None:
    artifact = _publish(folder_store, tmp_path / "in", {"a": b"0123456789" * 300_000, "b": b"2"})
    together = threading.Barrier(8)

    def fetch(_: int) -> None:
        together.wait()
        artifact.fetch(tmp_path / "out")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fetch, range(8)))
    assert {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()} == {"a": 3_000_000, "b": 1}


def test_flipped_bit_is_corrupt(store: Store, tmp_path: Path) -> None:
    artifact = _publish(store, tmp_path / "in", {"a": b"0123456789"})
    store.write(f"datasets/id1/{artifact.files[0].sha256[:12]}/a", b"0123456788")
    with pytest.raises(Corrupt, match="sha256"):
        artifact.fetch(tmp_path / "out")
    with pytest.raises(Corrupt, match="sha256"):
        artifact.read("a")
    assert list((tmp_path / "out").iterdir()) == []


def test_lost_file_is_corrupt(folder_store: Store, tmp_path: Path) -> None:
    artifact = _publish(folder_store, tmp_path / "in", {"a": b"0123456789"})
    folder_store.delete(f"datasets/id1/{artifact.files[0].sha256[:12]}/")
    with pytest.raises(Corrupt, match="not there"):
        artifact.fetch(tmp_path / "out")
    with pytest.raises(Corrupt, match="not there"):
        artifact.read("a")


@pytest.mark.parametrize("name", ["../../.bashrc", "/etc/passwd", "a/../../b"])
def test_manifest_cannot_name_a_file_outside_its_folder(folder_store: Store, tmp_path: Path, name: str) -> None:
    artifact = _publish(folder_store, tmp_path / "in", {"a": b"1"})
    data = json.loads(artifact.manifest.to_bytes())
    data["files"][0]["name"] = name
    folder_store.write("datasets/id1/manifest.json", json.dumps(data).encode())
    with pytest.raises(Corrupt, match="not a manifest"):
        find(folder_store, "datasets", "id1")


def test_manifest_of_another_artifact_is_corrupt(folder_store: Store, tmp_path: Path) -> None:
    artifact = _publish(folder_store, tmp_path / "in", {"a": b"1"})
    folder_store.write("datasets/id2/manifest.json", artifact.manifest.to_bytes())
    with pytest.raises(Corrupt, match="manifest of datasets/id1"):
        find(folder_store, "datasets", "id2")


def test_loser_adopts_the_winner_and_its_files_go(folder_store: Store, tmp_path: Path) -> None:
    winner = _publish(folder_store, tmp_path / "one", {"a": b"winner"})
    folder_store.write("datasets/id1/0123456789ab/a", b"of an attempt that was killed")
    loser = _publish(folder_store, tmp_path / "two", {"a": b"loser"})
    assert loser.manifest == winner.manifest
    assert loser.read("a") == b"winner"
    assert len(list(folder_store.list("datasets/id1/"))) == 3


def test_measurements_are_those_of_the_attempt_whose_files_are_there(store: Store, tmp_path: Path) -> None:
    store.write("datasets/id1/measurements.json", b'{"seconds": 99}')  # of an attempt that was killed, or is slower now
    assert _publish(store, tmp_path / "one", {"a": b"winner"}).measurements() == {"seconds": 1.5}
    loser = _publish(store, tmp_path / "two", {"a": b"loser"}, measurements={"seconds": 77})
    assert loser.measurements() == {"seconds": 1.5}


def test_racing_publishers_of_different_bytes_all_end_with_the_winner(store: Store, tmp_path: Path) -> None:
    threads = 8
    together = threading.Barrier(threads)
    folders = [_folder(tmp_path / str(me), {"a": b"attempt %d" % me, "same": b"same"}) for me in range(threads)]

    def race(me: int) -> Artifact:
        together.wait()
        return publish(store, "models", "raced", folders[me], inputs={}, settings={}, facts={})

    with ThreadPoolExecutor(threads) as pool:
        ends = list(pool.map(race, range(threads)))
    assert len({end.manifest.to_bytes() for end in ends}) == 1
    assert len({end.read("a") for end in ends}) == 1
    winner = {f"models/raced/{entry.sha256[:12]}/{entry.name}" for entry in ends[0].files}
    assert {stored.key for stored in store.list("models/raced/")} == winner | {"models/raced/manifest.json"}


def test_64_publishers_of_one_manifest_have_one_winner_in_each_round(store: Store, request, tmp_path: Path) -> None:
    """Without files: what decides is the manifest. On moto our own lock decides: two rounds."""
    threads, rounds = 64, {"minio": 100, "moto": 2, "folder": 20}
    together = threading.Barrier(threads)
    numbers = range(rounds[request.node.callspec.params["store"]])
    (tmp_path / "nothing").mkdir()

    def race(me: int) -> list[bytes]:
        ends = []
        for number in numbers:
            together.wait()
            end = publish(store, "models", f"round{number}", tmp_path / "nothing", inputs={}, settings={}, facts={"attempt": me})
            ends.append(end.manifest.to_bytes())
        return ends

    with ThreadPoolExecutor(threads) as pool:
        ends = list(pool.map(race, range(threads)))
    for number in numbers:
        assert {own[number] for own in ends} == {store.read(f"models/round{number}/manifest.json")}


def test_id_depends_on_settings_inputs_and_kind() -> None:
    base = artifact_id("models", {"a": 1, "b": 2}, {"trainer": "x"})
    assert base == artifact_id("models", {"b": 2, "a": 1}, {"trainer": "x"})
    others = [artifact_id("ggufs", {"a": 1, "b": 2}, {"trainer": "x"}),
              artifact_id("models", {"a": 1, "b": 3}, {"trainer": "x"}),
              artifact_id("models", {"a": 1, "b": 2}, {"trainer": "y"})]
    assert len({base, *others}) == 4
    assert len(base) == 16
    assert set(FORMATS) == set(KINDS)


def test_not_a_number_has_no_place_in_a_manifest() -> None:
    manifest = Manifest(format=1, kind="models", id="x", inputs={}, settings={}, versions={}, files=[],
                        facts={"loss": float("nan")})
    with pytest.raises(ValueError):
        manifest.to_bytes()


def _folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def _publish(store: Store, folder: Path, files: dict[str, bytes], measurements: dict | None = None) -> Artifact:
    return publish(store, "datasets", "id1", _folder(folder, files), inputs={}, settings={"seed": 0},
                   facts={"images": 3}, measurements=measurements or {"seconds": 1.5})
