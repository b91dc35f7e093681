"""Shares of one stage's work: in any number, order and mishap the published bytes are those of one process alone."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runs import FULL

from pocketvlm.artifacts.artifact import Artifact
from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.artifacts.run_record import read_record, run_id
from pocketvlm.environment import Environment, Shard
from pocketvlm.errors import DataError, UserError
from pocketvlm.local import run
from pocketvlm.progress import Progress
from pocketvlm.run_file import RunFile, check_run_file, read_run_file
from pocketvlm.sources.folder import Folder
from pocketvlm.stages.sharing import dealt
from pocketvlm.stages.stage import run_stage

CLASSES = ["fire", "water"]
ALONE = Shard()
PIECE_RECORDS = Folder.PIECE_RECORDS
IMAGES = 4 * PIECE_RECORDS - 30
RECIPE = """\
run:
  name: shared
  task: {classes: {fire: "", water: ""}, question: "Which?"}
  device: {canvas_px: 32, longest_edge_px: 32}
  student: {model: tiny}
  labeller: {source: {kind: folder, path: images}}
  trainer: {phases: [{}]}
"""


@dataclass(frozen=True)
class Pod:
    """A process that does one share, as Kubernetes would start it."""

    process: subprocess.Popen[str]

    def ends_well(self) -> str:
        """Waits; its log."""
        log = self.process.communicate(timeout=120)[1]
        assert self.process.returncode == 0, log
        return log


class Cluster:
    """Images, a run file, and pods with stores of their own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def fill(self, count: int) -> None:
        rng = np.random.default_rng(0)
        for index in range(count):
            path = self.root / "images" / CLASSES[index % 2] / f"{index:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise_HWC = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
            Image.fromarray(noise_HWC).resize((48, 40), Image.Resampling.NEAREST).save(path, compress_level=1)
        (self.root / "images" / "fire" / "broken.png").write_bytes(b"no image")
        (self.root / "images" / "water" / "again.png").write_bytes((self.root / "images" / "water" / "00001.png").read_bytes())
        (self.root / "run.yaml").write_text(RECIPE)

    @property
    def run_file(self) -> RunFile:
        return read_run_file(self.root / "run.yaml")

    def store(self, name: str) -> FolderStore:
        return FolderStore(self.root / name)

    def pod(self, store: str, index: int, shards: int, **more: str) -> Pod:
        variables = {
            "POCKETVLM_STORE": str(self.root / store), "POCKETVLM_SCRATCH": str(self.root / "scratch"),
            "POCKETVLM_SHARDS": str(shards), "JOB_COMPLETION_INDEX": str(index), "POCKETVLM_THREADS": "1", **more,
        }  # fmt: skip
        command = [sys.executable, "-m", "pocketvlm", "stage", "labeller", str(self.root / "run.yaml")]
        return Pod(subprocess.Popen(command, env={**os.environ, **variables}, text=True, stderr=subprocess.PIPE))

    def label(
        self, store: FolderStore | str, shard: Shard = ALONE, run_file: RunFile | None = None
    ) -> tuple[Artifact | None, str]:  # fmt: skip
        """One share in this process; the log besides."""
        log = io.StringIO()
        environment = Environment(
            scratch=self.root / "scratch", threads=1, shards=shard.count, completion_index=shard.index
        )  # fmt: skip
        store = self.store(store) if isinstance(store, str) else store
        artifact, _ = run_stage("labeller", run_file or self.run_file, store, environment, Progress("labeller", log))
        return artifact, log.getvalue()

    def published(self, store: str) -> dict[str, bytes]:
        """All bytes of the dataset; what is measured is left out."""
        there = self.store(store)
        keys = [stored.key for stored in there.list("datasets/") if not stored.key.endswith("/measurements.json")]
        return {key: there.read(key) for key in keys}

    def status(self, store: str) -> str:
        record = read_record(self.store(store), run_id(self.run_file.run), "labeller")
        return record.status if record else "none"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """Two shares of two pieces each; `alone` holds what one process makes of it."""
    cluster = Cluster(tmp_path_factory.mktemp("large"))
    cluster.fill(IMAGES)
    assert cluster.label("alone")[0] is not None
    return cluster


@pytest.fixture
def small(tmp_path: Path) -> Cluster:
    cluster = Cluster(tmp_path)
    cluster.fill(40)
    return cluster


