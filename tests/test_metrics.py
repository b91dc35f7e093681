"""What a stage tells Prometheus: the numbers of its log, under names that follow the rules, while it runs."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketvlm.metrics import DONE, ETA, NUMBERS, RATE, TOTAL, serve
from pocketvlm.progress import Progress

RECIPE = """\
run:
  name: watched
  task: {classes: {fire: "", water: ""}, question: "Which?"}
  device: {canvas_px: 64, longest_edge_px: 64}
  student: {model: tiny}
  labeller: {source: {kind: folder, path: images}}
  trainer: {phases: [{}]}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scrape(port: int) -> dict[str, float]:
    """Sample -> value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}


def shown(progress: Progress) -> dict[str, float]:
    port = free_port()
    serve(progress.metrics, port, pytest.fail)
    found = scrape(port)
    return {name: value for name, value in found.items() if name.startswith("pocketvlm_")}


def test_one_call_feeds_the_log_and_the_metrics() -> None:
    stream = io.StringIO()
    progress = Progress("trainer", stream)
    progress.step(1, 100, "steps")
    progress._started -= 10
    progress._printed -= 10
    progress.step(21, 100, "steps", loss=0.5, lr=2e-4, unseen={"GPU memory": 3e9})
    assert "21/100 steps" in stream.getvalue() and "loss 0.5, lr 0.0002" in stream.getvalue()
    assert "GPU" not in stream.getvalue()
    found = shown(progress)
    assert found['pocketvlm_stage_done_units{activity="steps",stage="trainer"}'] == 21
    assert found['pocketvlm_stage_total_units{activity="steps",stage="trainer"}'] == 100
    assert found['pocketvlm_stage_units_per_second{activity="steps",stage="trainer"}'] == pytest.approx(2.1, rel=0.05)
    assert found['pocketvlm_stage_eta_seconds{activity="steps",stage="trainer"}'] == pytest.approx(79 / 2.1, rel=0.05)
    assert found['pocketvlm_trainer_loss_nats{stage="trainer"}'] == 0.5
    assert found['pocketvlm_trainer_learning_rate{stage="trainer"}'] == 2e-4
    assert found['pocketvlm_trainer_gpu_memory_bytes{stage="trainer"}'] == 3e9


def test_steps_that_the_log_leaves_out_are_counted() -> None:
    progress = Progress("labeller", io.StringIO())
    for done in range(1, 51):
        progress.step(done, 100, "images")
    assert shown(progress)['pocketvlm_stage_done_units{activity="images",stage="labeller"}'] == 50


def test_a_number_with_reasons_is_summed_in_the_log_and_told_apart_in_the_metrics() -> None:
    stream = io.StringIO()
    progress = Progress("labeller", stream)
    progress.step(9, 9, "images", quarantined={"truncated": 2, "animated": 1})
    assert "quarantined 3" in stream.getvalue()
    found = shown(progress)
    assert found['pocketvlm_labeller_quarantined_images_total{reason="truncated",stage="labeller"}'] == 2
    assert found['pocketvlm_labeller_quarantined_images_total{reason="animated",stage="labeller"}'] == 1


def test_a_finished_activity_has_no_time_left() -> None:
    progress = Progress("labeller", io.StringIO())
    progress.step(1, 10, "images")
    progress._started -= 5
    progress.step(10, 10, "images")
    assert shown(progress)['pocketvlm_stage_eta_seconds{activity="images",stage="labeller"}'] == 0


def test_a_number_that_has_no_name_for_prometheus_is_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError, match="vibes"):
        Progress("labeller", io.StringIO()).step(1, 2, "images", vibes=3)


@pytest.mark.parametrize("series", [DONE, TOTAL, RATE, ETA, *NUMBERS.values()], ids=lambda series: series.name)
def test_names_follow_the_conventions_of_prometheus(series: object) -> None:
    """Base units at the end, and no `_total` by hand: the client adds it to counters."""
    units = ("units|units_per_second|samples_per_second|seconds|bytes|nats|ratio|images|images_asked|learning_rate|epoch|phase|"
             "answers|retries|usd")  # fmt: skip
    assert re.fullmatch(rf"pocketvlm_(stage|labeller|trainer|evaluator)_[a-z_]*?({units})", series.name)  # type: ignore[attr-defined]
    assert series.help.endswith(".")  # type: ignore[attr-defined]


def fill(folder: Path, images: int) -> str:
    rng = np.random.default_rng(0)
    for index in range(images):
        path = folder / "images" / ("fire", "water")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((96, 64)).save(path, compress_level=1)
    (folder / "images" / "fire" / "broken.png").write_bytes(b"no image")
    (folder / "run.yaml").write_text(RECIPE)
    return str(folder / "run.yaml")


def start(folder: Path, port: int, images: int) -> subprocess.Popen[str]:
    variables = {"POCKETVLM_STORE": str(folder / "store"), "POCKETVLM_SCRATCH": str(folder / "scratch"),
                 "POCKETVLM_METRICS_PORT": str(port), "POCKETVLM_THREADS": "1"}  # fmt: skip
    command = [sys.executable, "-m", "pocketvlm", "stage", "labeller", fill(folder, images)]
    return subprocess.Popen(command, env={**os.environ, **variables}, text=True, stderr=subprocess.PIPE)


def test_a_stage_can_be_scraped_while_it_works(tmp_path: Path) -> None:
    port = free_port()
    process = start(tmp_path, port, 1500)
    found: dict[str, float] = {}
    images = 'pocketvlm_labeller_images_total{stage="labeller"}'
    while process.poll() is None and images not in found:
        try:
            found = scrape(port)
        except (urllib.error.URLError, OSError):  # not yet, or just over
            time.sleep(0.01)
    log = process.communicate(timeout=60)[1]
    assert process.returncode == 0, log
    assert 1 <= found[images] <= 1501
    assert found['pocketvlm_stage_total_units{activity="images",stage="labeller"}'] == 1501
    assert found["process_resident_memory_bytes"] > 1e6


def test_a_port_in_use_is_a_warning_and_no_failure(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start(tmp_path, port, 40)
        log = process.communicate(timeout=60)[1]
    assert process.returncode == 0, log
    assert f"warning: POCKETVLM_METRICS_PORT={port}: no /metrics, Address already in use" in log
    assert "published datasets/" in log
