"""Releases: published once, pulled whole."""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from pocketvlm.artifacts.pull import pull
from pocketvlm.artifacts.release import Release, content_version, publish_release
from pocketvlm.artifacts.store import Store
from pocketvlm.errors import Corrupt, UserError


def test_release_comes_back_as_it_was_published(store: Store, tmp_path: Path, make_release) -> None:
    release = make_release(tmp_path / "in")
    published = publish_release(store, release, tmp_path / "in", {"q8_0": {"latency_ms": 12}})
    pulled = pull(store, "digits", None, tmp_path / "out")
    assert pulled == published
    assert published.version == content_version(release)
    assert _files(tmp_path / "out") == _files(tmp_path / "in") | {"release.json": published.to_bytes()}
    assert pull(store, "digits", published.version, tmp_path / "by-version") == published


def test_times_lie_outside_what_is_hashed(new_store, tmp_path: Path, make_release) -> None:
    stores = [new_store("folder"), new_store("folder")]
    release = make_release(tmp_path / "in")
    for store, latency in zip(stores, (10, 20), strict=True):
        publish_release(store, release, tmp_path / "in", {"latency_ms": latency})
    contents = [{stored.key: store.read(stored.key) for stored in store.list("")} for store in stores]
    assert [key for key in contents[0] if contents[0][key] != contents[1][key]] == [
        f"releases/digits/{content_version(release)}/measurements.json"]


def test_latest_and_sums_lead_curl_to_the_files(folder_store: Store, tmp_path: Path, make_release) -> None:
    published = publish_release(folder_store, make_release(tmp_path / "in", version="1.0"), tmp_path / "in")
    latest = json.loads(folder_store.read("releases/digits/latest.json"))
    release = folder_store.read(latest["release"])
    assert latest["version"] == "1.0"
    assert hashlib.sha256(release).hexdigest() == latest["release_sha256"]
    folder = tmp_path / "curl"
    for file in (*published.files, "release.json", "SHA256SUMS"):
        name = file if isinstance(file, str) else file.name
        folder_store.download(f"releases/digits/1.0/{name}", folder / name)
    subprocess.run(["sha256sum", "--strict", "--quiet", "-c", "SHA256SUMS"], cwd=folder, check=True)


def test_publishing_again_writes_nothing(folder_store: Store, tmp_path: Path, make_release) -> None:
    release = make_release(tmp_path / "in")
    publish_release(folder_store, release, tmp_path / "in")
    times = _times(Path(folder_store.url))
    (tmp_path / "in" / "prompt.txt").unlink()  # nor does it read the files again
    publish_release(folder_store, release, tmp_path / "in")
    assert _times(Path(folder_store.url)) == times


def test_rerun_of_an_old_run_leaves_latest_alone(folder_store: Store, tmp_path: Path, make_release) -> None:
    old, new = make_release(tmp_path / "old", "old"), make_release(tmp_path / "new", "new")
    publish_release(folder_store, old, tmp_path / "old")
    publish_release(folder_store, new, tmp_path / "new")
    publish_release(folder_store, old, tmp_path / "old")
    assert pull(folder_store, "digits", None, tmp_path / "out").version == content_version(new)
    history = json.loads(folder_store.read("releases/digits/latest.json"))["history"]
    assert history == [content_version(old), content_version(new)]


def test_version_of_other_content_is_refused_even_before_it_is_complete(
    folder_store: Store, tmp_path: Path, make_release
) -> None:
    one, two = (make_release(tmp_path / text, text, version="1.0") for text in ("one", "two"))
    publish_release(folder_store, one, tmp_path / "one")
    before = _files(Path(folder_store.url))
    with pytest.raises(UserError, match=r"version 1.0 of digits belongs to other content; choose another run.version"):
        publish_release(folder_store, two, tmp_path / "two")
    folder_store.delete("releases/digits/1.0/release.json")
    with pytest.raises(UserError, match=r"choose another run.version"):
        publish_release(folder_store, two, tmp_path / "two")
    publish_release(folder_store, one, tmp_path / "one")
    assert _files(Path(folder_store.url)) == before


def test_file_that_changed_since_it_was_measured_is_not_released(
    folder_store: Store, tmp_path: Path, make_release
) -> None:
    release = make_release(tmp_path / "in")
    (tmp_path / "in" / "prompt.txt").write_text("another prompt")
    with pytest.raises(Corrupt, match=r"prompt.txt"):
        publish_release(folder_store, release, tmp_path / "in")
    assert list(folder_store.list("")) == []


def test_racing_releases_all_become_the_latest_once(store: Store, tmp_path: Path, make_release) -> None:
    count = 6
    together = threading.Barrier(count)

    def race(me: int) -> None:
        release = make_release(tmp_path / str(me), f"attempt {me // 2}")
        together.wait()
        publish_release(store, release, tmp_path / str(me))

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(race, range(count)))
    latest = json.loads(store.read("releases/digits/latest.json"))
    assert len(latest["history"]) == len(set(latest["history"])) == count // 2
    assert latest["version"] == latest["history"][-1]


