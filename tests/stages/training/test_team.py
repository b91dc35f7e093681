"""Two processes learn what one learns, and go on after both were killed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pocketvlm.artifacts.artifact import find
from pocketvlm.artifacts.checkpoint_layout import read_curve, read_training
from pocketvlm.stages.training.team import Team

# 40 images: 4 steps of 12 (the last of 4) in passes of 3, so that the last step has two passes and one process each.
TRAINER: dict[str, Any] = {
    "phases": [
        {"method": "lora", "train": ["text"], "epochs": 2, "learning_rate": 1e-3, "rank": 2, "dropout": 0.2},
        {"method": "full", "train": ["vision", "text"], "epochs": 1, "learning_rate": 1e-4},
    ],
    "batch_size": 12, "micro_batch_size": 3, "precision": "fp32", "checkpoint_every_steps": 2,
}  # fmt: skip


def launch(bench: Any, store: str, path: Path, processes: int = 2) -> list[subprocess.Popen[str]]:
    """Starts a team as `accelerate launch` does: by variables of torch's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes),
              "LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1", "POCKETVLM_THREADS": "1",
              "POCKETVLM_SCRATCH": str(bench.folder / "scratch")}  # fmt: skip
    command = [sys.executable, "-m", "pocketvlm", "--store", store, "stage", "trainer", str(path)]
    return [
        subprocess.Popen(command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(processes)
    ]


def end(team: list[subprocess.Popen[str]]) -> list[str]:
    """What each process said, once all have ended well."""
    said = [process.communicate(timeout=400)[1] for process in team]
    assert [process.returncode for process in team] == [0] * len(team), said
    return said


def wait_for_checkpoint(partial: Path, step: int, team: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if any(int(path.parent.name) >= step for path in partial.glob("*/*/*/*/step.json")):
            return
        assert all(process.poll() is None for process in team), [process.communicate()[1] for process in team]
        time.sleep(0.02)
    raise AssertionError("no checkpoint came")


def test_two_processes_learn_what_one_learns_though_they_were_killed(bench: Any) -> None:
    alone = bench.train("alone", **TRAINER)
    path, store = bench.run_file(**TRAINER), bench.store("team")
    bench.label(path, store)
    team = launch(bench, store.url, path)
    try:
        wait_for_checkpoint(Path(store.url) / "partial", 4, team)
    finally:
        for process in team:
            process.kill()
        for process in team:
            process.communicate()
    assert find(store, "checkpoints", alone.artifact.id) is None
    first, second = end(launch(bench, store.url, path))
    assert "2 processes" in first and "going on after step" in first
    assert second == "", "one process speaks for all"
    artifact = find(store, "checkpoints", alone.artifact.id)
    assert artifact is not None, "how many processes train is no setting of a training"
    assert artifact.measurements()["processes"] == 2
    folder = artifact.fetch(bench.folder / "of-the-team")
    ours, theirs = read_curve(folder), alone.curve
    assert [point.step for point in ours] == [point.step for point in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.loss == pytest.approx(b.loss, abs=1e-5) and a.learning_rate == b.learning_rate
        assert (a.validation_accuracy is None) == (b.validation_accuracy is None)
        if a.validation_loss is not None:
            assert a.validation_loss == pytest.approx(b.validation_loss, abs=1e-5)
    assert [phase.best.step for phase in read_training(folder).phases] == [phase.best.step for phase in alone.training.phases]
    for name in ("phases/0/adapter_model.safetensors", "phases/1/weights.safetensors"):
        weights = load_file(alone.folder / name)
        for tensor, value in load_file(folder / name).items():
            torch.testing.assert_close(value, weights[tensor], atol=2e-3, rtol=0, msg=tensor)


def test_a_team_of_one_needs_no_other() -> None:
    team = Team(torch.device("cpu"))
    assert team.leads and team.share([1, 2, 3]) == [1, 2, 3] and team.any(True, False) == (True, False)
    assert team.gather("it") == ["it"]
