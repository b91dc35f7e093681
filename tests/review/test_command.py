"""`pocketvlm review` from its command line to its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pocketvlm.cli import main


@pytest.fixture
def review(elements: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`review(*arguments)` gives the exit code; files land in a folder of the test."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: main(["--store", elements.environment.store, "review", "run.yaml", *arguments])


def test_the_page_is_written_and_its_place_is_said(review: Any, elements: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert review() == 0
    assert capsys.readouterr().out == f"review: .pocketvlm/reviews/{elements.run}.html\n"
    assert review("--to", "check.html", "--images", "3") == 0
    assert Path("check.html").stat().st_size < Path(f".pocketvlm/reviews/{elements.run}.html").stat().st_size


def test_for_label_studio_a_folder_is_written_and_no_page(review: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert review("--label-studio", "ls", "--images", "3") == 0
    assert sorted(path.name for path in Path("ls").iterdir()) == ["labels.xml", "tasks.json"]
    assert "ls/tasks.json to import" in capsys.readouterr().out
    assert not Path(".pocketvlm/reviews").exists()


@pytest.mark.parametrize("line", ["--label-studio ls --to x.html", "--label-studio ls --open", "--images 0"])
def test_what_cannot_be_meant_gives_two(review: Any, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert review(*line.split()) == 2
    assert capsys.readouterr().err.startswith(f"error: {line.split()[0]}")
    assert not Path("ls").exists()
