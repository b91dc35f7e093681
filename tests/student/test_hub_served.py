"""A base checkpoint from a Hub on loopback: what each process asks it for, by the server's own ledger."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from runs import job
from serve_hub import FakeHub, Repository, serving

REVISION = "0123456789abcdef0123456789abcdef01234567"
STUDENT = {"model": "owner/model", "revision": REVISION}
FETCH = """
import sys
from pathlib import Path
from pocketvlm.artifacts.open import open_store
from pocketvlm.environment import read_environment
from pocketvlm.run_file import read_run_file
from pocketvlm.student import base

run_file, environment = read_run_file(Path(sys.argv[1])), read_environment()
folder = base.fetch_base(run_file.run, run_file.folder, environment.scratch, environment, open_store(environment))
print(sum(path.stat().st_size for path in folder.glob("*.safetensors")))
"""


@pytest.fixture
def hub(tiny: Path) -> Iterator[FakeHub]:
    with serving() as server:
        files = {path.name: path.read_bytes() for path in tiny.iterdir()}
        card = b"---\nlicense: apache-2.0\n---\n"
        server.repositories["owner/model"] = Repository({**files, "README.md": card, "pytorch_model.bin": b"a pickle"})
        yield server


def process(hub: FakeHub, folder: Path, cache: str, *arguments: str) -> str:
    """Runs one process, as a pod with a cache of its own, on the store that all share."""
    run_file = folder / "run.yaml"
    settings = job("digits")
    settings["run"]["student"] = STUDENT
    run_file.write_text(yaml.safe_dump(settings))
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "POCKETVLM_STORE": str(folder / "store"),
        "POCKETVLM_CACHE": str(folder / cache), "POCKETVLM_SCRATCH": str(folder / cache / "scratch"),
    }
    done = subprocess.run([sys.executable, *arguments, str(run_file)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def weights_sent(hub: FakeHub) -> list[int]:
    """Bytes of each answer to a GET of weights."""
    return [asked.sent_bytes for asked in hub.asked if asked.method == "GET" and asked.path.endswith(".safetensors")]


def test_the_second_process_asks_the_hub_for_nothing(hub: FakeHub, tiny: Path, tmp_path: Path) -> None:
    size = (tiny / "model.safetensors").stat().st_size
    assert int(process(hub, tmp_path, "first", "-c", FETCH)) == size
    assert weights_sent(hub) == [size]
    assert not any(asked.path.endswith(".bin") for asked in hub.asked)
    hub.asked.clear()
    assert int(process(hub, tmp_path, "second", "-c", FETCH)) == size
    assert hub.asked == []


def test_plan_shows_licence_and_size_and_fetches_headers_alone(hub: FakeHub, tiny: Path, tmp_path: Path) -> None:
    size = (tiny / "model.safetensors").stat().st_size
    told = process(hub, tmp_path, "laptop", "-m", "pocketvlm", "plan")
    assert f"base: owner/model, to be fetched from the Hub once; {size / 1e6:.1f} MB of weights; licence: apache-2.0" in told
    sent = weights_sent(hub)
    assert sent and sum(sent) < size / 4
