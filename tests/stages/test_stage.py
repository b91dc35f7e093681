"""The skeleton around every stage, seen through the labeller: found or made, recorded, and nothing half there."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.artifacts.partial import Partial
from pocketvlm.artifacts.run_record import read_record, run_id
from pocketvlm.environment import Environment
from pocketvlm.errors import DataError, StoreUnavailable, UserError
from pocketvlm.interrupt import temporary_folder
from pocketvlm.progress import Progress
from pocketvlm.run_file import RunFile, check_run_file
from pocketvlm.stages.stage import run_stage

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def run_file(folder: Path, **labeller: Any) -> RunFile:
    return check_run_file({"run": {
        "name": "skeleton", "student": {"model": "tiny"}, "device": {"canvas_px": 32, "longest_edge_px": 32},
        "task": {"question": "Which?", "classes": dict.fromkeys(DIGITS, "")},
        "labeller": {"source": {"kind": "digits", "limit": 120}, **labeller}, "trainer": {"phases": [{}]},
    }}, folder / "run.yaml")  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(scratch=tmp_path / "scratch", threads=1)


def test_a_finished_stage_is_found_and_nothing_is_written(tmp_path: Path, store: FolderStore, environment: Environment) -> None:
    first, made = run_stage("labeller", run_file(tmp_path), store, environment, Progress())
    assert made
    before = {stored.key: store.read(stored.key) for stored in store.list("")}
    second, made = run_stage("labeller", run_file(tmp_path), store, environment, Progress())
    assert not made
    assert second.id == first.id
    assert {stored.key: store.read(stored.key) for stored in store.list("")} == before


def test_another_run_shares_what_is_common_and_keeps_a_record_of_its_own(
    tmp_path: Path, store: FolderStore, environment: Environment
) -> None:
    first, other = run_file(tmp_path), run_file(tmp_path)
    other = other.model_copy(update={"run": other.run.model_copy(update={"name": "other"})})
    made, _ = run_stage("labeller", first, store, environment, Progress())
    found, was_made = run_stage("labeller", other, store, environment, Progress())
    assert (found.id, was_made) == (made.id, False)
    record = read_record(store, run_id(other.run), "labeller")
    assert record is not None
    assert (record.status, record.id) == ("found", made.id)


def test_a_failing_stage_publishes_nothing_and_records_why(tmp_path: Path, store: FolderStore, environment: Environment) -> None:
    wrong = run_file(tmp_path, source={"kind": "folder", "path": "images"})
    for name in wrong.run.task.classes:
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError):
        run_stage("labeller", wrong, store, environment, Progress())
    record = read_record(store, run_id(wrong.run), "labeller")
    assert record is not None
    assert record.status == "failed"
    assert record.message
    assert not list(store.list("datasets/"))
    assert not list((tmp_path / "scratch").iterdir())


def test_a_stage_without_its_input_says_which_to_run_first(tmp_path: Path, store: FolderStore, environment: Environment) -> None:
    with pytest.raises(UserError, match=r"the merger of run skeleton-[0-9a-f]{8} has not finished; run `pocketvlm stage merger"):
        run_stage("quantiser", run_file(tmp_path), store, environment, Progress())


def test_what_a_killed_attempt_left_is_cleared_by_the_next_that_finds_the_artifact(
    tmp_path: Path, store: FolderStore, environment: Environment
) -> None:
    """Killed after it had published and before it cleared, or a twin that saved afterwards."""
    artifact, _ = run_stage("labeller", run_file(tmp_path), store, environment, Progress())
    assert artifact is not None
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "state").write_bytes(b"large")
    Partial(store, artifact.kind, artifact.id).save(7, tmp_path / "step")
    _, made = run_stage("labeller", run_file(tmp_path), store, environment, Progress())
    assert not made
    assert list(store.list("partial/")) == []


def test_the_scratch_of_a_killed_stage_goes_when_the_next_one_starts(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from pocketvlm.interrupt import temporary_folder
with temporary_folder(Path({str(tmp_path)!r}), "killed-") as folder:
    (folder / "model").write_text("large")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("killed-*/model"))) == 1
    with temporary_folder(tmp_path, "living-") as living, temporary_folder(tmp_path, "second-") as second:
        assert living.is_dir() and second.is_dir()
        assert list(tmp_path.glob("killed-*")) == []
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_store_that_is_gone_is_not_asked_again_to_record_that(tmp_path: Path, environment: Environment) -> None:
    class Leaving(FolderStore):
        """Answers until the first artifact's file is to be stored."""

        gone_asked = 0
        gone = False

        def upload(self, path: Path, key: str) -> None:
            self.gone = True
            raise StoreUnavailable("no answer")

        def read_tagged(self, key: str) -> tuple[bytes, str] | None:
            self.gone_asked += self.gone
            return super().read_tagged(key)

    store = Leaving(tmp_path / "store")
    with pytest.raises(StoreUnavailable, match="no answer"):
        run_stage("labeller", run_file(tmp_path), store, environment, Progress())
    assert store.gone_asked == 0


def test_an_error_that_nobody_foresaw_is_recorded_too(tmp_path: Path, environment: Environment) -> None:
    class Broken(FolderStore):
        def upload(self, path: Path, key: str) -> None:
            raise MemoryError("no room")

    store = Broken(tmp_path / "broken")
    with pytest.raises(MemoryError):
        run_stage("labeller", run_file(tmp_path), store, environment, Progress())
    record = read_record(store, run_id(run_file(tmp_path).run), "labeller")
    assert record is not None
    assert (record.status, record.message) == ("failed", "MemoryError: no room")
