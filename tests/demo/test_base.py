"""The base's pair beside a release: where its checkpoint comes from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from finished import Finished, rows, write

from pocketvlm.artifacts.artifact import publish
from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.demo.base import make_base
from pocketvlm.environment import Environment, read_environment
from pocketvlm.errors import UserError
from pocketvlm.llamacpp.toolchain import find_toolchain
from pocketvlm.predict.opened import open_release
from pocketvlm.progress import Progress

pytestmark = pytest.mark.llamacpp


def test_a_base_that_is_a_model_of_the_store_is_looked_for_there(tmp_path: Path) -> None:
    store, data = FolderStore(tmp_path / "store"), rows()
    write(store, tmp_path / "made", Finished(data, {"q8_0": [item.label for item in data["test"]]}))
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps({"architectures": ["NobodysModel"]}))
    publish(store, "models", "0123456789abcdef", tmp_path / "checkpoint", inputs={}, settings={}, facts={})
    environment = Environment(store=str(tmp_path / "store"), cache=tmp_path / "cache")
    opened = open_release("digits", environment, types=["q8_0"])
    # What is in that checkpoint is read, and is no family.
    for name, says in (("0123456789abcdef", "NobodysModel"), ("0" * 16, f"has no models/{'0' * 16}, which is the base")):
        release = opened.release.model_copy(update={"base": f"models/{name}", "revision": None})
        with pytest.raises(UserError, match=says):
            make_base(replace(opened, release=release), find_toolchain(read_environment()), environment, Progress("demo"))
