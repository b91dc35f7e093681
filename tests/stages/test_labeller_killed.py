"""A labeller that is killed anywhere, again and again: no image is lost, nothing is paid twice but what was in flight.

Each life is a fork of one process that has imported everything, so that a life costs milliseconds to begin: 100 lives, as
POCKETVLM_TEST_FULL=1 asks for, in about a minute. The teacher is a process of its own, as a real one is, and outlives them all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_answers import colour_of
from fake_teacher import KEY
from PIL import Image
from runs import FULL

KILLS = 100 if FULL else 25
KILLS_IN_BATCHES = 25 if FULL else 10
IN_FLIGHT = 16
CLASSES = ["fire", "land", "water"]
LIFE = """
import os, random, signal, sys, time
from pathlib import Path
import openai, pyarrow.parquet
from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.environment import Environment
from pocketvlm.progress import Progress
from pocketvlm.run_file import read_run_file
from pocketvlm.stages import labeller
from pocketvlm.stages.stage import run_stage
import pocketvlm.teacher.batch, pocketvlm.teacher.calls, pocketvlm.teacher.live

root, kills, longest_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
run_file = read_run_file(root / "run.yaml")
dice = random.Random(7)
log = open(root / "log.txt", "w")
lives = 0
while True:
    lives += 1
    child = os.fork()
    if child == 0:
        environment = Environment(POCKETVLM_SCRATCH=root / "scratch", POCKETVLM_THREADS=2, OPENAI_API_KEY=sys.argv[4])
        run_stage("labeller", run_file, FolderStore(root / "store"), environment, Progress("labeller", log))
        os._exit(0)
    if kills:
        kills -= 1
        time.sleep(dice.uniform(0.02, longest_s))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if status == 0:
        print(lives)
        break
    if os.WIFEXITED(status):
        sys.exit(f"a life ended by itself with {status}")
"""


@dataclass(frozen=True)
class Teacher:
    """The server's process, as others see it."""

    url: str

    def ledger(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/_ledger") as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def forget(self) -> None:
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/_reset", data=b"{}"):
            pass


@pytest.fixture(scope="module")
def teacher() -> Iterator[Teacher]:
    script = Path(__file__).parents[1] / "teacher" / "fake_teacher.py"
    settings = {"waver": 0, "latency": 0.03}
    command = [sys.executable, str(script), "--waver", str(settings["waver"]), "--latency", str(settings["latency"]),
               "--settings", json.dumps({"batch_step_s": 0.1})]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield Teacher(server.stdout.readline().strip())
        server.terminate()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index in range(1000):
        colour = np.array(colour_of(CLASSES[index % 3], CLASSES))
        noise_HWC = np.random.default_rng(index).integers(-25, 26, (4, 6, 3)) + colour
        picture = Image.fromarray(noise_HWC.clip(0, 255).astype(np.uint8)).resize((24, 16), Image.Resampling.BICUBIC)
        picture.save(folder / f"{index:04d}.jpg")
    return folder


@pytest.fixture
def live(tmp_path: Path, teacher: Teacher, images: Path) -> Callable[..., tuple[int, dict[str, bytes], dict[str, Any]]]:
    """`live(name, kills, longest_s, count, **teacher)`: lives until one ends well; how many, the store, the bill."""

    def run(name: str, kills: int, longest_s: float, count: int, **more: Any) -> tuple[int, dict[str, bytes], dict[str, Any]]:
        root = tmp_path / name
        root.mkdir()
        for path in sorted(images.iterdir())[:count]:
            (root / "images").mkdir(exist_ok=True)
            os.link(path, root / "images" / path.name)
        recipe = {
            "name": "killed", "task": {"classes": dict.fromkeys(CLASSES, "x"), "question": "Which?"}, "device": {"canvas_px": 32},
            "student": {"model": "tiny"}, "trainer": {"phases": [{}]},
            "labeller": {
                "source": {"kind": "folder", "path": "images"}, "near_copies": False,
                "teacher": {"model": "fake", "base_url": teacher.url, "image_px": 32, **more},
            },
        }  # fmt: skip
        (root / "run.yaml").write_text(json.dumps({"run": recipe}))
        teacher.forget()
        command = [sys.executable, "-c", LIFE, str(root), str(kills), str(longest_s), KEY]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        store = root / "store" / "datasets"
        published = {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*")
                     if path.is_file() and path.name != "measurements.json"}  # fmt: skip
        assert not list((root / "store" / "partial").rglob("*.json")) if (root / "store" / "partial").exists() else True
        return int(done.stdout), published, teacher.ledger()

    return run


def test_killed_again_and_again_it_loses_nothing_and_pays_twice_only_for_calls_in_flight(
    live: Callable[..., tuple[int, dict[str, bytes], dict[str, Any]]],
) -> None:
    _, whole, bill = live("whole", 0, 0, 1000, in_flight=IN_FLIGHT)
    assert bill["billed"] == 1000
    lives, killed, bill = live("killed", KILLS, 0.6, 1000, in_flight=IN_FLIGHT)
    assert lives > KILLS // 5, "it was done before most of the kills"
    assert killed == whole  # one id, and every byte
    assert bill["billed"] <= 1000 + (lives - 1) * IN_FLIGHT
    print(f"{lives} lives; 1,000 answers, {bill['billed'] - 1000} paid twice")


def test_killed_while_batches_are_made_and_waited_for_it_bills_once(
    live: Callable[..., tuple[int, dict[str, bytes], dict[str, Any]]],
) -> None:
    batch = {"way": "batch", "batch_requests": 100, "batch_poll_s": 0.05}
    _, whole, bill = live("whole", 0, 0, 300, **batch)
    assert bill["billed"] == 300
    lives, killed, bill = live("killed", KILLS_IN_BATCHES, 1.0, 300, **batch)
    assert lives > 3
    assert killed == whole
    assert bill["billed"] == 300
