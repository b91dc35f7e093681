"""Building llama.cpp: what it must not do to a folder that is no build. That it builds is seen by every test that runs one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketvlm.errors import UserError
from pocketvlm.llamacpp.build import COMPLETE, build, read_pin


def test_a_folder_that_is_something_else_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    home = tmp_path / "my-llama.cpp"
    home.mkdir()
    (home / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=f"{home}.*nothing there was touched"):
        build(home)
    assert [path.name for path in home.iterdir()] == ["notes.txt"]


def test_a_build_of_another_commit_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    home = tmp_path / "older"
    home.mkdir()
    (home / COMPLETE).write_text('{"commit": "0123", "flags": []}')
    with pytest.raises(UserError, match=read_pin().commit[:9]):
        build(home)
    assert (home / COMPLETE).exists()
