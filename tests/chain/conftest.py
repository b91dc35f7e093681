"""The real chain as a user runs it: `pocketvlm run` in processes, on a folder store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from pocketvlm.artifacts.artifact import Artifact, find
from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.artifacts.manifest import KINDS
from pocketvlm.artifacts.run_record import read_record, run_id
from pocketvlm.environment import read_environment
from pocketvlm.llamacpp.toolchain import find_toolchain
from pocketvlm.run_file import read_run_file
from pocketvlm.stages.stage import STAGES

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Place:
    """A folder with a run file, a store and a scratch folder of its own."""

    folder: Path
    run_file: Path

    def command(self, *arguments: str) -> tuple[list[str], dict[str, str]]:
        """The command line, and its environment."""
        places = {"POCKETVLM_STORE": str(self.folder / "store"), "POCKETVLM_SCRATCH": str(self.folder / "scratch")}
        return [sys.executable, "-m", "pocketvlm", *arguments], {**os.environ, **places}

    def pocketvlm(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command, environment = self.command(*arguments)
        return subprocess.run(command, env=environment, cwd=self.folder, text=True, capture_output=True)

    @property
    def store(self) -> FolderStore:
        return FolderStore(self.folder / "store")

    def artifact(self, stage: str) -> Artifact:
        record = read_record(self.store, run_id(read_run_file(self.run_file).run), stage)
        assert record is not None
        artifact = find(self.store, record.kind, record.id)
        assert artifact is not None
        return artifact

    def manifests(self) -> dict[str, bytes]:
        """Every artifact's manifest: it lists the sha256 of every published file."""
        keys = [stored.key for kind in KINDS for stored in self.store.list(f"{kind}/")]
        return {key: self.store.read(key) for key in keys if key.endswith("manifest.json")}

    def metrics(self) -> dict[str, Any]:
        metrics: dict[str, Any] = json.loads(self.artifact("evaluator").read("metrics.json"))
        return metrics


def place(folder: Path, **changes: Any) -> Place:
    """A place with jobs/digits.yaml; `changes` replace keys by dotted path below `run` (`__` for `.`)."""
    content = yaml.safe_load((ROOT / "jobs" / "digits.yaml").read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        block = content["run"]
        for key in parents:
            block = block.setdefault(key, {})
        block[last] = value
    folder.mkdir(parents=True, exist_ok=True)
    run_file = folder / "run.yaml"
    run_file.write_text(yaml.safe_dump(content, sort_keys=False))
    return Place(folder, run_file)


SMALL: dict[str, Any] = {
    "labeller__source": {"kind": "digits", "side_px": 32, "limit": 160},
    "trainer__phases": [{"method": "full", "train": ["vision", "connector", "text"], "epochs": 2, "learning_rate": 0.002}],
    "quantiser__types": ["q8_0"],
    "evaluator": {"parity_images": 4, "golden_images": 2, "gates": {
        "min_accuracy": 0.0, "max_drop": 1.0, "min_agreement": 0.0, "max_blind_accuracy": 1.0, "min_sight": None,
        "max_parity_nats": 1.0}},
}  # fmt: skip
"""A run of seconds: what it learns does not matter, only that every stage runs."""


@pytest.fixture(scope="session")
def built() -> None:
    """The pinned llama.cpp must be there: `make llama-cpp`."""
    find_toolchain(read_environment())


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory, built: None) -> Place:
    """jobs/digits.yaml as it is, run to its end."""
    there = place(tmp_path_factory.mktemp("digits"))
    done = there.pocketvlm("run", str(there.run_file))
    assert done.returncode == 0, done.stderr[-4000:]
    (there.folder / "log.txt").write_text(done.stderr + done.stdout)
    return there


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, built: None) -> Place:
    """The small run, undisturbed, stage by stage; `seconds.json` says how long each took here and now."""
    there = place(tmp_path_factory.mktemp("small"), **SMALL)
    seconds = {}
    for stage in STAGES:
        clock = time.monotonic()
        done = there.pocketvlm("stage", stage, str(there.run_file))
        seconds[stage] = time.monotonic() - clock
        assert done.returncode == 0, done.stderr[-4000:]
    (there.folder / "seconds.json").write_text(json.dumps(seconds))
    return there
