"""Hostile images and archives: read as the labeller reads them, in one process whose memory is measured, in a folder that is
compared before and after."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from hostile_files import ARCHIVES, IMAGES

MOST_MEMORY_MB = 1000


def snapshot(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
            for path in folder.rglob("*")}  # fmt: skip


def file_name(name: str, suffix: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:12] + suffix


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the child found, with `before` and `after`: snapshots of everything around it."""
    around = tmp_path_factory.mktemp("hostile")
    folder = around / "deep" / "er" / "run"
    (folder / "images" / "roof").mkdir(parents=True)
    (folder / "archives").mkdir()
    for name, (data, _) in IMAGES.items():
        (folder / "images" / "roof" / file_name(name, ".png")).write_bytes(data)
    for name, (suffix, data, _) in ARCHIVES.items():
        (folder / "archives" / file_name(name, suffix)).write_bytes(data if isinstance(data, bytes) else data())
    evil = Path("/tmp/evil.png")
    assert not evil.exists(), "left by something else; remove it"
    before = snapshot(around)
    child = Path(__file__).parent / "hostile_child.py"
    done = subprocess.run([sys.executable, str(child), str(folder)], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    after = snapshot(around)
    assert after.pop("deep/er/run/scratch") == "folder"
    assert not evil.exists()
    return {**json.loads(done.stdout), "before": before, "after": after}


@pytest.mark.parametrize("name", IMAGES)
def test_hostile_image_is_refused_or_is_just_an_image(read: dict[str, Any], name: str) -> None:
    assert set(read["found"][f"roof/{file_name(name, '.png')}"]) <= IMAGES[name][1]


@pytest.mark.parametrize("name", ARCHIVES)
def test_hostile_archive_is_refused_or_loses_the_hostile_member_alone(read: dict[str, Any], name: str) -> None:
    suffix, _, right = ARCHIVES[name]
    found, *rest = reasons = read["found"][file_name(name, suffix)]
    if found == "DataError":
        assert right == {"DataError"}
        assert rest[0].startswith("run.labeller.source.path: archives/") and "; " in rest[0]
    else:
        assert "" in reasons, "the good image beside it is lost"
        expected = {"unsupported_format"} if right == {"not an image"} else right
        assert set(reasons) - {""} == expected


def test_nothing_was_written_outside_and_memory_stayed_small(read: dict[str, Any]) -> None:
    assert read["after"] == read["before"]
    assert read["rss_mb"] < MOST_MEMORY_MB
    assert len(IMAGES) + len(ARCHIVES) >= 100
