"""A few dozen real digits, labelled once, and a way to train the tiny student on them through the stage's skeleton."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from pocketvlm.artifacts.artifact import Artifact
from pocketvlm.artifacts.checkpoint_layout import CurvePoint, Training, read_curve, read_training
from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.environment import Environment
from pocketvlm.progress import Progress
from pocketvlm.run_file import RunFile, read_run_file
from pocketvlm.stages.stage import run_stage

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@dataclass
class Bench:
    """A store in which the labeller is done, and a run file beside it."""

    folder: Path
    labelled: Path

    def run_file(self, *, student: str = "tiny", task: dict[str, Any] | None = None, **trainer: Any) -> Path:
        """A run file with this trainer block; `task` has more keys of the task, and makes a dataset of its own."""
        path = self.folder / "run.yaml"
        path.write_text(yaml.safe_dump({"run": {
            "name": "training", "student": {"model": student}, "device": {"canvas_px": 32, "longest_edge_px": 32},
            "task": {"question": "Which digit?", "classes": [{digit: f"the digit {digit}"} for digit in DIGITS],
                     **(task or {})},
            "labeller": {"source": {"kind": "digits", "limit": 60}}, "trainer": {"batch_size": 8, **trainer},
        }}))  # fmt: skip
        return path

    def store(self, name: str) -> FolderStore:
        """A store of its own; the dataset is in it."""
        if not (self.folder / name).exists():
            shutil.copytree(self.labelled, self.folder / name)
        return FolderStore(self.folder / name)

    def environment(self) -> Environment:
        return Environment(scratch=self.folder / "scratch", threads=1)

    def label(self, path: Path, store: FolderStore) -> None:
        """The record of the run; the dataset itself is found."""
        run_stage("labeller", self.read(path), store, self.environment(), Progress())

    def read(self, path: Path) -> RunFile:
        return read_run_file(path)

    def train(self, name: str = "store", progress: Progress | None = None, **trainer: Any) -> Trained:
        """Trains, or goes on, in the store of that name."""
        path, store = self.run_file(**trainer), self.store(name)
        self.label(path, store)
        artifact, _ = run_stage("trainer", self.read(path), store, self.environment(), progress or Progress())
        return Trained(artifact, artifact.fetch(self.folder / f"{name}-{artifact.id}"))


@dataclass
class Trained:
    """A published training and its files."""

    artifact: Artifact
    folder: Path

    @property
    def training(self) -> Training:
        return read_training(self.folder)

    @property
    def curve(self) -> list[CurvePoint]:
        return read_curve(self.folder)

    @property
    def bytes(self) -> tuple[bytes, dict[str, str]]:
        """All that must be equal between a killed and an undisturbed training."""
        return self.artifact.manifest.to_bytes(), {entry.name: entry.sha256 for entry in self.artifact.files}


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    bench = Bench(folder, folder / "empty")
    bench.labelled.mkdir()
    bench.label(bench.run_file(phases=[{}]), bench.store("store"))
    shutil.rmtree(folder / "store" / "runs")
    return folder / "store"


@pytest.fixture
def bench(tmp_path: Path, labelled: Path) -> Bench:
    return Bench(tmp_path, labelled)


@pytest.fixture(scope="session")
def new_bench(tmp_path_factory: pytest.TempPathFactory, labelled: Path) -> Callable[[str], Bench]:
    """For results that several tests look at."""
    return lambda name: Bench(tmp_path_factory.mktemp(name), labelled)