@pytest.mark.parametrize("shards", [1, 2, 4] if FULL else [4])
def test_any_number_of_pods_in_parallel_publishes_what_one_process_makes(large: Cluster, shards: int) -> None:
    store = f"of-{shards}"
    pods = [large.pod(store, index, shards) for index in reversed(range(shards))]
    logs = [pod.ends_well() for pod in pods]
    assert large.published(store) == large.published("alone")
    assert sum("published datasets/" in log for log in logs) >= 1
    assert large.status(store) == "done"
    assert list(large.store(store).list("partial/")) == []


def test_a_killed_pod_goes_on_where_it_was_and_a_pod_that_runs_twice_does_no_harm(large: Cluster) -> None:
    """Index 0 is killed after its first piece; then it runs twice at once, with index 1 beside it."""
    store = "killed"
    first = large.pod(store, 0, 2)
    deadline = time.monotonic() + 60
    while not any(stored.key.endswith(".json") for stored in large.store(store).list("partial/")):
        assert first.process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    first.process.send_signal(signal.SIGKILL)
    first.process.communicate()
    pods = [large.pod(store, index, 2) for index in (0, 0, 1)]
    logs = [pod.ends_well() for pod in pods]
    assert all("going on: 1 of 2 pieces were saved before" in log for log in logs[:2])
    assert large.published(store) == large.published("alone")
    assert list(large.store(store).list("partial/")) == []


def test_pods_on_an_object_store_publish_the_same(small: Cluster, s3_endpoint: Any) -> None:
    """All three end at about the same time: of those that list, one at least must see everything."""
    bucket = s3_endpoint.create_bucket()
    keys = {"AWS_ENDPOINT_URL_S3": s3_endpoint.url, "AWS_ACCESS_KEY_ID": s3_endpoint.access_key_id,
            "AWS_SECRET_ACCESS_KEY": s3_endpoint.secret_access_key, "POCKETVLM_STORE": f"s3://{bucket}/some/prefix"}  # fmt: skip
    for pod in [small.pod("", index, 3, **keys) for index in range(3)]:
        pod.ends_well()
    store = s3_endpoint.store(bucket)
    small.label("alone")
    found = {stored.key for stored in store.list("datasets/") if not stored.key.endswith("/measurements.json")}
    assert {key: store.read(key) for key in found} == small.published("alone")
    assert list(store.list("partial/")) == []


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_pods_one_after_the_other_publish_in_the_last_and_say_so(small: Cluster, order: tuple[int, ...]) -> None:
    *others, last = order
    for index in others:
        artifact, log = small.label("store", Shard(index, 3))
        assert artifact is None
        assert f"share {index} of 3 is saved; not there yet: " in log and "whoever saves the last one publishes" in log
        assert small.status("store") == "running"
    artifact, log = small.label("store", Shard(last, 3))
    assert artifact is not None
    assert "all 3 shares are there and are put together" in log and "published datasets/" in log
    assert small.status("store") == "done"
    small.label("alone")
    assert small.published("store") == small.published("alone")


def test_more_pods_than_images_is_no_fault(small: Cluster) -> None:
    shards = [Shard(index, 45) for index in range(45)]
    found = [small.label("store", shard)[0] for shard in shards]
    small.label("alone")
    assert small.published("store") == small.published("alone")
    assert found[-1] is not None


def test_shares_of_another_number_are_not_mixed_in_and_go_with_the_rest(small: Cluster) -> None:
    small.label("store", Shard(0, 2))
    assert small.label("store", Shard(1, 3))[0] is None
    assert small.label("store", Shard(2, 3))[0] is None
    assert small.label("store", Shard(0, 3))[0] is not None
    small.label("alone")
    assert small.published("store") == small.published("alone")
    assert list(small.store("store").list("partial/")) == []
    assert small.label("store", Shard(1, 2))[0] is not None, "what is published is found by any pod"


def test_a_pod_that_died_between_its_share_and_the_end_only_looks_again(small: Cluster) -> None:
    small.label("store", Shard(0, 2))
    artifact, log = small.label("store", Shard(0, 2))
    assert artifact is None
    assert "going on: 1 of 1 pieces were saved before" in log and "images" not in log


def test_a_damaged_piece_of_a_pod_that_has_ended_is_made_again(small: Cluster) -> None:
    small.label("store", Shard(0, 2))
    store = small.store("store")
    file = next(stored.key for stored in store.list("partial/") if stored.key.endswith("images.bin"))
    store.write(file, b"\0" * len(store.read(file)))
    artifact, log = small.label("store", Shard(1, 2))
    assert artifact is not None
    assert "warning: piece 00000000-21 of share 0 is made again" in log
    small.label("alone")
    assert small.published("store") == small.published("alone")


