"""SIGKILL at any moment: no reader takes anything half for finished, and a rerun ends with the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pocketvlm.artifacts.artifact import find, publish


@pytest.mark.parametrize(("work", "least"), [("artifact", 40), ("release", 80), ("pull", 20), ("partial", 40), ("share", 20)])
def test_killed_at_every_file_operation_it_converges(work: str, least: int) -> None:
    script = Path(__file__).with_name("killed.py")
    # In memory: hundreds of publications wait for nothing but the disk's flushes.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        done = subprocess.run([sys.executable, str(script), work, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["points"] >= least, "the points of the kill were not reached"
    assert 0 < result["invisible"] < result["points"] + 1


def test_killed_during_an_upload_to_s3_it_converges(s3_endpoint, tmp_path: Path) -> None:
    endpoint = s3_endpoint
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / name).write_bytes(name.encode() * 7_000_000)
    arguments = {"inputs": {}, "settings": {}, "facts": {}}
    expected = publish(endpoint.store(), "models", "id1", folder, **arguments).manifest
    bucket = endpoint.create_bucket()
    store = endpoint.store(bucket)
    for number, delay_s in enumerate((0.02, 0.1, 0.3)):
        _publish_and_kill(endpoint, bucket, f"id{number}", folder, delay_s)
        found = find(store, "models", f"id{number}")
        if found is not None:
            found.fetch(tmp_path / f"seen{number}")
        again = publish(store, "models", f"id{number}", folder, **arguments)
        assert again.files == expected.files
        again.fetch(tmp_path / f"out{number}")


def _publish_and_kill(endpoint, bucket: str, id: str, folder: Path, delay_s: float) -> None:
    code = f"""
from pathlib import Path
from pydantic import SecretStr
from pocketvlm.artifacts.artifact import publish
from pocketvlm.artifacts.s3 import S3Store
store = S3Store("s3://{bucket}/some/prefix", endpoint_url="{endpoint.url}", part_bytes=5 << 20,
                access_key_id=SecretStr("{endpoint.access_key_id}"),
                secret_access_key=SecretStr("{endpoint.secret_access_key}"))
print("ready", flush=True)
publish(store, "models", "{id}", Path({str(folder)!r}), inputs={{}}, settings={{}}, facts={{}})
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
