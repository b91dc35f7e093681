"""SIGTERM: a command ends at once with 75, in a container too, where it is PID 1; what was saved stays."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.interrupt import ends_on_sigterm, temporary_folder

RECIPE = """\
run:
  name: stopped
  task: {classes: {fire: "", water: ""}, question: "Which?"}
  device: {canvas_px: 96, longest_edge_px: 96}
  student: {model: tiny}
  labeller: {source: {kind: folder, path: images}}
  trainer: {phases: [{}]}
"""


@pytest.fixture(scope="module")
def labelling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run file and images for seconds of work, in two pieces."""
    folder = tmp_path_factory.mktemp("labelling")
    rng = np.random.default_rng(0)
    for index in range(900):
        path = folder / "images" / ("fire", "water")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((120, 90)).save(path, compress_level=1)
    (folder / "run.yaml").write_text(RECIPE)
    return folder


def start(labelling: Path, folder: Path, *before: str) -> subprocess.Popen[str]:
    places = {"POCKETVLM_STORE": str(folder / "store"), "POCKETVLM_SCRATCH": str(folder / "scratch"), "POCKETVLM_THREADS": "1"}
    command = [*before, sys.executable, "-m", "pocketvlm", "stage", "labeller", str(labelling / "run.yaml")]
    return subprocess.Popen(command, env={**os.environ, **places}, text=True, stderr=subprocess.PIPE)


def wait_until_a_piece_is_saved(process: subprocess.Popen[str], folder: Path) -> FolderStore:
    store = FolderStore(folder / "store")
    deadline = time.monotonic() + 60
    while not any(stored.key.endswith(".json") for stored in store.list("partial/")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return store


def test_a_stopped_stage_ends_at_once_leaves_nothing_and_goes_on_later(labelling: Path, tmp_path: Path) -> None:
    process = start(labelling, tmp_path)
    store = wait_until_a_piece_is_saved(process, tmp_path)
    assert list((tmp_path / "scratch").iterdir())
    process.send_signal(signal.SIGTERM)
    log = process.communicate(timeout=20)[1]
    assert process.returncode == 75
    assert log.endswith("error: SIGTERM: ended at once; what is saved stays, run the same command again to go on\n")
    assert list((tmp_path / "scratch").iterdir()) == []
    assert list(store.list("partial/"))
    again = start(labelling, tmp_path)
    log = again.communicate(timeout=60)[1]
    assert again.returncode == 0
    assert "going on: 1 of 2 pieces were saved before" in log


def test_pid_1_of_a_container_obeys_too(labelling: Path, tmp_path: Path) -> None:
    """The kernel drops signals to PID 1 that it has no handler for."""
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "--pid", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("unshare is not there, or this user may not make a PID namespace")
    process = start(labelling, tmp_path, unshare, "--pid", "--fork", "--kill-child")
    wait_until_a_piece_is_saved(process, tmp_path)
    (inner,) = (Path("/proc") / str(process.pid) / "task" / str(process.pid) / "children").read_text().split()
    assert "NSpid:\t" + inner + "\t1\n" in (Path("/proc") / inner / "status").read_text()
    os.kill(int(inner), signal.SIGTERM)
    log = process.communicate(timeout=20)[1]
    assert process.returncode == 75, log


def test_a_bucket_that_is_waited_for_ends_too(tmp_path: Path, unused_port: int) -> None:
    variables = {"POCKETVLM_STORE": "s3://bucket", "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{unused_port}",
                 "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "pocketvlm", "bucket"], env={**os.environ, **variables}, text=True,
                               stderr=subprocess.PIPE)  # fmt: skip
    assert process.stderr is not None and "waiting for store s3://bucket" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 75


def test_handlers_and_folders_of_before_come_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with ends_on_sigterm():
        assert signal.getsignal(signal.SIGTERM) != before
        with temporary_folder(tmp_path / "scratch", "labeller-") as folder:
            assert folder.parent == tmp_path / "scratch" and folder.name.startswith("labeller-")
            (folder / "file").touch()
        assert not folder.exists()
    assert signal.getsignal(signal.SIGTERM) == before
