"""What only a directory can get wrong."""

from __future__ import annotations

import fcntl
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.artifacts.open import open_store
from pocketvlm.environment import Environment
from pocketvlm.errors import UserError


def test_leftovers_of_killed_writers_go_and_files_being_written_stay(tmp_path: Path) -> None:
    FolderStore(tmp_path).write("key", b"x")
    dead, alive = tmp_path / ".pending" / "dead", tmp_path / ".pending" / "alive"
    dead.write_bytes(b"half")
    with alive.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        FolderStore(tmp_path)
        assert (dead.exists(), alive.exists()) == (False, True)
    assert [stored.key for stored in FolderStore(tmp_path).list("")] == ["key"]


def test_opening_and_reading_makes_no_folder(tmp_path: Path) -> None:
    environment = Environment.model_validate({"store": str(tmp_path / "new")})
    assert list(open_store(environment, read_only=True).list("")) == []
    assert not (tmp_path / "new").exists()
    open_store(environment)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".pending"]


def test_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="POCKETVLM_STORE"):
        open_store(Environment.model_validate({"store": str(tmp_path / "file")}))


def test_writers_and_deleters_of_one_folder_do_not_trip_over_each_other(tmp_path: Path) -> None:
    together = threading.Barrier(4)

    def write(me: int) -> None:
        together.wait()
        for number in range(50):
            FolderStore(tmp_path).write(f"shared/folder/{me}", str(number).encode())

    def delete(me: int) -> None:
        together.wait()
        for _ in range(50):
            FolderStore(tmp_path).delete("shared/")

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, me) for me, work in enumerate((write, write, delete, delete))]:
            done.result()


def test_uploaded_file_is_a_copy_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one")
    store = FolderStore(tmp_path / "store")
    store.upload(tmp_path / "file", "key")
    with (tmp_path / "file").open("r+b") as file:
        file.write(b"two")
    assert store.read("key") == b"one"
