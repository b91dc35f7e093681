"""From a checkpoint of published size to a released pair, by the command that a user types.

Ten images and one optimiser step: nothing is learnt. What is shown is that every stage takes the real shapes, and that
the pair that comes out answers as transformers does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from pocketvlm.student.published import build_published

pytestmark = [pytest.mark.real_size, pytest.mark.timeout(1800)]
COLOURS = {"blue": (20, 60, 220), "green": (30, 160, 40)}
IMAGES_OF_EACH = 5
RUN: dict[str, Any] = {
    "name": "colours",
    "task": {"question": "Which colour is this?\nColour:", "classes": [{colour: ""} for colour in COLOURS]},
    "device": {"canvas_px": 256, "longest_edge_px": 512, "max_new_tokens": 16},
    "student": {"model": "256M"},
    "labeller": {
        "source": {"kind": "folder", "path": "images"},
        "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
        "near_copies": False,
    },
    "trainer": {"batch_size": 8, "phases": [{"method": "lora", "train": ["text"], "epochs": 1, "rank": 16}]},
    "quantiser": {"types": ["q8_0"], "mmproj": "q8_0"},
    "evaluator": {
        "parity_images": 1,
        "golden_images": 1,
        "gates": {"max_drop": None, "min_agreement": None, "max_blind_accuracy": 1.0, "min_sight": None, "max_parity_nats": 0.01},
    },
}


@pytest.fixture(scope="module")
def released(toolchain: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder store after the run."""
    folder = tmp_path_factory.mktemp("chain")
    build_published(folder / "256M", size="256M", seed=0, longest_edge_px=512)
    for name, colour in COLOURS.items():
        (folder / "images" / name).mkdir(parents=True)
        for i in range(IMAGES_OF_EACH):
            Image.new("RGB", (100 + 60 * i, 200), colour).save(folder / "images" / name / f"{i}.png")
    (folder / "run.yaml").write_text(yaml.safe_dump({"run": RUN}))
    places = {"POCKETVLM_STORE": str(folder / "store"), "POCKETVLM_SCRATCH": str(folder / "scratch")}
    command = [sys.executable, "-m", "pocketvlm", "run", str(folder / "run.yaml")]
    done = subprocess.run(command, env={**os.environ, **places}, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    return folder / "store"


def test_a_checkpoint_of_published_size_becomes_a_released_pair(released: Path) -> None:
    latest = json.loads((released / "releases" / "colours" / "latest.json").read_text())
    release = json.loads((released / latest["release"]).read_text())
    sizes_mb = {file["role"]: file["size"] / 1e6 for file in release["files"] if file["type"] == "q8_0"}
    # 163 million weights of text, and 94 million of vision and connector, at 8.5 bits.
    assert sizes_mb == {"text_model": pytest.approx(174.5, rel=0.02), "mmproj": pytest.approx(103.8, rel=0.02)}


def test_the_bf16_pair_answers_as_transformers_does(released: Path) -> None:
    (report,) = (released / "reports").glob("*/*/metrics.json")
    metrics = json.loads(report.read_text())
    assert metrics["parity"]["max_nats"] <= 0.01
    assert metrics["layout"]["max_nats"] <= 0.01
