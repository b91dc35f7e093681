"""A released run, a Hub on loopback, and one call that publishes the one to the other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from finished import Finished, rows, write
from pydantic import SecretStr

from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.environment import Environment
from pocketvlm.publish.publish import publish

sys.path.insert(0, str(Path(__file__).parent))
from serve_uploads import UploadHub, serving


@pytest.fixture
def hub() -> Iterator[UploadHub]:
    """A Hub with part uploads of 20 kB."""
    with serving(part_bytes=20_000) as server:
        yield server


class Desk:
    """A store with a release, and the command."""

    def __init__(self, folder: Path, hub: UploadHub) -> None:
        self.folder, self.hub = folder, hub
        self.store = FolderStore(folder / "store")
        self.environment = Environment(store=str(folder / "store"), scratch=folder / "scratch", hub_token=SecretStr(hub.token))
        self.said: list[str] = []

    def publish(self, *, yes: bool = True, **options: Any) -> str:
        options = {"endpoint": self.hub.url, "say": self.said.append, **options}
        return publish(self.store, self.environment, "digits", "hub:us/digits", yes=yes, **options)


@pytest.fixture
def release(tmp_path: Path, hub: UploadHub) -> Callable[..., Desk]:
    """`release(**changes of Finished)`: a desk with that run released."""

    def make(**changes: Any) -> Desk:
        desk = Desk(tmp_path, hub)
        data = changes.pop("rows", None) or rows()
        said = [item.label for item in data["test"]]
        said[0] = "two" if said[0] != "two" else "one"
        write(desk.store, tmp_path / "made", Finished(data, {"q8_0": said}, **changes))
        return desk

    return make