@pytest.mark.parametrize("name", ["release.json", "SHA256SUMS", "prompt.txt", "../x"])
def test_file_names_that_cannot_be_are_refused(tmp_path: Path, make_release, name: str) -> None:
    data = make_release(tmp_path).model_dump()
    data["files"][-1]["name"] = name
    with pytest.raises(ValidationError):
        Release.model_validate(data)


def test_pull_takes_the_pair_of_one_type_and_the_rest(folder_store: Store, tmp_path: Path, make_release) -> None:
    publish_release(folder_store, make_release(tmp_path / "in"), tmp_path / "in")
    pull(folder_store, "digits", None, tmp_path / "out", ["q8_0"])
    assert set(_files(tmp_path / "out")) == {
        "model-q8_0.gguf", "mmproj-q8_0.gguf", "prompt.txt", "golden/0.png", "release.json"}
    with pytest.raises(UserError, match="no type q2_k; it has: q4_0, q8_0"):
        pull(folder_store, "digits", None, tmp_path / "out", ["q2_k"])


def test_pull_over_an_older_release_leaves_only_the_new_one(folder_store: Store, tmp_path: Path, make_release) -> None:
    out = tmp_path / "out"
    publish_release(folder_store, make_release(tmp_path / "old", "old"), tmp_path / "old")
    pull(folder_store, "digits", None, out)
    (out / "mine.txt").write_text("not from a release")
    (out / "model-q8_0.gguf.0123456789ab.part").write_text("of a pull that was killed")
    publish_release(folder_store, make_release(tmp_path / "new", "new"), tmp_path / "new")
    pull(folder_store, "digits", None, out, ["q4_0"])
    assert set(_files(out)) == {
        "model-q4_0.gguf", "mmproj-q8_0.gguf", "prompt.txt", "golden/0.png", "release.json", "mine.txt"}
    assert (out / "model-q4_0.gguf").read_text() == "new model-q4_0.gguf"


def test_pull_goes_on_in_the_middle_of_a_file(folder_store: Store, tmp_path: Path, make_release) -> None:
    published = publish_release(folder_store, make_release(tmp_path / "in"), tmp_path / "in")
    out, file = tmp_path / "out", next(file for file in published.files if file.name == "model-q8_0.gguf")
    out.mkdir()
    part = out / f"{file.name}.{file.sha256[:12]}.part"
    part.write_bytes((tmp_path / "in" / file.name).read_bytes()[:9])
    inode = part.stat().st_ino
    pull(folder_store, "digits", None, out)
    assert (out / file.name).stat().st_ino == inode, "the same file, gone on with"
    assert _files(out) == _files(tmp_path / "in") | {"release.json": published.to_bytes()}


def test_pull_keeps_files_that_are_right(folder_store: Store, tmp_path: Path, make_release) -> None:
    publish_release(folder_store, make_release(tmp_path / "in"), tmp_path / "in")
    out = tmp_path / "out"
    pull(folder_store, "digits", None, out)
    before = (out / "model-q8_0.gguf").stat().st_mtime_ns
    (out / "prompt.txt").write_text("spoilt")
    (out / "release.json").unlink()
    pull(folder_store, "digits", None, out)
    assert (out / "model-q8_0.gguf").stat().st_mtime_ns == before
    assert (out / "prompt.txt").read_text() == "weights prompt.txt"


def test_pull_of_flipped_bits_leaves_no_release(store: Store, tmp_path: Path, make_release) -> None:
    published = publish_release(store, make_release(tmp_path / "in"), tmp_path / "in")
    key = f"{published.root}model-q8_0.gguf"
    store.write(key, store.read(key).replace(b"weights", b"xeights"))
    with pytest.raises(Corrupt, match=r"model-q8_0.gguf"):
        pull(store, "digits", None, tmp_path / "out")
    assert "release.json" not in _files(tmp_path / "out")
    store.write(f"{published.root}release.json", published.to_bytes() + b" ")
    with pytest.raises(Corrupt, match=r"latest.json"):
        pull(store, "digits", None, tmp_path / "out")


def test_pull_of_what_does_not_exist_says_what_does(folder_store: Store, tmp_path: Path, make_release) -> None:
    with pytest.raises(UserError, match="no release digits; there are: none"):
        pull(folder_store, "digits", None, tmp_path / "out")
    publish_release(folder_store, make_release(tmp_path / "in", version="1.0"), tmp_path / "in")
    with pytest.raises(UserError, match="no release digitz; there are: digits"):
        pull(folder_store, "digitz", None, tmp_path / "out")
    for version in ("2.0", "../1.0"):
        with pytest.raises(UserError, match=r"digits has no version .*; it has: 1.0"):
            pull(folder_store, "digits", version, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pull_does_not_take_over_a_strange_folder(folder_store: Store, tmp_path: Path, make_release) -> None:
    publish_release(folder_store, make_release(tmp_path / "in"), tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "release.json").write_text('{"of": "another program"}')
    with pytest.raises(UserError, match=r"release.json is not from a pull; choose another folder"):
        pull(folder_store, "digits", None, tmp_path / "out")
    assert (tmp_path / "out" / "release.json").read_text() == '{"of": "another program"}'


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def _times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
