"""The figures that only a GPU can show: 500M, LoRA, 1,000 images x 3 epochs, and the memory of a full fine-tune."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pocketvlm.artifacts.artifact import Artifact, find
from pocketvlm.artifacts.folder import FolderStore

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch sees no CUDA device")

LOOP_S, PUBLISHED_S = 10.0, 60.0
LORA_GB, FULL_GB = 6.0, 16.0
"""Beside the images that lie on the GPU: those of 1,000 images take 1.6 GB more (facts on speed)."""
KEPT_GB = 1000 * 64 * 12288 * 2 / 1e9
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def test_a_thousand_images_are_trained_on_three_times_in_ten_seconds_and_six_gigabytes(tmp_path: Path) -> None:
    from bench import ours
    from bench.setting import Setting

    setting = Setting(tmp_path, quick=False, images=1000, batch_size=16, rounds=1, newcomer_steps=2, scored_images=1, size="500M",
                      device="cuda")  # fmt: skip
    torch.cuda.reset_peak_memory_stats()
    spent = ours.train(setting, 0)
    peak_gb = torch.cuda.max_memory_allocated() / 1e9
    print(json.dumps({**spent.notes, "seconds": round(spent.seconds, 1), "peak_gb": round(peak_gb, 2)}))
    assert spent.notes["loop_seconds"] <= LOOP_S
    assert peak_gb <= LORA_GB + KEPT_GB


def test_a_training_is_published_within_a_minute_of_its_start(tmp_path: Path) -> None:
    from pocketvlm.student import published

    student = published.build_published(tmp_path / "student", size="500M", seed=0, longest_edge_px=published.TILE_PX)
    trainer = {"phases": [{"epochs": 3, "learning_rate": 2e-4}], "batch_size": 16, "validate_every": 3,
               "memory_gb": LORA_GB}  # fmt: skip
    artifact, seconds = publish(tmp_path, student, trainer, canvas_px=256, longest_edge_px=published.TILE_PX)
    found = artifact.measurements()
    print(json.dumps({**found["seconds"], "published": round(seconds, 1), "last": found["log"][-1]}))
    assert found["device"].startswith("cuda") and artifact.facts["pairs"] >= 1000
    assert seconds <= PUBLISHED_S
    # For that the images stay on the host, and passes whole.
    assert found["log"][-1]["micro_batch_size"] == 16
    assert found["log"][-1]["peak_cuda_mb"] / 1e3 <= LORA_GB


def publish(
    folder: Path, student: Path, trainer: dict[str, Any], *, canvas_px: int, longest_edge_px: int, images: int = 1300
) -> tuple[Artifact, float]:
    """What the stage publishes, as a process of its own, and the seconds that it takes. Of the images 8 in 10 train."""
    path, store = folder / "run.yaml", FolderStore(folder / "store")
    path.write_text(yaml.safe_dump({"run": {
        "name": "on-a-gpu", "student": {"model": str(student)},
        "device": {"canvas_px": canvas_px, "longest_edge_px": longest_edge_px},
        "task": {"question": "Which digit?", "classes": [{number: f"the digit {number}"} for number in NUMBERS]},
        "labeller": {"source": {"kind": "digits", "limit": images, "side_px": canvas_px},
                     "split": {"train": 0.8, "validation": 0.08, "test": 0.12}},
        "trainer": trainer,
    }}))  # fmt: skip
    for stage in ("labeller", "trainer"):
        clock = time.monotonic()
        command = [sys.executable, "-m", "pocketvlm", "--store", store.url, "stage", stage, str(path)]
        subprocess.run(command, check=True, env={**os.environ, "POCKETVLM_SCRATCH": str(folder / "scratch")})
        seconds = time.monotonic() - clock
    (made,) = {stored.key.split("/")[1] for stored in store.list("checkpoints/")}
    artifact = find(store, "checkpoints", made)
    assert artifact is not None
    return artifact, seconds


@pytest.mark.parametrize("recipe", ["full, vision too", "lora text, kept features"])
def test_the_peak_of_a_step_is_within_fifteen_per_cent_of_what_plan_says(recipe: str) -> None:
    batch = {"full, vision too": 8, "lora text, kept features": 16}[recipe]
    command = [sys.executable, "-m", "bench.memory", "--size", "500M", "--precision", "bf16", "--batch", str(batch),
               "--recipe", recipe]  # fmt: skip
    found = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(json.dumps(found))
    assert found["device"] == "cuda" and abs(found["ratio"] - 1) <= 0.15
    assert found["peak_gb"] <= (FULL_GB if recipe.startswith("full") else LORA_GB)
