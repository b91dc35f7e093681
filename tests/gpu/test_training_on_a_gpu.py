"""The figures that only a GPU can show: 500M, LoRA, 1,000 images x 3 epochs, and the memory of a full fine-tune."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch sees no CUDA device")

LOOP_S = 10.0
LORA_GB, FULL_GB = 6.0, 16.0


def test_a_thousand_images_are_trained_on_three_times_in_ten_seconds_and_six_gigabytes(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT))
    from bench import ours
    from bench.setting import Setting

    setting = Setting(tmp_path, quick=False, images=1000, batch_size=16, rounds=1, newcomer_steps=2, scored_images=1, size="500M",
                      device="cuda")  # fmt: skip
    torch.cuda.reset_peak_memory_stats()
    spent = ours.train(setting, 0)
    peak_gb = torch.cuda.max_memory_allocated() / 1e9
    print(json.dumps({**spent.notes, "seconds": round(spent.seconds, 1), "peak_gb": round(peak_gb, 2)}))
    assert spent.notes["loop_seconds"] <= LOOP_S
    assert peak_gb <= LORA_GB


@pytest.mark.parametrize("recipe", ["full, vision too", "lora text, kept features"])
def test_the_peak_of_a_step_is_within_fifteen_per_cent_of_what_plan_says(recipe: str) -> None:
    batch = {"full, vision too": 8, "lora text, kept features": 16}[recipe]
    command = [sys.executable, "-m", "bench.memory", "--size", "500M", "--precision", "bf16", "--batch", str(batch),
               "--recipe", recipe]  # fmt: skip
    found = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(json.dumps(found))
    assert found["device"] == "cuda" and abs(found["ratio"] - 1) <= 0.15
    assert found["peak_gb"] <= (FULL_GB if recipe.startswith("full") else LORA_GB)