class Raced(FolderStore):
    """Somebody is faster: before the first piece is read, `other` runs."""

    def __init__(self, root: Path, other: Callable[[], Any]) -> None:
        super().__init__(root)
        self._other: Callable[[], Any] | None = other

    def read(self, key: str) -> bytes:
        if self._other and key.startswith("partial/") and key.endswith(".json"):
            other, self._other = self._other, None
            other()
        return super().read(key)


def test_two_that_see_all_shares_publish_once_and_the_slower_finds_it(small: Cluster) -> None:
    small.label("store", Shard(0, 2))
    faster: list[Artifact | None] = []
    store = Raced(small.root / "store", lambda: faster.append(small.label("store", Shard(0, 2))[0]))
    artifact, log = small.label(store, Shard(1, 2))
    assert faster[0] is not None
    assert artifact is not None and artifact.manifest == faster[0].manifest
    assert "already done: datasets/" in log
    assert small.status("store") == "done"
    assert list(small.store("store").list("partial/")) == []


def test_a_pod_that_began_late_does_not_take_back_that_the_stage_is_done(small: Cluster) -> None:
    """The next stage goes by the record: a `running` or `failed` after `done` would fail the run."""
    small.label("store")

    class Blind(FolderStore):
        """Looked for the artifact just before it was published."""

        looked = False

        def read(self, key: str) -> bytes:
            if key.endswith("manifest.json") and not self.looked:
                Blind.looked = True
                return super().read("datasets/absent")
            return super().read(key)

    small.label(Blind(small.root / "store"), Shard(0, 2))
    assert small.status("store") == "done"


def test_wrong_data_is_found_by_whoever_has_all_of_it(small: Cluster) -> None:
    for path in (small.root / "images" / "water").iterdir():
        path.write_bytes(b"no image")
    assert small.label("store", Shard(1, 2))[0] is None
    with pytest.raises(DataError, match="class water: 0 usable images"):
        small.label("store", Shard(0, 2))
    assert small.status("store") == "failed"


def test_what_one_process_prepared_before_it_was_killed_is_kept_without_shards_too(large: Cluster) -> None:
    class Full(FolderStore):
        """Its disk is full after two pieces."""

        def create(self, key: str, data: bytes) -> bool:
            if key.startswith("partial/") and f"{2 * PIECE_RECORDS:08d}" in key:
                raise UserError("full")
            return super().create(key, data)

    with pytest.raises(UserError, match="full"):
        large.label(Full(large.root / "full"))
    artifact, log = large.label("full")
    assert artifact is not None and "going on: 2 of 4 pieces were saved before" in log
    assert large.published("full") == large.published("alone")
    assert len(artifact.measurements()["share_seconds"]) == 1


@pytest.mark.parametrize("stage", ["trainer", "merger", "quantiser"])
def test_a_stage_that_cannot_share_its_work_refuses_a_share(small: Cluster, stage: str) -> None:
    environment = Environment(scratch=small.root / "scratch", shards=2, completion_index=0)
    with pytest.raises(UserError, match=f"POCKETVLM_SHARDS=2: the {stage} cannot share its work.*only labeller and evaluator"):
        run_stage(stage, small.run_file, small.store("store"), environment, Progress())


def test_a_run_on_one_machine_refuses_the_shares_of_a_cluster(small: Cluster) -> None:
    environment = Environment(store=str(small.root / "store"), shards=2, completion_index=0)
    with pytest.raises(UserError, match="POCKETVLM_SHARDS=2: a run on this machine does all of the work"):
        run(small.root / "run.yaml", small.run_file, environment)
    assert not (small.root / "store").exists()


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("count", [1, 2, 3, 30])
def test_shares_are_dealt_back_in_order(count: int, batch: int) -> None:
    items = list(range(23))
    assert dealt(23, [Shard(index, count).take(items, batch) for index in range(count)], batch) == items


def test_the_number_of_shares_is_no_part_of_the_id(small: Cluster) -> None:
    recipe = check_run_file({"run": small.run_file.run.model_dump(mode="json")}, small.root / "run.yaml")
    one, _ = small.label("one", run_file=recipe)
    small.label("two", Shard(0, 2))
    two, _ = small.label("two", Shard(1, 2))
    assert one is not None and two is not None and one.id == two.id
